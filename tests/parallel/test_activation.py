"""Recompute policies against plain autograd: equal gradients, how often attention runs, exactly what is kept."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, PretrainedConfig

from bench.measure import KeptBytes
from yarn_train.model import kernels
from yarn_train.model.causal_lm import CausalLM
from yarn_train.model.registry import SDPA
from yarn_train.parallel.activation import apply
from yarn_train.parallel.offload import Mover

LAYERS, HIDDEN, HEADS, TOKENS, ROWS = 3, 32, 4, 24, 2
LLAMA = LlamaConfig(
    hidden_size=HIDDEN,
    intermediate_size=48,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    num_key_value_heads=2,
    vocab_size=40,
)
NEOX = GPTNeoXConfig(
    hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=HEADS, vocab_size=40
)
POLICIES = ["none", "full", "attention", "offload", "attention+offload"]
Grads = dict[str, Tensor]


def build(policy: str, config: PretrainedConfig = LLAMA, dtype: torch.dtype = torch.float32) -> tuple[CausalLM, Mover]:
    """A small model under `policy`, and the mover of its offload (unused without)."""
    torch.manual_seed(0)
    config.use_cache = False
    model = AutoModelForCausalLM.from_config(config, attn_implementation=SDPA, dtype=dtype)
    module, mover = CausalLM(model, "full").train(), Mover(min_bytes=1)
    apply_policy(module, policy, mover)
    return module, mover


def apply_policy(module: CausalLM, policy: str, mover: Mover) -> None:
    recompute = {"offload": "full", "attention+offload": "attention"}.get(policy, policy)
    apply(module.blocks, recompute, mover if "offload" in policy else None)


def loss_of(module: CausalLM, seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 40, (ROWS, TOKENS), generator=g)
    documents = ((0, 5), (0, 9, 20))  # rows that differ are one call of attention all the same
    return module(ids, torch.arange(TOKENS).expand(ROWS, -1), ids.roll(-1, 1), documents)


def grads(module: CausalLM) -> Grads:
    """All gradients by name, taken away from the module."""
    taken = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    return taken


def step(module: CausalLM, seed: int = 1) -> Grads:
    loss_of(module, seed).backward()
    return grads(module)


def assert_equal(got: Grads, expected: Grads) -> None:
    """Bit for bit: recomputation runs the same operations on the same numbers."""
    assert got.keys() == expected.keys() != set()
    assert [name for name in got if not torch.equal(got[name], expected[name])] == []


@pytest.fixture
def kernel_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Grows by one entry whenever an attention kernel runs forward."""
    runs: list[int] = []
    attend = kernels.attend
    monkeypatch.setattr(kernels, "attend", lambda *args: runs.append(1) or attend(*args))
    return runs


@pytest.mark.parametrize("config", [LLAMA, NEOX], ids=["llama", "gpt_neox"])
@pytest.mark.parametrize("policy", POLICIES[1:])
def test_loss_and_gradients_are_those_of_plain_autograd_in_every_step(policy: str, config: PretrainedConfig) -> None:
    plain, module = build("none", config)[0], build(policy, config)[0]
    for seed in (1, 2):  # the second step works with the buffers of the first
        assert loss_of(module, seed).item() == loss_of(plain, seed).item()
        assert_equal(step(module, seed), step(plain, seed))


@pytest.mark.parametrize(("policy", "times"), zip(POLICIES, [1, 2, 1, 2, 1], strict=True))
def test_how_often_attention_runs_in_a_step(policy: str, times: int, kernel_runs: list[int]) -> None:
    step(build(policy)[0])
    assert len(kernel_runs) == times * LAYERS


@pytest.mark.parametrize("policy", POLICIES)
def test_compiled_blocks_share_one_graph_inside_of_their_recomputation(policy: str, kernel_runs: list[int]) -> None:
    """Compiled first, recomputed outside: the store is there when the graph runs, in forward and again in backward."""
    plain, (module, mover) = build("none")[0], build("none")
    counts = CompileCounterWithBackend("aot_eager")
    for block in module.blocks:
        block.forward = torch.compile(block.forward, backend=counts)
    apply_policy(module, policy, mover)
    step(module)
    expected, before = step(plain, 2), len(kernel_runs)
    for name, grad in step(module, 2).items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-6)
    assert len(kernel_runs) - before == {"full": 2, "offload": 2}.get(policy, 1) * LAYERS
    assert counts.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("policy", POLICIES)
def test_evaluation_runs_once_and_keeps_nothing(policy: str, kernel_runs: list[int]) -> None:
    module, mover = build(policy)
    with torch.no_grad():
        loss_of(module)
    assert len(kernel_runs) == LAYERS
    assert mover.host.peak == mover.device.peak == 0


def kept_per_token(policy: str, layers: int) -> int:
    """Device bytes that are alive after a forward in bf16, per token."""
    config = LlamaConfig(**{**LLAMA.to_dict(), "num_hidden_layers": layers})
    module, _ = build(policy, config, torch.bfloat16)
    loss_of(module)  # tables and other things that are made once
    with KeptBytes() as kept:
        loss = loss_of(module)
    assert loss.requires_grad
    return kept.now // (ROWS * TOKENS)


def test_each_block_keeps_its_input_and_for_attention_output_and_log_sum_exp() -> None:
    """2h bytes per token in bf16 for full, and 2h + 4 heads more for attention: each block adds exactly that."""
    per_block = {policy: kept_per_token(policy, 4) - kept_per_token(policy, 3) for policy in POLICIES[:3]}
    assert per_block["full"] == 2 * HIDDEN
    assert per_block["attention"] == 2 * HIDDEN + (2 * HIDDEN + 4 * HEADS)
    assert per_block["none"] > 10 * per_block["full"]


@pytest.mark.parametrize("policy", POLICIES[1:])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_micro_batches_in_flight_do_not_mix(policy: str, order: tuple[int, int]) -> None:
    plain, module = build("none")[0], build(policy)[0]
    losses = [loss_of(module, seed) for seed in (1, 2)]
    with torch.no_grad():
        loss_of(module, 3)  # an evaluation between forward and backward
    for number in order:
        losses[number].backward()
        assert_equal(grads(module), step(plain, number + 1))


class Broken(Exception):
    """Raised on purpose."""


def _break(*_: object) -> None:
    raise Broken


@pytest.mark.parametrize("policy", POLICIES[1:])
@pytest.mark.parametrize("where", ["forward", "between", "backward"])
def test_a_step_that_fails_leaves_nothing_behind(policy: str, where: str) -> None:
    plain, (module, mover) = build("none")[0], build(policy)
    mlp = module.blocks[1].mlp
    assert isinstance(mlp, nn.Module)
    hooks = {"forward": mlp.register_forward_hook, "backward": mlp.register_full_backward_hook}
    handle = hooks[where](_break) if where in hooks else None
    try:
        loss = loss_of(module)
        if where == "backward":
            loss.backward()
    except Broken:
        assert handle is not None
        handle.remove()
    loss = None
    grads(module)
    gc.collect()  # the traceback's frames refer to each other
    assert mover.host_bytes == 0
    assert_equal(step(module, 2), step(plain, 2))


@pytest.mark.parametrize("policy", POLICIES[1:])
def test_backward_frees_everything_without_the_garbage_collector(policy: str) -> None:
    module, mover = build(policy)
    step(module)
    gc.collect()
    gc.disable()
    try:
        with KeptBytes() as kept:
            loss = loss_of(module)
            loss.backward()
            del loss
            grads(module)
        assert kept.now == 0
        assert mover.host_bytes == mover.device.now == 0
    finally:
        gc.enable()


def test_kept_attention_is_freed_when_its_block_is_done() -> None:
    """In backward the blocks give up what they keep one by one, last block first, and not all at the end."""
    module, _ = build("attention")
    module.blocks.requires_grad_(False)  # so that no weight gradients grow meanwhile
    step(module)
    left: list[int] = []
    with KeptBytes() as kept:
        for block in module.blocks:
            block.register_full_backward_hook(lambda *_: left.append(kept.now))
        loss_of(module).backward()
    per_block = ROWS * TOKENS * (4 * HIDDEN + 4 * HIDDEN + 4 * HEADS)  # input, output, log-sum-exp in float32
    freed = [a - b for a, b in itertools.pairwise(left)]
    assert freed[0] == per_block
    assert freed[1] > per_block  # the first block is the last to need the rotary tables


def test_a_second_backward_through_consumed_attention_is_refused() -> None:
    module, _ = build("attention")
    loss = loss_of(module)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward twice"):
        loss.backward()


def test_what_was_done_is_said() -> None:
    module, mover = build("none")
    assert apply(module.blocks, "none") == []
    assert "3 blocks" in apply(module.blocks, "full")[0]
    (line,) = apply(module.blocks, "attention", mover)
    assert "attention outputs" in line
    assert "host memory" in line
