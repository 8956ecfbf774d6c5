"""Helpers that tests import by name (fixtures live in conftest.py)."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent


def launch_command(*overrides: str, ranks: int = 0) -> list[str]:
    """train.py in a process of its own, under torchrun when ranks > 0."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
    return [sys.executable, *launcher, str(ROOT / "train.py"), *overrides]


def child_env() -> dict[str, str]:
    """One thread per process, so that tests in parallel do not fight for cores; no hub."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def metrics(stage: Path) -> list[dict[str, Any]]:
    """The rows of a stage's metrics.jsonl."""
    return [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]


def course(stage: Path) -> list[tuple[Any, ...]]:
    """What must not depend on how a run was interrupted."""
    return [(r["step"], r["tokens"], r["loss"], r["lr"], r["grad_norm"], r["segments"]) for r in metrics(stage)]


def same_weights(a: Path, b: Path) -> bool:
    """Whether two model folders hold the same tensors, bit for bit."""
    x, y = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def strides(t: torch.Tensor) -> list[int]:
    """Of dimensions that have more than one element; what the others have means nothing."""
    return [stride for size, stride in zip(t.shape, t.stride(), strict=True) if size > 1]
