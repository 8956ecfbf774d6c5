"""DeepSpeed against plain transformers in one process (fp32), against FSDP2 (bfloat16), and against itself resumed.

All cases of two ranks share one launch, see ``deepspeed_worker``.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import deepspeed_worker as worker
import pytest
import torch
import torch.nn.functional as F
from deepspeed_worker import EXACT, HALF, MIXED, RANKS, RESUMED, SKELETONS, STEPS, Case
from filelock import FileLock
from safetensors.torch import load_file
from support import child_env, metrics

from yarn_train import config as schema
from yarn_train.engine.deepspeed import missing
from yarn_train.engine.deepspeed_settings import settings
from yarn_train.errors import ConfigError


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found; then, as "one", what a single rank found that read their checkpoint.

    Whichever test process asks first runs them; the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    out = (base.parent if base.name.startswith("popen-") else base) / "deepspeed"
    out.mkdir(exist_ok=True)
    with FileLock(out / "lock"):
        if not (out / "said").exists():
            said = launch(out, "two", RANKS)
            launch(out, "one", 1)
            (out / "said").write_text(said)
    one = torch.load(out / "one_0.pt")
    return [{**torch.load(out / f"two_{rank}.pt"), "said": (out / "said").read_text(), "one": one} for rank in (0, 1)]


def launch(out: Path, which: str, processes: int) -> str:
    """Run the worker; returns all that its ranks printed."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *launcher, str(Path(worker.__file__)), str(out), which]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=child_env())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


@cache
def reference(tied: bool) -> dict[str, Any]:
    """The same steps in plain transformers: all rows at once, complete logits, torch's own clipping and AdamW."""
    model = worker.transformer(tied)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=worker.LR, betas=(0.9, 0.95), eps=1e-8)
    losses, norms, gradients = [], [], {}
    for step in range(STEPS):
        ids, labels, _ = worker.step_rows(step)
        loss = F.cross_entropy(model(ids).logits.flatten(0, 1), labels.flatten(), ignore_index=worker.IGNORE)
        loss.backward()
        if step == 0:
            gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), worker.OPTIM["grad_clip"]).item())
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    logits = model(worker.step_rows(0)[0][:1]).logits.detach()
    return {
        "start": start,
        "loss": losses,
        "norm": norms,
        "gradients": gradients,
        "weights": model.state_dict(),
        "logits": logits,
    }


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


def errors(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, float]:
    assert got.keys() == expected.keys()
    return {name: error(got[name], expected[name]) for name in expected}


def test_the_reference_clips_and_the_batches_are_awkward() -> None:
    assert min(reference(True)["norm"]) > worker.OPTIM["grad_clip"]
    odd_rows = [worker.step_rows(step)[1][1::2] for step in range(STEPS)]
    assert any((labels == worker.IGNORE).all() for labels in odd_rows)


@pytest.mark.parametrize("name", EXACT)
def test_loss_norm_and_every_gradient_are_one_processs(ranks: list[dict[str, Any]], name: str) -> None:
    expected = reference(EXACT[name].tied)
    for rank in ranks:
        got = rank["runs"][name]
        assert got["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert got["norm"] == pytest.approx(expected["norm"], rel=1e-5)
        assert max(errors(got["gradients"], expected["gradients"]).values()) < 1e-5


@pytest.mark.parametrize("name", EXACT)
def test_weights_after_clipped_steps_are_one_processs(ranks: list[dict[str, Any]], name: str) -> None:
    expected = reference(EXACT[name].tied)
    got = ranks[0]["runs"][name]["weights"]
    assert max(errors(got, expected["weights"]).values()) < 1e-5
    moved = {key: got[key] - expected["start"][key] for key in got}
    should = {key: expected["weights"][key] - expected["start"][key] for key in got}
    assert max(errors(moved, should).values()) < 5e-3
    assert ranks[1]["runs"][name]["weights"] == {}


@pytest.mark.parametrize("name", EXACT)
def test_logits_after_training_come_from_the_trained_weights(ranks: list[dict[str, Any]], name: str) -> None:
    assert error(ranks[1]["runs"][name]["logits"], reference(EXACT[name].tied)["logits"]) < 1e-5


@pytest.mark.parametrize("name", [*EXACT, *MIXED])
def test_a_dropped_engine_gives_its_memory_back(ranks: list[dict[str, Any]], name: str) -> None:
    assert all(rank["runs"][name]["freed"] and rank["linear restored"] for rank in ranks)


@pytest.mark.parametrize("name", MIXED)
def test_bfloat16_starts_from_masters_that_were_never_rounded(ranks: list[dict[str, Any]], name: str) -> None:
    got, start = ranks[0]["runs"][name], reference(True)["start"]
    assert all(torch.equal(got["masters"][key], start[key]) for key in start)
    assert any(not torch.equal(tensor.bfloat16().float(), tensor) for tensor in start.values())
    assert got["compute_dtypes"] == ["torch.bfloat16"]


@pytest.mark.parametrize("name", MIXED)
def test_bfloat16_is_fsdp2s_bfloat16(ranks: list[dict[str, Any]], name: str) -> None:
    got, expected, start = ranks[0]["runs"][name], ranks[0]["fsdp2"], reference(True)["start"]
    assert got["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert got["norm"] == pytest.approx(expected["norm"], rel=1e-5)
    moved = {key: got["weights"][key] - start[key] for key in start}
    should = {key: expected["weights"][key] - start[key] for key in start}
    assert max(errors(moved, should).values()) < 3e-3


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_is_bit_equal(ranks: list[dict[str, Any]], name: str) -> None:
    for rank in ranks:
        whole, again = rank["runs"][name], rank["runs"][name]["resumed"]
        assert (again["loss"], again["norm"]) == (whole["loss"][HALF:], whole["norm"][HALF:])
        assert all(torch.equal(again["weights"][key], whole["weights"][key]) for key in whole["weights"])


@pytest.mark.parametrize("name", ["ZeRO-0", "ZeRO-2", "ZeRO-3"])
def test_one_rank_at_any_stage_continues_two_ranks_zero_3(ranks: list[dict[str, Any]], name: str) -> None:
    got, expected = ranks[0]["one"][name], ranks[0]["runs"]["ZeRO-3"]
    assert got["loss"] == pytest.approx(expected["loss"][HALF:], rel=1e-5)
    assert got["norm"] == pytest.approx(expected["norm"][HALF:], rel=1e-5)
    assert max(errors(got["weights"], expected["weights"]).values()) < 1e-5


@pytest.mark.parametrize("name", SKELETONS)
def test_a_model_built_on_meta_is_the_same_model(ranks: list[dict[str, Any]], name: str) -> None:
    got, expected = ranks[0]["skeleton"][name], ranks[0]["runs"][name]
    assert all(torch.equal(got["masters"][key], expected["masters"][key]) for key in expected["masters"])
    assert (got["loss"], got["norm"]) == (expected["loss"], expected["norm"])
    assert all(torch.equal(got["weights"][key], expected["weights"][key]) for key in expected["weights"])


def test_an_infinite_gradient_changes_no_weight_and_shows_in_the_norm(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        got = rank["not_finite"]
        assert got["bad norm"] == float("inf")
        assert got["same"]
        assert got["norm"] == ranks[0]["runs"]["bf16 ZeRO-3"]["norm"][:1]


@pytest.mark.parametrize("name", worker.DROPPED)
def test_a_step_that_is_skipped_changes_nothing_and_leaves_no_gradient(ranks: list[dict[str, Any]], name: str) -> None:
    for rank in ranks:
        got, expected = rank["dropped"][name], rank["runs"][name]
        assert got["same"]
        assert got["moved"]
        assert (got["loss"], got["norm"]) == (expected["loss"][:1], expected["norm"][:1])


def test_nobody_without_deepspeed_imports_it_and_it_says_only_what_matters(ranks: list[dict[str, Any]]) -> None:
    assert all(rank["lazy"] for rank in ranks)
    lines = ranks[0]["said"].splitlines()
    assert [line for line in lines if "Gradients are non-finite, weights were not updated" not in line] == []


def test_the_settings_hide_no_scale_and_leave_nothing_to_guess() -> None:
    for stage in (0, 1, 2, 3):
        options = settings(worker.config(Case(stage)), 27)
        text = json.dumps(options)
        assert "auto" not in text
        assert options["gradient_accumulation_steps"] == 1
        assert options["communication_data_type"] == options["data_types"]["grad_accum_dtype"] == "fp32"
        assert options["gradient_clipping"] == (0.5 if stage else 0.0)


def test_stage_0_in_bfloat16_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"engine\.zero_stage: got 0; allowed: 1 \| 2 \| 3 .*model\.dtype=float32"):
        settings(worker.config(Case(0, dtype="bfloat16")), 27)


def test_without_the_package_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = missing(schema.build({"engine": {"name": "deepspeed"}}))
    assert len(found) == 1
    assert "pip install 'yarn-train[deepspeed]'" in found[0]


@pytest.mark.long
def test_a_whole_run_gives_the_model_of_one_process_with_fsdp2(train, launch, tiny_args, tmp_path):
    """Streamed weights, checkpoints, a stop, a resume on another number of ranks, export and its comparison."""
    args = [*tiny_args, "model.dtype=float32"]
    one = train(tmp_path / "one", *args, "train.micro_batch_size=4") / "01_s4"
    zero = [*args, "engine.name=deepspeed", f"run.dir={tmp_path / 'zero'}"]
    launch(*zero, "train.stop_after=4", ranks=2)
    done = launch(*zero)
    assert "WARNING" not in done.stdout + done.stderr
    other = tmp_path / "zero/01_s4"
    for a, b in zip(metrics(one), metrics(other), strict=True):
        assert (a["step"], a["segments"]) == (b["step"], b["segments"])
        assert (a["loss"], a["lr"], a["grad_norm"]) == pytest.approx((b["loss"], b["lr"], b["grad_norm"]), rel=1e-5)
    weights = [load_file(run / "model/model.safetensors") for run in (one, other)]
    assert max(errors(weights[1], weights[0]).values()) < 1e-5
