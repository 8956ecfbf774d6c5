"""One optimizer step of a 1B-class model on one 64k segment: the size this project is for, on one GPU."""

from __future__ import annotations

import math
import time

import pytest
import torch

from yarn_train import config as schema
from yarn_train.data.batch import make_batch
from yarn_train.dist import runtime as dist_runtime
from yarn_train.metrics.meter import mfu
from yarn_train.model import flops
from yarn_train.model.registry import choose_kernel
from yarn_train.parallel.context import ContextParallel
from yarn_train.train.setup import build_engine, make_mesh

pytestmark = pytest.mark.gpu
TOKENS = 65536


@pytest.mark.parametrize("activation", ["full", "attention", "offload"])
def test_a_64k_step_of_a_1b_model(activation, llama_1b, capsys):
    cfg = schema.build({"rope": {"factor": 16.0}, "memory": {"activation": activation}, "data": {"seq_len": TOKENS}})
    runtime = dist_runtime.start()
    mesh = make_mesh(cfg, llama_1b, runtime)
    kernel = ContextParallel(mesh).attention(choose_kernel("auto", runtime.device, torch.bfloat16))
    engine, built = build_engine(cfg, llama_1b, None, kernel, mesh, runtime.device)
    batch = make_batch(torch.randint(0, llama_1b.vocab_size, (1, TOKENS))).to(runtime.device)
    count = torch.tensor(float(batch.num_valid), device=runtime.device)
    seconds, losses = [], []
    for _ in range(3):
        torch.cuda.synchronize()
        started = time.perf_counter()
        loss = engine.module(batch.input_ids, batch.position_ids, batch.labels)
        engine.backward(loss, count)
        norm = engine.step(1e-4)
        losses.append((loss / count).item())
        seconds.append(time.perf_counter() - started)
        assert math.isfinite(norm.item())
    assert losses[0] == pytest.approx(math.log(llama_1b.vocab_size), rel=0.05)
    assert losses[2] < losses[0]
    rate = TOKENS / seconds[-1]
    per_token = flops.flops_per_token(built.matmul, llama_1b.num_hidden_layers, 32 * 64, TOKENS)
    peak = torch.cuda.max_memory_allocated() / 2**30
    with capsys.disabled():
        used = mfu(rate, per_token, flops.peak_flops(runtime.device), 1)
        print(
            f"\n{torch.cuda.get_device_name()} {kernel.name} {activation}: {rate:.0f} tok/s, MFU {used}, {peak:.1f} GiB"
        )
    assert peak < 75
    del engine, loss, norm  # the loss holds its graph
    dist_runtime.free_memory()
    torch.cuda.reset_peak_memory_stats()
