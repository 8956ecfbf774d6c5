"""The commands that a run ends with do what they say: they compose, and keep what was typed."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from yarn_train import app, cli
from yarn_train.stages import examine, resolve

WORDS = {
    "plain": ["experiment=extend", "model.path=somewhere", "rope.factor=4", "run.name=mine"],
    "as trained": ["experiment=yarn_llama2_7b_64k", "rope=pi", "run.dir=/tmp/x", "train.stop_after=3"],
    "a column": ["experiment=extend", "data.source=text", "data.path=books.jsonl", "data.column=body"],
    "a mixture": [
        *("experiment=extend", "data.source=mixture", "data.mixture.a={source: stdlib, weight: 1}"),
        *("data.mixture.b={source: text, path: b, weight: 2}", "eval.source=stdlib"),
    ],
}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_the_next_stage_keeps_what_was_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    before = resolve(cli.compose(words), tmp_path)
    found = app.next_words(before, tmp_path)
    assert not any(word.startswith("train.stop_after") for word in found)
    (stage,), problems = examine(cli.compose(found), tmp_path)
    assert problems.lines == []
    now, then = stage.cfg, before[0].cfg
    assert now.rope.factor == 2 * then.rope.factor
    assert (now.run.init_from, now.run.name) == (str(tmp_path), f"{then.run.name}_s{now.rope.factor:g}")
    assert (now.optim, now.data, now.model, now.rope.method) == (then.optim, then.data, then.model, then.rope.method)
    assert (now.train.steps, now.eval) == (then.train.steps, then.eval)


def test_nothing_is_said_where_one_word_does_not_say_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert app.next_words(resolve(cli.compose([]), tmp_path), tmp_path) == []


def test_going_on_is_not_stopped_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ["experiment=extend", "train.stop_after=3", "run.name=mine"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    text = app.ending_of(tmp_path, resolve(cli.compose(words), tmp_path), "stopped by train.stop_after")
    line = next(line for line in text.splitlines() if "go on" in line)
    assert shlex.split(line.partition(": ")[2]) == ["python", "train.py", "experiment=extend", "run.name=mine"]
