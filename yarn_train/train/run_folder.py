"""The run folder's own files: run.json, config.yaml per run and stage, and the check that a resume is the same run."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from ..config import Config, defaults
from ..errors import CheckpointError, ConfigError

PACKAGES = ["torch", "transformers", "datasets", "tokenizers", "hydra-core"]
PACKAGES += ["flash-attn", "deepspeed", "liger-kernel", "torchao"]
# Options that do not change what is computed, so a resumed stage may change them.
FREE_ON_RESUME = {
    "run.name",
    "run.dir",
    "run.resume",
    "data.cache",
    "data.prefetch",
    "data.workers",
    "train.stop_after",
    "train.micro_batch_size",
    "engine.offload",
    "engine.prefetch",
    "engine.reshard_after_forward",
    "parallel.context",
    "parallel.context_method",
    "parallel.replicate",
    "parallel.shard",
    "parallel.ulysses",
    "memory.activation",
    "memory.loss",
    "memory.offload",
    "memory.tiled_mlp",
    "compile.enabled",
    "checkpoint.every",
    "checkpoint.keep",
}


def write_json(path: Path, value: Any) -> None:
    """Write aside, then rename: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.incomplete")
    aside.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(aside, path)


def check_config(folder: Path, cfg: Config) -> None:
    """Refuse to continue a folder with options that would change what its earlier steps mean; writes nothing.

    Raises:
        CheckpointError: listing every option that differs from what the folder was started with.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return
    then, now, default = yaml.safe_load(path.read_text()), _plain(cfg), defaults()
    changed = []
    for key in filter(_binding, _flat(now)):
        # an option that did not exist yet when the folder was written had its default's effect
        before, after = _get(then if _known(then, key) else default, key), _get(now, key)
        if before != after:
            changed.append(f"{key}: was {before!r}, now {after!r}")
    if changed:
        lines = "\n".join(f"  - {line}" for line in changed)
        raise CheckpointError(
            f"{folder} holds a run with other options, which resuming would mix:\n{lines}\n"
            "restore them to continue it, or choose another run.name for a new run; nothing was changed"
        )


def freeze_config(folder: Path, cfg: Config) -> None:
    """Write the resolved config into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / ".config.yaml.incomplete"
    aside.write_text(yaml.safe_dump(_plain(cfg), sort_keys=False))
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


def start_record(folder: Path, cfg: Config, world_size: int, device: str) -> None:
    """Write run.json at the start of a run; a resumed run keeps the list of its earlier starts."""
    path = folder / "run.json"
    earlier = json.loads(path.read_text()).get("starts", []) if path.is_file() else []
    start = {"time": _now(), "world_size": world_size, "host": platform.node(), "device": device}
    record = {
        "name": cfg.run.name,
        "command": _command(),
        "seed": cfg.run.seed,
        "world_size": world_size,
        "host": platform.node(),
        "device": device,
        "python": platform.python_version(),
        "versions": versions(),
        "git": git_hash(),
        "started": earlier[0]["time"] if earlier else start["time"],
        "ended": None,
        "exit_reason": None,
        "starts": [*earlier, start],
    }
    write_json(path, record)


def end_record(folder: Path, reason: str) -> None:
    """Complete run.json with the end time and why the run ended."""
    path = folder / "run.json"
    if path.is_file():
        write_json(path, {**json.loads(path.read_text()), "ended": _now(), "exit_reason": reason})


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
    """Commit of the working tree ('+dirty' when it has changes), or None outside of one."""
    here = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+dirty" if dirty.stdout.strip() else "")


def _command() -> str:
    return " ".join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _plain(cfg: Config) -> dict[str, Any]:
    plain = dataclasses.asdict(cfg)
    if not plain["curriculum"]["stages"]:
        del plain["curriculum"]
    return plain


def _flat(nested: dict[str, Any]) -> list[str]:
    return [f"{section}.{key}" for section, values in nested.items() for key in values]


def _binding(key: str) -> bool:
    return key not in FREE_ON_RESUME and not key.startswith(("eval.", "plan."))


def _known(nested: dict[str, Any], key: str) -> bool:
    """False for an option that did not exist yet when the folder was written."""
    section, _, name = key.partition(".")
    return name in nested.get(section, {})


def _get(nested: dict[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    return nested.get(section, {}).get(name)
