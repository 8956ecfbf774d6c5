"""python -m bench.peers.worker NAME CASE: one trainer, in turns, see bench.peers.turns."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch

from bench.peers import case as cases
from bench.peers.turns import Turns

# name -> (module, what its train() is called with beside the case). Modules are imported in the process that needs
# them: what one trainer loads is no part of another one's memory.
TRAINERS: dict[str, tuple[str, dict[str, object]]] = {
    "ours": ("bench.peers.ours", {}),
    "ours compiled": ("bench.peers.ours", {"compile": {"enabled": True}}),
    "hf": ("bench.peers.hf_trainer", {}),
    "hf compiled": ("bench.peers.hf_trainer", {"compiled": True}),
    "accelerate": ("bench.peers.plain", {}),
}


def main() -> None:
    """Train in turns."""
    name, file = sys.argv[1:]
    turns = Turns()
    case = cases.read(Path(file))
    torch.set_num_threads(case.threads)
    module, options = TRAINERS[name]
    importlib.import_module(module).train(case, turns, **options)


if __name__ == "__main__":
    main()
