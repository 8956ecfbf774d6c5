"""``launch.nproc_per_node``: whole runs whose workers train.py starts, against torchrun's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from processes import children, environ, wait_for
from support import ROOT, child_env, course, launch_command, metrics, same_weights

from yarn_train import cli
from yarn_train.sweep.record import read_jobs

WORKERS = "launch.nproc_per_node=2"


MARK = "YARN_TRAIN_TEST_START"  # in the environment of a start, its workers and all they start


def start(*words: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
    env = {**child_env(), "PYTHONPATH": str(ROOT), MARK: uuid.uuid4().hex}
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, *words], cwd=cwd, env=env, stdout=pipe, stderr=pipe, text=True)
    marks[process.pid] = env[MARK]
    return process


marks: dict[int, str] = {}


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a start that leaves nobody behind."""
    out, err = process.communicate(timeout=200)
    wait_for(lambda: not marked(marks[process.pid]), 20)  # a pool's last process ends just after its parent
    return process.returncode, out, err


def marked(mark: str) -> list[int]:
    """Processes of one start that live now."""
    pids = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if environ(pid).get(MARK) == mark]


def steps(stage: Path) -> int:
    return len(metrics(stage)) if (stage / "metrics.jsonl").is_file() else 0


@pytest.mark.long
def test_stopped_by_a_signal_then_a_killed_worker_and_still_torchruns_losses(launch, tiny_args, tmp_path):
    args = [*tiny_args, "train.steps=60", "checkpoint.every=20"]
    launch(*args, f"run.dir={tmp_path / 'torchrun'}", ranks=2)
    run = tmp_path / "a run, of = [2] 'ranks'"
    name = str(run).replace("'", "\\'")
    command = [str(ROOT / "train.py"), *args, f"run.dir='{name}'", WORKERS, "launch.max_restarts=1"]

    process = start(*command)
    wait_for(lambda: steps(run / "01_s4") >= 3)
    workers = children(process.pid)
    assert sorted(environ(pid)["RANK"] for pid in workers) == ["0", "1"]
    process.send_signal(signal.SIGTERM)
    code, out, err = finished(process)
    assert code == 75, err
    assert "step 1/60" in out
    assert "which is saved; the same command goes on" in err
    assert not any(map(environ, workers))
    stopped = steps(run / "01_s4")
    assert stopped < 60

    process = start(*command)
    wait_for(lambda: steps(run / "01_s4") >= stopped + 3)
    (second,) = (pid for pid in children(process.pid) if environ(pid).get("RANK") == "1")
    os.kill(second, signal.SIGKILL)
    wait_for(lambda: not environ(second))
    code, out, err = finished(process)
    assert code == 0, err
    assert out.count("resumed from") == 2
    assert "starting the workers again, 1 of 1" in err
    assert course(run / "01_s4") == course(tmp_path / "torchrun/01_s4")
    assert same_weights(run / "01_s4/model", tmp_path / "torchrun/01_s4/model")
    assert len(list((run / "logs").iterdir())) == 2
    assert json.loads((run / "run.json").read_text())["exit_reason"] == "complete"


def test_a_start_that_leaves_somebody_behind_is_seen():
    process = start("-c", "import subprocess, sys; subprocess.Popen(['sleep', '250'], stdout=2)")
    process.wait()
    (left,) = marked(marks[process.pid])
    os.kill(left, signal.SIGKILL)
    assert finished(process)[0] == 0


SWEEP = """
import json, sys
from yarn_train import cli
def start_workers(options, typed, folder, words):
    print("started", json.dumps([str(folder), words]))
    stopped = sys.argv[0].endswith("stopped.py")
    (folder / "run.json").write_text(json.dumps({"exit_reason": "stopped" if stopped else "complete"}))
    return 130 if stopped else 0
if __name__ == "__main__":
    cli.run(lambda *_: sys.exit("the launcher ran the job"), start_workers)
"""


@pytest.mark.parametrize(("name", "code", "status"), [("complete", 0, "complete"), ("stopped", 75, "stopped")])
def test_each_job_of_a_sweep_is_a_start_of_its_own(tmp_path, name, code, status):
    (tmp_path / f"{name}.py").write_text(SWEEP)
    folder = tmp_path / "sweep"
    sweep = ["-m", "experiment=smoke", WORKERS, "optim.lr=1e-4,2e-4", f"hydra.sweep.dir={folder}"]
    ended, _, err = finished(start(str(tmp_path / f"{name}.py"), *sweep))
    assert ended == code, err
    assert [job.status for job in read_jobs(folder)[0]] == [status, status]
    logs = [(folder / f"lr_{rate}" / "job.log").read_text().splitlines() for rate in ("0.0001", "0.0002")]
    jobs = [json.loads(line.removeprefix("started")) for log in logs for line in log if line.startswith("started")]
    assert [folder for folder, _ in jobs] == [str(folder / "lr_0.0001"), str(folder / "lr_0.0002")]
    for rate, (folder, words) in zip(["0.0001", "0.0002"], jobs, strict=True):
        assert f"optim.lr={rate}" in words
        assert cli.pinned(Path(folder)) in words
        assert not {"-m", "--multirun"} & set(words)


@pytest.mark.long
def test_each_job_of_a_sweep_gets_workers_of_its_own(tiny_args, tmp_path):
    sweep = [f"hydra.sweep.dir={tmp_path / 'a sweep'}", "optim.lr=1e-4,2e-4"]
    few = ["train.steps=4", "curriculum.stages.one.rope.factor=4"]
    args = [a for a in tiny_args if not a.startswith("rope.factor")]
    code, _, err = finished(start(str(ROOT / "train.py"), "-m", *args, *few, WORKERS, *sweep))
    assert code == 0, err
    rates = []
    for name in ("lr_0.0001", "lr_0.0002"):
        job = tmp_path / "a sweep" / name
        record = json.loads((job / "run.json").read_text())
        assert (record["world_size"], record["exit_reason"]) == (2, "complete")
        assert (job / "01_one/model/config.json").is_file()
        rates.append(metrics(job / "01_one")[1]["lr"])
    assert rates == [1e-4, 2e-4]


@pytest.mark.long
def test_a_request_stops_the_whole_sweep(tiny_args, tmp_path):
    sweep = [f"hydra.sweep.dir={tmp_path / 'sweep'}", "optim.lr=1e-4,2e-4"]
    process = start(str(ROOT / "train.py"), "-m", *tiny_args, "train.steps=100000", WORKERS, *sweep)
    wait_for(lambda: steps(tmp_path / "sweep/lr_0.0001/01_s4") >= 2)
    process.send_signal(signal.SIGINT)
    code, _, err = finished(process)
    assert code == 130, err
    assert not (tmp_path / "sweep/lr_0.0002").exists()


def test_a_sweep_below_torchrun_is_refused_once_with_the_command_that_works(tmp_path):
    command = launch_command("--multirun", "rope.factor=4,8", f"hydra.sweep.dir={tmp_path / 'sweep'}", ranks=2)
    code, _, err = finished(start(*command[1:]))
    assert code == 1  # torchrun's
    words = f"-m launch.nproc_per_node=2 rope.factor=4,8 hydra.sweep.dir={tmp_path / 'sweep'}"
    assert err.count(words) == 1
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("option", "starts"),
    [
        ("rope.alpha=64", 0),
        pytest.param("train.global_batch_size=3", 1, marks=pytest.mark.long),  # wrong for two ranks only
    ],
)
def test_wrong_options_are_told_once_and_leave_nothing(tiny_args, tmp_path, option, starts):
    process = start(str(ROOT / "train.py"), *tiny_args, f"run.dir={tmp_path / 'run'}", WORKERS, option)
    code, out, err = finished(process)
    assert code == 2
    assert err.count("problem in the configuration") == 1, err
    assert out.count("workers: 2") == starts
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_an_evaluation_starts_workers_too(tiny_args, tiny_model, tmp_path):
    evaluation = ["eval=perplexity", "eval.documents=2", "eval.windows=[32]", "eval.stride=16", "eval.split=test"]
    args = [*(a for a in tiny_args if a != "eval=none"), *evaluation, WORKERS]
    code, out, err = finished(start("-m", "yarn_train.eval", *args, cwd=tmp_path))
    assert code == 0, err
    assert "window       32  perplexity" in out
    (result,) = (tmp_path / "outputs/eval").iterdir()
    assert {entry.name for entry in result.iterdir()} == {"eval", "logs"}
    (only,) = (result / "logs").iterdir()
    assert (only / "rank1.err").is_file()


@given(
    st.text(st.sampled_from("ab ${}\\'\"=,[]:\n") | st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)
)
@example("a ${b} \\${c} \\\\${d} ${")
def test_a_pinned_folder_reads_as_the_folder_it_is(name):
    (override,) = OverridesParser.create().parse_overrides([cli.pinned(Path(name))])
    options = OmegaConf.create({"hydra": {"run": {"dir": ""}}})
    OmegaConf.update(options, override.key_or_group, override.value())
    assert options.hydra.run.dir == str(Path(name))
