"""What a perplexity costs, batched against one window at a time with all logits: python -m bench.evaluate

The shipped base, read with YaRN s=16, on held-out files of the standard library, in fp32; every cell is a process of
its own. Three ways to the same numbers:

- ours: ``score``, windows of equal shape together, the output head on scored positions only, a piece at a time;
- loop: one window at a time, ``model(ids, labels=...)``, the same attention kernel: what transformers does today;
- reference: the same loop with attention as full matrices, which is what the model file of jquesnelle/yarn computes
  without flash-attention.

Two protocols: windows that slide by the stride, the same tokens scored at every window size; and ``truncate``, one pass
per document over its beginning at each of many window sizes, which for us is one pass for all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from bench.measure import in_process, peak_bytes, resident_bytes, table
from yarn_train.config import DataConfig, EvalConfig, RopeConfig
from yarn_train.data.tokenize import load_tokenizer
from yarn_train.eval.documents import held_out
from yarn_train.eval.perplexity.prefixes import prefixes
from yarn_train.eval.perplexity.score import score
from yarn_train.eval.perplexity.windows import Window, shared_targets, sliding_windows
from yarn_train.model.load import build_model, load_config
from yarn_train.model.registry import choose_kernel

BASE = Path(__file__).resolve().parent.parent / "data/base"
WAYS = ("ours", "loop", "reference")
BLOCKS = 2  # per document and window
BATCH = 4096  # positions per pass: one of the largest windows, sixteen of the smallest
BOS = 0


def model_of(way: str) -> Any:
    """The base with YaRN s=16: ours, or transformers' own with the same weights."""
    kernel = choose_kernel("sdpa", torch.device("cpu"), torch.float32)
    model = build_model(str(BASE), load_config(str(BASE)), RopeConfig(method="yarn", factor=16.0), kernel).eval()
    if way == "ours":
        return model
    attention = "sdpa" if way == "loop" else "eager"
    return AutoModelForCausalLM.from_pretrained(
        BASE, config=model.config, attn_implementation=attention, dtype=torch.float32
    )


@torch.inference_mode()
def looped(model: Any, tokens: torch.Tensor, windows: list[Window]) -> list[float]:
    """Summed loss of each window, one at a time, through all of its logits."""
    sums = []
    for begin, end, score_begin in windows:
        ids = torch.cat([torch.tensor([BOS]), tokens[begin:end]]).unsqueeze(0)
        labels = ids.clone()
        labels[:, : -(end - score_begin)] = -100
        sums.append(model(input_ids=ids, labels=labels).loss.item() * (end - score_begin))
    return sums


def measure(way: str, what: str, windows: list[int], stride: int, documents: int) -> dict[str, Any]:
    """CPU seconds, bytes above the loaded model, and the summed loss of every window.

    Args:
        what: a window size, which slides; or "truncate", all of them.
    """
    score_from, num_tokens = shared_targets(max(windows), stride, BLOCKS)
    options, source = EvalConfig(documents=documents), DataConfig(source="stdlib", held_out=0.1)
    texts = [ids for _, ids in held_out(options, source, load_tokenizer(BASE), num_tokens, num_tokens)]
    model = model_of(way)
    with torch.inference_mode():
        model(torch.zeros(1, 8, dtype=torch.long))  # what is set up at the first call is no part of it
    before, began = resident_bytes(), time.process_time()
    if what == "truncate":
        sizes = list(range(min(windows), max(windows) + 1, min(windows)))
        cut = [text[: max(sizes) - 1] for text in texts]
        if way == "ours":
            whole = score(model, cut, max(sizes), max(sizes) - 1, bos_id=BOS, batch_tokens=BATCH, curves=True)
            sums = [value for part in prefixes(whole, sizes, True) for value in part.nll_per_window]
        else:
            sums = [looped(model, text, [Window(0, size - 1, 0)])[0] for size in sizes for text in cut]
    elif way == "ours":
        sums = score(model, texts, int(what), stride, score_from, bos_id=BOS, batch_tokens=BATCH).nll_per_window
    else:
        spans = [(text, sliding_windows(len(text), int(what), stride, score_from, bos=True)) for text in texts]
        sums = [value for text, of_text in spans for value in looped(model, text, of_text)]
    return {"seconds": time.process_time() - began, "bytes": max(0, peak_bytes() - before), "sums": sums}


def main() -> None:
    """Measure every cell and print the table and the ratios of the sums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--stride", type=int, default=256)
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all numbers here too")
    parser.add_argument("--cell", nargs=2, metavar=("WAY", "WHAT"), help="one cell, as JSON")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.cell:
        way, what = given.cell
        print(json.dumps(measure(way, what, given.windows, given.stride, given.documents)))
        return
    lines, found = [], {}
    for what in [*map(str, given.windows), "truncate"]:
        cells = {way: in_process("bench.evaluate", *sys.argv[1:], "--cell", way, what) for way in WAYS}
        pairs = [zip(cells["ours"]["sums"], cells[way]["sums"], strict=True) for way in WAYS[1:]]
        cells["difference"] = max(abs(a - b) / abs(b) for pair in pairs for a, b in pair)
        found[what] = cells
        seconds = [cells[way]["seconds"] for way in WAYS]
        ratios = [f"{value / seconds[0]:.2f}" for value in seconds[1:]]
        sizes = [f"{cells[way]['bytes'] / 2**20:.0f}" for way in WAYS]
        lines.append([what, *(f"{value:.2f}" for value in seconds), *ratios, *sizes, f"{cells['difference']:.1e}"])
    print(f"{given.documents} documents, stride {given.stride}, {BLOCKS} blocks of each, fp32, {given.threads} threads")
    header = ["window", *(f"{way} s" for way in WAYS), *(f"{way} x" for way in WAYS[1:])]
    print(table([*header, *(f"{way} MiB" for way in WAYS), "difference"], lines))
    sliding = [cells for what, cells in found.items() if what != "truncate"]
    total = {way: sum(cells[way]["seconds"] for cells in sliding) for way in WAYS}
    print(
        f"all sliding windows: {total['reference'] / total['ours']:.2f} x faster than the reference's way, "
        f"{total['loop'] / total['ours']:.2f} x faster than the loop with the same kernel"
    )
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
