"""profile.*: real profiles of real steps on the CPU, once, on the ranks that are asked for."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import metrics
from torch.autograd import DeviceType

from yarn_train.metrics.costs import ATTENTION, OPTIMIZER, PRODUCTS
from yarn_train.train import profile as module
from yarn_train.train.profile import covered, summary
from yarn_train.train.untimed import FIRST, PROFILE, SAVE

TWO = ("profile.steps=2", "profile.start=3")


@pytest.fixture
def args(tiny_args: list[str]) -> list[str]:
    return [a for a in tiny_args if not a.startswith("checkpoint.every")] + ["checkpoint.every=6"]


def trace_of(folder: Path, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress((folder / f"rank_{rank}.json.gz").read_bytes()))
    return found


def test_two_steps_are_traced_and_their_time_adds_up(
    train: Any, args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path / "run", *args, *TWO)
    folder = run / "01_s4/profile/step_00000003"
    assert {path.name for path in folder.iterdir()} == {"rank_0.json.gz", "costs.md", "costs.json"}
    names = [event["name"] for event in trace_of(folder)["traceEvents"]]
    assert [names.count(name) for name in ("step 2", "step 3", "step 4", "step 5")] == [0, 1, 1, 0]
    assert names.count("yarn_train::attention") == 2 * 2 * 4  # steps, layers, sequences of a step

    rows, costs = metrics(run / "01_s4"), json.loads((folder / "costs.json").read_text())
    assert [row["untimed"] for row in rows] == [FIRST, None, PROFILE, PROFILE, PROFILE, None, SAVE, None]
    took = sum(row["seconds"] for row in rows[2:4]) / 2
    assert took <= costs["step_seconds"] < 1.5 * took + 0.05
    assert sum(group["share"] for group in costs["groups"]) == pytest.approx(1.0)
    assert (costs["first"], costs["steps"], costs["rank"], costs["stage"]) == (3, 2, 0, "01_s4")
    assert {ATTENTION, PRODUCTS, OPTIMIZER} <= {group["group"] for group in costs["groups"]}
    (adam,) = [cost for cost in costs["costs"] if cost["name"] == "aten::_fused_adamw_"]
    assert (adam["calls"], adam["group"]) == (2.0, OPTIMIZER)  # matrices and vectors

    page, out = (folder / "costs.md").read_text(), capsys.readouterr().out
    for cost in costs["costs"][:10]:
        assert f"| {cost['name']} |" in page
        assert cost["name"] in out
    assert f"profile: steps 3 to 4 on rank 0, into {folder}" in out


def test_a_profile_changes_no_number_and_is_made_once(
    train: Any, args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = ("loss", "grad_norm", "segments")
    plain = metrics(train(tmp_path / "plain", *args) / "01_s4")
    run = train(tmp_path / "run", *args, *TWO, "checkpoint.every=1", "train.stop_after=5")
    folder = run / "01_s4/profile"
    made = (folder / "step_00000003/costs.json").stat().st_mtime_ns
    capsys.readouterr()
    train(run, *args, *TWO, "checkpoint.every=1", "train.stop_after=6")
    assert "profile: not again: steps 3 to 4 are over" in capsys.readouterr().out
    train(run, *args, "profile.steps=1", "profile.start=7", "profile.shapes=true")  # asked for
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000003", "step_00000007"]
    assert (folder / "step_00000003/costs.json").stat().st_mtime_ns == made
    shapes = [cost["name"] for cost in json.loads((folder / "step_00000007/costs.json").read_text())["costs"]]
    assert "aten::mm [64, 32] x [32, 64]" in shapes  # 64 tokens through the first layer of the MLP
    rows = metrics(run / "01_s4")
    assert [[row[key] for key in numbers] for row in rows] == [[row[key] for key in numbers] for row in plain]
    assert rows[6]["untimed"] == FIRST  # the start that was asked to profile began with step 7
    assert rows[7]["untimed"] == PROFILE


def test_steps_that_are_done_again_after_a_crash_are_not_profiled_again(
    train: Any, args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        from yarn_train.train import loop

        step = loop.train_step

        def dying(trainer: Any, data: Any) -> dict[str, Any]:
            if trainer.state.step == 5:
                raise RuntimeError("power cut")
            return step(trainer, data)

        patch.setattr(loop, "train_step", dying)
        with pytest.raises(RuntimeError, match="power cut"):
            train(tmp_path / "run", *args, *TWO, "checkpoint.every=2", "checkpoint.async_save=false")
        costs = tmp_path / "run/01_s4/profile/step_00000003/costs.json"
        made = costs.stat().st_mtime_ns
    monkeypatch.setattr(module.Profile, "_write", lambda *_: pytest.fail("profiled again"))
    for checkpoint in (tmp_path / "run/01_s4/checkpoints").glob("step_00000004"):
        checkpoint.rename(tmp_path / "gone")
    run = train(tmp_path / "run", *args, *TWO)
    assert costs.stat().st_mtime_ns == made
    assert len(metrics(run / "01_s4")) == 8


def test_an_end_inside_of_a_profile_and_a_full_disk_cost_nothing_but_the_profile(
    train: Any, args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path / "run", *args, *TWO, "train.stop_after=3")
    assert not (run / "01_s4/profile").exists()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.profile, "export_chrome_trace", full)
    run = train(tmp_path / "full", *args, *TWO)
    assert "the profile could not be written: [Errno 28] No space left on device" in capsys.readouterr().out
    assert len(metrics(run / "01_s4")) == 8


@pytest.mark.long
def test_several_ranks_write_a_trace_each_and_the_first_the_table(launch: Any, args: list[str], tmp_path: Path) -> None:
    done = launch(*args, *TWO, "profile.ranks=[1,2]", f"run.dir={tmp_path / 'run'}", ranks=3 - 1, check=False)
    assert "profile.ranks: got [2]; allowed: numbers from 0 to 1; fix: " in done.stderr
    done = launch(*args, *TWO, "profile.ranks=[1]", f"run.dir={tmp_path / 'run'}", ranks=2)
    folder = tmp_path / "run/01_s4/profile/step_00000003"
    assert {path.name for path in folder.iterdir()} == {"rank_1.json.gz", "costs.md", "costs.json"}
    costs = json.loads((folder / "costs.json").read_text())
    assert "communication" in {group["group"] for group in costs["groups"]}
    assert done.stdout.count("profile of 01_s4, steps 3 to 4, rank 1") == 1
    assert [row["untimed"] for row in metrics(tmp_path / "run/01_s4")][2:5] == [PROFILE] * 3


# ---- what a GPU's events add up to, by hand: there is none here ----


def event(name: str, kind: DeviceType, begin: float = 0, end: float = 0, **more: Any) -> SimpleNamespace:
    given = {"kernels": [], "cpu_parent": None, "is_user_annotation": False, "input_shapes": None, "is_async": False}
    span = SimpleNamespace(start=begin, end=end)
    return SimpleNamespace(name=name, device_type=kind, time_range=span, self_cpu_time_total=0.0, **{**given, **more})


def test_kernels_count_once_with_what_launched_them_and_the_rest_is_idle() -> None:
    """Microseconds: two products of 30 and 20, attention of 40 beside communication of 60, and a copy by a graph."""
    cpu, gpu = DeviceType.CPU, DeviceType.CUDA

    def kernel(name: str, duration: float) -> SimpleNamespace:
        return SimpleNamespace(name=name, duration=duration)

    attention = event("yarn_train::attention", cpu)
    events = [
        event("step 3", cpu, is_user_annotation=True, kernels=[kernel("step 3", 500.0)]),
        event("step 3", gpu, 0, 500, is_user_annotation=True),
        event("aten::mm", cpu, kernels=[kernel("gemm<bf16>", 30.0), kernel("gemm<bf16>", 20.0)]),
        attention,
        event("aten::clone", cpu, cpu_parent=attention, kernels=[kernel("void at::copy_kernel<4>(int)", 40.0)]),
        event("gemm<bf16>", gpu, 0, 30),
        event("gemm<bf16>", gpu, 30, 50),
        event("void at::copy_kernel<4>(int)", gpu, 50, 90),
        event("ncclDevKernel_AllGather", gpu, 40, 100),
        event("Memcpy DtoH", gpu, 200, 210),
    ]
    costs = summary(events, 1, 500e-6, True)
    shares = {name: (round(seconds * 1e6), share) for name, seconds, share in costs.groups()}
    assert shares == {
        "matrix products": (50, pytest.approx(0.1)),
        "attention kernels": (40, pytest.approx(0.08)),
        "communication": (60, pytest.approx(0.12)),
        "copies": (10, pytest.approx(0.02)),
        "GPU idle": (390, pytest.approx(0.78)),
    }
    assert [(cost.name, cost.calls) for cost in costs.costs] == [
        ("ncclDevKernel_AllGather", 1.0),
        ("aten::mm: gemm", 2.0),
        ("aten::clone: copy_kernel", 1.0),
        ("Memcpy DtoH", 1.0),
    ]


def test_the_union_of_intervals() -> None:
    assert covered([]) == 0.0
    assert covered([(5, 6), (0, 2), (1, 3), (1, 2), (3, 4)]) == 5.0
