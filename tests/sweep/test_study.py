"""Studies on a cheap function: jobs are records that this file writes."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
import pytest

from yarn_train.errors import ConfigError, DataError, TrainingDiverged
from yarn_train.sweep import asked, record, study
from yarn_train.sweep.names import job_name
from yarn_train.sweep.settings import Settings
from yarn_train.sweep.space import Between, Choices, grid, in_words, interval, text
from yarn_train.sweep.trials import run_study

AXES = {"rope.alpha": Between(0.25, 4.0), "rope.method": Choices(("yarn", "pi"))}
Batch = Sequence[dict[str, str]]


def objective(values: dict[str, str]) -> float:
    return (float(values["rope.alpha"]) - 1) ** 2 + (values["rope.method"] == "pi")


def good(values: dict[str, str]) -> dict:
    return {"status": "complete", "objective": objective(values)}


class Jobs:
    """A launcher whose jobs end at once; `ends` says how, by the number of the batch."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.batches: list[list[str]] = []
        self.before: list[int] = []
        self.end: Callable[[dict[str, str]], dict] = good

    def launch(self, batch: Batch, begun: int) -> None:
        self.batches.append([job_name(values) for values in batch])
        self.before.append(begun)
        for n, values in enumerate(batch):
            record.write(self.folder, record.Job(job_name(values), begun + n, dict(values), **self.end(values)))

    def run(self, axes=AXES, **settings) -> list[str]:
        said: list[str] = []
        run_study(self.folder, Settings(**settings), axes, job_name, self.launch, said.append)
        return said

    @property
    def names(self) -> list[str]:
        return [name for batch in self.batches for name in batch]


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path)


def states(folder: Path) -> list[str]:
    storage = f"sqlite:///{folder / 'study.db'}"
    return [t.state.name for t in optuna.load_study(study_name=folder.name, storage=storage).get_trials()]


def test_a_study_runs_its_trials_and_finds_the_valley(jobs: Jobs) -> None:
    jobs.run(n_trials=30)
    found = optuna.load_study(study_name=jobs.folder.name, storage=f"sqlite:///{jobs.folder / 'study.db'}")
    assert len(set(jobs.names)) == 30
    assert jobs.before == list(range(30))
    assert found.best_value < 0.05
    assert found.best_trial.user_attrs["job"] in jobs.names
    assert sum("yarn" in name for name in jobs.names[5:]) >= 18  # random values are as often the other one


def test_a_study_goes_on_where_it_stood(jobs: Jobs) -> None:
    jobs.run(n_trials=4)
    jobs.run(n_trials=6)
    assert (len(set(jobs.names)), jobs.before) == (6, [0, 1, 2, 3, 4, 5])
    assert jobs.run(n_trials=6) == ["the study has its 6 trials; hydra.sweeper.n_trials=... asks for more"]
    assert len(jobs.names) == 6


def test_batches_have_as_many_jobs_as_asked_and_the_last_one_what_is_left(jobs: Jobs) -> None:
    jobs.run(n_trials=7, n_jobs=3)
    assert [len(batch) for batch in jobs.batches] == [3, 3, 1]
    assert len(set(jobs.names)) == 7


def test_what_an_interrupted_start_left_is_run_first(jobs: Jobs) -> None:
    jobs.run(n_trials=2)

    def interrupted(values: dict[str, str]) -> dict:
        raise KeyboardInterrupt

    end, jobs.end = jobs.end, interrupted
    with pytest.raises(KeyboardInterrupt):
        jobs.run(n_trials=5, n_jobs=2)
    half = jobs.batches[-1]
    jobs.end = end
    jobs.run(n_trials=5, n_jobs=2)
    assert jobs.batches[2 + 1] == half
    assert len(set(jobs.names)) == 5
    assert states(jobs.folder).count("COMPLETE") == 5


def test_a_job_that_was_stopped_goes_on_at_the_next_start(jobs: Jobs) -> None:
    end, jobs.end = jobs.end, lambda values: {"status": "stopped"}
    jobs.run(n_trials=1)
    assert states(jobs.folder) == ["RUNNING"]
    jobs.end = end
    jobs.run(n_trials=1)
    assert jobs.names[0] == jobs.names[1]
    assert states(jobs.folder) == ["FAIL", "COMPLETE"]


def test_a_failed_job_ends_nothing_and_is_tried_again_at_the_next_start(jobs: Jobs) -> None:
    end, jobs.end = jobs.end, lambda values: {"status": "failed", "exit_code": 2}
    jobs.run(n_trials=3)
    assert states(jobs.folder) == ["FAIL"] * 3
    failed, jobs.end = jobs.names[:], end
    jobs.run(n_trials=3)
    assert jobs.names[3:] == failed
    assert states(jobs.folder) == ["FAIL"] * 3 + ["COMPLETE"] * 3


def test_a_job_that_diverged_is_an_answer(jobs: Jobs) -> None:
    jobs.end = lambda values: {"status": "failed", "exit_code": TrainingDiverged.exit_code}
    jobs.run(n_trials=2)
    jobs.run(n_trials=2)
    assert (len(jobs.names), states(jobs.folder)) == (2, ["PRUNED"] * 2)


def test_values_that_make_the_same_job_are_run_once(jobs: Jobs) -> None:
    """Rounded, an interval as narrow as the first has two numbers."""
    said = jobs.run(
        {"rope.alpha": Between(1.0, 1.001, log=True), "rope.method": Choices(("yarn",))}, n_trials=9, sampler="random"
    )
    assert sorted(jobs.names) == ["alpha_1.001__method_yarn", "alpha_1.0__method_yarn"]
    assert said == ["the study finds nothing that it has not tried; 7 of its trials are left"]
    few = jobs.folder / "few"
    few.mkdir()
    other = Jobs(few)
    other.run({"rope.alpha": Choices(tuple("1234")), "rope.method": Choices(("yarn", "pi"))}, n_trials=50, n_jobs=3)
    assert sorted(other.names) == sorted(set(other.names))
    assert len(other.names) == 8


def test_a_grid_is_run_in_order_and_to_its_end(jobs: Jobs) -> None:
    axes = {"rope.alpha": Between(1, 3, whole=True), "rope.method": Choices(("yarn", "pi"))}
    jobs.run(axes, n_trials=4, sampler="grid")
    jobs.run(axes, n_trials=50, sampler="grid")
    assert jobs.names == [f"alpha_{a}__method_{m}" for a in (1, 2, 3) for m in ("yarn", "pi")]


def test_other_axes_do_not_continue_a_study(jobs: Jobs) -> None:
    jobs.run(n_trials=2)
    for axes in ({**AXES, "optim.lr": Between(0.1, 1)}, {**AXES, "rope.method": Choices(("yarn", "pi", "ntk"))}):
        with pytest.raises(ConfigError, match=r"swept options: got 'rope.alpha=interval .*as the study has it"):
            jobs.run(axes, n_trials=3)
    jobs.run({**AXES, "rope.alpha": Between(0.5, 8)}, n_trials=3)
    assert len(jobs.names) == 3


def test_a_sweep_that_was_asked_to_stop_asks_for_no_more(jobs: Jobs) -> None:
    def stopped(batch: Batch, begun: int) -> None:
        jobs.batches.append([job_name(values) for values in batch])
        (jobs.folder / asked.FILE).write_text("15")

    launch = jobs.launch
    jobs.launch = stopped
    jobs.run(n_trials=6, n_jobs=2)
    assert (len(jobs.batches), states(jobs.folder)) == (1, ["RUNNING"] * 2)
    (jobs.folder / asked.FILE).unlink()
    jobs.launch = launch
    jobs.run(n_trials=6, n_jobs=2)
    assert jobs.batches[0] == jobs.batches[1]


def test_one_sweep_is_run_by_one_process(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    held = study.Study(jobs.folder, Settings(), AXES)
    now = iter(range(0, 1000, 4))
    monkeypatch.setattr("yarn_train.sweep.settings.time.monotonic", lambda: next(now))
    with pytest.raises(ConfigError, match="a sweep that nobody runs"):
        jobs.run(n_trials=1)
    held.close()
    jobs.run(n_trials=1)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"n_trials": 0, "prune_every": 0}, "n_trials: got 0; allowed: >= 1.*\n.*prune_every"),
        ({"sampler": "cmaes"}, "sampler: got 'cmaes'; allowed: tpe | random | grid"),
        ({"sampler": "grid"}, "rope.alpha is an interval"),
        ({"storage": "study.db"}, "storage: got 'study.db'.*fix: sqlite:////"),
        ({"storage": "postgresql://me:secret@host/db"}, r"got 'postgresql://\.\.\. with a password'"),
    ],
)
def test_settings_that_cannot_be_are_refused(jobs: Jobs, settings, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        jobs.run(**settings)
    assert not (jobs.folder / "study.db").exists()


def test_a_file_that_is_no_study_is_told(jobs: Jobs) -> None:
    (jobs.folder / "study.db").write_bytes(b"torn" * 2000)
    with pytest.raises(DataError, match=r"study sqlite.*move it away"):
        jobs.run()


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_jobs_that_lag_are_pruned_from_their_own_process(jobs: Jobs, pruner: str) -> None:
    """Each job asks through the database, as its own process would."""
    steps: dict[str, int] = {}

    def train(values: dict[str, str]) -> dict:
        name, bad = job_name(values), float(values["rope.alpha"])
        asked = study.pruner(jobs.folder, name)
        assert asked
        for step in range(1, 41):
            steps[name] = step
            if asked.hopeless(step, 10 / step + bad):
                return {"status": "pruned"}
        return {"status": "complete", "objective": bad}

    jobs.end = train
    jobs.run({"rope.alpha": Choices(tuple("12345678"))}, n_trials=8, sampler="grid", pruner=pruner)
    pruned = [name for name, last in steps.items() if last < 40]
    assert {"alpha_7", "alpha_8"} <= set(pruned)
    assert steps["alpha_1"] == 40
    assert min(steps.values()) >= 10
    assert states(jobs.folder) == ["PRUNED" if name in pruned else "COMPLETE" for name in jobs.names]


def test_a_job_that_no_study_began_is_not_pruned(jobs: Jobs) -> None:
    said: list[str] = []
    assert study.pruner(jobs.folder, "alpha_1", said.append) is None
    jobs.run(n_trials=1)
    assert study.pruner(jobs.folder, jobs.names[0], said.append) is None  # it has ended
    jobs.end = lambda values: {"status": "stopped"}
    jobs.run(n_trials=2, pruner="none")
    assert study.pruner(jobs.folder, jobs.names[-1], said.append) is None
    assert said == []


def test_a_study_that_does_not_answer_never_ends_a_job(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yarn_train.sweep.optuna_parts.PATIENCE_OF_JOB", 0.1)
    jobs.end = lambda values: {"status": "stopped"}
    jobs.run(n_trials=1)
    said: list[str] = []
    asked = study.pruner(jobs.folder, jobs.names[0], said.append)
    assert asked
    other = sqlite3.connect(jobs.folder / "study.db")
    other.execute("begin exclusive")
    assert [asked.hopeless(step, 1.0) for step in (5, 10, 15, 20, 25)] == [False] * 5
    assert said == ["the sweep's study does not answer (StorageInternalError); going on without its pruner"]
    assert study.pruner(jobs.folder, jobs.names[0], said.append) is None
    assert "cannot be asked" in said[1]
    other.rollback()
    other.close()
    (jobs.folder / "study.json").write_text("{torn")
    assert study.pruner(jobs.folder, jobs.names[0], said.append) is None
    assert len(said) == 3


def test_jobs_at_once_report_to_one_file(jobs: Jobs) -> None:
    jobs.end = lambda values: {"status": "stopped"}
    jobs.run(n_trials=4, n_jobs=4)
    said: list[str] = []
    asked = [study.pruner(jobs.folder, name, said.append) for name in jobs.names]

    def report(one) -> None:
        for step in range(5, 105, 5):
            one.hopeless(step, 1.0)

    threads = [threading.Thread(target=report, args=[one]) for one in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = optuna.load_study(study_name=jobs.folder.name, storage=f"sqlite:///{jobs.folder / 'study.db'}")
    assert [len(t.intermediate_values) for t in found.get_trials()] == [20] * 4
    assert said == []


def test_jobs_find_a_study_that_is_elsewhere(jobs: Jobs, tmp_path_factory: pytest.TempPathFactory) -> None:
    url = f"sqlite:///{tmp_path_factory.mktemp('shared') / 'other.db'}"
    jobs.end = lambda values: {"status": "stopped"}
    jobs.run(n_trials=1, storage=url, study_name="ours")
    assert json.loads((jobs.folder / "study.json").read_text())["url"] == url
    assert not (jobs.folder / "study.db").exists()
    assert study.pruner(jobs.folder, jobs.names[0])


@pytest.mark.parametrize(
    ("axis", "value", "expected"),
    [
        (Between(0.25, 4.0), 1.23456789, "1.235"),
        (Between(0.25, 4.0), 0.25001, "0.25"),
        (Between(1.2345678, 1.2345698), 1.23456789012, "1.234567890"),
        (Between(1e-5, 1e-2, log=True), 0.000123456, "0.0001235"),
        (Between(1.00049, 9, log=True), 1.00049, "1.00049"),
        (Between(100, 90000), 12345.678, "12350.0"),
        (Between(1, 8, whole=True), 3, "3"),
        (Between(0.1, 0.7, step=0.2), 0.30000000000000004, "0.3"),
        (Between(2.0, 2.0), 2.0, "2.0"),
        (Choices(("auto", "1.0")), "auto", "auto"),
    ],
)
def test_numbers_have_readable_digits_inside_their_interval(axis, value, expected: str) -> None:
    assert float(text(axis, value)) == float(expected) if expected[0].isdigit() else text(axis, value) == expected
    assert len(text(axis, value)) <= 12


def test_an_option_that_counts_gets_whole_numbers() -> None:
    assert interval("train.steps", 9.5, 20.0, False, False) == Between(10, 20, whole=True)
    assert interval("rope.alpha", 1.0, 8.0, False, False) == Between(1.0, 8.0)
    for low, high, log, told in ((4, 1, False, "smaller number first"), (0, 1, True, "numbers above 0")):
        with pytest.raises(ConfigError, match=told):
            interval("rope.alpha", low, high, log, False)


def test_axes_in_words_and_as_a_grid() -> None:
    axes = {"a": Between(0.5, 1.5, step=0.5), "b": Between(1, 2, whole=True), "c": Choices(("x",))}
    assert grid(axes) == [{"a": a, "b": b, "c": "x"} for a in (0.5, 1.0, 1.5) for b in (1, 2)]
    assert grid({"a": Between(0, 1)}) is None
    assert [in_words(axis) for axis in (*axes.values(), Between(1e-5, 1, log=True))] == [
        "0.5 to 1.5 by 0.5",
        "int(interval(1,2))",
        "x",
        "tag(log,interval(1e-05,1))",
    ]
