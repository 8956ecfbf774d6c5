"""This project's trainer: what train.py runs, a step at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.peers.case import Case
from bench.peers.turns import Turns
from yarn_train.console.lines import silent
from yarn_train.dist import runtime
from yarn_train.model.load import load_config
from yarn_train.stages import Stage
from yarn_train.train.loop import read_ahead, train_step
from yarn_train.train.overview import Outlook
from yarn_train.train.setup import build_trainer


def train(case: Case, turns: Turns, **sections: dict[str, Any]) -> None:
    """Until there are no more turns; `sections` are options that differ from the case's."""
    cfg = case.options(**sections)
    stage = Stage("s1", Path(case.folder) / "ours", cfg)
    base = load_config(str(case.model_folder))
    trainer = build_trainer(stage, base, str(case.model_folder), case.parts(), runtime.start(), silent, Outlook())
    with read_ahead(trainer, case.steps) as data:
        while turns.wait():
            row = train_step(trainer, data)
            turns.done(row["loss"])
