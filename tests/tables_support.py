"""Data sets as files, and a hub and a cache of `datasets` that are only folders of a test."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

COMMIT = {n: f"{n:040x}" for n in range(4)}


def use_cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Conversions of this test go to ``folder``."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", folder / "downloads")
    monkeypatch.setattr(datasets.config, "EXTRACTED_DATASETS_PATH", folder / "extracted")


def write(file: Path, texts: Iterable[Any], column: str = "text") -> Path:
    """One row per text, as the name of the file says: parquet, jsonl, json or csv, also .gz."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": number, column: text} for number, text in enumerate(texts)]
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=2)
        return file
    name = file.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        content = "".join(json.dumps(row) + "\n" for row in rows)
    elif name.endswith(".csv"):
        content = f"id,{column}\n" + "".join(f'{row["id"]},"{row[column]}"\n' for row in rows)
    else:
        content = json.dumps(rows)
    file.write_bytes(gzip.compress(content.encode()) if file.suffix == ".gz" else content.encode())
    return file


class Hub:
    """A hub with one data set, whose commits are local folders."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, commits: dict[str, Path], files: Iterable[str] = ()):
        self.commits = commits  # the last one is the newest
        self.files = [SimpleNamespace(rfilename=name) for name in files]
        self.asked: list[str | None] = []
        self.error: Exception | None = None
        self._build = datasets.load_dataset_builder
        monkeypatch.setattr(huggingface_hub, "dataset_info", self._info)
        monkeypatch.setattr(datasets, "load_dataset_builder", self._builder)

    def _info(self, repository: str, *, revision: str | None = None, timeout: float) -> Any:
        self.asked.append(revision)
        if self.error is not None:
            raise self.error
        assert timeout < 60
        return SimpleNamespace(sha=revision or list(self.commits)[-1], siblings=self.files)

    def _builder(self, path: str, **options: Any) -> Any:
        if "/" not in path:
            return self._build(path, **options)
        folder = self.commits[options.pop("revision")]
        plain = self._build(str(folder), **options)
        # what the hub's factory makes: its cache folder is <owner>___<name>/<config>/<version>/<commit>
        made = type(plain).__mro__[1](
            dataset_name=path.split("/")[1],
            hash=folder.name,
            data_files=plain.config.data_files,
            **{key: value for key, value in options.items() if key != "name"},
        )
        made.repo_id = path  # not above, where it would want files of the real hub
        made._cache_dir_root = str(made._cache_dir_root)
        made._cache_dir = made._build_cache_dir()
        return made
