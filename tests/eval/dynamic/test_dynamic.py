"""eval=dynamic from its entry: rows against models built for each window, what is computed, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from yarn_train import config as schema
from yarn_train.config import RopeConfig
from yarn_train.errors import ConfigError
from yarn_train.eval import __main__ as entry
from yarn_train.eval.documents import evaluated
from yarn_train.eval.dynamic import task
from yarn_train.eval.perplexity.plan import plan
from yarn_train.eval.perplexity.score import score
from yarn_train.report import terminal
from yarn_train.rope.hf import scaled_config

WORDS = ("eval=dynamic", "eval.stride=8", "eval.documents=2", "model.dtype=float32", "study.factors=[2,3]")
WINDOWS = [16, 32, 64, 96]  # L/2, L, 2L and 3L of the tiny model


@pytest.fixture
def study(compose: Any, monkeypatch: pytest.MonkeyPatch, base: Path, books: Path, tmp_path: Path) -> Any:
    """study(*words) -> (rows, how many windows were scored); again and again in the same folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal, "show_report", lambda folder: None)
    calls: list[int] = []
    own = task.scores
    monkeypatch.setattr(task, "scores", lambda *given: calls.append(given[1]) or own(*given))

    def run(*words: str) -> tuple[list[dict[str, Any]], int]:
        calls.clear()
        where = (f"model.path={base}", "eval.source=pg19", f"eval.path={books}")
        entry.evaluate_model(compose(*WORDS, *where, *words), (), tmp_path)
        return json.loads(file_of(tmp_path).read_text()), len(calls)

    return run


def file_of(folder: Path) -> Path:
    return next(folder.glob("outputs/eval/*/eval/dynamic.json"))


def test_every_row_is_that_of_a_model_built_for_its_window(study, compose, base, books):
    found, scored = study("study.methods=[pi,yarn]")
    labels = ["base", "PI s=2", "PI s=3", "Dynamic PI", "YaRN s=2", "YaRN s=3", "Dynamic YaRN"]
    assert [(r["label"], r["window"], r["mode"]) for r in found] == [
        (label, window, mode) for label in labels for window in WINDOWS for mode in ("token_mean", "window_mean")
    ]
    assert {r["method"] for r in found} == {"none", "pi", "dynamic pi", "yarn", "dynamic yarn"}
    assert {r["factor"] for r in found if r["label"].startswith("Dynamic")} == {3.0}

    listed = ("study.methods=[pi,yarn]", f"eval.windows={WINDOWS}", "eval.source=pg19", f"eval.path={books}")
    cfg = schema.build(compose(*WORDS, *listed, f"model.path={base}"))
    scoring = plan(cfg, evaluated(cfg), AutoTokenizer.from_pretrained(base), 32, 3.0)
    plain = AutoConfig.from_pretrained(base)
    for row in found:
        dynamic = row["method"].removeprefix("dynamic ")
        s = max(1.0, row["window"] / 32) if dynamic != row["method"] else row["factor"]
        config = scaled_config(plain, RopeConfig(method=dynamic, factor=s))
        model = AutoModelForCausalLM.from_pretrained(base, config=config, dtype=torch.float32)
        expected = score(model, scoring.documents, row["window"], 8, scoring.score_from, bos_id=0)
        assert row["perplexity"] == pytest.approx(expected.perplexity(row["mode"]), rel=1e-6), row
        assert row["tokens"] == expected.tokens
        assert row["low"] < row["perplexity"] < row["high"]
    # at s = 1 all are the base itself, and a dynamic curve meets the fixed ones where its s is theirs
    assert scored == 4 + (4 + 4) + (4 + 4)


def test_what_is_there_stays_and_only_what_is_missing_is_computed(study, tmp_path, monkeypatch):
    whole, scored = study("study.methods=[ntk]")
    assert scored == 4 + 4 + 4
    file = file_of(tmp_path)
    marked = [{**row, "perplexity": 7.0} if row["label"] == "base" else row for row in whole]

    file.write_text(json.dumps([row for row in marked if row["label"] != "NTK-aware s=2"]))
    found, scored = study("study.methods=[ntk]")
    assert found == marked, "the base is not computed again"
    assert scored == 3, "the dynamic curve knows s=2 at 64"

    file.write_text(json.dumps([row for row in whole if not row["label"].startswith("Dynamic")]))
    monkeypatch.setattr(task, "loaded", None)  # nothing needs the model
    found, scored = study("study.methods=[ntk]")
    assert (found, scored) == (whole, 0)


def test_a_window_that_is_done_survives_a_kill(study, tmp_path, monkeypatch):
    whole, _ = study("study.methods=[pi]")
    file, own = file_of(tmp_path), task.scores
    file.unlink()

    def until_the_seventh(model: Any, window: int, *others: Any) -> Any:
        if len(json.loads(file.read_text()) if file.exists() else []) == 6 * 2:
            raise KeyboardInterrupt
        return own(model, window, *others)

    monkeypatch.setattr(task, "scores", until_the_seventh)
    with pytest.raises(KeyboardInterrupt):
        study("study.methods=[pi]")
    monkeypatch.setattr(task, "scores", own)
    found, scored = study("study.methods=[pi]")
    assert found == whole
    assert scored == 12 - 6


def test_more_methods_later_keep_the_rows_of_the_others(study):
    first, _ = study("study.methods=[ntk]")
    found, scored = study("study.methods=[pi]")
    assert found[: len(WINDOWS) * 2] == first[: len(WINDOWS) * 2], "the base stays the first"
    assert found[-len(first) + len(WINDOWS) * 2 :] == first[len(WINDOWS) * 2 :]
    assert {r["method"] for r in found} == {"none", "ntk", "dynamic ntk", "pi", "dynamic pi"}
    assert scored == 8


def test_other_options_are_other_rows(study, tmp_path):
    study("study.methods=[yarn]")
    _, scored = study("study.methods=[yarn]", "rope.beta=16")
    assert scored > 8
    assert file_of(tmp_path).with_name("dynamic.1.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("rope.temperature=0.9",), "rope.temperature: got 0.9; allowed: auto, because the temperature follows s"),
        (("study.factors=[]",), r"study.factors: got \[\]; allowed: one or more"),
        (("study.methods=[]",), r"study.methods: got \[\]; allowed: one or more"),
        (("rope.original_max_position_embeddings=8",), "rope.original_max_position_embeddings: got 8; allowed: 32"),
    ],
)
def test_what_cannot_be_studied_is_refused_before_anything_loads(study, words, message, monkeypatch):
    monkeypatch.setattr(task, "plan", None)
    with pytest.raises(ConfigError, match=message):
        study(*words)


def test_a_scaled_base_is_refused(study, base, tmp_path):
    config = scaled_config(AutoConfig.from_pretrained(base), RopeConfig(method="yarn", factor=2.0))
    config.save_pretrained(tmp_path / "scaled")
    with pytest.raises(ConfigError, match="scaled already"):
        study(f"model.path={tmp_path / 'scaled'}")
    assert task.problems(schema.Config(), config) != []
