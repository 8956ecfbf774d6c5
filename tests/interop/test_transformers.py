"""Our account of transformers 5 and 4 against both themselves: frequencies bit for bit, magnitudes equal."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given as varied
from hypothesis import settings
from hypothesis import strategies as st
from interop.installed import FOUR, environment
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from yarn_train.interop import transformers4, transformers5
from yarn_train.interop.given import from_config
from yarn_train.interop.reading import Layer

SIZES = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 2, "head_dim": 32}
PAIRS = 16

thetas = st.sampled_from([1e4, 5e5, 1e6]) | st.floats(100.0, 1e7)
scales = st.floats(1.0, 128.0, allow_nan=False)
originals = st.integers(64, 8192)


def yarns() -> st.SearchStrategy[dict[str, Any]]:
    optional = {
        "attention_factor": st.floats(0.5, 2.0),
        "mscale": st.floats(0.1, 2.0),
        "mscale_all_dim": st.floats(0.1, 2.0),
        "truncate": st.booleans(),
        "beta_fast": st.floats(8.0, 64.0),
        "beta_slow": st.floats(0.5, 4.0),
        "original_max_position_embeddings": originals,
    }
    return st.fixed_dictionaries({"rope_type": st.just("yarn"), "factor": scales}, optional=optional)


def divisors() -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(1.0, 64.0), min_size=PAIRS, max_size=PAIRS)


def ropes() -> st.SearchStrategy[dict[str, Any]]:
    llama3 = {"low_freq_factor": st.floats(0.5, 2.0), "high_freq_factor": st.floats(3.0, 8.0), "factor": scales}
    longrope = {"short_factor": divisors(), "long_factor": divisors(), "factor": scales}
    length = {"original_max_position_embeddings": st.integers(64, 1024)}
    return st.one_of(
        st.just({"rope_type": "default"}),
        st.fixed_dictionaries({"rope_type": st.just("linear"), "factor": scales}),
        st.fixed_dictionaries({"rope_type": st.just("dynamic"), "factor": scales}),
        yarns(),
        st.fixed_dictionaries({"rope_type": st.just("llama3"), **llama3, **length}),
        st.fixed_dictionaries(
            {"rope_type": st.just("longrope"), **longrope, **length}, optional={"attention_factor": st.floats(0.5, 2.0)}
        ),
    )


def layer(read: Any, config: dict[str, Any]) -> Layer:
    found = read(from_config(config))
    assert found.refuses is None, found.refuses
    return found.layers["all"]


def real5(config: dict[str, Any]) -> tuple[LlamaRotaryEmbedding, Any]:
    asked = {key: value for key, value in copy.deepcopy(config).items() if key != "model_type"}
    made = LlamaConfig(**asked)
    return LlamaRotaryEmbedding(made), made


@settings(max_examples=60, deadline=None, derandomize=True)
@varied(ropes(), thetas, st.integers(2048, 65536), st.booleans())
def test_transformers_5_bit_for_bit(rope: dict[str, Any], theta: float, longest: int, newer: bool) -> None:
    inside = {"rope_parameters": {**rope, "rope_theta": theta}}
    outside = {"rope_theta": theta, "rope_scaling": rope if rope["rope_type"] != "default" else None}
    config = {**SIZES, "max_position_embeddings": longest, **(inside if newer else outside)}
    ours, (module, _) = layer(transformers5.read, config), real5(config)
    before = ours.inv_freq if ours.short is None else ours.short
    assert torch.equal(before, module.inv_freq)
    assert ours.attention_factor == module.attention_scaling
    if rope["rope_type"] == "longrope":  # beyond its original length it switches to the other list
        module(torch.zeros(1), torch.tensor([[longest - 1]]))
        assert torch.equal(ours.inv_freq, module.inv_freq)


def test_transformers_5_takes_the_older_dict_when_both_are_there() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "rope_theta": 5e5}
    config = {**SIZES, "max_position_embeddings": 2048, "rope_parameters": yarn, "rope_theta": 7e4}
    config["rope_scaling"] = {"rope_type": "linear", "type": "yarn", "factor": 8.0}
    ours, (module, made) = layer(transformers5.read, config), real5(config)
    assert (ours.kind, ours.theta) == ("linear", 7e4) == (module.rope_type, made.rope_parameters["rope_theta"])
    assert torch.equal(ours.inv_freq, module.inv_freq)


def test_transformers_5_lets_a_top_level_original_length_win() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    config = {**SIZES, "max_position_embeddings": 4096, "rope_theta": 1e4, "rope_scaling": yarn}
    config["original_max_position_embeddings"] = 1024
    ours, (module, _) = layer(transformers5.read, config), real5(config)
    assert ours.original_length == 1024
    assert torch.equal(ours.inv_freq, module.inv_freq)


@pytest.mark.parametrize("rope", [{"rope_type": "yarn", "factor": "4"}, {"rope_type": "yran", "factor": 4.0}])
def test_transformers_5_refuses_what_we_say_it_refuses(rope: dict[str, Any]) -> None:
    config = {**SIZES, "max_position_embeddings": 4096, "rope_theta": 1e4, "rope_scaling": rope}
    assert transformers5.read(from_config(config)).refuses
    with pytest.raises((KeyError, TypeError)):
        real5(config)


YARN = {"rope_type": "yarn", "factor": 16.0}
BASE = {**SIZES, "max_position_embeddings": 4096, "rope_theta": 5e5}
LONG = {"rope_type": "longrope", "factor": 16.0, "short_factor": [1.0] * PAIRS, "long_factor": [3.0] * PAIRS}
FOUR_CASES: dict[str, dict[str, Any]] = {
    "no scaling": BASE,
    "no theta": {**SIZES, "max_position_embeddings": 4096},
    "newer spelling only": {
        **SIZES,
        "max_position_embeddings": 4096,
        "rope_parameters": {**YARN, "rope_theta": 5e5, "original_max_position_embeddings": 256},
    },
    "linear": {**BASE, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "dynamic": {**BASE, "rope_scaling": {"type": "dynamic", "factor": 4.0}},
    "yarn": {**BASE, "rope_scaling": {**YARN, "original_max_position_embeddings": 256, "truncate": False}},
    "yarn without original length": {**BASE, "rope_scaling": YARN},
    "yarn magnitude": {**BASE, "rope_scaling": {**YARN, "attention_factor": 1.1}},
    "yarn mscales": {**BASE, "rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.0}},
    "type wins": {**BASE, "rope_scaling": {**YARN, "type": "linear"}},
    "llama3": {
        **BASE,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1024,
        },
    },
    "longrope": {**BASE, "rope_scaling": {**LONG, "original_max_position_embeddings": 256}},
    "longrope, original length outside": {**BASE, "rope_scaling": LONG, "original_max_position_embeddings": 256},
}
ASK_FOUR = """
import json, sys, torch, transformers
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
assert transformers.__version__.startswith("4."), transformers.__version__
answers = {}
for name, config in json.load(sys.stdin).items():
    config.pop("model_type")
    longest = config["max_position_embeddings"]
    module = LlamaRotaryEmbedding(LlamaConfig(**config))
    if module.rope_type == "longrope":
        module(torch.zeros(1, 1), torch.tensor([[longest - 1]]))
    answers[name] = [[value.hex() for value in module.inv_freq.tolist()], float(module.attention_scaling)]
print(json.dumps(answers))
"""


@pytest.mark.skipif(not FOUR, reason="no transformers 4: make transformers4")
def test_transformers_4_bit_for_bit() -> None:
    asked = json.dumps(FOUR_CASES)
    command = [sys.executable, "-c", ASK_FOUR]
    done = subprocess.run(command, input=asked, env=environment(FOUR), capture_output=True, text=True, check=True)
    for name, (frequencies, attention) in json.loads(done.stdout).items():
        ours = layer(transformers4.read, FOUR_CASES[name])
        assert [value.hex() for value in ours.inv_freq.tolist()] == frequencies, name
        assert ours.attention_factor == attention, name


GOLDEN = {  # of transformers 4.57.6: frequencies of pair 4 and of the last, and the magnitude
    "no scaling": (0.0376060307, 4.54167048e-06, 1.0),
    "no theta": (0.100000001, 0.00017782794, 1.0),
    "newer spelling only": (0.100000001, 0.00017782794, 1.0),
    "linear": (0.00940150768, 1.13541762e-06, 1.0),
    "dynamic": (0.0376060307, 4.54167048e-06, 1.0),
    "yarn": (0.00669113733, 2.83854405e-07, 1.2772588722239782),
    "yarn without original length": (0.0305548999, 2.83854405e-07, 1.2772588722239782),
    "yarn magnitude": (0.0305548999, 2.83854405e-07, 1.1),
    "yarn mscales": (0.0305548999, 2.83854405e-07, 0.9348779926481438),
    "type wins": (0.00235037692, 2.83854405e-07, 1.0),
    "llama3": (0.0376060307, 5.6770881e-07, 1.0),
    "longrope": (0.0376060307, 4.54167048e-06, 1.1547005383792517),
    "longrope, original length outside": (0.0125353429, 1.5138902e-06, 1.224744871391589),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_transformers_4_as_it_was_seen(name: str) -> None:
    pair, last, attention = GOLDEN[name]
    ours = layer(transformers4.read, FOUR_CASES[name])
    assert ours.inv_freq[4].item() == pytest.approx(pair, rel=1e-6)
    assert ours.inv_freq[-1].item() == pytest.approx(last, rel=1e-6)
    assert ours.attention_factor == pytest.approx(attention, rel=1e-9)
