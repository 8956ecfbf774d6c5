"""Runs to compare, and changes to copies of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from yarn_train import app
from yarn_train.checkpoint.complete import Complete
from yarn_train.checkpoint.safetensors_file import read_sealed

STAGE = "01_s4"


@dataclass(frozen=True)
class Runs:
    """Makes runs of the tiny model in one folder, with one prepared data folder."""

    folder: Path
    options: tuple[str, ...]
    compose: Callable[..., dict[str, Any]]

    def __call__(self, name: str, *overrides: str) -> Path:
        words = [*self.options, *overrides]
        typed = {text.split("=")[0].lstrip("+"): text for text in words}
        app.train(self.compose(*words), typed, self.folder / name)
        return self.folder / name


def change_row(run: Path, step: int, **values: Any) -> None:
    """Put other values into a step's row."""
    file = run / STAGE / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows = [{**row, **values} if row["step"] == step else row for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def change_record(run: Path, **values: Any) -> None:
    """Put other values into run.json."""
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, **values}))


def reseal(checkpoint: Path) -> None:
    """Make COMPLETE say what the files are now, as if they had been saved so."""
    said = Complete.load(checkpoint)
    files = {name: read_sealed(checkpoint / name) for name in said.files}
    (checkpoint / "COMPLETE").write_text(Complete(said.step, said.world_size, said.saved, files).text())


def lose_moments(checkpoint: Path) -> None:
    """Make all of AdamW's moments zero."""
    [file] = checkpoint.glob("rank_*.safetensors")
    tensors = load_file(file)
    lost = [name for name in tensors if "exp_avg" in name]
    assert lost
    save_file({name: t * 0 if name in lost else t for name, t in tensors.items()}, file)
    reseal(checkpoint)
