"""TensorBoard events in ``<run>/tensorboard``; torch's writer is imported when used."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .tracked import Point, scores
from .tracker import Record

NAME = "tensorboard"
HYPERPARAMETERS = (int, float, str, bool)


def installed() -> bool:
    """Whether events can be written; nothing is imported."""
    return importlib.util.find_spec("tensorboard") is not None


class TensorBoardTracker:
    """Writes points as scalars; see :class:`.tracker.Tracker`."""

    name = NAME

    def __init__(self, folder: Path, config: Mapping[str, Any], record: Record):
        self.folder, self.config, self.record = folder / NAME, config, record
        self.patience = 30.0
        self._writer: Any = None
        self._last = 0

    def open(self) -> None:
        """Nothing yet: which steps are done again is known when training begins."""

    def first(self, resumed: int) -> int:
        """Steps that are done again replace the earlier ones: readers drop what an earlier file has from there on."""
        from torch.utils.tensorboard import SummaryWriter

        sent = int(self.record.read(NAME).get("sent", 0))
        first = min(sent, resumed) + 1
        self._last = first - 1
        self._writer = SummaryWriter(str(self.folder), purge_step=first if first > 1 else None)
        text = json.dumps(self.config, indent=1, default=str)
        self._writer.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()), self._last)
        return first

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            for name, value in point.values.items():
                self._writer.add_scalar(name, value, point.step)
        self._last = points[-1].step
        self._writer.flush()
        self.record.write(NAME, sent=self._last)

    def evaluation(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Also as the run's results beside its options, on TensorBoard's page of hyperparameters."""
        from torch.utils.tensorboard.summary import hparams

        results = scores(rows)
        for name, value in results.items():
            self._writer.add_scalar(name, value, step)
        options = {key: value for key, value in _flat(self.config).items() if isinstance(value, HYPERPARAMETERS)}
        for summary in hparams(options, results):  # SummaryWriter.add_hparams would make a run of its own for them
            self._writer.file_writer.add_summary(summary)
        self._writer.flush()

    def model(self, folder: Path) -> None:
        """TensorBoard keeps no models."""

    def finish(self, ending: str) -> str | None:
        if self._writer is not None:
            self._writer.close()
        return None

    def let_go(self) -> None:
        """Its writer has a thread that no exit waits for."""


def _flat(nested: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return flat
