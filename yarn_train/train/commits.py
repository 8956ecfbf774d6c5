"""Hub data sets move on; a run does not. ``commits.json`` in its folder says which commit of each it reads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from ..config import DataConfig, parts_of
from ..data.sources import pinned
from .run_folder import write_json

FILE = "commits.json"


class Commits:
    """The commits of one run: looked up when a data set is first needed, the same ever after.

    What a person typed (``data.revision``: nothing, a branch, a tag) stays as it is in the run's configuration; here is
    what it meant when the run began.
    """

    def __init__(self, folder: Path):
        self._file = folder / FILE
        self._commits: dict[str, str] = json.loads(self._file.read_text()) if self._file.is_file() else {}
        self._saved = dict(self._commits)

    def pin(self, data: DataConfig) -> DataConfig:
        """``data`` with commits in place of revisions. Data that ``data.cache`` names asks no hub: it is used as it is.

        Raises:
            DataError: if a data set is not there, or there is neither a connection nor a cache.
        """
        ask = data.cache is None
        if data.source != "mixture":
            return dataclasses.replace(data, revision=self._commit(data, ask))
        commits = {part.name: self._commit(part.data, ask) for part in parts_of(data)}
        mixture = {name: {**data.mixture[name], "revision": commit} for name, commit in commits.items() if commit}
        return dataclasses.replace(data, mixture={**data.mixture, **mixture})

    def save(self) -> None:
        """Write ``commits.json`` if there is something new in it."""
        if self._commits != self._saved:
            write_json(self._file, self._commits)
            self._saved = dict(self._commits)

    def _commit(self, data: DataConfig, ask: bool) -> str | None:
        """The commit of one source; what was given where it is not of the hub, or the hub is not to be asked."""
        key = f"{data.path}@{data.revision}" if data.revision else str(data.path)
        if key not in self._commits and ask:
            found = pinned(data).revision
            if found is not None:
                self._commits[key] = found
        return self._commits.get(key, data.revision)
