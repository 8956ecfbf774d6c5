"""A first look at a model's folder, without torch: what is not there, or is no JSON, needs no library to be told."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, problem


def place_problems(path: str, key: str = "model.path") -> list[str]:
    """Why `path` is no folder; nothing about what may be a hub id.

    Args:
        key: the option that `path` comes from.
    """
    folder = Path(path).expanduser()
    if not path.strip():
        return [problem(key, path, "a folder or a hub id", "name the base model")]
    if folder.is_file():
        return [problem(key, path, "a folder or a hub id", "this is a file: name the folder that it is in")]
    if not folder.is_dir() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        return [problem(key, path, "an existing folder or a hub id", "there is no such folder; check the spelling")]
    return []


def folder_problems(path: str, key: str = "model.path") -> list[str]:
    """Why `path` cannot be a model, as far as files tell; nothing about a hub id."""
    folder = Path(path).expanduser()
    if (found := place_problems(path, key)) or not folder.is_dir():
        return found
    try:
        described = _read(folder / "config.json")
    except FileNotFoundError:
        there = sorted(entry.name for entry in folder.iterdir())
        fix = f"it holds {', '.join(there[:5])}" if there else "it is empty"
        return [problem(key, path, "a folder with config.json", f"{fix}; download the model again, or name its folder")]
    except OSError as error:
        return [problem(key, path, "a folder that can be read", f"{error.strerror}: config.json; give permission")]
    except (ValueError, RecursionError) as error:
        got = f"{path}, whose config.json is no JSON: {error}"
        return [problem(key, got, "a config.json that can be read", "download the model again")]
    if not isinstance(described, dict) or not {"model_type", "auto_map"} & described.keys():
        got = f"{path}, whose config.json has no model_type"
        return [problem(key, got, "the config.json of a transformers model", "download the model again")]
    return []


def find_model(path: str, key: str = "run.init_from") -> str:
    """The Hugging Face folder that a run folder, a stage folder, a model folder or a hub id stands for.

    Args:
        key: the option that `path` comes from.

    Raises:
        CheckpointError: a run or stage folder without a finished model.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if path.startswith((".", "/", "~")) or path.count("/") > 1 or folder.parts[:1] == ("outputs",):
            raise CheckpointError(f"{key}={path}: no such folder; give a run, stage or model folder, or hub id")
        return path
    if (folder / "config.json").is_file():
        return str(folder)
    stages = [folder] if (folder / "model").is_dir() else sorted(p for p in folder.glob("[0-9][0-9]_*") if p.is_dir())
    finished = [stage / "model" for stage in stages if (stage / "model" / "config.json").is_file()]
    if not finished or finished[-1].parent != stages[-1]:
        raise CheckpointError(
            f"{key}={path}: its last stage has no finished model/; "
            "finish that run first (start it again, it resumes), or name the stage folder you mean"
        )
    return str(finished[-1])


def _read(file: Path) -> Any:
    if file.exists() and not file.is_file():  # reading a pipe would wait for ever
        raise IsADirectoryError(errno.EISDIR, "not a file")
    return json.loads(file.read_text(encoding="utf-8"))
