"""Where two runs first differ, and the cause that is named, on real runs of the tiny model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from compared import STAGE, Runs, change_record, change_row, lose_moments, reseal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from support import ROOT, child_env, metrics

from yarn_train import config as schema
from yarn_train import diff
from yarn_train.compare.comparison import StageComparison, compare
from yarn_train.compare.options import ROLES, roles


def only(a: Path, b: Path, tolerance: float = 0.0) -> StageComparison:
    [stage] = compare(a, b, tolerance).stages
    return stage


def first(stage: StageComparison) -> tuple[int, str]:
    assert stage.steps.first is not None
    return stage.steps.first.step, stage.steps.first.key


def test_a_run_equals_itself_and_its_repetition(runs: Runs, base: Path, capsys: pytest.CaptureFixture[str]):
    again = runs("again", "run.name=again", "data.prefetch=0", "checkpoint.keep=99")
    capsys.readouterr()
    assert diff.main([str(base), str(again)]) == 0
    text = capsys.readouterr().out
    assert "8 compared; all equal" in text
    assert text.endswith("\nEQUAL\n")
    assert len(text.splitlines()) < 20
    stage = only(base, again)
    assert sorted(stage.checkpoints) == [2, 4, 6, 8]
    assert stage.model is not None
    assert stage.model.compared > 5


CAUSES = {
    "seed": ("run.seed=1", 1, "segments", "other segments were read: run.seed (0 | 1)"),
    "batch": ("train.global_batch_size=2", 1, "segments", "train.global_batch_size (4 | 2)"),
    "schedule": ("schedule.warmup_steps=4", 1, "lr", "another learning rate: schedule.warmup_steps (2 | 4)"),
    "longer": ("train.steps=9", 4, "lr", "another learning rate: train.steps (8 | 9)"),
    "rope": ("rope.factor=2", 1, "loss", "another model: rope.factor (4.0 | 2.0)"),
    "dtype": ("model.dtype=bfloat16", 1, "loss", "another model: model.dtype (float32 | bfloat16)"),
    "decay": ("optim.weight_decay=0.5", 2, "loss", "the update of step 1 differs: optim.weight_decay (0.0 | 0.5)"),
}


@pytest.mark.parametrize(("override", "step", "key", "cause"), CAUSES.values(), ids=CAUSES)
def test_the_option_that_differs_is_named(runs: Runs, base: Path, override: str, step: int, key: str, cause: str):
    stage = only(base, runs(override, override))
    assert first(stage) == (step, key)
    assert cause in (stage.cause or "")


def test_another_order_of_sums_is_harmless(runs: Runs, base: Path, capsys: pytest.CaptureFixture[str]):
    other = runs("sums", "train.micro_batch_size=2", "memory.activation=full")
    stage = only(base, other)
    assert stage.cause is not None
    assert stage.cause.startswith("sums in another order, harmless: train.micro_batch_size (1 | 2)")
    assert diff.main([str(base), str(other)]) == 1
    assert diff.main([str(base), str(other), "--tolerance", "1e-3"]) == 0
    assert "ulps" not in capsys.readouterr().out


def test_other_data_behind_the_same_options(copy: Path, base: Path):
    for file in copy.glob(f"{STAGE}/checkpoints/*/train_state.json"):
        state = json.loads(file.read_text())
        state["data"][0]["content_sha256"] = "0" * 64
        file.write_text(json.dumps(state))
    change_row(copy, 1, segments=[0, 1, 2, 3])
    cause = only(base, copy).cause or ""
    assert cause.startswith("the prepared data are not the same: ")
    assert "content_sha256" in cause


def test_other_text_in_segments_of_the_same_numbers(runs: Runs, books: Path, tmp_path: Path):
    half = ("model.dtype=bfloat16", "train.stop_after=2", "train.micro_batch_size=2")
    ours = runs("ours", *half)
    other = shutil.copytree(books, tmp_path / "books")
    one, two = other / "train/train0.txt", other / "train/train1.txt"
    one_text = one.read_text()
    one.write_text(two.read_text())
    two.write_text(one_text)  # as many segments, numbered alike
    theirs = runs("theirs", *half[:2], f"data.path={other}", f"data.cache={tmp_path / 'cache'}")
    stage = only(ours, theirs)
    assert first(stage)[1] == "loss"
    assert (stage.cause or "").startswith("segments of the same numbers hold other text: ")
    assert "content_sha256" in (stage.cause or "")
    assert "harmless" not in (stage.cause or "")
    for run in (ours, theirs):
        shutil.rmtree(run / STAGE / "checkpoints")
    assert (only(ours, theirs).cause or "").startswith("other data may be behind the same segments: data.path (")


def test_other_files_below_the_same_model_path_are_not_called_harmless(runs: Runs, tiny_model: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    words = (f"model.path={folder}", f"data.cache={tmp_path / 'cache'}", "model.dtype=bfloat16", "train.stop_after=1")
    ours = runs("files", *words)
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t * np.float32(1.01) for n, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    stage = only(ours, runs("other files", *words))
    assert stage.steps.first is not None
    assert stage.steps.first.gap is not None
    assert 0 < stage.steps.first.gap.relative < 2.0**-7  # what one bfloat16 value may be off
    assert "the files below model.path" in (stage.cause or "")
    assert "harmless" not in (stage.cause or "")


def test_moments_that_a_resume_lost_show_at_its_second_step(runs: Runs, base: Path):
    lost = runs("lost", "train.stop_after=4")
    lose_moments(lost / STAGE / "checkpoints/step_00000004")
    stage = only(base, runs("lost"))
    assert first(stage) == (6, "loss")
    assert (stage.cause or "").startswith("the second step after a resume (B, from step 4): the optimizer's moments or")


def test_as_small_as_rounding_is_harmless_only_where_something_changes_it(copy: Path, base: Path):
    row = metrics(base / STAGE)[3]
    change_row(copy, 4, loss=row["loss"] * (1 + 1e-6))
    cause = only(base, copy).cause or ""
    assert "nothing known explains it" in cause
    assert cause.endswith(
        "as small as rounding, so sums that vary from run to run; run.deterministic=true in both tells"
    )
    change_record(copy, world_size=2, starts=[{"stage": STAGE, "step": 0, "world_size": 2}])
    assert (only(base, copy).cause or "").startswith("sums in another order, harmless: world_size")


def test_other_weights_behind_the_same_options(copy: Path, base: Path):
    change_row(copy, 1, loss=metrics(base / STAGE)[0]["loss"] * 1.1)
    assert "other weights: same options" in (only(base, copy).cause or "")
    change_record(copy, git="another")
    assert "git" in (only(base, copy).cause or "")


def test_a_resume_that_lost_state_and_one_on_other_ranks(copy: Path, base: Path, runs: Runs):
    runs("resumed", "train.stop_after=4")
    resumed = runs("resumed")
    record = json.loads((resumed / "run.json").read_text())
    assert [(start["stage"], start["step"]) for start in record["starts"]] == [(STAGE, 0), (STAGE, 4)]
    assert only(base, resumed).equal
    loss = metrics(base / STAGE)[4]["loss"]
    change_record(copy, starts=record["starts"])
    change_row(copy, 5, loss=loss * 1.01)
    cause = "the first step after a resume (B, from step 4): part of the state was not restored"
    assert cause in (only(base, copy).cause or "")
    change_row(copy, 5, loss=loss, segments=[9])
    assert "the position in the data was lost at the resume from step 4" in (only(base, copy).cause or "")
    change_row(copy, 5, segments=metrics(base / STAGE)[4]["segments"], loss=loss * (1 + 1e-6))
    change_record(copy, starts=[record["starts"][0], {**record["starts"][1], "world_size": 2}])
    cause = only(base, copy).cause or ""
    assert cause.startswith("the first step after a resume (B, from step 4), which changed the order of sums, harmless")


def test_backward_kernels_spikes_and_what_nothing_explains(copy: Path, base: Path):
    row = metrics(base / STAGE)[3]
    change_row(copy, 4, grad_norm=row["grad_norm"] * 1.5)
    assert "the forward agrees and the backward does not" in (only(base, copy).cause or "")
    change_row(copy, 4, grad_norm=row["grad_norm"] * (1 + 1e-6))
    assert "run.deterministic=true" in (only(base, copy).cause or "")
    change_row(copy, 4, grad_norm=row["grad_norm"], loss=float("nan"))
    assert "one run skipped" in (only(base, copy).cause or "") or "not finite" in (only(base, copy).cause or "")
    change_row(copy, 4, loss=row["loss"] * 1.2)
    assert "the update of step 3 differs and nothing known explains it" in (only(base, copy).cause or "")


def test_a_shorter_run_is_compared_as_far_as_it_goes(runs: Runs, base: Path, capsys: pytest.CaptureFixture[str]):
    shorter = runs("shorter", "train.stop_after=4")
    assert diff.main([str(base), str(shorter)]) == 0
    text = capsys.readouterr().out
    assert "4 compared; A has 4 more; all equal" in text
    assert "EQUAL as far as both go" in text


def test_stage_folders_and_json(base: Path, copy: Path, capsys: pytest.CaptureFixture[str]):
    change_row(copy, 7, loss=1.0)
    assert diff.main([str(base / STAGE), str(copy / STAGE), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    found = said["stages"][0]["first_difference"]
    assert (found["step"], found["key"], found["b"]) == (7, "loss", 1.0)
    assert found["gap"]["absolute"] == abs(found["a"] - 1.0)


def test_one_changed_bit_of_a_checkpoint_or_model_is_found_and_named(copy: Path, base: Path):
    for folder, file in (("checkpoints/step_00000004", "rank_*.safetensors"), ("model", "model.safetensors")):
        [path] = (copy / STAGE / folder).glob(file)
        whole = bytearray(path.read_bytes())
        whole[-2] ^= 1
        path.write_bytes(bytes(whole))
    [damaged] = [w for w in only(base, copy).checkpoints.values() if w is not None and not w.equal]
    assert [line.partition(":")[0] for line in damaged.damaged] == ["B rank_00000.safetensors"]
    reseal(copy / STAGE / "checkpoints/step_00000004")  # as if it had been saved so
    stage = only(base, copy)
    assert stage.steps.first is None
    assert [step for step, w in stage.checkpoints.items() if w is not None and not w.equal] == [4]
    saved, model = stage.checkpoints[4], stage.model
    assert saved is not None
    assert model is not None
    assert len(saved.gaps) == len(model.gaps) == 1
    assert saved.gaps[0].absolute > 0
    assert stage.cause is not None


def test_hashes_are_not_believed_unless_it_is_said(copy: Path, base: Path, capsys: pytest.CaptureFixture[str]):
    file = copy / STAGE / "checkpoints/step_00000004/train_state.json"
    file.write_text(file.read_text().replace("0", "1", 1))
    assert diff.main([str(base), str(copy)]) == 1
    text = capsys.readouterr().out
    assert "step 4       damaged: B train_state.json: its sha256 is not what was written" in text
    assert "step 6       the same files, read" in text
    assert "likely cause files of a checkpoint were changed or damaged after it was saved" in text
    assert diff.main([str(base), str(copy), "--quick"]) == 0
    assert "the same sizes and recorded hashes; not read (--quick)" in capsys.readouterr().out
    file.write_text("{}")
    assert diff.main([str(base), str(copy), "--quick"]) == 1


def test_bfloat16_models_are_compared_as_numbers(tmp_path: Path, base: Path, copy: Path):
    x = load_file(base / STAGE / "model/model.safetensors")
    name = min(x)
    x[name] = x[name].copy()
    x[name].reshape(-1)[3] += np.float32(0.25)
    save_file(x, copy / STAGE / "model/model.safetensors")
    model = only(base, copy).model
    assert model is not None
    [found] = model.gaps
    assert (found.name, round(found.absolute, 6)) == (name, 0.25)


@pytest.mark.parametrize("what", ["nothing", "a file", "no run", "no steps"])
def test_what_cannot_be_compared(base: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]):
    other = tmp_path / "other"
    if what == "a file":
        other.touch()
    elif what == "no run":
        other.mkdir()
    elif what == "no steps":
        (other / STAGE).mkdir(parents=True)
        (other / "run.json").write_text("{}")
    assert diff.main([str(base), str(other)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(step=st.integers(1, 8), key=st.sampled_from(["loss", "grad_norm", "lr", "tokens", "segments"]))
def test_any_one_changed_value_is_found_at_its_step(base: Path, tmp_path: Path, step: int, key: str):
    file = base / STAGE / "metrics.jsonl"
    other = tmp_path / "changed" / STAGE
    other.mkdir(parents=True, exist_ok=True)
    (other.parent / "run.json").write_text((base / "run.json").read_text())
    (other / "metrics.jsonl").write_text(file.read_text())
    value = metrics(base / STAGE)[step - 1][key]
    if isinstance(value, float):
        change_row(other.parent, step, **{key: float(np.nextafter(value, 9))})
    else:
        change_row(other.parent, step, **{key: [*value, 0] if isinstance(value, list) else value + 1})
    assert first(only(base, other.parent)) == (step, key)
    assert only(base, base).equal


def test_every_option_has_a_role():
    known = set(schema.keys())
    assert all(roles(key) for key in known)
    assert {key for key in ROLES if "." in key} <= known


def test_it_starts_in_a_second_and_without_torch(base: Path):
    code = "import sys; from yarn_train import diff; diff.main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, str(base), str(base)], cwd=ROOT, env=child_env(), check=True)
    assert time.perf_counter() - started < 5  # of a second when nothing else runs
