"""Each program's own rules in numbers that its source or its issues state, and our exports through all of them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from yarn_train.config import RopeConfig
from yarn_train.interop import judge as judging
from yarn_train.interop import tables
from yarn_train.interop.given import from_config
from yarn_train.interop.judge import Row, judge
from yarn_train.rope import hf

YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 256}
BASE: dict[str, Any] = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 2, "rope_theta": 5e5}
RULE = 0.1 * math.log(16.0) + 1.0
FIVE, FOUR, NOW, BEFORE = "transformers 5", "transformers 4", "vLLM now", "vLLM before 2026-09"
SGLANG, LLAMA, TENSORRT = "SGLang", "llama.cpp", "TensorRT-LLM"
ALL = (FIVE, FOUR, NOW, BEFORE, SGLANG, LLAMA, TENSORRT)


def rows(rope: dict[str, Any], longest: int = 4096, **more: Any) -> dict[str, Row]:
    config = {**BASE, "max_position_embeddings": longest, "rope_scaling": rope, **more}
    return {row.reading.reader: row for row in judge(from_config(config)).rows}


def magnitudes(rope: dict[str, Any]) -> list[float]:
    found = rows(rope)
    return [found[name].reading.layers["all"].attention_factor for name in ALL]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, [RULE] * 7),
        ({"attention_factor": 1.1}, [1.1, 1.1, 1.1, RULE, RULE, RULE, RULE]),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, [1.0, 1.0, 1.0, RULE, 1.0, RULE, 1.0]),
        ({"attn_factor": 1.5}, [RULE, RULE, RULE, RULE * 1.5, RULE * 1.5, RULE, RULE]),
        ({"mscale": 2.0}, [RULE, RULE, RULE, RULE, RULE, RULE, 0.2 * math.log(16.0) + 1.0]),
    ],
)
def test_who_takes_which_magnitude(extra: dict[str, Any], expected: list[float]) -> None:
    assert magnitudes({**YARN, **extra}) == pytest.approx(expected)


def test_the_factors_that_issues_report() -> None:
    laguna = rows({**YARN, "factor": 64.0, "attention_factor": 1.0}, 256 * 64)  # vllm 46280
    assert laguna[BEFORE].reading.layers["all"].attention_factor == pytest.approx(1.4158883)
    squared = rows({**YARN, "factor": 128.0, "attn_factor": 0.1 * math.log(128) + 1}, 256 * 128)  # sglang 33558
    assert squared[SGLANG].reading.layers["all"].attention_factor == pytest.approx(2.2058, abs=1e-4)


def test_truncate_is_not_read_by_two() -> None:
    found = rows({**YARN, "truncate": False})
    assert [name for name in ALL if found[name].difference != 0.0] == [LLAMA, TENSORRT]


def test_a_missing_original_length() -> None:
    found = rows({"rope_type": "yarn", "factor": 16.0})
    taken = {name: found[name].reading.layers["all"].original_length for name in ALL if not found[name].reading.refuses}
    assert taken == {FIVE: 4096, FOUR: 4096, NOW: 4096, BEFORE: 4096, SGLANG: 4096, TENSORRT: 1024}
    assert "original_max_position_embeddings is missing" in str(found[LLAMA].reading.refuses)
    meant = found["YaRN's rule"]
    assert meant.reading.layers["all"].original_length == 256


def test_a_missing_original_length_costs_what_was_measured_in_transformers() -> None:
    found = rows({"rope_type": "yarn", "factor": 16.0}, 65536, hidden_size=256, rope_theta=1e4)
    first, meant = (found[name].reading.layers["all"].inv_freq for name in (FIVE, "YaRN's rule"))
    off = first / meant - 1
    assert float(off.max()) == pytest.approx(11.4, abs=0.05)
    assert float(off.mean()) == pytest.approx(2.4, abs=0.05)
    assert [int(pair) for pair in torch.nonzero(off > 1e-4).flatten()[[0, -1]]] == [21, 63]


def test_the_newer_spelling_alone() -> None:
    found = rows({}, rope_parameters={**YARN, "rope_theta": 5e5}, rope_theta=None, rope_scaling=None)
    kinds = {name: (found[name].reading.layers["all"].kind, found[name].reading.layers["all"].theta) for name in ALL}
    assert kinds.pop(FOUR) == ("default", 1e4)
    assert kinds.pop(TENSORRT) == ("default", 5e5)
    assert set(kinds.values()) == {("yarn", 5e5)}


def test_two_types() -> None:
    found = rows({**YARN, "type": "linear"})
    taken = {name: found[name].reading.layers["all"].kind for name in (FIVE, FOUR, SGLANG, LLAMA, TENSORRT)}
    assert taken == {FIVE: "yarn", FOUR: "linear", SGLANG: "yarn", LLAMA: "yarn", TENSORRT: "linear"}
    assert "contradict" in str(found[NOW].reading.refuses)


def test_longest_lengths() -> None:
    linear = rows({"rope_type": "linear", "factor": 4.0})
    assert [linear[name].reading.max_length for name in ALL] == [4096, 4096, 16384, 16384, 16384, 4096, 4096]
    stacked = rows(YARN, 65536)
    assert [stacked[name].reading.max_length for name in ALL] == [65536, 65536, 65536, 4096, 65536, 65536, 65536]


def test_dynamic() -> None:
    found = rows({"rope_type": "dynamic", "factor": 4.0})
    static = tables.unscaled(32, 5e5 * 13.0 ** (32 / 30))  # 4 x 4 - 3
    plain = tables.unscaled(32, 5e5)
    for name, expected in {FIVE: plain, NOW: static, SGLANG: static, LLAMA: plain, TENSORRT: plain}.items():
        assert torch.allclose(found[name].reading.layers["all"].inv_freq, expected, rtol=1e-6), name


LONG = {"rope_type": "longrope", "factor": 16.0, "original_max_position_embeddings": 256}
LONG |= {"short_factor": [1.0] * 16, "long_factor": [3.0] * 16}


def test_longrope() -> None:
    rule = math.sqrt(1 + math.log(16) / math.log(256))
    found = rows({**LONG, "attention_factor": 1.2, "long_mscale": 1.3})
    layers = {name: found[name].reading.layers["all"] for name in ALL}
    stated = {name: layers[name].attention_factor for name in ALL}
    assert stated == pytest.approx(
        {FIVE: 1.2, FOUR: 1.2, NOW: 1.3, BEFORE: 1.3, SGLANG: 1.3, LLAMA: 1.0, TENSORRT: rule}
    )
    divisors = {name: float(tables.unscaled(32, 5e5)[3] / layers[name].inv_freq[3]) for name in ALL}
    assert divisors == pytest.approx(
        {FIVE: 3.0, FOUR: 1.0, NOW: 3.0, BEFORE: 3.0, SGLANG: 3.0, LLAMA: 1.0, TENSORRT: 3.0}
    )
    phi = rows(LONG, model_type="phi3")[LLAMA].reading.layers["all"]
    assert phi.attention_factor == pytest.approx(rule)
    assert float(tables.unscaled(32, 5e5)[3] / phi.inv_freq[3]) == pytest.approx(3.0)


EXPORTS: dict[str, tuple[dict[str, Any], set[str]]] = {  # options -> readers that cannot follow
    "none": ({"method": "none", "factor": 1.0}, set()),
    "pi": ({"method": "pi"}, {NOW, BEFORE, SGLANG}),  # the length only
    "ntk": ({"method": "ntk"}, {LLAMA, TENSORRT}),
    "ntk_by_parts": ({"method": "ntk_by_parts"}, {BEFORE, SGLANG, LLAMA, TENSORRT}),
    "ntk_by_parts_by_rotations": ({"method": "ntk_by_parts", "ramp": "by_rotations"}, {LLAMA, TENSORRT}),
    "yarn": ({}, set()),
    "yarn_fraction": ({"factor": 2.5}, set()),
    "yarn_betas": ({"alpha": 2.0, "beta": 16.0}, {LLAMA}),
    "yarn_untruncated": ({"truncate": False}, {LLAMA, TENSORRT}),
    "yarn_temperature": ({"temperature": 0.8}, {BEFORE, SGLANG, LLAMA, TENSORRT}),
    "yarn_by_rotations": ({"ramp": "by_rotations"}, {LLAMA, TENSORRT}),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_what_we_export_has_no_fault_and_says_who_cannot_follow(name: str) -> None:
    options, cannot = EXPORTS[name]
    rope = RopeConfig(**{"factor": 16.0, **options})
    base = LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        num_hidden_layers=1,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )
    made = hf.scaled_config(base, rope)
    written = hf.write_both_spellings(json.loads(made.to_json_string(use_diff=False)))
    found = judge(from_config(written, {"model_max_length": made.max_position_embeddings}))
    assert found.faults == []
    follow = {row.reading.reader: row for row in found.rows if row.reading.reader in ALL}
    assert {reader for reader, row in follow.items() if not row.same} == cannot
    assert all(follow[reader].reading.notes for reader in cannot)
    ours = hf.table_for(base, rope)
    theirs = found.rows[0].reading.layers["all"]
    assert torch.allclose(theirs.inv_freq, ours.inv_freq, rtol=judging.SAME, atol=0.0)
    assert theirs.attention_factor == pytest.approx(ours.attention_factor)
