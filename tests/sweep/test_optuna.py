"""``hydra/sweeper=optuna`` through the real entry."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins

from hydra_plugins.yarn_train.optuna_sweeper import axes, parsed
from yarn_train.sweep import record
from yarn_train.sweep.space import Between, Choices

Launch = Callable[..., subprocess.CompletedProcess[str]]
SWEEP = ("-m", "hydra/sweeper=optuna", "rope.alpha=interval(0.25,4)", "rope.temperature=auto,1.0")


def found(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder / 'study.db'}")


def test_hydra_finds_the_sweeper_without_importing_optuna() -> None:
    assert "OptunaSweeper" in [plugin.__name__ for plugin in Plugins.instance().discover()]


def test_axes_are_read_as_hydra_spells_sweeps() -> None:
    params = {"rope.alpha": "interval(0.25,4)", "rope.beta": "1,2"}
    words = [
        "rope.temperature=auto,1.0",
        "rope.beta=choice(16,32)",
        "optim.lr=tag(log,interval(1e-5,1e-3))",
        "train.steps=interval(5,9.5)",
        "train.micro_batch_size=range(1,9,2)",
        "optim.weight_decay=range(0,1.1,0.25)",
        "rope.factor=int(interval(2,8))",
        "data.seq_len=64",
        "eval.windows=[32],[64]",
    ]
    assert axes(parsed(params, words)) == {
        "rope.factor": Between(2, 8, whole=True),
        "rope.alpha": Between(0.25, 4.0),
        "rope.beta": Choices(("16", "32")),
        "rope.temperature": Choices(("auto", "1.0")),
        "optim.lr": Between(1e-5, 1e-3, log=True),
        "optim.weight_decay": Between(0.0, 1.0, step=0.25),
        "train.micro_batch_size": Between(1, 7, whole=True, step=2.0),
        "train.steps": Between(5, 9, whole=True),
        "eval.windows": Choices(("[32]", "[64]")),
    }
    assert OverridesParser.create().parse_override("x=1e-5").value() == 1e-05  # as texts of small numbers are read


def test_a_sweep_that_cannot_be_is_told_without_a_traceback(launch: Launch, tmp_path: Path, tiny_args) -> None:
    done = launch(*SWEEP, *tiny_args, f"run.dir={tmp_path / 'study'}", "hydra.sweeper.pruner=best", check=False)
    assert done.returncode == 2
    assert "hydra.sweeper.pruner: got 'best'; allowed: median | hyperband | none" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_a_study_trains_prunes_and_goes_on(launch: Launch, tmp_path: Path, tiny_args) -> None:
    """Two starts of the same command; of learning rates, those that get nowhere are pruned."""
    folder = tmp_path / "study"
    args = [*tiny_args, "checkpoint.every=100", "train.steps=100", f"run.dir={folder}", "optim.lr=2e-3,1e-3,1e-9,1e-8"]
    args += ["hydra.sweeper.prune_after_trials=2", "hydra.sweeper.sampler=grid", "sweep.objective=loss"]
    launch("-m", "hydra/sweeper=optuna", *args, "hydra.sweeper.n_trials=2")
    again = launch("-m", "hydra/sweeper=optuna", *args, "hydra.sweeper.n_trials=4")
    jobs = record.read_jobs(folder)[0]
    assert [job.name for job in jobs] == ["lr_0.002", "lr_0.001", "lr_1e-09", "lr_1e-08"]
    assert [job.attempt for job in jobs] == [1] * 4
    assert [job.status for job in jobs] == ["complete", "complete", "pruned", "pruned"]
    sweep = record.read_sweep(folder)
    assert sweep is not None
    assert (sweep.sweeper, sweep.total) == ("optuna", None)
    trials = found(folder).trials
    assert [trial.value for trial in trials[:2]] == [job.objective for job in jobs[:2]]
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    assert [len(trial.intermediate_values) for trial in trials[:2]] == [20, 20]
    assert "2 complete, 2 pruned" in again.stdout


@pytest.mark.long
def test_jobs_of_a_batch_run_at_once_and_share_what_is_the_same(launch: Launch, tmp_path: Path, tiny_args) -> None:
    folder = tmp_path / "study"
    args = [*tiny_args, "eval=perplexity", "eval.documents=2", "eval.windows=[32,64]", f"run.dir={folder}"]
    args += ["hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = launch(*SWEEP, *args)
    jobs = record.read_jobs(folder)[0]
    assert ([job.status for job in jobs], len({job.name for job in jobs})) == (["complete"] * 4, 4)
    assert [job.number for job in jobs] == [0, 1, 2, 3]
    assert all(str(job.metric).startswith("perplexity at ") for job in jobs)
    assert sorted(t.value for t in found(folder).trials) == sorted(job.objective for job in jobs)
    rows = [json.loads((folder / job.name / "eval" / "perplexity.json").read_text()) for job in jobs]
    base = [[row for row in run if row["label"] == "base"] for run in rows]
    assert base[0]
    assert all(one == base[0] for one in base)
    logs = [(folder / job.name / "job.log").read_text() for job in jobs]
    assert 1 <= sum("documents are cut at" in log for log in logs) <= 2  # the second batch finds it prepared
    assert sum("another job of the sweep evaluates" in log for log in logs) <= 2
    assert done.stdout.count("complete") >= 4
