"""Run folders, checkpoints, and what a launcher or a user has set in the environment."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from bad_inputs.bad_input import Bad, Place

FOLDER = "Run folder"
CHECKPOINT = "Checkpoints"
LAUNCHER = "Launchers and the environment"


def bad(group: str, title: str, spoil: Callable[[Place], object], *words: str, trained: bool = False) -> Bad:
    return Bad(group, title, words, lambda place: (spoil(place), None)[1], trained=trained)


def launched(title: str, *words: str, **environ: str) -> Bad:
    return Bad(LAUNCHER, title, words, environ=tuple(environ.items()))


def is_file(place: Place) -> None:
    place.run.write_text("x")


def foreign(place: Place) -> None:
    place.run.mkdir()
    (place.run / "photo.jpg").write_bytes(b"x")


def checkpoints(place: Place) -> list[os.PathLike[str]]:
    return sorted((place.run / "01_s4" / "checkpoints").glob("step_*"))


def damage(place: Place) -> None:
    for checkpoint in checkpoints(place):
        for file in checkpoint.glob("*.safetensors"):
            os.truncate(file, file.stat().st_size - 1)


def other_books(place: Place) -> None:
    for book in place.books.rglob("*.txt"):
        book.write_text(book.read_text() * 2)


AGENT = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
BEGUN: dict[str, Any] = {"trained": True, "late": True, "leaves": ("run", "new")}
MORE = ("train.steps=3",)
CASES = [
    bad(FOLDER, "is a file", is_file),
    bad(FOLDER, "holds something else", foreign),
    bad(FOLDER, "holds a run, and run.resume=never", lambda place: None, "run.resume=never", trained=True),
    bad(FOLDER, "holds a run of another learning rate", lambda place: None, "optim.lr=1e-3", *MORE, trained=True),
    bad(FOLDER, "holds a run of another RoPE", lambda place: None, "rope.method=pi", *MORE, trained=True),
    Bad(CHECKPOINT, "all are damaged", (), damage, **BEGUN),
    Bad(CHECKPOINT, "of other data", ("data.cache={w}/new",), other_books, **BEGUN),
    launched("RANK is no number", RANK="one", WORLD_SIZE="2"),
    launched("RANK without WORLD_SIZE", RANK="0"),
    launched("RANK beyond WORLD_SIZE", **{**AGENT, "RANK": "2"}),
    launched("LOCAL_WORLD_SIZE beyond WORLD_SIZE", **{**AGENT, "LOCAL_WORLD_SIZE": "4"}),
    launched("no MASTER_ADDR", RANK="0", WORLD_SIZE="2", MASTER_PORT="29500"),
    launched("MASTER_PORT is no port", **{**AGENT, "MASTER_PORT": "http"}),
    launched("launch.nproc_per_node under torchrun", "launch.nproc_per_node=4", **AGENT),
    launched("a batch that does not divide the ranks", "train.global_batch_size=3", **AGENT),
    launched("parallel sizes that do not divide the ranks", "parallel.context=3", **AGENT),
    launched("launch.nproc_per_node=gpu without a GPU", "launch.nproc_per_node=gpu"),
    launched("a batch that does not divide the workers to be started", "launch.nproc_per_node=3"),
]
