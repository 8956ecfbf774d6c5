"""One real run for all comparisons, and copies of it to change."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compared import Runs
from conftest import TINY


@pytest.fixture(scope="session")
def runs(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, books: Path, compose: Callable[..., dict[str, Any]]
) -> Runs:
    folder = tmp_path_factory.mktemp("compared")
    paths = [f"model.path={tiny_model}", f"data.path={books}", f"data.cache={folder / 'cache'}"]
    return Runs(folder, (*TINY, *paths, "model.dtype=float32", "train.global_batch_size=4"), compose)


@pytest.fixture(scope="session")
def base(runs: Runs) -> Path:
    """The run that others are compared with; not to be changed."""
    return runs("base")


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return shutil.copytree(base, tmp_path / "copy")
