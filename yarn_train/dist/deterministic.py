"""``run.deterministic``: two runs with the same options, software and machines give the same bits.

Order and batches are the same in every run anyway. What is left are kernels that add with atomics (scattered additions,
backwards of attention), libraries that choose kernels by timing them (cuDNN, torch.compile), cuBLAS' shared workspaces
and sums over ranks inside NVLink switches.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from ..errors import ConfigError, problem
from . import environment

# torch's two messages: of an operation, and of cuBLAS when its first kernel ran before the variable was set
NONE_THERE = re.compile(r"(\S+) does not have a deterministic implementation")
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic(wanted: bool, compiled: bool = False) -> Iterator[None]:
    """Inside, only kernels whose results do not vary; around the whole job, process group included.

    torch's own flag decides in its flash and memory-efficient attention and is handed to the flash_attn package; the
    CPU's attention, AdamW and losses of yarn-train have one order of sums already. All is undone afterwards, for
    whatever the process does next.

    Args:
        wanted: run.deterministic; False does nothing.
        compiled: whether blocks are compiled: then kernels are not chosen by timing them either.

    Raises:
        ConfigError: the job came to an operation that has no such kernel.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    try:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        with environment.reproducible(), _compiler(compiled):
            yield
    except RuntimeError as error:
        told = explained(error)
        if told is None:
            raise
        raise told from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, cudnn


def explained(error: RuntimeError) -> ConfigError | None:
    """The user's error behind torch's, if it is about a kernel that varies."""
    text = str(error)
    found = NONE_THERE.search(text)
    if found:
        got = f"true, and {found[1]} has no deterministic kernel here"
        fix = "run.deterministic=false, or another model.attention, memory.loss or model that does without it"
        return ConfigError(problem("run.deterministic", got, "operations that have one", fix))
    if "deterministic" in text and CUBLAS in text:
        got = "true, after an earlier use of cuBLAS in the same process"
        fix = f"set {CUBLAS}=:4096:8 before Python starts"
        return ConfigError(problem("run.deterministic", got, f"{CUBLAS} set before the first kernel", fix))
    return None


def seed_shard(seed: int, shard: int) -> None:
    """Seed torch for what is random while training, once the model is there.

    Weights are initialised from one seed on all ranks, since each makes the whole and keeps its part. Afterwards only
    stochastic rounding is random (optim.state=bfloat16): elements of different shards need noise of their own, and
    copies of the same shard the same one, or they would drift apart.

    Args:
        shard: which part of the parameters this rank holds.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, shard]).generate_state(1, np.uint64)[0]))


@contextmanager
def _compiler(compiled: bool) -> Iterator[None]:
    if not compiled:
        yield
        return
    with importlib.import_module("torch._inductor.config").patch(deterministic=True):
        yield
