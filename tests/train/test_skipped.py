"""Steps that are not finite update nothing, are counted, and end the run when there are too many in a row."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from engine_state import watch
from poison import poison
from safetensors.torch import load_file, save_file
from support import course, metrics, same_weights

from yarn_train.checkpoint.manager import complete_checkpoints
from yarn_train.checkpoint.state import Skipped, TrainState
from yarn_train.config import Config, TrainConfig
from yarn_train.errors import TrainingDiverged
from yarn_train.report.collect import collect
from yarn_train.report.page import training_grid
from yarn_train.train.skipped import ENOUGH, GRADIENT, LOSS, SPIKE, WINDOW, reason_to_skip, remember, too_many

STATE = TrainState(step=1, tokens=0, samples=0, seed=0, world_size=1)


@pytest.mark.parametrize(
    ("kind", "reason", "options"),
    [("loss", LOSS, []), ("gradient", GRADIENT, []), ("gradient", GRADIENT, ["engine.offload=optimizer"])],
)
def test_a_step_that_is_not_finite_updates_nothing(train, tiny_args, tmp_path, capsys, kind, reason, options):
    args = [*tiny_args, *options, "checkpoint.every=1", "train.steps=6"]
    clean = metrics(train(tmp_path / "clean", *args) / "01_s4")
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, {4: kind})
        states = watch(patch)["saved"]
        run = train(tmp_path / "run", *args) / "01_s4"
    rows = metrics(run)
    assert states[4] == states[3]
    assert all(states[5][name] != digest for name, digest in states[4].items() if name.startswith("exp_avg."))
    assert states[5]["step"] != states[4]["step"]
    assert [row["skipped"] for row in rows] == [None, None, None, reason, None, None]
    assert [row["skipped_total"] for row in rows] == [0, 0, 0, 1, 1, 1]
    assert rows[3]["grad_norm"] is None
    assert (rows[3]["loss"] is None) == (kind == "loss")
    text = (run / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    for ours, theirs in zip(rows, clean, strict=True):  # its data and its learning rate are used up all the same
        assert [ours[key] for key in ("step", "tokens", "lr", "segments")] == [
            theirs[key] for key in ("step", "tokens", "lr", "segments")
        ]
    assert [row["loss"] for row in rows[:3]] == [row["loss"] for row in clean[:3]]
    assert rows[4]["loss"] != clean[4]["loss"]
    segments = ", ".join(map(str, rows[3]["segments"]))
    assert f"01_s4  step 4 skipped: {reason}, segments {segments}\n" in capsys.readouterr().out
    stored = TrainState.load(complete_checkpoints(run / "checkpoints")[-1])
    assert (stored.skipped, stored.skipped_in_a_row, len(stored.losses)) == (1, (), 5)


def test_too_many_in_a_row_end_the_run_and_leave_a_good_checkpoint(train, tiny_args, tmp_path):
    args = [*tiny_args, "train.max_skipped=1"]
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, {2: "loss", 4: "loss", 5: "gradient"})
        with pytest.raises(TrainingDiverged) as error:
            train(tmp_path / "run", *args)
    stage = tmp_path / "run/01_s4"
    rows = metrics(stage)
    assert error.value.exit_code == 4
    assert [row["skipped"] for row in rows] == [None, LOSS, None, LOSS, GRADIENT]
    (newest,) = [path for path in complete_checkpoints(stage / "checkpoints") if path.name == "step_00000004"]
    for expected in (
        "2 steps in a row were skipped, more than train.max_skipped=1 allows",
        f"step 4: {LOSS}, segments {', '.join(map(str, rows[3]['segments']))}",
        f"step 5: {GRADIENT}, segments",
        f"the learning rate is {rows[4]['lr']:.3g} (optim.lr=0.0003); the newest checkpoint is intact: {newest}",
        "data/prepare.py",
        "train.spike_factor",
        "model.dtype=float32",
    ):
        assert expected in str(error.value)
    assert "steps in a row were skipped" in json.loads((tmp_path / "run/run.json").read_text())["exit_reason"]
    assert not (stage / "model").exists()
    train(tmp_path / "run", *args)  # what was wrong is gone: it goes on from that checkpoint
    assert [row["skipped_total"] for row in metrics(stage)] == [0, 1, 1, 2, 2, 2, 2, 2]


def test_a_resume_inside_a_streak_is_exact(train, tiny_args, tmp_path, monkeypatch):
    poison(monkeypatch, {3: "loss", 4: "gradient"})
    whole = train(tmp_path / "whole", *tiny_args, "train.max_skipped=2")
    parts = train(tmp_path / "parts", *tiny_args, "train.max_skipped=2", "train.stop_after=3")
    shutil.copytree(parts, tmp_path / "strict")
    train(parts, *tiny_args, "train.max_skipped=2")
    assert course(whole / "01_s4") == course(parts / "01_s4")
    assert same_weights(whole / "01_s4/model", parts / "01_s4/model")
    with pytest.raises(TrainingDiverged, match=r"(?s)2 steps in a row.*step 3: loss.*step 4: gradient"):
        train(tmp_path / "strict", *tiny_args, "train.max_skipped=1")


def test_a_spike_is_skipped_and_its_window_survives_a_resume(train, tiny_args, tmp_path, monkeypatch):
    poison(monkeypatch, {5: "spike", 13: "spike"})  # at step 5 too few losses are known
    args = [*tiny_args, "train.steps=15", "checkpoint.every=50", "train.spike_factor=3", "optim.lr=1e-9"]
    whole = train(tmp_path / "whole", *args) / "01_s4"
    parts = train(tmp_path / "parts", *args, "train.stop_after=12") / "01_s4"
    train(tmp_path / "parts", *args)
    assert course(parts) == course(whole)
    assert [row["step"] for row in metrics(whole) if row["skipped"]] == [13]
    (spiked,) = [row for row in metrics(whole) if row["skipped"]]
    assert spiked["skipped"] == SPIKE
    assert spiked["loss"] > 500
    assert spiked["grad_norm"] is None


def test_a_spike_is_more_than_so_many_times_the_mean():
    losses = (2.0,) * ENOUGH
    assert reason_to_skip(6.1, losses, 3.0) == SPIKE
    assert reason_to_skip(6.0, losses, 3.0) is None
    assert reason_to_skip(6.1, losses, None) is None
    assert reason_to_skip(6.1, losses[1:], 3.0) is None
    assert reason_to_skip(6.1, (*losses, 4.0), 3.0) is None
    assert reason_to_skip(math.nan, (), None) == reason_to_skip(math.inf, losses, 3.0) == LOSS


def test_what_is_remembered():
    state = STATE
    for number in range(WINDOW + 3):
        state = remember(state, float(number), None, [number])
    assert state.losses == tuple(float(n) for n in range(3, WINDOW + 3))
    skipped = remember(remember(state, math.nan, LOSS, [7, 8]), 1e9, SPIKE, [9])
    assert skipped.losses == state.losses
    assert skipped.skipped == 2
    assert skipped.skipped_in_a_row == (Skipped(1, LOSS, (7, 8)), Skipped(1, SPIKE, (9,)))
    assert too_many(skipped, Config(train=TrainConfig(max_skipped=1)))
    assert not too_many(skipped, Config(train=TrainConfig(max_skipped=2)))
    assert remember(skipped, 1.0, None, [1]).skipped_in_a_row == ()
    assert too_many(remember(STATE, math.nan, LOSS, []), Config(train=TrainConfig(max_skipped=0)))


def test_a_state_with_a_streak_survives_its_file(tmp_path):
    state = remember(remember(STATE, 2.5, None, [1]), math.nan, LOSS, [3, 4])
    state.save(tmp_path)
    assert TrainState.load(tmp_path) == state


def test_weights_that_are_not_finite_are_never_saved(train, tiny_args, tiny_model, tmp_path):
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    args = [*(a for a in tiny_args if not a.startswith("model.path")), f"model.path={broken}", "train.max_skipped=100"]
    said = r"after step 2 some weights are infinite or NaN.*starts from are broken"
    with pytest.raises(TrainingDiverged, match=said):
        train(tmp_path / "run", *args)
    assert complete_checkpoints(tmp_path / "run/01_s4/checkpoints") == []


def test_the_report_counts_them_and_copes_without_their_loss(train, tiny_args, tmp_path, monkeypatch):
    poison(monkeypatch, {1: "loss", 8: "loss"})
    run = train(tmp_path / "run", *tiny_args)
    rows = metrics(run / "01_s4")
    grid = training_grid(collect(run).stages)
    cells = dict(zip(grid.header, grid.body[0], strict=True))
    assert cells["steps"] == "8 (2 skipped)"
    assert [cells["first loss"], cells["last loss"]] == [f"{rows[1]['loss']:.3f}", f"{rows[6]['loss']:.3f}"]
