"""Random weights on the disk, which all trainers load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bench.gpu.sizes import ensure_model
from bench.gpu.worker import Save


def measure(task: dict[str, Any], save: Save) -> dict[str, Any]:
    """Write them, unless they are there."""
    place = ensure_model(Path(task["models"]), task["size"], torch.device(task["device"]))
    return {"bytes": sum(file.stat().st_size for file in place.iterdir())}
