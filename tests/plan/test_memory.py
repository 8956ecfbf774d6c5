"""Memory and time of Llama 2 7B against arithmetic done by hand (docs/memory.md) and published formulas."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from transformers import LlamaConfig

from yarn_train import config as schema
from yarn_train.config import Config, ModelConfig
from yarn_train.model import flops
from yarn_train.plan import ledger as books
from yarn_train.plan.architectures import KNOWN, architecture
from yarn_train.plan.machines import GIB, H100, MACHINES
from yarn_train.plan.memory import COPY, FIXED, Memory, lower_bound, memory_of, zero_state
from yarn_train.plan.sizes import Sizes
from yarn_train.plan.time import step_time
from yarn_train.plan.trace import Trace, trace

PARAMETERS = 6_738_415_616
SIZES = Sizes(PARAMETERS, 202_383_360, 6_607_077_376, 131_072_000, 4_328_521_728, 32, 4096, 32000, 4096)


def config(**sections: dict[str, Any]) -> Config:
    """The paper's run: 64 sequences of 64k tokens per step."""
    raw: dict[str, dict[str, Any]] = {
        "rope": {"factor": 16.0, "original_max_position_embeddings": 4096},
        "data": {"seq_len": 65536},
        "train": {"global_batch_size": 64},
        "memory": {"activation": "full"},
        "checkpoint": {"async_save": False},
    }
    for section, values in sections.items():
        raw[section] = {**raw.get(section, {}), **values}
    return schema.build(raw)


@pytest.fixture(scope="module")
def llama() -> LlamaConfig:
    base, _ = architecture(Config(model=ModelConfig(path="meta-llama/Llama-2-7b-hf")))
    assert isinstance(base, LlamaConfig)
    return base


@pytest.fixture(scope="module")
def full(llama: LlamaConfig) -> Trace:
    return trace(config(), llama, 8)


def planned(cfg: Config, traced: Trace, world_size: int = 8) -> Memory:
    return memory_of(cfg, traced, SIZES, world_size, H100.memory)


def test_sizes_of_llama_2_7b(llama: LlamaConfig) -> None:
    assert Sizes.of(llama) == SIZES


@pytest.mark.parametrize(
    ("path", "billions"),
    [
        ("meta-llama/Llama-2-7b-hf", 6.738),
        ("meta-llama/Llama-2-13b-hf", 13.016),
        ("meta-llama/Llama-2-70b-hf", 68.977),
        ("mistralai/Mistral-7B-v0.1", 7.242),
    ],
)
def test_parameters_of_the_models_known_by_name_are_those_of_their_checkpoints(path: str, billions: float) -> None:
    assert Sizes.of(KNOWN[path][0](**KNOWN[path][1])).parameters / 1e9 == pytest.approx(billions, abs=5e-4)


def test_sharded_state_is_sixteen_bytes_per_parameter(full: Trace) -> None:
    device = planned(config(), full).device
    for category, width in ((books.WEIGHTS, 4), (books.GRADIENTS, 4), (books.OPTIMIZER, 8)):
        assert device[category] == pytest.approx(width * PARAMETERS / 8, rel=0.01)


def test_64k_with_recomputation_is_what_the_paper_arithmetic_says(full: Trace) -> None:
    """Block inputs 2 h L bytes per token; eager, one block's live set: about 48 GiB with overheads."""
    memory = planned(config(), full)
    inputs = 2 * 4096 * 32 * 65536
    assert memory.device[books.SAVED] == pytest.approx(inputs, rel=0.05)
    assert memory.total / GIB == pytest.approx(48, rel=0.04)
    assert memory.fits


def test_keeping_attention_adds_its_output_and_log_sum_exp(llama: LlamaConfig, full: Trace) -> None:
    kept = trace(config(memory={"activation": "attention"}), llama, 8)
    added = kept.saved[books.SAVED] - full.saved[books.SAVED]
    assert added == (2 * 4096 + 4 * 32) * 32 * 65536
    memory = planned(config(), kept)
    assert memory.total / GIB == pytest.approx(64, rel=0.04)
    assert memory.fits


def test_offloading_moves_the_block_inputs_to_the_host(llama: LlamaConfig) -> None:
    memory = planned(config(), trace(config(memory={"activation": "offload"}), llama, 8))
    assert memory.host == {"activations": 2 * 4096 * 32 * 65536}
    assert memory.total / GIB == pytest.approx(32, rel=0.06)


def test_full_logits_cost_twelve_bytes_per_token_and_word(llama: LlamaConfig) -> None:
    memory = planned(config(), trace(config(memory={"loss": "full"}), llama, 8))
    assert memory.device[books.LOSS] == pytest.approx(12 * 32000 * 65536, rel=0.001)
    assert memory.total / GIB == pytest.approx(57, rel=0.04)


@pytest.mark.parametrize(
    ("stage", "offload", "device", "host"),
    [
        (1, "none", 2 + 4 + (4 + 8) / 8, 0.0),
        (2, "none", 2 + 4 / 8 + (4 + 8) / 8, 0.0),
        (3, "none", (2 + 4 + 4 + 8) / 8, 0.0),
        (1, "optimizer", 2 + 4, (4 + 4 + 8) / 8),
        (2, "optimizer", 2, (4 + 4 + 8) / 8),
        (3, "optimizer", 2 / 8, (4 + 4 + 8) / 8),
        (3, "all", 0.0, (2 + 4 + 4 + 8) / 8),
    ],
)
def test_zero_state_is_that_of_the_zero_paper_with_float32_gradients(
    stage: int, offload: str, device: float, host: float
) -> None:
    """Bytes per parameter on 8 ranks."""
    cfg = config(engine={"name": "deepspeed", "zero_stage": stage, "offload": offload})
    held, away = zero_state(cfg, SIZES, 8)
    held.pop(books.COMMUNICATION)
    assert sum(held.values()) / PARAMETERS == pytest.approx(device)
    assert sum(away.values()) / PARAMETERS == pytest.approx(host)


def test_deepspeed_has_the_traced_activations_and_its_own_state(full: Trace, llama: LlamaConfig) -> None:
    cfg = config(engine={"name": "deepspeed"})
    memory = planned(cfg, trace(cfg, llama, 8))
    ours = planned(config(), full)
    assert memory.device[books.SAVED] == pytest.approx(ours.device[books.SAVED], rel=0.05)
    assert memory.device[books.WEIGHTS] == pytest.approx(6 * PARAMETERS / 8)
    assert set(memory.by_arithmetic) == {
        FIXED,
        books.WEIGHTS,
        books.GRADIENTS,
        books.OPTIMIZER,
        books.COMMUNICATION,
    }


def test_state_in_host_memory_is_counted_there(full: Trace) -> None:
    optimizer = planned(config(engine={"offload": "optimizer"}), full)
    assert optimizer.host[books.OPTIMIZER] == pytest.approx(8 * PARAMETERS / 8, rel=0.01)
    assert books.OPTIMIZER not in optimizer.device
    eight_bit = planned(config(optim={"state": "8bit"}), full)
    assert eight_bit.device[books.OPTIMIZER] == pytest.approx(2.03 * PARAMETERS / 8, rel=0.01)
    assert books.OPTIMIZER in eight_bit.by_arithmetic


def test_a_checkpoint_that_is_written_in_the_background_is_copied_to_the_host(full: Trace) -> None:
    memory = planned(config(checkpoint={"async_save": True}), full)
    assert memory.host == {COPY: 12 * PARAMETERS / 8}
    low = planned(config(checkpoint={"async_save": True}, optim={"state": "bfloat16"}), full)
    assert low.host[COPY] == 6 * PARAMETERS / 8


def test_the_host_holds_all_gradients_though_the_device_is_fullest_before_they_exist() -> None:
    """One micro-batch per step, its activations the most there is on the device."""
    base = LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        vocab_size=320,
        max_position_embeddings=4096,
    )
    options = {"engine": {"offload": "all"}, "memory": {"activation": "none"}, "train": {"global_batch_size": 8}}
    cfg = config(**options, data={"seq_len": 1024})
    sizes = Sizes.of(base)
    host = memory_of(cfg, trace(cfg, base, 8), sizes, 8, H100.memory).host
    assert sum(host.values()) == pytest.approx(16 * sizes.parameters / 8, rel=0.01)


GRID = [
    {"memory": {"activation": activation, "loss": loss}, "engine": {"offload": offload}}
    for activation, loss, offload in [
        ("none", "chunked", "none"),
        ("full", "full", "none"),
        ("attention", "chunked", "optimizer"),
        ("offload", "chunked", "all"),
    ]
]


@pytest.mark.parametrize("options", GRID)
@pytest.mark.parametrize("seq_len", [1024, 65536])
def test_the_lower_bound_is_below_the_trace_and_not_far_below(
    options: dict[str, Any], seq_len: int, llama: LlamaConfig
) -> None:
    cfg = config(**options, data={"seq_len": seq_len})
    total = planned(cfg, trace(cfg, llama, 8)).total
    bound = lower_bound(cfg, SIZES, 8)
    assert bound < total
    if seq_len == 65536:
        assert bound > 0.35 * total


# ---- time ----


@pytest.mark.parametrize(("recompute", "gflop"), [("none", 3 * 30.4 + 8.6), ("full", 129.9), ("attention", 112.7)])
def test_hardware_flops_per_token_at_64k(recompute: str, gflop: float) -> None:
    """By hand: 4 linear + 3 head + 4.5 (3.5) attention, and without recomputation 3 linear + 3.5 attention."""
    again = SIZES.matmul - SIZES.head if recompute != "none" else 0
    work = flops.hardware_work(SIZES.matmul, again, 32, 4096, 65536, recompute == "full")
    assert work.total / 1e9 == pytest.approx(gflop, rel=0.002)


@pytest.mark.parametrize(
    ("gpu", "activation", "seconds"),
    [("h100", "full", 166), ("h100", "attention", 140), ("a100-80", "full", 316), ("a100-80", "attention", 272)],
)
def test_compute_time_of_the_paper_step_is_the_one_worked_out_on_paper(
    gpu: str, activation: str, seconds: float, full: Trace
) -> None:
    cfg = config(memory={"activation": activation})
    time = step_time(cfg, full, SIZES, MACHINES[gpu], 8, 8)
    assert time.linear + time.attention == pytest.approx(seconds, rel=0.01)
    assert time.seconds > time.linear + time.attention
    assert time.model_flops == pytest.approx(91.2e9 * 64 * 65536 / 8, rel=0.001)
    assert time.mfu == pytest.approx(91.2e9 * time.tokens_per_second / MACHINES[gpu].peak, rel=0.001)


def test_the_reference_run_is_inside_of_what_its_users_report(full: Trace) -> None:
    """The YaRN reference on 8 A100: 300 s and more per step; the fastest comparable public run implies 410 s."""
    assert 300 < step_time(config(), full, SIZES, MACHINES["a100-80"], 8, 8).seconds < 410


def test_links_are_slower_between_nodes_and_copies_can_be_what_a_step_waits_for(full: Trace) -> None:
    inside, across = (step_time(config(), full, SIZES, H100, 8, per_node) for per_node in (8, 4))
    assert across.hidden == pytest.approx(inside.hidden * H100.link / H100.network)
    copies = step_time(config(parallel={"replicate": 2}), full, SIZES, H100, 8, 4)  # each on a node of its own
    assert copies.hidden == pytest.approx(inside.hidden)
    slow = dataclasses.replace(H100, link=1e9)
    assert step_time(config(), full, SIZES, slow, 8, 8).seconds > 2 * inside.hidden
