"""The plan against a GPU: the predicted peak and the allocator's, of the same step.

python -m pytest -m gpu tests/gpu/test_plan.py
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from yarn_train import config as schema
from yarn_train.data.batch import make_batch
from yarn_train.dist import runtime as dist_runtime
from yarn_train.model.registry import choose_kernel
from yarn_train.parallel.context import ContextParallel
from yarn_train.plan.jobs import Tracer
from yarn_train.plan.machines import GIB, fixed_bytes
from yarn_train.plan.memory import memory_of
from yarn_train.plan.sizes import Sizes
from yarn_train.train.setup import build_engine, make_mesh

pytestmark = pytest.mark.gpu
STEPS = 2  # the first makes the optimizer's state


@pytest.mark.parametrize(
    ("seq_len", "memory"),
    [
        (65536, {"activation": "full"}),
        (65536, {"activation": "attention", "offload": True}),
        (8192, {"activation": "none", "loss": "full"}),
    ],
)
def test_the_predicted_peak_is_within_a_tenth_of_the_measured_one(
    seq_len: int, memory: dict[str, Any], llama_1b: LlamaConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = schema.build(
        {
            "rope": {"factor": 16.0},
            "data": {"seq_len": seq_len},
            "memory": memory,
            "train": {"global_batch_size": 2},
        }
    )
    with Tracer(llama_1b) as tracer:
        (traced,) = tracer([(cfg, 1)])
    planned = memory_of(cfg, traced, Sizes.of(llama_1b), 1, 80 * GIB).total - fixed_bytes(1)
    measured = measured_peak(cfg, llama_1b)
    with capsys.disabled():
        print(f"\n{seq_len} {memory}: planned {planned / GIB:.2f} GiB, measured {measured / GIB:.2f} GiB")
    assert planned == pytest.approx(measured, rel=0.1)


def measured_peak(cfg: schema.Config, llama_1b: LlamaConfig) -> float:
    """Bytes that torch's allocator had given out at the fullest instant of the second step, two micro-batches long."""
    runtime = dist_runtime.start()
    mesh = make_mesh(cfg, llama_1b, runtime)
    kernel = ContextParallel(mesh).attention(choose_kernel("auto", runtime.device, torch.bfloat16))
    engine, _ = build_engine(cfg, llama_1b, None, kernel, mesh, runtime.device)
    batch = make_batch(torch.randint(0, llama_1b.vocab_size, (1, cfg.data.seq_len))).to(runtime.device)
    count = torch.tensor(2.0 * batch.num_valid, device=runtime.device)
    for _ in range(STEPS):
        torch.cuda.reset_peak_memory_stats()
        for _ in range(cfg.train.global_batch_size):
            loss = engine.module(batch.input_ids, batch.position_ids, batch.labels)
            engine.backward(loss, count)
            del loss
        engine.step(1e-4)
    torch.cuda.synchronize()
    peak = float(torch.cuda.max_memory_allocated())
    del engine
    dist_runtime.free_memory()
    return peak
