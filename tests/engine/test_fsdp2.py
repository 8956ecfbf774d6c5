"""What the FSDP2 engine adds to FSDP2: a norm that is right at any size."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from yarn_train.dist import runtime as dist_runtime
from yarn_train.engine.fsdp2 import global_norm


def test_the_norm_of_large_shards_is_that_of_float64():
    """torch's own fp32 norm on the CPU is 0.08 % short at this size: clipping would be too weak."""
    dist_runtime.start()
    shards = [torch.full((2**24,), 1e-3), torch.linspace(-1, 1, 1000).bfloat16(), torch.empty(0)]
    exact = sum(s.double().square().sum() for s in shards) ** 0.5
    assert global_norm(shards, dist.group.WORLD).item() == pytest.approx(exact.item(), rel=1e-6)
