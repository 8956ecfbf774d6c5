"""Every bad input gets one clear error, exits with its code and writes nothing; docs/errors.md shows them all.

``UPDATE_ERRORS=1 pytest tests/bad_inputs -p no:xdist`` writes that file.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_inputs import bad_data, bad_entries, bad_evaluations, bad_models, bad_options, bad_places, bad_sweeps
from bad_inputs.bad_input import Bad, Place, copied, neutral, row, run, tree
from support import ROOT

from yarn_train.dist import runtime as dist_runtime

CASES: list[Bad] = [
    *(*bad_options.CASES, *bad_models.CASES, *bad_data.CASES, *bad_evaluations.CASES, *bad_places.CASES),
    *(*bad_sweeps.CASES, *bad_entries.CASES),
]
TABLE = ROOT / "docs" / "errors.md"
UPDATE = "UPDATE_ERRORS"
HEAD = """# What goes wrong, and what is said

Every row was made by running the input through the real entry, on a command line that trains, changed by what is named
on the left. `/w` is a folder of the user's. All problems of a start are told at once, before weights load and before
anything is written; the exit code is 2, of the report 1. Only a text's tokens and a checkpoint's files are known later:
those errors leave what is tokenised, and a run folder that says why it ended. What goes wrong while a run goes on:
[faults.md](faults.md). `tests/bad_inputs` makes this file and fails when it is not what the programs say.
"""
NAMES = [f"{bad.group}: {bad.title}" for bad in CASES]
said: dict[str, str] = {}


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, books: Path, compose: Callable[..., dict[str, object]]
) -> Path:
    """A place in which two steps have been trained."""
    from yarn_train import app

    place = Place(tmp_path_factory.mktemp("trained"))
    copied(tiny_model, place.model)
    copied(books, place.books)
    words = place.words(["train.stop_after=1"])
    app.train(compose(*words), {word.split("=")[0]: word for word in words}, place.run)
    dist_runtime.stop()
    return place.folder


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path, books: Path) -> Place:
    """A model and books."""
    place = Place(tmp_path / "w")
    copied(tiny_model, place.model)
    copied(books, place.books)
    return place


@pytest.mark.parametrize("bad", CASES, ids=NAMES)
def test_a_bad_input_is_one_clear_error(
    bad: Bad, place: Place, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    dist_runtime.stop()
    if bad.trained:
        move_in(request.getfixturevalue("trained"), place)
    bad.spoil(place)
    monkeypatch.chdir(place.folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, value in bad.environ:
        monkeypatch.setenv(name, value)
    before = tree(place.folder)
    code, text = run(bad, place)
    message = neutral(text, place)
    assert code == bad.code, message
    assert text.count("error: ") == 1, text
    assert "Traceback" not in text
    assert bad.late or not dist_runtime.dist.is_initialized(), "workers met before the error"
    assert {name: what for name, what in tree(place.folder).items() if not name.startswith(bad.leaves)} == {
        name: what for name, what in before.items() if not name.startswith(bad.leaves)
    }
    said[f"{bad.group}: {bad.title}"] = message
    if UPDATE not in os.environ:
        assert row(bad.title, message) in TABLE.read_text(encoding="utf-8").splitlines()


def move_in(trained: Path, place: Place) -> None:
    """Put the trained run and its data into a place, with its paths."""
    for name in ("run", "cache"):
        copied(trained / name, place.folder / name)
    for file in place.folder.rglob("config.yaml"):
        file.write_text(file.read_text().replace(str(trained), str(place.folder)))


def test_the_table_has_every_bad_input_and_no_other() -> None:
    if UPDATE in os.environ:
        TABLE.write_text(table(), encoding="utf-8")
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith(("| ", "## "))]
    groups = dict.fromkeys(bad.group for bad in CASES)
    assert [line[3:] for line in lines if line.startswith("## ")] == list(groups)
    assert len(NAMES) == len(set(NAMES)) >= 50
    titles = [row(bad.title, "").removesuffix("|  |") for group in groups for bad in CASES if bad.group == group]
    rows = [line for line in lines if line.startswith("| ") and line != "| Input | Message |"]
    assert [line[: len(title)] for line, title in zip(rows, titles, strict=True)] == titles


def table() -> str:
    """docs/errors.md, of what the tests before this one have seen."""
    text = HEAD
    for group in dict.fromkeys(bad.group for bad in CASES):
        text += f"\n## {group}\n\n| Input | Message |\n|---|---|\n"
        found = [bad for bad in CASES if bad.group == group]
        text += "".join(row(bad.title, said[f"{group}: {bad.title}"]) + "\n" for bad in found)
    return text
