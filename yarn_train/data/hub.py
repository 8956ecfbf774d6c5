"""Data sets of the Hugging Face hub, always at one commit: the newest is looked up once and then named."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import DataError, problem
from .convert import EXACT, Tables, convert, failed, script_based

COMMIT = re.compile(r"[0-9a-f]{40}")
NAME = re.compile(r"(?:[\w.-]+/)?[\w.-]+(?::[\w.-]+)?")
TIMEOUT = 20.0  # seconds until the hub counts as unreachable


@dataclass(frozen=True)
class Found:
    """One commit of a data set.

    Attributes:
        repository: owner and name.
        config: the part of a data set that has several, or None.
        commit: SHA-1, 40 hex digits.
        folder: where the cache of ``datasets`` has it; None if it is to be got from the hub.
    """

    repository: str
    config: str | None
    commit: str
    folder: Path | None


def is_hub_id(path: str) -> bool:
    """Whether this can be the name of a data set, ``owner/name`` or ``owner/name:config``."""
    return NAME.fullmatch(path) is not None


@lru_cache(maxsize=64)
def find(path: str, revision: str | None) -> Found:
    """Look a data set up: on the hub, or without a connection in the cache. The answer holds while the process lives.

    Args:
        path: ``owner/name``, or ``owner/name:config`` for one part of a data set that has several.
        revision: commit, tag or branch; None is the newest commit, without a connection the last one cached.

    Raises:
        DataError: if there is no such data set or revision, it is a script, or there is no connection and no cache.
    """
    import huggingface_hub
    from huggingface_hub import errors

    repository, _, config = path.partition(":")
    if repository in ("pg19", "deepmind/pg19") and revision is None:
        raise script_based(path)
    try:
        info = huggingface_hub.dataset_info(repository, revision=revision, timeout=TIMEOUT)
    except errors.GatedRepoError as error:
        fix = f"ask for access at https://huggingface.co/datasets/{repository}, then `hf auth login`"
        raise DataError(problem("data.path", path, "a data set that you may read", fix)) from error
    except errors.RepositoryNotFoundError as error:
        fix = "correct it, or `hf auth login` if it is private"
        raise DataError(
            problem("data.path", path, "an existing file or folder, or a data set of the hub", fix)
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DataError(
            problem("data.revision", revision, f"a commit, tag or branch of {path}", "correct it")
        ) from error
    except errors.HFValidationError as error:
        raise DataError(problem("data.path", path, "an existing file or folder, or a hub id", "correct it")) from error
    except Exception as error:  # no connection: which classes say so changes with the hub's HTTP library
        return _cached(path, revision, error)
    script = f"{repository.rsplit('/', 1)[-1]}.py"
    if any(file.rfilename == script for file in info.siblings or ()):
        raise script_based(path)
    return Found(repository, config or None, str(info.sha), None)


def open_hub(found: Found) -> Tables:
    """Download and convert a data set, or open what the cache has of it.

    Raises:
        DataError: if that fails.
    """
    path = found.repository + (f":{found.config}" if found.config else "")
    identity = {"repository": path, "revision": found.commit}
    if found.folder is not None:
        return Tables(_open_cached(found, path), identity)
    named: dict[str, Any] = {} if found.config is None else {"name": found.config}
    return Tables(convert(path, found.repository, revision=found.commit, **named), identity)


def _cached(path: str, revision: str | None, error: Exception) -> Found:
    """The commit in the cache of ``datasets`` that was asked for, the last one cached if none was."""
    repository, _, config = path.partition(":")
    folders = [folder for folder in _cache_folders(repository) if not config or _config_of(folder) == config]
    commits = {folder.name: folder for folder in folders}  # in the order of time
    if revision is None and commits:
        revision = list(commits)[-1]
    if revision not in commits:
        there = f"; the cache has revision {', '.join(commits)}" if commits else " and it is not in the cache"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        got = path if revision is None else f"{path} at {revision}"
        fix = f"the hub cannot be reached ({reason}){there}; load it once with a connection, or use a folder"
        raise DataError(problem("data.path", got, "an existing file or folder, or a data set in reach", fix)) from error
    configs = {_config_of(folder) for folder in folders if folder.name == revision}
    if len(configs) > 1 and "default" not in configs:
        fix = f"write data.path={repository}:{min(configs)}"
        raise DataError(problem("data.path", path, f"one of the parts in the cache: {sorted(configs)}", fix)) from error
    wanted = config or ("default" if "default" in configs else min(configs))
    folder = next(f for f in reversed(folders) if f.name == revision and _config_of(f) == wanted)
    return Found(repository, config or None, folder.name, folder)


def _cache_folders(repository: str) -> list[Path]:
    """``<cache>/<owner>___<name>/<config>/<version>/<commit>`` of complete conversions, the last one made last."""
    import datasets
    from datasets.naming import camelcase_to_snakecase

    *owner, name = repository.split("/")
    root = Path(datasets.config.HF_DATASETS_CACHE) / "___".join([*owner, camelcase_to_snakecase(name)])
    found = [f for f in root.glob("*/*/*") if COMMIT.fullmatch(f.name) and (f / "dataset_info.json").is_file()]
    # one without options of its own was not converted by us, and may be texts by lines
    usable = [f for f in found if _info(f).get("builder_name") not in EXACT or f.parts[-3] != _config_of(f)]
    return sorted(usable, key=lambda folder: folder.stat().st_mtime)


def _config_of(folder: Path) -> str:
    return str(_info(folder).get("config_name") or folder.parts[-3])


def _info(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "dataset_info.json").read_text(encoding="utf-8")))


def _open_cached(found: Found, path: str) -> dict[str, Any]:
    from datasets.packaged_modules.cache.cache import Cache

    assert found.folder is not None
    config, version, commit = found.folder.parts[-3:]
    repository = found.repository
    try:
        # by name, not load_dataset: without a connection that takes the last commit cached, whatever is asked for
        cache = Cache(
            dataset_name=repository.rsplit("/", 1)[-1],
            repo_id=repository,
            config_name=config,
            version=version,
            hash=commit,
        )
        return {str(name): split for name, split in cache.as_dataset().items()}
    except Exception as error:  # whatever a damaged cache makes datasets or Arrow raise
        raise failed(path, error) from error
