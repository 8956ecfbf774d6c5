"""Sweeps as users start them: jobs that fail, a sweep that is stopped or killed and goes on, other launchers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from processes import wait_for
from support import ROOT, child_env, launch_command, metrics

from yarn_train.sweep.record import read_job, read_jobs, read_sweep

EVALUATED = ("eval=perplexity", "eval.windows=[64,128]", "eval.documents=1", "eval.windows_per_document=1")


@pytest.fixture
def words(tiny_args: list[str], tmp_path: Path) -> list[str]:
    return ["-m", *tiny_args, f"run.dir={tmp_path / 'sweep'}"]


def sweep(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        launch_command(*words), cwd=ROOT, capture_output=True, text=True, timeout=280, env=child_env()
    )


@contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[str]]:
    command = launch_command(*words)
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=child_env()
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def record(folder: Path, name: str) -> dict[str, Any]:
    job = read_job(folder, name)
    assert job is not None
    return vars(job)


def rows(run: Path) -> list[dict[str, Any]]:
    return metrics(run / "01_s4") if (run / "01_s4" / "metrics.jsonl").exists() else []


def test_a_job_that_fails_is_listed_and_finished_ones_are_not_run_again(words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    words = [*words, *EVALUATED, "rope.alpha=1,2", "rope.beta=16,0.5", "train.steps=2"]  # 0.5 is below alpha
    done = sweep(*words)
    assert done.returncode == 1, done.stdout + done.stderr
    jobs = {job.name: job for job in read_jobs(folder)[0]}
    assert {name: job.status for name, job in jobs.items()} == {
        "alpha_1__beta_16": "complete",
        "alpha_1__beta_0.5": "failed",
        "alpha_2__beta_16": "complete",
        "alpha_2__beta_0.5": "failed",
    }
    failed, good = jobs["alpha_2__beta_0.5"], jobs["alpha_2__beta_16"]
    assert "rope.beta" in (failed.reason or "")
    assert (failed.exit_code, failed.swept) == (2, {"rope.alpha": 2, "rope.beta": 0.5})
    assert good.metric == "perplexity at 128"
    scores = json.loads((folder / good.name / "eval" / "perplexity.json").read_text())
    assert good.objective == next(s["perplexity"] for s in scores if s["stage"] and s["window"] == 128)
    assert good.overhead_seconds is not None
    assert good.seconds is not None
    assert 0 < good.overhead_seconds < good.seconds
    assert "2 complete, 2 failed" in done.stdout
    assert str(failed.reason)[:40] in done.stdout
    assert (folder / "report" / "index.html").is_file()
    assert not (folder / good.name / "report").exists()  # the sweep's is enough
    assert json.loads((folder / good.name / "run.json").read_text())["name"] == good.name

    before = {name: (folder / name / "job.log").read_bytes() for name in jobs if jobs[name].status == "complete"}
    again = sweep(*words)
    assert again.returncode == 1
    assert {name: (folder / name / "job.log").read_bytes() for name in before} == before
    assert {job.name: job.attempt for job in read_jobs(folder)[0]} == {
        name: 1 if job.status == "complete" else 2 for name, job in jobs.items()
    }
    assert again.stdout.count("complete already") == 2


def test_a_stopped_sweep_goes_on_where_it_stood(words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    words = [*words, "rope.alpha=1,2", "train.steps=400", "checkpoint.every=1000"]
    with started(*words) as process:
        wait_for(lambda: len(rows(folder / "alpha_1")) > 3)
        process.send_signal(signal.SIGINT)
        printed = process.communicate(timeout=120)[0]
    assert process.returncode == 130, printed
    stopped = record(folder, "alpha_1")
    assert (stopped["status"], stopped["exit_code"]) == ("stopped", 130)
    assert read_job(folder, "alpha_2") is None
    assert "1 stopped, 1 not run" in printed
    assert "the same command goes on with what is left: python" in printed
    reached = rows(folder / "alpha_1")[-1]["step"]
    (saved,) = (folder / "alpha_1" / "01_s4" / "checkpoints").glob("step_*")
    assert saved.name == f"step_{reached:08d}"

    with started(*words) as process:
        wait_for(lambda: len(rows(folder / "alpha_1")) > reached + 1)
        process.send_signal(signal.SIGTERM)
        printed = process.communicate(timeout=120)[0]
    assert process.returncode == 75, printed
    assert record(folder, "alpha_1")["attempt"] == 2
    assert [row["step"] for row in rows(folder / "alpha_1")] == list(range(1, len(rows(folder / "alpha_1")) + 1))
    assert "resumed from" in (folder / "alpha_1" / "job.log").read_text()


def test_a_killed_sweep_leaves_nothing_that_trains(words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    words = [*words, "rope.alpha=1,2", "train.steps=4000"]
    with started(*words) as process:
        wait_for(lambda: len(rows(folder / "alpha_1")) > 1)
        process.kill()
        process.wait(timeout=30)
        time.sleep(1.0)
        reached = len(rows(folder / "alpha_1"))
        time.sleep(1.0)
    assert len(rows(folder / "alpha_1")) == reached
    assert record(folder, "alpha_1")["status"] == "running"  # nobody was left to write how it ended


@pytest.mark.long
def test_a_killed_job_is_one_that_failed(words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    with started(*words, "rope.alpha=1,2", "train.steps=300") as process:
        wait_for(lambda: len(rows(folder / "alpha_1")) > 1)
        lock = json.loads((folder / "alpha_1" / ".lock").read_text())
        os.kill(int(lock["pid"]), signal.SIGKILL)
        wait_for(lambda: read_job(folder, "alpha_2") is not None)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    killed = record(folder, "alpha_1")
    assert (killed["status"], killed["exit_code"]) == ("failed", -signal.SIGKILL)
    assert "memory" in killed["reason"]


@pytest.mark.parametrize(
    ("added", "told"),
    [
        (["train.stpes=3", "rope.alpha=1,2"], "did you mean train.steps"),
        pytest.param(["train.steps=-1", "rope.alpha=1,2"], "train.steps: got -1", marks=pytest.mark.long),
        (["train.steps=2"], "-m: got 'nothing to sweep'"),
        pytest.param(["rope.alpha=1,1"], "two jobs named alpha_1", marks=pytest.mark.long),
        pytest.param(["rope.alpha=interval(1,2)"], "hydra/sweeper=optuna", marks=pytest.mark.long),
        pytest.param(["run.name=a,b"], "run.name: got 'several'", marks=pytest.mark.long),
        pytest.param(["rope.factor=2,4", "eval=perplexity"], "eval.windows: got []", marks=pytest.mark.long),
        pytest.param(["rope.alpha=1,2", "launch.dry_run=true"], "launch.dry_run: got True", marks=pytest.mark.long),
        (["rope.alpha=1,2", "model.path=/nowhere"], "/nowhere"),
        (["rope.alpha=1,2", "hydra.sweep.subdir=x"], "hydra.sweep.subdir: got"),
    ],
)
def test_what_is_wrong_with_all_jobs_is_told_once(
    words: list[str], tmp_path: Path, added: list[str], told: str
) -> None:
    done = sweep(*words, *added)
    assert (done.returncode, done.stderr.count("error:")) == (2, 1), done.stderr
    assert told in done.stderr
    assert not (tmp_path / "sweep").exists()


@pytest.mark.long
def test_what_changes_no_result_may_change_and_a_dropped_failure_is_forgotten(words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    words = [*words, "train.steps=2"]
    assert sweep(*words, "rope.beta=16,0.5").returncode == 1
    done = sweep(*words, "rope.beta=16,20", "memory.activation=full", "checkpoint.every=7", "sweep.objective=loss")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {job.name: (job.status, job.attempt) for job in read_jobs(folder)[0]} == {
        "beta_0.5": ("failed", 1),
        "beta_16": ("complete", 1),
        "beta_20": ("complete", 1),
    }
    refused = sweep(*words, "rope.beta=16,20", "train.global_batch_size=8")
    assert (refused.returncode, "train.global_batch_size=8" in refused.stderr) == (2, True)
    assert not (folder / "multirun.yaml").exists()


@pytest.mark.long
def test_a_damaged_record_costs_its_own_job_only(words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    (folder / "jobs").mkdir(parents=True)
    (folder / "jobs" / "wandb_group_a.json").write_text('{"name": 3')
    done = sweep(*words, "train.steps=2", "tracking.wandb_group=a,'b=c'")  # quoted as Hydra wants it
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "wandb_group_a.json" in done.stdout
    (job,), damaged = read_jobs(folder)
    assert (job.status, job.swept, len(damaged)) == ("complete", {"tracking.wandb_group": "b=c"}, 1)
    assert "1 complete" in done.stdout


@pytest.mark.long
def test_ctrl_c_at_a_terminal_reaches_jobs_of_submitit_in_time(words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    command = launch_command("train.steps=3000", "checkpoint.every=1000", *words, "rope.alpha=1,2")
    with subprocess.Popen(
        [*command, "hydra/launcher=submitit_local"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=child_env(),
        start_new_session=True,
    ) as process:
        wait_for(lambda: len(rows(folder / "alpha_1")) > 3)
        os.killpg(process.pid, signal.SIGINT)
        printed = process.communicate(timeout=120)[0]
    assert process.returncode == 130, printed
    stopped = record(folder, "alpha_1")
    assert (stopped["status"], stopped["exit_code"]) == ("stopped", 130)
    assert list((folder / "alpha_1" / "01_s4" / "checkpoints").glob("step_*"))


@pytest.mark.parametrize("launcher", ["joblib", pytest.param("submitit_local", marks=pytest.mark.long)])
def test_other_launchers(words: list[str], tmp_path: Path, launcher: str) -> None:
    folder = tmp_path / "sweep"
    two = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    done = sweep(*words, "rope.alpha=1,2", "rope.beta=16,1.5", "train.steps=2", f"hydra/launcher={launcher}", *two)
    assert done.returncode == 1, done.stdout + done.stderr
    statuses = {job.name: job.status for job in read_jobs(folder)[0]}
    assert statuses.pop("alpha_2__beta_1.5") == "failed"
    assert set(statuses.values()) == {"complete"}
    assert len(statuses) == 3
    found = read_sweep(folder)
    assert found is not None
    assert (found.launcher, found.total) == (launcher, 4)
    assert found.ended is not None
