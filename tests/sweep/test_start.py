"""Before the first job: a folder is one sweep, and every job of a grid has a folder of its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from yarn_train.errors import ConfigError
from yarn_train.sweep.record import Job, Sweep, read_sweep, write
from yarn_train.sweep.start import GRID_MOST, Axis, begin, end

ALPHA, BETA = Axis("rope.alpha", (1, 2), "1,2"), Axis("rope.beta", (16, 32, 64), "16,32,64")
SWEEP = Sweep("s", "python train.py -m", "grid", "basic", {}, ["train.steps=5"])
JOB = Job("alpha_1", 0, {"rope.alpha": 1})


def test_the_record_says_what_is_swept(tmp_path: Path) -> None:
    begun = begin(tmp_path, SWEEP, [ALPHA, BETA])
    assert begun == read_sweep(tmp_path)
    assert (begun.total, begun.axes) == (6, {"rope.alpha": [1, 2], "rope.beta": [16, 32, 64]})
    end(tmp_path)
    ended = read_sweep(tmp_path)
    assert ended is not None
    assert ended.ended is not None
    again = begin(tmp_path, SWEEP, [ALPHA, BETA])
    assert (again.started, again.ended) == (begun.started, None)


def test_values_may_be_added(tmp_path: Path) -> None:
    begin(tmp_path, SWEEP, [ALPHA])
    assert begin(tmp_path, SWEEP, [Axis("rope.alpha", (1, 2, 4), "1,2,4")]).total == 3


@pytest.mark.parametrize(
    ("changed", "axes", "told"),
    [
        ({"common": ["train.steps=6"]}, [ALPHA], "got 'train.steps=6'; allowed: train.steps=5"),
        ({"common": []}, [ALPHA], "got 'without train.steps=5'"),
        ({}, [BETA], "got 'a sweep over rope.beta'; allowed: rope.alpha"),
    ],
)
def test_another_sweep_is_refused(tmp_path: Path, changed: dict[str, list[str]], axes: list[Axis], told: str) -> None:
    begin(tmp_path, SWEEP, [ALPHA])
    write(tmp_path, JOB)
    before = (tmp_path / "sweep.json").read_bytes()
    with pytest.raises(ConfigError) as error:
        begin(tmp_path, dataclasses.replace(SWEEP, **changed), axes)
    assert told in str(error.value)
    assert "choose another run.name" in str(error.value)
    assert (tmp_path / "sweep.json").read_bytes() == before


def test_a_record_without_jobs_blocks_nothing(tmp_path: Path) -> None:
    begin(tmp_path, SWEEP, [ALPHA])
    assert begin(tmp_path, SWEEP, [BETA]).axes == {"rope.beta": [16, 32, 64]}


def test_jobs_may_wait_in_a_queue(tmp_path: Path) -> None:
    begin(tmp_path, dataclasses.replace(SWEEP, launcher="submitit_slurm"), [ALPHA])
    with pytest.raises(ConfigError, match="a sweep over"):
        begin(tmp_path, SWEEP, [BETA])


def test_how_a_word_is_added_makes_no_difference(tmp_path: Path) -> None:
    begin(tmp_path, dataclasses.replace(SWEEP, common=["+sweep=methods"]), [ALPHA])
    write(tmp_path, JOB)
    begin(tmp_path, dataclasses.replace(SWEEP, common=["sweep=methods"]), [ALPHA])


def test_the_folder_of_a_run_is_no_sweeps(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="is the folder of a run"):
        begin(tmp_path, SWEEP, [ALPHA])


@pytest.mark.parametrize(
    ("axis", "told"),
    [
        (Axis("a.x", (1, 2, 1), "1,2,1"), "two jobs named x_1"),
        (Axis("a.x", None, "interval(1,2)"), "hydra/sweeper=optuna"),
        (Axis("a.x", tuple(range(GRID_MOST + 1)), "range(0,10001)"), "10,001 jobs"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(tmp_path: Path, axis: Axis, told: str) -> None:
    with pytest.raises(ConfigError, match=told.replace("(", r"\(")):
        begin(tmp_path, SWEEP, [axis])
    assert not (tmp_path / "sweep.json").exists()


def test_a_study_decides_on_its_jobs(tmp_path: Path) -> None:
    axes = [Axis("rope.alpha", None, "interval(0.5,2)")]
    begun = begin(tmp_path, dataclasses.replace(SWEEP, sweeper="optuna"), axes)
    assert (begun.total, begun.axes) == (None, {"rope.alpha": "interval(0.5,2)"})


def test_a_record_is_never_half_written(tmp_path: Path) -> None:
    write(tmp_path, SWEEP)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]
