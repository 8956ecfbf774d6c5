"""LoRA runs: what is trained, against peft's own loop, over ranks, through resume and export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from support import course, metrics, same_weights
from transformers import AutoConfig, AutoModelForCausalLM

from yarn_train.config import AdapterConfig, RopeConfig
from yarn_train.data.segments import open_segments
from yarn_train.errors import ConfigError
from yarn_train.export import export_checkpoint
from yarn_train.model import adapters, flops
from yarn_train.model.adapter_names import is_update, plain
from yarn_train.model.load import run_config

Train = Callable[..., Path]
LORA = ("adapter.name=lora", "adapter.rank=4", "adapter.alpha=12")
PRECISE = ("model.dtype=float32", "optim.lr=1e-2", "train.steps=4")
ALONE = ("adapter.embeddings=false", "adapter.norms=false")


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(100).unsqueeze(0) % 300
    with torch.no_grad():
        found: torch.Tensor = model(ids, use_cache=False).logits
    return found


@pytest.fixture
def base(tiny_model: Path) -> Any:
    """The base with the run's RoPE, in plain transformers."""
    config = run_config(AutoConfig.from_pretrained(tiny_model), RopeConfig(factor=4.0))
    return AutoModelForCausalLM.from_pretrained(tiny_model, config=config, dtype=torch.float32)


@pytest.mark.parametrize("more", [(), ALONE, ("adapter.targets=[all]",)], ids=["longlora", "updates alone", "all"])
def test_merged_export_and_pefts_own_folder_give_the_same_model(
    more: tuple[str, ...], train: Train, tiny_args: list[str], tiny_model: Path, base: Any, tmp_path: Path
) -> None:
    stage = train(tmp_path / "run", *tiny_args, *LORA, *PRECISE, *more) / "01_s4"
    merged = AutoModelForCausalLM.from_pretrained(stage / "model", dtype=torch.float32)
    before = logits(base)
    theirs = PeftModel.from_pretrained(base, stage / "adapter")
    torch.testing.assert_close(logits(merged), logits(theirs), rtol=1e-4, atol=1e-4)
    assert (logits(merged) - before).norm() > 1e-3 * before.norm()

    then, now = load_file(tiny_model / "model.safetensors"), load_file(stage / "model/model.safetensors")
    assert then.keys() == now.keys()
    updated = {
        name.partition(".lora_")[0].removeprefix(adapters.PREFIX)
        for name in load_file(stage / "adapter/adapter_model.safetensors")
        if ".lora_A." in name
    }
    for name in then:
        whole = (not more and ("norm" in name or "embed" in name)) or (
            more[:1] == ("adapter.targets=[all]",) and ("norm" in name or "embed" in name)
        )
        trained = whole or name.removesuffix(".weight") in updated
        assert torch.equal(then[name], now[name]) != trained, name
    kinds = {name.rpartition(".")[2] for name in updated}
    attention = {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert kinds == (
        attention | {"gate_proj", "up_proj", "down_proj"} if "adapter.targets=[all]" in more else attention
    )


def test_steps_are_those_of_pefts_model_in_a_plain_loop(
    train: Train, tiny_args: list[str], base: Any, tmp_path: Path
) -> None:
    """get_peft_model, AdamW and clipping of torch, on the segments that the run says it read."""
    run = train(tmp_path / "run", *tiny_args, *LORA, *PRECISE, *ALONE)
    rows = metrics(run / "01_s4")
    settings = LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    model = get_peft_model(base, settings)
    adapters.initialise(model.base_model.model, 0)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0
    )
    segments = open_segments(next(path.parent for path in (tmp_path / "cache").rglob("manifest.json")))
    for row in rows:
        ids = segments[row["segments"]].long()
        out = model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(out.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = row["lr"]
        optimizer.step()
        optimizer.zero_grad()
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_two_ranks_and_a_resume_change_nothing(
    train: Train, forked: Callable[..., Any], tiny_args: list[str], tmp_path: Path
) -> None:
    words = [*tiny_args, *LORA, *PRECISE, "train.global_batch_size=2", "memory.activation=full"]
    whole = train(tmp_path / "whole", *words)
    train(tmp_path / "cut", *words, "train.stop_after=2")
    again = train(tmp_path / "cut", *words)
    assert course(again / "01_s4") == course(whole / "01_s4")
    assert same_weights(again / "01_s4/model", whole / "01_s4/model")
    forked(*words, f"run.dir={tmp_path / 'ranks'}")
    for alone, shared in zip(metrics(whole / "01_s4"), metrics(tmp_path / "ranks/01_s4"), strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert shared["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)
        assert shared["segments"] == alone["segments"]


def test_a_checkpoint_is_exported_merged_and_a_next_stage_begins_from_it(
    train: Train, tiny_args: list[str], tmp_path: Path
) -> None:
    run = train(tmp_path / "run", *tiny_args, *LORA, *PRECISE)
    export_checkpoint(run / "01_s4/checkpoints/step_00000004", tmp_path / "out")
    assert same_weights(tmp_path / "out", run / "01_s4/model")
    stages = "curriculum.stages={a: {rope: {factor: 2}}, b: {rope: {factor: 4}}}"
    words = [word for word in tiny_args if not word.startswith("rope.factor")]
    chain = train(tmp_path / "chain", *words, *LORA, *PRECISE, f"+{stages}")
    first, second = (load_file(chain / name / "model/model.safetensors") for name in ("01_a", "02_b"))
    assert any(not torch.equal(first[name], second[name]) for name in first)
    told = json.loads((chain / "02_b/adapter/adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == str(chain / "01_a/model")


def test_frozen_weights_cost_two_of_three_products(base: Any) -> None:
    dense = flops.matmul_parameters(base)
    assert flops.trained_products(base) == dense
    for parameter in base.parameters():
        parameter.requires_grad_(False)
    assert flops.trained_products(base) == dense - dense // 3


def test_names_and_first_values(base: Any) -> None:
    """A is uniform in +-1 / sqrt(in) as peft draws it, B zero, and another seed draws others."""
    cfg = AdapterConfig(name="lora", rank=4)
    adapters.inject(base, cfg)
    drawn = []
    for seed in (0, 0, 1):
        adapters.initialise(base, seed)
        drawn.append({name: p.detach().clone() for name, p in base.named_parameters() if is_update(name)})
    for name, tensor in drawn[0].items():
        assert torch.equal(tensor, drawn[1][name])
        if ".lora_B." in name:
            assert not tensor.any()
            continue
        assert not torch.equal(tensor, drawn[2][name])
        bound = tensor.shape[1] ** -0.5
        assert 0.8 * bound < tensor.abs().max() <= bound
    assert len({tensor.flatten()[0].item() for name, tensor in drawn[0].items() if ".lora_A." in name}) == 8
    assert plain("model.layers.0.self_attn.q_proj.base_layer.weight") == "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("adapter.rank=4",), "adapter.rank: got 4; allowed: nothing without adapters"),
        ((*LORA, "engine.name=deepspeed"), "engine.name: got 'deepspeed'; allowed: fsdp2 for adapter.name=lora"),
        ((*LORA, "optim.state=8bit"), "optim.state: got '8bit'; allowed: float32 for adapter.name=lora"),
        ((*LORA, "adapter.targets=[c_attn]"), "adapter.targets: got ['c_attn']; allowed: of down_proj"),
        ((*LORA, "adapter.targets=[all]", "memory.tiled_mlp=true"), "memory.tiled_mlp: got True; allowed: false"),
    ],
)
def test_what_does_not_go_together_is_refused(
    words: tuple[str, ...], says: str, train: Train, tiny_args: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        train(tmp_path / "run", *tiny_args, *words)
    assert any(says in line for line in error.value.problems), error.value.problems
    assert not (tmp_path / "run").exists()


def test_without_peft_the_command_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters.importlib.util, "find_spec", lambda name: None)
    (line,) = adapters.missing(AdapterConfig(name="lora"))
    assert "pip install 'yarn-train[adapters]'" in line
    assert adapters.missing(AdapterConfig()) == []
