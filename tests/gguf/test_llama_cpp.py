"""llama.cpp itself on our GGUFs against transformers, in float32 on CPU: the next token's log-probabilities.

Runs with YARN_TRAIN_LLAMA_CPP, a python that can import llama_cpp, or what ``make llama-cpp`` builds.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_models import BASE, CONFIGS, L3, PLAIN, config, extend, save
from support import ROOT, child_env
from tokenizers import Regex, Tokenizer, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer

from yarn_train.config import RopeConfig
from yarn_train.gguf import rope, source, write
from yarn_train.gguf.rope import RopeKeys
from yarn_train.gguf.vocabulary import SPLITS

INTERPRETER = Path(os.environ.get("YARN_TRAIN_LLAMA_CPP") or ROOT / ".llama-cpp/bin/python")
WORKER = Path(__file__).parent / "llama_worker.py"
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not INTERPRETER.exists(), reason="make llama-cpp first, or set YARN_TRAIN_LLAMA_CPP"),
]
CLOSE, FAR = 2e-3, 0.05
YARN = RopeConfig(method="yarn", factor=8.0)
METHODS = {
    "none": PLAIN,
    "pi": RopeConfig(method="pi", factor=8.0),
    "yarn": YARN,
    "temperature": replace(YARN, temperature=0.5),
    "ntk_by_parts": RopeConfig(method="ntk_by_parts", factor=8.0),
    "ntk": RopeConfig(method="ntk", factor=8.0),
}
PER_PAIR = {
    "by_rotations": replace(YARN, ramp="by_rotations"),
    "not_truncated": replace(YARN, truncate=False),
    "betas": replace(YARN, alpha=0.125, beta=2.0),
}
CASES = [(family, method) for family in CONFIGS for method in METHODS] + [("llama", method) for method in PER_PAIR]


def llama_cpp(gguf: Path, ids: list[int], lengths: list[int], text: str = "") -> tuple[torch.Tensor, list[int]]:
    """(log-probabilities [len(lengths), vocab], the text's tokens)."""
    ids_file, out, text_file = (gguf.with_suffix(end) for end in (".ids.npy", ".npz", ".txt"))
    np.save(ids_file, np.array(ids))
    text_file.write_text(text, encoding="utf-8")
    named = [str(text_file) if text else "", *map(str, lengths)]
    command = [str(INTERPRETER), str(WORKER), str(gguf), str(ids_file), str(out), *named]
    done = subprocess.run(command, env=child_env(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = np.load(out)
    return torch.log_softmax(torch.from_numpy(found["logits"]).double(), -1), found["tokens"].tolist()


def transformers(folder: Path, ids: list[int], lengths: list[int]) -> torch.Tensor:
    """The same from transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        rows = [model(torch.tensor([ids[:length]]), logits_to_keep=1).logits[0, -1] for length in lengths]
    return torch.log_softmax(torch.stack(rows).double(), -1)


def real_text() -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md")))


@pytest.mark.parametrize(("family", "method"), CASES)
def test_random_models(family: str, method: str, tmp_path: Path) -> None:
    """Below and far beyond the original length of 64, at large weights: every family and method."""
    folder = save(tmp_path / "m", family, {**METHODS, **PER_PAIR}[method])
    write.write_gguf(folder, tmp_path / "m.gguf")
    ids, lengths = np.random.default_rng(0).integers(2, 4096, 500).tolist(), [40, 500]
    difference = (llama_cpp(tmp_path / "m.gguf", ids, lengths)[0] - transformers(folder, ids, lengths)).abs()
    assert difference.max() < CLOSE


def test_trained_model_on_real_text(tmp_path: Path) -> None:
    """data/base extended 32 times by its config: the first, middle and last part of 8,192 tokens, and the tokenizer."""
    folder = extend(BASE, tmp_path / "m", RopeConfig(method="yarn", factor=32.0))
    write.write_gguf(folder, tmp_path / "m.gguf")
    tokenizer, text, lengths = AutoTokenizer.from_pretrained(folder), real_text(), [200, 2000, 8000]
    ids = tokenizer(text)["input_ids"][:8000]
    ours = transformers(folder, ids, lengths)
    theirs, tokens = llama_cpp(tmp_path / "m.gguf", ids, lengths, text[:20000])
    difference = (ours - theirs).abs().amax(-1)
    print("max difference of log-probabilities", dict(zip(lengths, difference.tolist(), strict=True)))
    assert difference.max() < CLOSE
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))
    assert tokens == tokenizer(text[:20000])["input_ids"]


def test_a_base_with_llama3_scaling(tmp_path: Path) -> None:
    folder = save(tmp_path / "m")
    config("llama", rope_parameters=L3, max_position_embeddings=512).save_pretrained(folder)
    write.write_gguf(folder, tmp_path / "m.gguf")
    ids, lengths = np.random.default_rng(0).integers(2, 4096, 500).tolist(), [40, 500]
    difference = (llama_cpp(tmp_path / "m.gguf", ids, lengths)[0] - transformers(folder, ids, lengths)).abs()
    assert difference.max() < CLOSE


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2", "smollm", "gpt-2"])
def test_text_is_split_as_the_tokenizer_does(name: str, tmp_path: Path) -> None:
    """A tokenizer trained with the split of each family, on text full of digits, cases, spaces and line ends."""
    folder = save(tmp_path / "m")
    text = real_text()[:60000] + "\n\n  I'LL won't 12345 6789 3.14159,\r\n\t\u00e9t\u00e9 \u4f60\u597d!!!\n \n  x"
    tokenizer = Tokenizer.from_str((BASE / "tokenizer.json").read_text())
    regex = next((regex for regex, known in SPLITS.items() if known == name), None)
    if regex:
        split = pre_tokenizers.Split(Regex(regex), "isolated")
        steps = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    elif name == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    trainer = trainers.BpeTrainer(
        vocab_size=3000, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([text], trainer)
    data = json.loads(tokenizer.to_str())
    data["model"]["ignore_merges"] = name == "llama-bpe"
    (folder / "tokenizer.json").write_text(json.dumps(data))
    write.write_gguf(folder, tmp_path / "m.gguf")
    expected = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    assert llama_cpp(tmp_path / "m.gguf", [5, 6, 7], [3], text)[1] == expected


@pytest.mark.parametrize("wrong", ["betas", "factor", "attn_factor", "theta", "kind", "permutation"])
def test_a_wrong_file_is_seen(wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison finds what it is for: each single fault moves the log-probabilities far beyond the tolerance."""
    trained = PER_PAIR["betas"] if wrong == "betas" else YARN
    folder = save(tmp_path / "m", "llama", trained, max_position_embeddings=256)
    changed: dict[str, Any] = {"factor": 4.0, "attn_factor": 1.2, "theta": 5e4, "kind": "none"}
    if wrong == "permutation":
        monkeypatch.setattr(source, "PERMUTED", frozenset())
    else:
        right = rope.keys_for

        def damaged(*arguments: Any) -> RopeKeys:
            if wrong == "betas":  # as llama.cpp's own conversion says it
                return RopeKeys(10000.0, "yarn", 8.0, 256)
            return replace(right(*arguments), **{wrong: changed[wrong]})

        monkeypatch.setattr(write, "keys_for", damaged)
    write.write_gguf(folder, tmp_path / "m.gguf")
    ids = np.random.default_rng(0).integers(2, 4096, 500).tolist()
    difference = (llama_cpp(tmp_path / "m.gguf", ids, [500])[0] - transformers(folder, ids, [500])).abs().max()
    print("difference of log-probabilities", wrong, float(difference))
    assert difference > FAR
