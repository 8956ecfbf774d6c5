"""The tables against three independent truths: transformers, float64 formulas, and published numbers."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from yarn_train.rope import frequencies
from yarn_train.rope.frequencies import RopeTable, attention_factor, correction_range, rope_table, rotations

LLAMA2 = {"dim": 128, "theta": 1e4, "original_length": 4096}
LLAMA3 = {"dim": 128, "theta": 5e5, "original_length": 8192}
MISTRAL = {"dim": 128, "theta": 1e4, "original_length": 8192}
GEMMA = {"dim": 256, "theta": 1e4, "original_length": 8192}
QWEN3 = {"dim": 128, "theta": 1e6, "original_length": 32768}
CLAMPED = {"dim": 128, "theta": 1e4, "original_length": 131072}  # upper end of the ramp beyond the last pair
MODELS = [LLAMA2, LLAMA3, MISTRAL, GEMMA, QWEN3, CLAMPED]
FACTORS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)

settings.register_profile("rope", max_examples=150, deadline=None, derandomize=True)
settings.load_profile("rope")

random_rope = st.fixed_dictionaries(
    {
        "dim": st.integers(2, 128).map(lambda half: 2 * half).filter(lambda dim: dim >= 8),
        "theta": st.floats(1e3, 1e7),
        "original_length": st.integers(32, 131072),
        "factor": st.floats(1, 64),
    }
)
betas = st.tuples(st.floats(0.1, 128), st.floats(0.1, 128)).filter(lambda pair: pair[0] < pair[1])


def transformers_table(kind: str, dim: int, theta: float, original_length: int, factor: float, **rope) -> RopeTable:
    rope |= {"rope_type": kind, "rope_theta": theta, "factor": factor}
    config = SimpleNamespace(
        rope_parameters=rope | {"original_max_position_embeddings": original_length},
        head_dim=dim,
        hidden_size=dim,
        num_attention_heads=1,
        max_position_embeddings=original_length,
        standardize_rope_params=lambda: None,
    )
    return RopeTable(*ROPE_INIT_FUNCTIONS[kind](config, device=torch.device("cpu")))


def oracle(method, dim, theta, original_length, factor, alpha=1.0, beta=32.0, ramp="by_index", truncate=True):
    """The formulas in float64, written from the paper and from the reference's correction range."""
    base = np.power(theta, -np.arange(0, dim, 2, dtype=np.float64) / dim)
    if method == "none":
        return base
    if method == "pi":
        return base / factor
    if method == "ntk":
        return np.power(theta * factor ** (dim / (dim - 2)), -np.arange(0, dim, 2, dtype=np.float64) / dim)
    if ramp == "by_rotations":
        gamma = np.clip((original_length * base / (2 * np.pi) - alpha) / (beta - alpha), 0, 1)
    else:
        # The pair index whose period 2 pi b^(2i/d) fits `turns` times into L.
        low, high = (dim / 2 * np.log(original_length / (2 * np.pi * turns)) / np.log(theta) for turns in (beta, alpha))
        if truncate:
            low, high = np.floor(low), np.ceil(high)
        low, high = max(low, 0.0), min(high, dim - 1.0)
        gamma = 1 - np.clip((np.arange(dim // 2) - low) / (high - low if high != low else 1e-3), 0, 1)
    return (1 - gamma) * base / factor + gamma * base


@settings(max_examples=300)
@given(rope=random_rope, ends=betas, truncate=st.booleans())
def test_yarn_equals_transformers_bit_for_bit(rope, ends, truncate):
    alpha, beta = ends
    ours = rope_table("yarn", **rope, alpha=alpha, beta=beta, truncate=truncate)
    theirs = transformers_table("yarn", **rope, beta_slow=alpha, beta_fast=beta, truncate=truncate)
    assert ours.inv_freq.dtype == torch.float32
    assert torch.equal(ours.inv_freq, theirs.inv_freq)
    assert ours.attention_factor == theirs.attention_factor


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("model", MODELS)
def test_yarn_equals_transformers_on_real_models(model, factor):
    ours, theirs = rope_table("yarn", **model, factor=factor), transformers_table("yarn", **model, factor=factor)
    assert torch.equal(ours.inv_freq, theirs.inv_freq)
    assert ours.attention_factor == theirs.attention_factor


@given(rope=random_rope)
def test_pi_and_none_equal_transformers_bit_for_bit(rope):
    assert torch.equal(rope_table("pi", **rope).inv_freq, transformers_table("linear", **rope).inv_freq)
    unscaled = transformers_table("linear", **(rope | {"factor": 1.0})).inv_freq
    assert torch.equal(rope_table("none", **rope).inv_freq, unscaled)


@given(rope=random_rope, ends=betas)
def test_paper_ramp_equals_transformers_llama3(rope, ends):
    alpha, beta = ends
    assume(beta > 2 * alpha)  # closer together, llama3's own float32 cancellation is larger than the tolerance
    ours = rope_table("yarn", **rope, alpha=alpha, beta=beta, ramp="by_rotations")
    theirs = transformers_table("llama3", **rope, low_freq_factor=alpha, high_freq_factor=beta)
    unscaled = rope_table("none", **rope).inv_freq
    assert ((ours.inv_freq - theirs.inv_freq).abs() / unscaled).max() <= 1e-6


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("model", MODELS)
def test_paper_ramp_equals_transformers_llama3_on_real_models(model, factor):
    ours = rope_table("yarn", **model, factor=factor, ramp="by_rotations").inv_freq
    theirs = transformers_table("llama3", **model, factor=factor, low_freq_factor=1, high_freq_factor=32).inv_freq
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", frequencies.METHODS)
@pytest.mark.parametrize("ramp", frequencies.RAMPS)
def test_every_method_equals_float64_formulas(method, model, factor, ramp):
    ours = rope_table(method, **model, factor=factor, ramp=ramp).inv_freq.double().numpy()
    np.testing.assert_allclose(ours, oracle(method, **model, factor=factor, ramp=ramp), rtol=1e-6)


@given(
    rope=random_rope,
    ends=betas,
    method=st.sampled_from(frequencies.METHODS),
    ramp=st.sampled_from(frequencies.RAMPS),
    truncate=st.booleans(),
)
def test_random_settings_equal_float64_formulas(rope, ends, method, ramp, truncate):
    """Relative to the unscaled frequency: where the ramp nearly reaches 1/s, float32 1 - ramp has few digits left."""
    alpha, beta = ends
    low, high = correction_range(rope["dim"], rope["theta"], rope["original_length"], alpha, beta, truncate)
    assume(low == high or high - low > 1e-2)  # a steeper ramp magnifies the rounding of its ends beyond float32
    ours = rope_table(method, **rope, alpha=alpha, beta=beta, ramp=ramp, truncate=truncate).inv_freq.double().numpy()
    wrong = np.abs(ours - oracle(method, **rope, alpha=alpha, beta=beta, ramp=ramp, truncate=truncate))
    assert (wrong / oracle("none", **rope)).max() <= 1e-6


@given(rope=random_rope, ends=betas, ramp=st.sampled_from(frequencies.RAMPS))
def test_frequencies_stay_between_base_and_interpolation(rope, ends, ramp):
    alpha, beta = ends
    scaled = rope_table("yarn", **rope, alpha=alpha, beta=beta, ramp=ramp).inv_freq
    base = rope_table("none", **rope).inv_freq
    assert (scaled <= base * (1 + 1e-6)).all()
    assert (scaled >= base / rope["factor"] * (1 - 1e-6)).all()


def test_correction_range_of_llama2():
    assert correction_range(128, 1e4, 4096, alpha=1, beta=32) == (20, 46)
    low, high = correction_range(128, 1e4, 4096, alpha=1, beta=32, truncate=False)
    assert (low, high) == (pytest.approx(20.944, abs=1e-3), pytest.approx(45.027, abs=1e-3))


def test_correction_range_is_clamped_to_dim_minus_one():
    """At d - 1 as the reference, not at the last pair d/2 - 1: the upper end only sets the slope."""
    assert correction_range(128, 1e4, 131072, alpha=1, beta=32)[1] == 70
    assert correction_range(8, 1e3, 131072, alpha=0.1, beta=32)[1] == 7
    assert correction_range(128, 1e4, 64, alpha=1, beta=32)[0] == 0


@pytest.mark.parametrize(("factor", "expected"), [(16, 1.277259), (32, 1.346574), (1, 1.0)])
def test_attention_factor_keeps_the_square_root(factor, expected):
    """Losing the root of sqrt(1/t) = 0.1 ln s + 1 would give 1.130 at s = 16."""
    assert attention_factor("yarn", factor) == pytest.approx(expected, abs=5e-7)


def test_temperature_divides_logits_by_t():
    assert attention_factor("yarn", 16, 0.5) ** 2 == pytest.approx(2.0)
    assert attention_factor("yarn", 16, 1.0) == 1.0
    assert attention_factor("yarn", 16, 1 / 1.277258872223978**2) == pytest.approx(attention_factor("yarn", 16))


@pytest.mark.parametrize("method", ["none", "pi", "ntk", "ntk_by_parts"])
def test_only_yarn_scales_attention(method):
    assert rope_table(method, **LLAMA2, factor=16).attention_factor == 1.0


@pytest.mark.parametrize(("factor", "largest", "pair"), [(16, 0.671, 38), (32, 0.747, 40)])
def test_two_ramps_differ_in_pairs_21_to_45_only(factor, largest, pair):
    by_index = rope_table("yarn", **LLAMA2, factor=factor).inv_freq
    by_rotations = rope_table("yarn", **LLAMA2, factor=factor, ramp="by_rotations").inv_freq
    difference = ((by_rotations - by_index) / by_index).abs()
    assert (difference > 1e-6).nonzero().flatten().tolist() == list(range(21, 46))
    assert difference.argmax() == pair
    assert difference.max().item() == pytest.approx(largest, abs=1e-3)


@pytest.mark.parametrize("ramp", frequencies.RAMPS)
def test_fast_pairs_keep_every_bit_of_unscaled_rope(ramp):
    base, scaled = (rope_table(m, **LLAMA2, factor=16, ramp=ramp).inv_freq for m in ("none", "yarn"))
    assert torch.equal(scaled[:21], base[:21])
    torch.testing.assert_close(scaled[46:], base[46:] / 16, rtol=1e-6, atol=0.0)


def test_ntk_keeps_the_fastest_pair_and_interpolates_the_slowest():
    base, scaled = (rope_table(m, **LLAMA2, factor=16).inv_freq for m in ("none", "ntk"))
    assert scaled[0] == base[0]
    assert (base[-1] / scaled[-1]).item() == pytest.approx(16, rel=1e-5)


def test_ntk_by_parts_is_yarn_without_temperature():
    parts, yarn = (rope_table(m, **LLAMA2, factor=16) for m in ("ntk_by_parts", "yarn"))
    assert torch.equal(parts.inv_freq, yarn.inv_freq)
    assert (parts.attention_factor, yarn.attention_factor > 1) == (1.0, True)


def test_rotations_of_llama2():
    """Pair 0 turns 4096 / 2 pi times; the ramp's exact ends, 20.94 and 45.03, make 32 rotations and 1."""
    turns = rotations(rope_table("none", **LLAMA2, factor=1).inv_freq, 4096)
    assert turns[0].item() == pytest.approx(4096 / (2 * math.pi))
    assert turns[20] > 32 > turns[21]
    assert turns[45] > 1 > turns[46]


def test_tables_are_on_the_cpu_under_a_meta_device():
    with torch.device("meta"):
        for ramp in frequencies.RAMPS:
            table = rope_table("yarn", **LLAMA2, factor=16, ramp=ramp)
            assert table.inv_freq.device.type == "cpu"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "dynamic"}, "method"),
        ({"ramp": "linear"}, "ramp"),
        ({"dim": 127}, "dim"),
        ({"theta": 1.0}, "theta"),
        ({"original_length": 0}, "original_length"),
        ({"factor": 0.5}, "factor"),
        ({"alpha": 32.0, "beta": 1.0}, "alpha and beta"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": "paper"}, "temperature"),
        ({"method": "ntk", "dim": 2}, "at least 4"),
    ],
)
def test_impossible_arguments_are_refused(change, message):
    arguments = {"method": "yarn", **LLAMA2, "factor": 16.0} | change
    with pytest.raises(ValueError, match=message):
        rope_table(arguments.pop("method"), **arguments)


def test_all_broken_rules_are_named_at_once():
    with pytest.raises(ValueError, match=r"dim.*theta.*factor"):
        rope_table("yarn", dim=3, theta=0.0, original_length=1, factor=0.0)


def test_shim_used_here_reads_a_real_config_alike():
    """The stand-in config of these tests gives what a real LlamaConfig gives."""
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 16.0, "original_max_position_embeddings": 4096}
    config = LlamaConfig(head_dim=128, max_position_embeddings=65536, rope_parameters=rope)
    real, _ = ROPE_INIT_FUNCTIONS["yarn"](config, device=torch.device("cpu"))
    assert torch.equal(real, transformers_table("yarn", **LLAMA2, factor=16.0).inv_freq)
