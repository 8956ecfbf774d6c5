"""Weights & Biases: one wandb run per training run, over all its stages and starts. wandb is imported when used."""

from __future__ import annotations

import importlib.util
import json
import secrets
import shlex
import shutil
import string
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .tracked import STEP, TOKENS, Point, scores
from .tracker import COMPLETE, STOPPED, Record
from .wandb_log import cut_torn, offline_logs, payloads

NAME = "wandb"
FINISH = 20.0  # seconds that wandb may take to send the rest, at the end
SLOWEST = 10e6  # bytes per second below which an upload is not waited for
Online = Literal["online", "offline"]
ALPHABET = string.ascii_lowercase + string.digits
# What wandb would look at by itself: the command line with its secrets, the addresses of git remotes, all packages.
QUIET = {
    "console": "off",
    "save_code": False,
    "disable_git": True,
    "silent": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "finish_timeout": FINISH,
}


@dataclass(frozen=True)
class WandbRun:
    """What a wandb run is called and what belongs to it; nothing in it is secret.

    Attributes:
        mode: online or offline.
        folder: the run folder; wandb writes into its ``wandb/``.
        model: log the final model as an artifact.
    """

    mode: Online
    folder: Path
    name: str
    project: str
    entity: str | None = None
    group: str | None = None
    tags: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    model: bool = False


def installed() -> bool:
    """Whether wandb can be imported; it is not."""
    return importlib.util.find_spec("wandb") is not None


class WandbTracker:
    """Sends points to one wandb run whose id is kept in the record; see :class:`.tracker.Tracker`."""

    name = NAME

    def __init__(self, wanted: WandbRun, record: Record):
        self.wanted, self.record = wanted, record
        self.patience = FINISH + 10.0
        self._run: Any = None
        self._wandb: Any = None
        self._server_has = self._kept = 0  # wandb's next step; the last step of earlier offline starts

    def open(self) -> str | None:
        wanted, known = self.wanted, self.record.read(NAME)
        where = {"project": wanted.project, "entity": wanted.entity}
        same = known.get("id") and {key: known.get(key) for key in where} == where
        run_id = known["id"] if same else "".join(secrets.choice(ALPHABET) for _ in range(8))
        if not same:
            known = {}
        self.record.write(NAME, **{**known, "id": run_id, **where, "mode": wanted.mode})
        import wandb

        self._wandb = wandb
        self._kept = kept(wanted.folder / "wandb", run_id, known)
        (wanted.folder / "wandb").mkdir(exist_ok=True)  # or wandb takes a folder for temporary files, without a word
        wandb.setup(_settings(wandb, QUIET))  # before anything of it could ask on the terminal
        self._run = run = wandb.init(
            id=run_id,
            resume="allow",
            mode=wanted.mode,
            dir=str(wanted.folder),
            project=wanted.project,
            entity=wanted.entity,
            name=wanted.name,
            group=wanted.group,
            tags=list(wanted.tags),
            config=dict(wanted.config),
            settings=_settings(wandb, QUIET),
            reinit="create_new",
            allow_val_change=True,
        )
        for axis in (STEP, TOKENS):
            run.define_metric(axis, hidden=True)
        for names in ("train/*", "performance/*"):
            run.define_metric(names, step_metric=STEP)
        self._server_has = int(run.starting_step or 0)
        if wanted.mode == "online":
            self.record.write(NAME, url=run.url)
            return f"wandb: {run.url}"
        return None

    def first(self, resumed: int) -> int:
        first = max(1, self._server_has if self.wanted.mode == "online" else self._kept + 1)
        self.record.write(NAME, began=first)
        return first

    def log(self, points: Sequence[Point]) -> None:
        self.record.write(NAME, sent=points[-1].step)  # before: a step that is lost is better than one that comes twice
        for point in points:
            self._run.log(point.values, step=point.step)

    def evaluation(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = ["label", "stage", "window", "mode", "perplexity"]
        table = self._wandb.Table(columns=columns, data=[[row.get(name) for name in columns] for row in rows])
        self._run.summary.update({**scores(rows), "eval/perplexity": table})  # no history: it belongs to no step

    def model(self, folder: Path) -> None:
        files = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        stamp = json.dumps(files)
        if not self.wanted.model or self.record.read(NAME).get("model") == stamp:
            return
        artifact = self._wandb.Artifact(f"model-{self._run.id}", type="model")
        artifact.add_dir(str(folder), skip_cache=True, policy="immutable")  # no copy: a finished model/ never changes
        self._run.log_artifact(artifact)
        if self.wanted.mode == "online":
            seconds = FINISH + sum(files.values()) / SLOWEST
            self.patience = seconds + 10.0
            artifact.wait(timeout=round(seconds))
        self.record.write(NAME, model=stamp)

    def finish(self, ending: str) -> str | None:
        if ending == STOPPED:
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if ending == COMPLETE else 1)
        self._wandb.teardown()  # its process ends now, and not in a handler at exit that nobody bounds
        if self.wanted.mode == "offline" and ending == COMPLETE:
            folder = shlex.quote(str(self.wanted.folder / "wandb"))
            return f"wandb: this sends the run, with all of its starts, to the server: wandb sync {folder}"
        return None

    def let_go(self) -> None:
        """Leave wandb as it is, from another thread than the one that hangs in it: no wait for it at exit.

        Its own process notices that this one ends, and writes what it has.
        """
        with suppress(Exception):  # nothing of this is wandb's public interface
            setup = sys.modules["wandb.sdk.wandb_setup"]
            setup._singleton._connection._cleanup()


def kept(folder: Path, run_id: str, known: Mapping[str, Any]) -> int:
    """The last step that earlier starts of a run left, for one that goes on offline; their logs are mended.

    Where their logs are gone, sent to the server and deleted, it is what the record says.
    """
    from wandb.proto import wandb_internal_pb2

    logs = offline_logs(folder, run_id)
    if not logs or known.get("mode") != "offline":
        return int(known.get("sent", 0))
    last = int(known.get("began", 1)) - 1
    for log in logs:
        records = [wandb_internal_pb2.Record.FromString(payload) for payload in payloads(log)]  # type: ignore[attr-defined]
        kinds = {record.WhichOneof("record_type") for record in records}
        last = max([last, *(int(r.history.step.num) for r in records if r.HasField("history"))])
        if "run" in kinds:
            cut_torn(log)
        else:  # of a process that was killed in its first seconds; with it there, wandb sync sends nothing at all
            shutil.rmtree(log.parent)
    return last


def _settings(wandb: Any, wanted: Mapping[str, Any]) -> Any:
    """wandb's settings, of those that this version of it has."""
    known = wandb.Settings.model_fields
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in known})
