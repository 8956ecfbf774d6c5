"""What wandb wrote, in words of wandb: runs, rows, summaries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from yarn_train.metrics.wandb_log import payloads


class Start:
    """What one start of a run wrote.

    Attributes:
        run: the run record.
        config: option -> value, of the run record and of later changes.
        history: rows in order, each with its ``_step``.
        summary: name -> value.
        exit_codes: of the exit records.
        models: records of artifacts that are models.
        kinds: how many records there are of each kind.
    """

    def __init__(self, path: Path):
        from wandb.proto.wandb_internal_pb2 import Record

        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.exit_codes: list[int] = []
        self.models: list[Any] = []
        self.kinds: dict[str, int] = {}
        self.run: Any = None
        for payload in payloads(path):
            record = Record.FromString(payload)
            kind = record.WhichOneof("record_type")
            self.kinds[kind] = self.kinds.get(kind, 0) + 1
            if kind == "run":
                self.run = record.run
                self.config |= {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.run.config.update}
            elif kind == "history":
                values = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                self.history.append(values)
            elif kind == "summary":
                self.summary |= {
                    i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.summary.update
                }
            elif kind == "exit":
                self.exit_codes.append(record.exit.exit_code)
            elif kind == "artifact" and record.artifact.type == "model":
                self.models.append(record.artifact)


def starts(run: Path) -> list[Start]:
    """All starts of a run that was tracked offline, in order."""
    return [Start(path) for path in sorted((run / "wandb").glob("offline-run-*/*.wandb"))]
