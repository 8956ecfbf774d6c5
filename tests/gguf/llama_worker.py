"""Run by an interpreter that has llama_cpp: log-probabilities of the last token, and how a text is cut into tokens.

llama_worker.py GGUF IDS.npy OUT.npz TEXT LENGTH...: logits [len(LENGTHS), vocab] after the first LENGTH ids.
"""

from __future__ import annotations

import sys
from pathlib import Path

import llama_cpp
import numpy as np


def main(gguf: str, ids_file: str, out: str, text: str, *lengths: str) -> None:
    ids = np.load(ids_file).tolist()
    longest = max(int(length) for length in lengths)
    model = llama_cpp.Llama(
        gguf,
        n_ctx=longest + 8,
        n_batch=512,
        n_gpu_layers=0,
        n_threads=1,
        n_threads_batch=1,
        flash_attn=False,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    vocabulary, found = model.n_vocab(), []
    for length in map(int, lengths):
        model.reset()
        model.eval(ids[:length])
        last = llama_cpp.llama_get_logits_ith(model.ctx, -1)
        found.append(np.ctypeslib.as_array(last, shape=(vocabulary,)).copy())
    tokens = model.tokenize(Path(text).read_bytes(), add_bos=True, special=False) if text else []
    np.savez(out, logits=np.stack(found), tokens=np.array(tokens))


if __name__ == "__main__":
    main(*sys.argv[1:])
