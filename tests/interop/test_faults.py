"""Broken configs, each named for what is wrong with it and for nothing else; healthy ones get no fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING, Gemma3TextConfig

from yarn_train import export
from yarn_train.interop.defaults import defaults_of
from yarn_train.interop.finding import NOTE
from yarn_train.interop.given import from_config
from yarn_train.interop.judge import Row, judge

YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 256}
BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
BASE: dict[str, Any] = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 2, "rope_theta": 5e5}
RULE = 1.2772588722239782  # 0.1 ln 16 + 1
LONG = {"rope_type": "longrope", "factor": 16.0, "original_max_position_embeddings": 256}


def config(longest: int = 4096, rope: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {**BASE, "max_position_embeddings": longest, "rope_scaling": YARN if rope is None else rope, **more}


def both(rope: dict[str, Any], theta: bool = True) -> dict[str, Any]:
    inner = {**rope, "rope_theta": 5e5} if theta else rope
    return config(rope=rope, rope_parameters=inner)


def without(key: str, params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name != key}


BROKEN: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "betas the wrong way": ("betas_swapped", config(rope={**YARN, "beta_fast": 1.0, "beta_slow": 32.0}), None),
    "no original length": (
        "original_length_missing",
        config(rope=without("original_max_position_embeddings", YARN)),
        None,
    ),
    "squared magnitude": ("attention_factor_squared", config(rope={**YARN, "attention_factor": RULE**2}), None),
    "stacked": ("factor_stacked", config(longest=4096 * 16), None),
    "stacked once more": ("factor_stacked", config(rope={**YARN, "factor": 4.0}), None),
    "another program's key": ("attn_factor", config(rope={**YARN, "attn_factor": 1.0}), None),
    "theta outside only": ("theta_only_at_top_level", both(YARN, theta=False), None),
    "theta inside only": ("theta_only_in_rope_parameters", without("rope_theta", both(YARN)), None),
    "no theta": ("theta_missing", without("rope_theta", config()), None),
    "two thetas": ("theta_disagrees", {**both(YARN), "rope_theta": 1e4}, None),
    "old name of the type, where it is lost": (
        "type_only",
        {**config(rope={**without("rope_type", YARN), "type": "yarn"}), "model_type": "olmo3"},
        None,
    ),
    "two types": ("types_contradict", config(rope={**YARN, "type": "linear"}), None),
    "a new type": ("type_unknown", config(rope={"rope_type": "yran", "factor": 16.0}), None),
    "a typo": ("unknown_key", config(rope={**YARN, "beta_fats": 32.0}), None),
    "an unknown key": ("unknown_key", config(rope={**YARN, "extra": True}), None),
    "factor turned round": ("factor_below_one", config(longest=256, rope={**YARN, "factor": 1 / 16}), None),
    "factor as text": ("factor_not_a_number", config(rope={**YARN, "factor": "16"}), None),
    "no factor": ("factor_missing", config(rope=without("factor", YARN)), None),
    "mscales that cancel": ("mscale_cancels", config(rope={**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}), None),
    "magnitude is the default": ("attention_factor_is_default", config(rope={**YARN, "attention_factor": RULE}), None),
    "longest left behind": ("max_length_left_behind", config(longest=256), 4096),
    "longest left between": ("max_length_left_behind", config(longest=320), 4096),
    "longest left between, and no tokenizer to tell": ("factor_stacked", config(longest=320), None),
    "original = longest": (
        "original_equals_max",
        config(rope={**YARN, "original_max_position_embeddings": 4096}),
        4096,
    ),
    "short tokenizer": ("tokenizer_too_short", config(), 256),
    "two rope dicts": (
        "rope_dicts_disagree",
        {**both(YARN), "rope_parameters": {**YARN, "factor": 8.0, "rope_theta": 5e5}},
        None,
    ),
    "newer spelling only": ("scaling_only_in_rope_parameters", without("rope_scaling", both(YARN)), None),
    "no longest": ("max_length_missing", without("max_position_embeddings", config()), None),
    "a short list": (
        "longrope_list_length",
        config(rope={**LONG, "short_factor": [1.0] * 16, "long_factor": [2.0] * 15}),
        None,
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_each_fault_is_named_and_nothing_else(case: str) -> None:
    name, given, tokenizer = BROKEN[case]
    found = judge(from_config(given, {"model_max_length": tokenizer} if tokenizer else None))
    assert [fault.name for fault in found.faults] == [name]
    fault = found.faults[0]
    assert all([fault.got, fault.meant, fault.fix])


HEALTHY = {
    "Llama 2": {**BASE, "rope_theta": 1e4, "max_position_embeddings": 4096, "rope_scaling": None},
    "yarn": config(),
    "yarn, all keys": both({**YARN, **BETAS, "truncate": True, "type": "yarn"}),
    "Llama 3.1": config(
        131072,
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    "Gemma 3": {
        "model_type": "gemma3_text",
        "hidden_size": 64,
        "num_attention_heads": 2,
        "max_position_embeddings": 131072,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "OLMo 3": {**config(rope={**YARN, **BETAS}), "model_type": "olmo3"},
    "Yarn-Llama-2": config(rope={**without("rope_type", YARN), "type": "yarn", "finetuned": True}),
    "Gemma 3 with pictures, whose text part has no sizes of its own": {
        "model_type": "gemma3",
        "text_config": {"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    },
    "DeepSeek V3": {
        **config(rope={**YARN, **BETAS, "mscale": 1.0, "mscale_all_dim": 1.0}),
        "model_type": "deepseek_v3",
        "qk_rope_head_dim": 24,
    },
    "PI that says where it came from": config(rope={"rope_type": "linear", "factor": 16.0})
    | {"original_max_position_embeddings": 256},
    "Pythia": {
        "model_type": "gpt_neox",
        "hidden_size": 64,
        "num_attention_heads": 2,
        "max_position_embeddings": 2048,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
    },
}


@pytest.mark.parametrize("case", HEALTHY)
def test_a_healthy_config_has_no_fault(case: str) -> None:
    assert judge(from_config(HEALTHY[case])).faults == []


def test_gemma_3_keeps_its_two_bases() -> None:
    rows = {row.reading.reader: row for row in judge(from_config(HEALTHY["Gemma 3"])).rows}
    for name in ("transformers 5", "transformers 4", "vLLM now", "llama.cpp"):
        layers = rows[name].reading.layers
        assert (layers["full_attention"].theta, layers["sliding_attention"].theta) == (1e6, 1e4), name
        assert (layers["full_attention"].factor, layers["sliding_attention"].factor) == (8.0, 1.0), name
        assert rows[name].difference == 0.0
    assert list(rows["TensorRT-LLM"].reading.layers) == ["full_attention"]  # it says nothing of the others
    assert rows["TensorRT-LLM"].difference == 0.0


def rows(case: str) -> dict[str, Row]:
    return {row.reading.reader: row for row in judge(from_config(HEALTHY[case])).rows}


def test_olmo_3_scales_the_layers_that_see_everything_alone() -> None:
    found = rows("OLMo 3")
    for name in ("transformers 5", "transformers 4", "vLLM now", "SGLang", "llama.cpp"):
        kinds = {kind: layer.kind for kind, layer in found[name].reading.layers.items()}
        assert kinds == {"full_attention": "yarn", "sliding_attention": "default"}, name
        assert found[name].difference == 0.0, name
    assert found["YaRN's rule"].difference == 0.0


@pytest.mark.parametrize("kind", ["gemma3_text", "mellum"])
@pytest.mark.parametrize("first", ["full_attention", "sliding_attention"])
def test_yarns_rule_is_that_of_the_layers_it_is_for(first: str, kind: str) -> None:
    dicts = {"full_attention": {**YARN, "rope_theta": 5e5}, "sliding_attention": {"rope_type": "default"}}
    dicts["sliding_attention"]["rope_theta"] = 1e4
    order = sorted(dicts, key=lambda name: name != first)
    given = {**without("rope_scaling", config()), "model_type": kind, "head_dim": 32}
    given |= {"rope_parameters": {name: dicts[name] for name in order}}
    (row,) = [row for row in judge(from_config(given)).rows if row.reading.reader == "YaRN's rule"]
    assert (row.difference, list(row.reading.layers)) == (0.0, ["full_attention"])


def test_latent_attention_has_the_size_that_rotates_and_its_temperature_elsewhere() -> None:
    given = from_config(HEALTHY["DeepSeek V3"])
    assert given.head_dim == 24
    notes = {note.name for note in judge(given).findings}
    assert "mscale_in_softmax" in notes
    assert not notes & {"mscale_cancels"}


def test_parts_of_a_composite_config_have_their_class_s_sizes() -> None:
    given = from_config(HEALTHY["Gemma 3 with pictures, whose text part has no sizes of its own"])
    theirs = Gemma3TextConfig()
    assert (given.head_dim, given.max_length) == (theirs.head_dim, theirs.max_position_embeddings)


@pytest.mark.parametrize(
    ("longest", "original", "factor"), [(40960, 32768, 4.0), (32768, 8192, 16.0)], ids=["Qwen 3", "Yarn-Mistral"]
)
def test_a_length_left_behind_is_not_mended_by_another_factor(longest: int, original: int, factor: float) -> None:
    """The factor is what the model was trained with: following such advice would change its frequencies."""
    rope = {**YARN, "factor": factor, "original_max_position_embeddings": original}
    (fault,) = judge(from_config(config(longest, rope))).faults
    assert fault.fix.startswith(f"max_position_embeddings {factor * original:g} if the model was trained with factor")
    (fault,) = judge(from_config(config(longest, rope), {"model_max_length": 131072})).faults
    assert fault.fix == "set max_position_embeddings to 131072"


@pytest.mark.parametrize("kind", ["glm4", "glm4_moe"])
def test_llama_cpp_rotates_half_of_a_glm_head(kind: str) -> None:
    given = from_config({**config(), "model_type": kind, "head_dim": 32})
    (row,) = [row for row in judge(given).rows if row.reading.reader == "llama.cpp"]
    assert row.difference == 0.0
    assert len(row.reading.layers["all"].inv_freq) == 8


@pytest.mark.parametrize("kind", ["llama", "mixtral", "olmo3", "gemma3_text", "glm4", "phi", "gpt_neox", "qwen3_next"])
def test_what_a_config_leaves_out_is_what_its_class_fills_in(kind: str) -> None:
    params = CONFIG_MAPPING[kind]().rope_parameters
    params = params.get("full_attention", params)
    found = defaults_of(kind)
    assert (found.theta, found.share or 1.0) == (params["rope_theta"], params.get("partial_rotary_factor", 1.0))


def test_what_is_legal_but_not_read_by_all_is_a_note() -> None:
    found = judge(from_config(config(rope={**YARN, "truncate": False})))
    assert found.faults == []
    assert {note.name for note in found.findings if note.level == NOTE} == {"truncate_false", "ramp_not_seen"}


def test_check_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config()))
    assert export.main(["--check", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["reader", "rope"]
    assert lines[-1] == "no fault found"
    file.write_text(json.dumps(config(longest=65536)))
    assert export.main(["--check", str(file)]) == 1
    assert "FAULT factor_stacked" in capsys.readouterr().out
    assert export.main(["--check", str(file), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert [fault["name"] for fault in data["faults"]] == ["factor_stacked"]
    assert len(data["readers"][0]["layers"]["all"]["inv_freq"]) == 16


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"model_type": "t5"}', None])
def test_what_cannot_be_read_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert export.main(["--check", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("arguments", [[], ["a"], ["a", "b", "--check", "c"], ["a", "b", "--json"]])
def test_half_a_command_line_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        export.main(arguments)
    assert stopped.value.code == 2


ODD = [0, -1, "x", [], {}, [1.0, "a"], float("inf"), float("nan"), {"rope_type": "yarn", "factor": 4.0}]


@pytest.mark.parametrize("kind", ["yarn", "linear", "dynamic", "llama3", "longrope"])
@pytest.mark.parametrize("odd", ODD, ids=str)
def test_odd_values_make_refusals_and_no_traceback(kind: str, odd: Any) -> None:
    for key in ("factor", "original_max_position_embeddings", "beta_fast", "rope_theta", "partial_rotary_factor"):
        rope = {**YARN, "rope_type": kind, key: odd}
        assert len(judge(from_config(config(rope=rope, rope_parameters=rope, **{key: odd}))).rows) >= 7
