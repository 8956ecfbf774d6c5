"""Traces make a process group of their own."""

from __future__ import annotations

import pytest

from yarn_train.dist import runtime as dist_runtime


@pytest.fixture(autouse=True)
def no_process_group() -> None:
    """Leave the one that an earlier test of this process joined."""
    dist_runtime.stop()
