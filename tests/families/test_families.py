"""Every family extended by two ranks, exported, and read by plain transformers in a process that did not train it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from families.catalogue import LENGTH, REFUSED, TAKEN, Family
from families.conftest import FACTOR, Extended
from safetensors.torch import load_file
from support import ROOT
from transformers import AutoModelForCausalLM, PretrainedConfig

from yarn_train import config as schema
from yarn_train.config import Config, ModelConfig, RopeConfig
from yarn_train.model.causal_lm import CausalLM
from yarn_train.model.load import build_model, load_base, unsupported
from yarn_train.model.local import window_problems
from yarn_train.model.probe import attention_problems, probe
from yarn_train.model.registry import choose_kernel
from yarn_train.rope import hf
from yarn_train.rope.undo import unscaled

PAGE = ROOT / "docs" / "families.md"
WINDOW = FACTOR * LENGTH
PARTS = {"first": (0, LENGTH), "middle": (WINDOW // 2, WINDOW // 2 + LENGTH), "last": (WINDOW - LENGTH, WINDOW)}


def options(one: Extended) -> Config:
    return schema.build(yaml.safe_load((one.stage / "config.yaml").read_text()))


def exported(one: Extended) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((one.stage / "model" / "config.json").read_text())
    return found


def full(params: dict[str, Any]) -> dict[str, Any]:
    """The rope dict of layers that see everything."""
    return dict(params.get("full_attention") or params)


@pytest.mark.parametrize("name", TAKEN)
def test_two_ranks_take_a_step_and_export(name: str, extended: dict[str, Extended]) -> None:
    one = extended[name]
    assert one.errors == ["", ""]
    before, after = (load_file(folder / "model.safetensors") for folder in (one.base, one.stage / "model"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", TAKEN)
def test_plain_transformers_computes_the_table_and_our_logits(name: str, extended: dict[str, Extended]) -> None:
    """Our path and transformers' share nothing but the weights: kernels, masks, windows and RoPE are each one's own."""
    one = extended[name]
    cfg = options(one)
    base, folder = load_base(cfg), str(one.stage / "model")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    table = hf.table_for(base, cfg.rope)
    hf.verify_tables(theirs, table)
    plain = hf.table_for(base, dataclasses.replace(cfg.rope, method="none", factor=1.0))
    assert not torch.equal(table.inv_freq, plain.inv_freq)
    ours = CausalLM(build_model(folder, base, cfg.rope, choose_kernel("sdpa", torch.device("cpu"), torch.float32)))
    ids = torch.randint(0, base.vocab_size, (1, WINDOW), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(WINDOW).unsqueeze(0)
    with torch.no_grad():
        got, wanted = ours.eval()(ids, positions), theirs(ids, position_ids=positions, use_cache=False).logits
    for part, (begin, end) in PARTS.items():
        difference = (got[:, begin:end] - wanted[:, begin:end]).norm() / wanted[:, begin:end].norm()
        assert difference < 1e-5, (part, difference)


@pytest.mark.parametrize("name", TAKEN)
def test_both_spellings_say_the_same(name: str, extended: dict[str, Extended]) -> None:
    written = exported(extended[name])
    new, old = full(written["rope_parameters"]), written["rope_scaling"]
    assert written["max_position_embeddings"] == WINDOW
    assert written["rope_theta"] == new["rope_theta"]
    assert {key: old[key] for key in new if key in old} == {key: new[key] for key in new if key in old}
    assert old["rope_type"] == old["type"] == new["rope_type"]
    assert new["factor"] == FACTOR
    assert new["original_max_position_embeddings"] == LENGTH


def problems(config: PretrainedConfig, family: Family) -> list[str]:
    given = dict(option.split("=") for option in family.options)
    rope = RopeConfig(factor=FACTOR)
    base, _ = unscaled(config, ModelConfig(base_rope=given.get("model.base_rope", "auto")), rope)
    found = unsupported(base) + hf.check_base(base, rope)
    return found or window_problems(base, "keep", None) + attention_problems(base)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_extended_is_refused_with_its_reason(name: str) -> None:
    found = problems(REFUSED[name].config(64), REFUSED[name])
    assert any(REFUSED[name].refused in line for line in found), found


@pytest.mark.parametrize("name", TAKEN)
def test_the_probe_sees_rope_in_every_block_that_has_it(name: str) -> None:
    config = TAKEN[name].config(64)
    assert probe(config).rotated == ((True, False) if name == "smollm3" else (True, True))


def row(family: Family, config: dict[str, Any]) -> str:
    kind = full(config["rope_parameters"])["rope_type"]
    asked = "".join(f"`{option.replace(f'embeddings={LENGTH}', 'embeddings=L')}`; " for option in family.options)
    return f"| {family.title} | `{family.kind}` | `{kind}` | {asked}{family.how} |"


def reason(family: Family) -> str:
    line = next(line for line in problems(family.config(64), family) if family.refused in line)
    got = line.partition("got '")[2].partition("'; allowed")[0].removeprefix(f"{family.kind}: ")
    if got == family.kind:
        got = line.partition("fix: ")[2].partition(";")[0]
    return got


def tables(extended: dict[str, Extended]) -> str:
    taken = [row(family, exported(extended[name])) for name, family in TAKEN.items()]
    refused = [f"| {family.title} | `{family.kind}` | {reason(family)} |" for family in REFUSED.values()]
    head = ["| Family | transformers | Exported as | How |", "| --- | --- | --- | --- |"]
    head_refused = ["| Family | transformers | Refused for |", "| --- | --- | --- |"]
    return "\n".join([*head, *taken, "", "## Refused", "", *head_refused, *refused]) + "\n"


def test_the_page_says_what_was_seen(extended: dict[str, Extended]) -> None:
    """UPDATE_FAMILIES=1 writes it."""
    mark = "<!-- made by tests/families -->\n\n"
    head, _, found = PAGE.read_text().partition(mark)
    if os.environ.get("UPDATE_FAMILIES"):
        Path(PAGE).write_text(f"{head}{mark}{tables(extended)}")
        return
    assert found == tables(extended)
