"""A manager of the test's own folder, writing in the background and inline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from yarn_train.checkpoint.manager import CheckpointManager
from yarn_train.config import CheckpointConfig
from yarn_train.dist import runtime as dist_runtime


@pytest.fixture(params=[True, False], ids=["async", "sync"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., CheckpointManager]:
    """make(keep=3): a manager with these options."""

    def made(**options: int) -> CheckpointManager:
        cfg = CheckpointConfig(**{"keep": 2, "async_save": request.param, **options})
        return CheckpointManager(tmp_path / "checkpoints", cfg, dist_runtime.start())

    return made


@pytest.fixture
def checkpoints(make: Callable[..., CheckpointManager]) -> CheckpointManager:
    """One that keeps two."""
    return make()
