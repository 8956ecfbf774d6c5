"""``python -m yarn_train.plan`` on the shipped experiments: what it says, writes and exits with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from yarn_train.errors import ConfigError
from yarn_train.plan.__main__ import DOES_NOT_FIT, plan_run
from yarn_train.plan.machines import GIB

Plan = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def plan(compose: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Plan:
    """plan(*overrides) -> (exit code, plan.json, text)."""

    def run(*overrides: str) -> tuple[int, dict[str, Any], str]:
        file, code = tmp_path / "plan.json", 0
        raw = compose("data.path=/books", f"plan.output={file}", *overrides)
        typed = {text.split("=")[0] for text in overrides}
        try:
            plan_run(raw, typed, tmp_path / "run")
        except SystemExit as stop:
            code = int(str(stop.code))
        return code, json.loads(file.read_text()), capsys.readouterr().out

    return run


def test_the_papers_64k_run_fits_eight_80_gb_gpus_and_a_faster_one_is_named(plan: Plan) -> None:
    code, data, text = plan("experiment=yarn_llama2_7b_64k", "plan.gpu=h100", "plan.gpus=8")
    (stage,) = data["stages"]
    assert (code, data["fits"], stage["fits"]) == (0, True, True)
    assert stage["peak_bytes"] / GIB == pytest.approx(48, rel=0.04)
    assert "GiB per GPU of 76.7 usable (79.1 less 3%): FITS" in text
    assert "64 sequences x 65,536 tokens = 4,194,304 per step = 1 x 8 accumulation x 8 data-parallel" in text
    assert stage["total_seconds"] == pytest.approx(400 * stage["step_seconds"])
    assert stage["checkpoint_bytes"] / 6_738_415_616 == 12
    faster = data["advice"][0]
    assert faster["change"] == {"memory.activation": "attention"}
    assert faster["step_seconds"] < 0.9 * stage["step_seconds"]
    assert "  memory.activation=attention " in text
    assert "document_mask" not in text


@pytest.mark.long
def test_all_logits_of_128k_do_not_fit_and_every_fix_does(plan: Plan) -> None:
    code, data, text = plan(
        "experiment=yarn_llama2_7b_64k", "data.seq_len=131072", "rope.factor=32", "memory.loss=full"
    )
    (stage,) = data["stages"]
    assert (code, data["fits"]) == (DOES_NOT_FIT, False)
    assert DOES_NOT_FIT == 3
    assert stage["peak_bytes"] > stage["usable_bytes"]
    assert "DOES NOT FIT" in text
    assert "4,194,304,000 logits" in stage["refused"]
    changes = [advice["change"] for advice in data["advice"]]
    for wanted in ({"memory.activation": "offload"}, {"memory.tiled_mlp": True}, {"parallel.context": 2}):
        assert {"memory.loss": "chunked", **wanted} in changes
    assert all(advice["fits"] and advice["peak_bytes"] <= advice["usable_bytes"] for advice in data["advice"])
    costs = [(advice["gpus"], advice["step_seconds"]) for advice in data["advice"]]
    assert costs == sorted(costs)


def test_stages_are_planned_one_by_one_and_added_up(plan: Plan) -> None:
    """64 GPUs on 8 nodes; the two stages differ in nothing that memory depends on."""
    options = ("plan.gpus=64", "plan.gpu=a100-80", "data.document_mask=block")
    code, data, text = plan("experiment=yarn_llama2_7b_chain", *options)
    assert text.count("data.document_mask=block: counted as one document per sequence") == 2
    assert text.count("not counted: 2.0 MiB (512 x heads x head_dim)") == 2
    first, second = data["stages"]
    assert code == 0
    assert [first["steps"], second["steps"]] == [400, 200]
    assert first["device_bytes"] == second["device_bytes"]
    hours = (first["total_seconds"] + second["total_seconds"]) / 3600
    assert f"all stages: {hours:,.1f} h, {hours * 64:,.0f} GPU hours" in text


def test_wrong_options_are_refused_all_at_once(plan: Plan) -> None:
    with pytest.raises(ConfigError) as error:
        plan("experiment=yarn_llama2_7b_64k", "plan.gpus=48", "parallel.context=16", "parallel.context_method=ulysses")
    text = str(error.value)
    assert "train.global_batch_size" in text or "parallel" in text


def test_a_base_that_would_mix_documents_is_refused(plan: Plan, tmp_path: Path) -> None:
    AutoConfig.for_model("stablelm").save_pretrained(tmp_path)
    options = (f"model.path={tmp_path}", "plan.gpus=8", "data.document_mask=block")
    with pytest.raises(ConfigError, match="documents do not reach the attention of 32 of 32 blocks"):
        plan("experiment=yarn_llama2_7b_64k", *options)


def test_a_base_with_attention_of_its_own_is_refused(plan: Plan, tmp_path: Path) -> None:
    AutoConfig.for_model("falcon").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="falcon: attention that only its own code computes"):
        plan("experiment=yarn_llama2_7b_64k", f"model.path={tmp_path}", "plan.gpus=8")


@pytest.mark.parametrize("kind", ["vit", "gemma3", "mistral3"])
def test_a_base_that_is_no_language_model_is_refused_with_all_else_that_is_wrong(
    plan: Plan, kind: str, tmp_path: Path
) -> None:
    """Such configs have no numbers of heads, words or layers to look at."""
    AutoConfig.for_model(kind).save_pretrained(tmp_path / kind)
    with pytest.raises(ConfigError) as error:
        plan("experiment=yarn_llama2_7b_64k", f"model.path={tmp_path / kind}", "parallel.context=2", "plan.gpus=3")
    first, *others = error.value.problems
    assert first.startswith("model.path: ")
    assert any(line.startswith("parallel: ") for line in others)
