"""train.steps=0: a stage that trains nothing and still is a model, an evaluation and a job of a sweep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from yarn_train.config import RopeConfig, build
from yarn_train.errors import ConfigError
from yarn_train.plan import disk
from yarn_train.rope.hf import scaled_config

NONE = ("train.steps=0",)
EVAL = ("eval=perplexity", "eval.windows=[32,64]", "eval.documents=1", "eval.baselines=false")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_the_stages_model_is_the_base_with_the_asked_rope(train, tiny_args, tiny_model, tmp_path):
    run = train(tmp_path / "run", *tiny_args, *NONE)
    folder = run / "01_s4/model"
    base = AutoConfig.from_pretrained(tiny_model)
    rope = AutoConfig.from_pretrained(folder).rope_parameters
    assert {key: rope[key] for key in rope if key != "type"} == scaled_config(
        base, RopeConfig(factor=4.0)
    ).rope_parameters
    found, own = weights(folder), weights(tiny_model)
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], own[name]) for name in own)
    ids = torch.arange(100)[None] % 300
    expected = AutoModelForCausalLM.from_pretrained(tiny_model, config=scaled_config(base, RopeConfig(factor=4.0)))
    with torch.no_grad():
        got = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        assert torch.equal(got, expected(ids).logits)


def test_it_needs_no_data_takes_no_step_and_is_complete(train, tiny_args, tmp_path, capsys):
    run = train(tmp_path / "run", *tiny_args, *NONE, "data.path=/nowhere/at/all", "schedule.warmup_steps=20")
    assert not (tmp_path / "cache").exists()
    assert not (run / "01_s4/metrics.jsonl").exists()
    assert not (run / "01_s4/checkpoints").exists()
    assert json.loads((run / "run.json").read_text())["exit_reason"] == "complete"
    stamp = (run / "01_s4/model/config.json").stat().st_mtime_ns
    capsys.readouterr()
    train(run, *tiny_args, *NONE, "data.path=/nowhere/at/all", "schedule.warmup_steps=20")
    assert "already complete" in capsys.readouterr().out
    assert (run / "01_s4/model/config.json").stat().st_mtime_ns == stamp


def test_it_is_evaluated_and_reported_as_untrained(train, tiny_args, tmp_path):
    run = train(tmp_path / "run", *tiny_args, *NONE, *EVAL)
    rows = json.loads((run / "eval/perplexity.json").read_text())
    assert {(row["label"], row["stage"]) for row in rows} == {("YaRN s=4, untrained, 01_s4", "01_s4")}
    assert (run / "report/index.html").is_file()


def test_a_trained_stage_goes_on_from_it(train, tiny_args, tmp_path):
    plain = [word for word in tiny_args if not word.startswith(("rope.factor", "train.steps"))]
    stages = "{s2: {rope: {factor: 2}, train: {steps: 0}}, s4: {rope: {factor: 4}, train: {steps: 2}}}"
    both = train(tmp_path / "both", *plain, f"+curriculum.stages={stages}")
    alone = train(tmp_path / "alone", *plain, "rope.factor=4", "train.steps=2")
    found, expected = weights(both / "02_s4/model"), weights(alone / "01_s4/model")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_documents_to_evaluate_are_looked_for_before_the_stage_is_written(train, tiny_args, tmp_path):
    with pytest.raises(ConfigError, match=r"eval\.path: got '/nowhere"):
        train(tmp_path / "run", *tiny_args, *NONE, *EVAL, "eval.source=text", "eval.path=/nowhere/at/all")
    assert not (tmp_path / "run/01_s4/model").exists()


def test_it_needs_disk_for_its_model_alone(compose, tiny_args):
    cfg = build(compose(*tiny_args, *NONE))
    assert list(disk.changes({}, cfg, checkpoint=100.0, export=7.0)) == [7.0]


def test_random_weights_without_a_step_are_refused(train, tiny_args, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.steps: got 0"):
        train(tmp_path / "run", *tiny_args, *NONE, "model.init=random")


def test_the_ready_made_sweeps_compose(compose):
    for name, key, count in (("temperature_untrained", "rope.temperature", 6), ("ramp_untrained", "rope.ramp", 2)):
        from hydra import compose as hydra_compose
        from hydra import initialize_config_dir
        from support import ROOT

        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = hydra_compose("config", [f"+sweep={name}"], return_hydra_config=True)
        assert cfg.train.steps == 0
        assert len(str(cfg.hydra.sweeper.params[key]).split(",")) == count
