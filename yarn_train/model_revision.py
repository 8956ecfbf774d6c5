"""The commit of a model of the hub: resolved once, the same for its config, code, tokenizer and weights, and on resume.

A branch moves on while a run waits in a queue. So what is asked for, nothing or ``model.revision``, becomes a commit
before anything is read; run.json keeps it and a resume reads the same one. Folders have no revision.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ConfigError, problem

COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT = 10.0  # seconds for the hub to answer
_revisions: dict[str, str] = {}  # hub id -> commit, of this process


@contextmanager
def pinned(path: str, revision: str | None, recorded: str | None = None, ask: bool = True) -> Iterator[None]:
    """Inside, `path` is read at one commit; for the whole process.

    Args:
        revision: branch, tag or commit that was asked for; None is the default branch.
        recorded: the commit that an earlier start of the run read.
        ask: False where the hub is not to be asked: its cache on this machine is all there is.
    """
    global _revisions
    before, found = _revisions, recorded or resolved(path, revision, ask) or revision
    _revisions = {**before, path: found} if found else before
    try:
        yield
    finally:
        _revisions = before


def of(path: str) -> str | None:
    """What to read `path` at, for transformers and the hub's client; None where nothing was pinned."""
    return _revisions.get(str(path))


def commit(path: str) -> str | None:
    """The commit that `path` is read at; None for a folder, and where the hub could not be asked."""
    found = of(path)
    return found if found is not None and COMMIT.fullmatch(found) else None


def problems(path: str, revision: str | None) -> list[str]:
    """A revision of a folder, which has none."""
    if revision is None or not Path(path).expanduser().is_dir():
        return []
    return [problem("model.revision", revision, "null for a folder", "leave it out; a folder is what it is")]


def agreed(path: str, mains: str | None) -> None:
    """Refuse to go on where this rank reads another commit than rank 0, whose branch moved on in between.

    Raises:
        ConfigError: naming both.
    """
    if commit(path) != mains:
        fix = "start again, or set model.revision to a commit"
        raise ConfigError(problem("model.path", f"{path} at {commit(path)}", f"rank 0's commit {mains}", fix))


def resolved(path: str, revision: str | None, ask: bool = True) -> str | None:
    """The commit that a revision means now, by the hub or, without a connection, its cache; None if neither knows."""
    if Path(path).expanduser().is_dir():
        return None
    return (_by_hub(path, revision) if ask else None) or _by_cache(path, revision)


def _by_hub(path: str, revision: str | None) -> str | None:
    import huggingface_hub  # takes a while to import, and most models are folders

    try:  # one question, not repeated: a download asks again and again for half a minute
        return huggingface_hub.model_info(path, revision=revision, timeout=TIMEOUT).sha
    except Exception:  # the client raises a dozen unrelated types; who reads the config says what is wrong
        return None


def _by_cache(path: str, revision: str | None) -> str | None:
    from huggingface_hub import hf_hub_download

    try:
        place = Path(hf_hub_download(path, "config.json", revision=revision, local_files_only=True)).parent
    except Exception:  # as above
        return None
    return place.name if COMMIT.fullmatch(place.name) else None
