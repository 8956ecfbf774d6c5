"""The evaluation as a run does it: which files it writes, and what it does not do twice."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from perplexity_oracles import reference
from transformers import AutoModelForCausalLM

from yarn_train.config import Config, DataConfig, EvalConfig, build
from yarn_train.dist.runtime import start
from yarn_train.errors import ConfigError
from yarn_train.eval.documents import evaluated, held_out
from yarn_train.eval.job import Job
from yarn_train.eval.perplexity import task
from yarn_train.eval.perplexity.plan import plan
from yarn_train.eval.variants import Variant
from yarn_train.intervals import interval
from yarn_train.model.load import load_config

FILES = ("perplexity", "perplexity_documents", "positions")


def rows(run: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((run / "eval" / f"{name}.json").read_text())


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """Windows that were scored."""
    found: list[int] = []
    real = task.scores

    def noted(model, window, *rest, **options):
        found.append(window)
        return real(model, window, *rest, **options)

    monkeypatch.setattr(task, "scores", noted)
    return found


def evaluate(cfg: Config, variant: Variant, tokenizer: Any, folder: Path) -> list[str]:
    """What the task says while it writes ``folder/eval``."""
    said: list[str] = []
    base = load_config(variant.weights)
    task.run(Job(cfg, [variant], base, tokenizer, 32, 4.0, evaluated(cfg), folder / "eval", start(), said.append))
    return said


def test_truncate_is_what_the_reference_runs_and_one_pass(
    compose, tiny_args, tiny_model, tiny_tokenizer, books, tmp_path, passes
):
    words = ("eval.truncate=true", "eval.windows_per_document=null", "eval.windows=[16,40,64,128]")
    words = (*words, "eval=perplexity", "model.dtype=float32", "eval.order=first", "eval.documents=2")
    variant = Variant("tiny", "none", None, 1.0, None, str(tiny_model), None)
    run = tmp_path
    said = evaluate(build(compose(*tiny_args, *words)), variant, tiny_tokenizer, run)
    assert [line.split(":")[0] for line in said] == ["window 16", "window 40", "window 64", "window 128"]
    assert passes == [128]
    source = DataConfig(source="pg19", path=str(books))
    named = held_out(EvalConfig(documents=2, order="first"), source, tiny_tokenizer, 128, None)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    made = rows(run, "perplexity")
    assert [(row["window"], row["stride"], row["mode"]) for row in made] == [
        (window, window - 1, "truncate") for window in (16, 40, 64, 128)
    ]
    for row in made:
        expected = reference(model, [tokens for _, tokens in named], row["window"], 1, 0, truncate=True)
        assert row["perplexity"] == pytest.approx(expected, rel=1e-6)
        assert row["low"] < row["perplexity"] < row["high"]
        assert (row["tokens"], row["documents"]) == (2 * (row["window"] - 1), 2)
    at_most = [row for row in rows(run, "perplexity_documents") if row["window"] == 128]
    assert [row["document"] for row in at_most] == [name for name, _ in named]
    curve = rows(run, "positions")
    assert (curve[0]["begin"], curve[-1]["end"], {row["window"] for row in curve}) == (1, 128, {128})
    whole = sum(row["loss"] * row["tokens"] for row in curve)
    assert whole == pytest.approx(sum(row["nll"] for row in at_most))
    assert math.exp(whole / sum(row["tokens"] for row in curve)) == pytest.approx(made[-1]["perplexity"])


def test_what_is_there_is_not_scored_again(compose, tiny_args, tiny_model, tiny_tokenizer, tmp_path, passes):
    said: list[str] = []
    words = (*tiny_args, "eval=perplexity", "eval.windows=[32,64,128]", "eval.documents=2", "eval.stride=16")

    def again(*others: str) -> list[int]:
        passes.clear()
        cfg = build(compose(*words, *others))
        said[:] = evaluate(cfg, Variant.of("one", cfg.rope, None, str(tiny_model)), tiny_tokenizer, tmp_path)
        return passes

    assert again() == [32, 64, 128]
    assert len(said) == 3
    whole = {name: rows(tmp_path, name) for name in FILES}
    row = whole["perplexity"][0]
    between = f"{row['perplexity']:.4f} ({row['low']:.4f} to {row['high']:.4f})"
    assert said[0] == f"window 32: perplexity {between}, token_mean, 64 tokens of 2 documents"
    sums = [(r["nll"], r["tokens"]) for r in whole["perplexity_documents"] if r["window"] == 32]
    found = interval(*zip(*sums, strict=True), 1000)
    assert found is not None
    assert found.exp() == pytest.approx((row["perplexity"], row["low"], row["high"]))

    assert again() == []
    (tmp_path / "eval/positions.json").unlink()
    assert again("eval.positions=false") == []
    assert again() == [128]  # the positions come with its pass
    lost = [row for row in whole["perplexity"] if row["window"] != 64]
    (tmp_path / "eval/perplexity.json").write_text(json.dumps(lost))
    assert again() == [64]
    (tmp_path / "eval/perplexity_documents.json").write_text("[{")
    assert again() == [32, 64, 128]
    assert (tmp_path / "eval/perplexity_documents.1.json").read_text() == "[{"
    assert {name: rows(tmp_path, name) for name in FILES} == whole
    assert again("eval.bootstrap=0") == [32, 64, 128]
    assert {(row["low"], row["high"]) for name in FILES[::2] for row in rows(tmp_path, name)} == {(None, None)}
    assert rows(tmp_path, "positions.2") == whole["positions"]


def test_min_tokens_that_ends_before_the_last_block_is_refused(compose, tiny_args, tiny_tokenizer):
    words = (*tiny_args, "eval=perplexity", "eval.windows=[32]", "eval.stride=16", "eval.min_tokens=40")
    cfg = build(compose(*words))
    with pytest.raises(ConfigError, match=r"eval\.min_tokens.*got 40.*>= 48"):
        plan(cfg, evaluated(cfg), tiny_tokenizer, 32, 4.0)
    whole = build(compose(*words, "eval.windows_per_document=null", "eval.documents=1"))
    (document,) = plan(whole, evaluated(whole), tiny_tokenizer, 32, 4.0).documents
    assert len(document) >= 40


@pytest.mark.parametrize("truncate", ["false", "true"])
def test_max_tokens_below_the_default_windows_is_refused(compose, tiny_args, tiny_tokenizer, truncate):
    words = ("eval=perplexity", "eval.windows_per_document=null", f"eval.truncate={truncate}")
    cfg = build(compose(*tiny_args, *words, "eval.windows=[]", "eval.max_tokens=100"))
    with pytest.raises(ConfigError, match=r"eval\.max_tokens: got 100; allowed: >= the largest .*128"):
        plan(cfg, evaluated(cfg), tiny_tokenizer, 32, 4.0)
    assert plan(cfg, evaluated(cfg), tiny_tokenizer, 25, 4.0).windows == [25, 50, 100]


def test_a_stride_that_the_smallest_window_shortens_is_said_once(compose, tiny_args, tiny_tokenizer):
    said: list[str] = []
    words = ("eval=perplexity", "eval.windows=[16,32]", "eval.documents=1")
    for stride in (24, 16):
        cfg = build(compose(*tiny_args, *words, f"eval.stride={stride}"))
        assert plan(cfg, evaluated(cfg), tiny_tokenizer, 32, 4.0, said.append).stride == 16
    assert said == ["every window moves by 16 tokens, not 24: the smallest, 16, allows no more"]
