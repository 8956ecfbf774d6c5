"""torch.compile per decoder block: one graph for all of them, for every step, and for stages with the same shapes.

Compiling the blocks one by one instead of the whole model keeps compilation short (all blocks have the same code, so
what the first one compiles serves the others) and leaves what must not be in a graph outside of it: gathering of
parameters, recomputation, copies to the host.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..dist import environment

BACKEND = "inductor"
# Shapes that one process may meet before torch gives up and runs blocks as they are: a sweep's jobs, and the stages of
# a curriculum, may each have their own. torch's default is 8.
MOST_GRAPHS = 64


def compile_blocks(blocks: nn.ModuleList | Sequence[nn.Module]) -> list[str]:
    """Replace each block's ``forward``, not the module, whose names and hooks stay; returns what was done, in lines.

    Every shape gets a graph of its own (``dynamic=False``): segments have one length per stage, and kernels for any
    length are slower. Without gradients a block runs as it is: the few passes of an export are not worth a graph.
    """
    folder = kept_in()
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MOST_GRAPHS)
    for block in blocks:
        graph = torch.compile(block.forward, backend=BACKEND, dynamic=False)
        block.forward = functools.partial(_in_training, graph, block.forward)
    return [f"torch.compile: {len(blocks)} blocks, one graph for all; kernels kept in {folder}"]


def kept_in() -> str:
    """Where compiled kernels stay for the next run: TORCHINDUCTOR_CACHE_DIR, or a folder of this user's cache.

    torch's own default lies in /tmp, which a restarted machine, a job's container and most clusters begin empty.
    """
    try:
        folder = environment.cache_folder() / "inductor"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or none to write to
        folder = Path(tempfile.gettempdir()) / f"torchinductor_uid_{os.getuid()}"
    return environment.default("TORCHINDUCTOR_CACHE_DIR", str(folder))


def graphs() -> int:
    """How many this process has compiled so far; the compiler is not imported for the answer."""
    utils = sys.modules.get("torch._dynamo.utils")
    return 0 if utils is None else int(utils.counters["stats"]["unique_graphs"])


def _in_training(graph: Callable[..., Any], forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    documents = kwargs.get("documents")
    if isinstance(documents, Tensor):
        # Else the graph is made for the first batch's number of documents, then for any, then for exactly one.
        torch._dynamo.decorators.mark_unbacked(documents, 0)
    return graph(*args, **kwargs)
