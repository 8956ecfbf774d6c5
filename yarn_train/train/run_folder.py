"""The run folder's own files: run.json, and config.yaml per run and stage."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from .. import model_revision
from ..config import Config
from ..dist import environment
from ..dist.failure import LOST
from ..dist.others import CLOCKS
from ..errors import ConfigError
from ..redact import redacted, redacted_command, redacted_values
from .run_lock import is_record

PACKAGES = ["torch", "transformers", "datasets", "tokenizers", "hydra-core"]
PACKAGES += ["flash-attn", "deepspeed", "liger-kernel", "torchao"]


def write_json(path: Path, value: Any) -> None:
    """Write aside, then rename: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.incomplete")
    with aside.open("w") as file:
        file.write(json.dumps(value, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())  # or a power cut could leave the new name with nothing in it
    os.replace(aside, path)


def freeze_config(folder: Path, cfg: Config) -> None:
    """Write the resolved config into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / ".config.yaml.incomplete"
    aside.write_text(yaml.safe_dump(plain(cfg), sort_keys=False))
    os.replace(aside, folder / "config.yaml")


def refuse_existing(folder: Path) -> None:
    """For run.resume=never.

    Raises:
        ConfigError: the folder holds a run already.
    """
    if (folder / "run.json").exists():
        raise ConfigError(
            f"run.resume: got 'never' and {folder} holds a run; allowed: an empty run folder; "
            "fix: choose another run.name, or run.resume=auto to continue it"
        )


def start_record(
    folder: Path, cfg: Config, world_size: int, device: str, changed: Sequence[dict[str, Any]] = ()
) -> None:
    """Write run.json at the start of a run; a resumed run keeps the lists of its earlier starts and changes.

    Args:
        changed: options that differ from the earlier starts', each with `key`, `was`, `now`, `stage` and `step`.
    """
    path = folder / "run.json"
    stored = json.loads(path.read_text()) if is_record(path) else {}
    earlier = stored.get("starts", [])
    here = {"world_size": world_size, "host": platform.node(), "device": device}
    start = {"time": _now(), **here, "launch": environment.launch_id()}
    record = {
        "name": redacted(cfg.run.name, environment.secrets()),
        "command": _command(),
        "seed": cfg.run.seed,
        "model": {"path": cfg.model.path, "commit": model_revision.commit(cfg.model.path)},
        **here,
        "python": platform.python_version(),
        "versions": versions(),
        "git": git_hash(),
        "started": earlier[0]["time"] if earlier else start["time"],
        "ended": None,
        "exit_reason": None,
        "starts": [*earlier, start],
        "changes": [*stored.get("changes", []), *({"time": start["time"], **one} for one in changed)],
    }
    write_json(path, record)


def model_commit(folder: Path, cfg: Config) -> str | None:
    """The commit of model.path that the run's earlier starts read; None for a folder, or a new run."""
    path = folder / "run.json"
    model = (json.loads(path.read_text()) if is_record(path) else {}).get("model") or {}
    return model.get("commit") if model.get("path") == cfg.model.path else None


def stage_began(folder: Path, stage: str, step: int) -> None:
    """Note in run.json where the last start took up its first stage: after ``step`` steps of it, 0 if it is new."""
    path = folder / "run.json"
    record = json.loads(path.read_text()) if is_record(path) else {}
    if record.get("starts") and "stage" not in record["starts"][-1]:
        record["starts"][-1] |= {"stage": stage, "step": step}
        write_json(path, record)


def end_record(folder: Path, reason: str, seconds: Mapping[str, float] | None = None) -> None:
    """Complete run.json with the end time, why the run ended and what its last start spent its `seconds` on."""
    path, said = folder / "run.json", redacted(reason, environment.secrets())
    if is_record(path):
        record = json.loads(path.read_text())
        if seconds is not None and record.get("starts"):
            record["starts"][-1]["seconds"] = {phase: round(value, 3) for phase, value in seconds.items()}
        write_json(path, {**record, "ended": _now(), "exit_reason": said})


def record_failure(folder: Path, reason: str, launch: str, began: float) -> None:
    """For a launcher: why the run ended, where rank 0 could not say it or only that it lost the others.

    Args:
        launch: the id of its own start: a run that another one began may go on, and is left alone.
        began: seconds since the epoch at which it began: starts on several machines have the same id again.
    """
    path = folder / "run.json"
    record = json.loads(path.read_text()) if is_record(path) else {}
    last = (record.get("starts") or [{}])[-1]
    if last.get("launch") != launch or datetime.fromisoformat(last["time"]).timestamp() < began - CLOCKS:
        return
    if record["exit_reason"] is None or LOST in record["exit_reason"]:
        end_record(folder, reason)


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide results."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_hash() -> str | None:
    """Commit of the working tree ('+dirty' when it has changes), or outside of one what its packer said, or None."""
    here = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return environment.revision()
    return commit.stdout.strip() + ("+dirty" if dirty.stdout.strip() else "")


def typed() -> list[str] | None:
    """The command that goes on with this run; None where the launcher that started it is not ours."""
    if environment.under_launcher() and environment.launcher_pid() is None:
        return None
    words = redacted_command(sys.argv, environment.secrets())
    # a worker of ours is told its folder besides what was typed
    return ["python", *(word for word in words if environment.launcher_pid() is None or not _pinned(word))]


def _pinned(word: str) -> bool:
    return word.startswith("hydra.run.dir=")


def _command() -> str:
    return " ".join(["python", Path(sys.argv[0]).name, *redacted_command(sys.argv[1:], environment.secrets())])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def plain(cfg: Config) -> dict[str, Any]:
    """A configuration as config.yaml has it: what looks like a secret is not written, see :mod:`redact`."""
    nested: dict[str, Any] = redacted_values(dataclasses.asdict(cfg), environment.secrets())
    if not nested["curriculum"]["stages"]:
        del nested["curriculum"]
    return nested
