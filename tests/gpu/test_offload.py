"""Offload on a GPU: equal gradients, no synchronisation of the host, device memory given back while blocks run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_train.model.causal_lm import CausalLM
from yarn_train.model.registry import SDPA
from yarn_train.parallel.activation import apply
from yarn_train.parallel.offload import MIN_BYTES, Mover

pytestmark = pytest.mark.gpu

LAYERS, HIDDEN, HEADS, TOKENS = 8, 512, 8, 8192
INPUT = TOKENS * HIDDEN * 2  # bytes of one block's input in bf16
LSE = TOKENS * HEADS * 4


@pytest.fixture
def refuse_waiting() -> Iterator[Callable[[], None]]:
    """From its call on, anything that makes the host wait for the device raises."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def build(recompute: str, mover: Mover | None) -> CausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=256,
        use_cache=False,
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation=SDPA, dtype=torch.bfloat16)
    module = CausalLM(model, "chunked").cuda()
    apply(module.blocks, recompute, mover)
    return module


def batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.randint(0, 256, (1, TOKENS), generator=torch.Generator().manual_seed(seed)).cuda()
    return ids, torch.arange(TOKENS, device="cuda").unsqueeze(0), ids.roll(-1, 1)


def gradients(module: CausalLM, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Two micro-batches' worth, without a look at any value."""
    for _ in range(2):
        (module(*inputs) / TOKENS).backward()
    taken = [p.grad for p in module.parameters() if p.grad is not None]
    module.zero_grad(set_to_none=True)
    return taken


@pytest.mark.parametrize("recompute", ["full", "attention"])
def test_gradients_are_those_of_kept_activations_and_the_host_never_waits(
    recompute: str, refuse_waiting: Callable[[], None]
) -> None:
    kept, mover = build(recompute, None), Mover()
    moved = build(recompute, mover)
    batches = [batch(seed) for seed in range(4)]
    gradients(moved, batches[0])  # pinned buffers are made in the first step, which may wait
    gradients(kept, batches[0])
    refuse_waiting()
    found = [(gradients(moved, inputs), gradients(kept, inputs)) for inputs in batches]
    torch.cuda.set_sync_debug_mode("default")
    for got, right in found:
        for one, other in zip(got, right, strict=True):  # kernels with atomic sums may differ in the last bit
            assert (one.float() - other.float()).norm() <= 1e-3 * other.float().norm()
    torch.cuda.synchronize()
    per_block = INPUT if recompute == "full" else 2 * INPUT + (LSE if LSE >= MIN_BYTES else 0)
    assert mover.host.peak == LAYERS * per_block
    assert mover.host_bytes == mover.device.now == 0


def alive_after_forward(recompute: str, mover: Mover | None) -> int:
    module, inputs = build(recompute, mover), batch(0)
    gradients(module, inputs)
    before = torch.cuda.memory_allocated()
    loss = module(*inputs)
    alive = torch.cuda.memory_allocated() - before
    loss.backward()
    return alive


@pytest.mark.parametrize("recompute", ["full", "attention"])
def test_the_device_holds_one_block_of_what_the_host_has(recompute: str) -> None:
    saved = alive_after_forward(recompute, None) - alive_after_forward(recompute, Mover())
    per_block = INPUT if recompute == "full" else 2 * INPUT
    assert saved == pytest.approx((LAYERS - 1) * per_block, rel=0.02)  # the last block's has not left yet


def test_steps_do_not_grow_reserved_memory() -> None:
    """Released in event order, memory is reused at once: what is reserved after 3 steps is enough for 20."""
    module, inputs = build("full", Mover()), batch(0)
    reserved = []
    for _ in range(20):
        gradients(module, inputs)
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] == reserved[2]


def test_copies_overlap_compute() -> None:
    """A step with offload takes at most a tenth longer than one without."""
    seconds = {}
    for name, mover in (("kept", None), ("moved", Mover())):
        module, inputs = build("full", mover), batch(0)
        for _ in range(3):
            gradients(module, inputs)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(10):
            gradients(module, inputs)
        end.record()
        torch.cuda.synchronize()
        seconds[name] = start.elapsed_time(end)
    assert seconds["moved"] < 1.1 * seconds["kept"]
