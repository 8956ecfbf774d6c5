"""One rank of real engines: which elements of each parameter it keeps, and a real checkpoint of all ranks.

Run under torchrun: shard_ranks.py MODEL OUT NAME=OPTIONS...   OPTIONS is JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from yarn_train import config as schema
from yarn_train.checkpoint.manager import CheckpointManager
from yarn_train.checkpoint.state import TrainState
from yarn_train.config import CheckpointConfig
from yarn_train.dist import runtime as dist_runtime
from yarn_train.engine.base import Engine
from yarn_train.model.load import load_config
from yarn_train.model.registry import choose_kernel
from yarn_train.model.weights import first_row
from yarn_train.train.setup import build_engine, make_mesh


def pieces(engine: Engine) -> dict[str, tuple[int, int]]:
    """Elements [start, end) of this rank's weights and moments, by parameter."""
    if hasattr(engine, "shards") and isinstance(engine.shards, list):
        return {s.name: (s.start, s.start + s.length) if s.length else (0, 0) for s in engine.shards}
    found = {}
    for name, parameter in engine.module.named_parameters():
        assert isinstance(parameter, DTensor)
        held, width = parameter.to_local().numel(), parameter[0].numel() if parameter.ndim > 1 else 1
        start = first_row(parameter) * width
        found[name] = (start, start + held) if held else (0, 0)
        moments = engine.optimizer.state[parameter]
        assert moments["exp_avg"].to_local().numel() == moments["exp_avg_sq"].to_local().numel() == held
    return found


def main(model: str, out: str, cells: list[str]) -> None:
    runtime, base = dist_runtime.start(), load_config(model)
    for cell in cells:
        name, _, options = cell.partition("=")
        plain = {"model": {"path": model, "dtype": "float32"}, "rope": {"factor": 4.0}}
        cfg = schema.build(plain | json.loads(options))
        mesh = make_mesh(cfg, base, runtime)
        kernel = choose_kernel("sdpa", runtime.device, torch.float32)
        engine, _ = build_engine(cfg, base, model, kernel, mesh, runtime.device)
        if cfg.engine.name == "fsdp2":  # its moments come with the first step
            for parameter in engine.module.parameters():
                parameter.grad = torch.zeros_like(parameter)
            engine.step(0.0)
        (Path(out) / f"{name}_{runtime.rank}.json").write_text(json.dumps(pieces(engine)))
        state = TrainState(1, 1, 1, 0, runtime.world_size)
        manager = CheckpointManager(Path(out) / name, CheckpointConfig(keep=1), runtime)
        manager.save(engine, state)
        manager.finish()
    dist_runtime.stop()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
