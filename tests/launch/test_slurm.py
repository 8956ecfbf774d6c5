"""launch/slurm.sbatch on a real Slurm of two nodes: warning, checkpoint, queue, and on with equal losses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import ROOT, child_env, course

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
PROGRAMS = ("slurmctld", "slurmd", "munged", "mungekey", "sbatch")
SYSTEM = f"{os.environ['PATH']}:/usr/sbin:/sbin"


# A Python whose torchrun has one worker, which leaves on request as ours do, without the seconds they take to start.
PYTHON = """#!{python}
import os, signal, subprocess, sys, time
from pathlib import Path
act, first = sys.argv[-1].partition("=")[2], os.environ.get("SLURM_RESTART_COUNT", "0") == "0"
if sys.argv[1] == "-m":
    sys.exit(subprocess.call([sys.executable, __file__, *sys.argv]))
left, stop = Path(os.environ["YARN_TRAIN_EXIT_FILE"]), Path(os.environ["YARN_TRAIN_STOP_FILE"])
def leave(*signal):
    if act == "saves":
        logs = Path(sys.argv[sys.argv.index("--log-dir") + 1])
        (logs / "stderr.log").write_text("stopped by SIGUSR1 after step 3, which is saved")
    left.write_text("75")
    sys.exit(0)
signal.signal(signal.SIGUSR1, leave)
print("begins", flush=True)
if act == "fails":
    if os.environ["SLURM_NODEID"] == "0":
        left.with_name(left.name + ".error").write_text("3")
    else:
        time.sleep(60)
    sys.exit(1)
if first or act == "waits":
    for _ in range(600):
        time.sleep(0.1)
        if stop.exists():
            leave()
"""


class Slurm:
    """The cluster that tests/slurm/start.sh made."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.env = {**child_env(), "PATH": SYSTEM, "SLURM_CONF": str(folder / "slurm.conf")}

    def call(self, *words: str, **given: str) -> str:
        env = {**self.env, **given}
        done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, *words: str, sbatch: tuple[str, ...] = (), workers: int = 1, **given: str) -> str:
        """The job's number; its lines go to out_<number>."""
        out = f"--output={self.folder}/out_%A"
        given = {"PYTHON": sys.executable, "NPROC_PER_NODE": str(workers), "LOG_DIR": f"{self.folder}/logs", **given}
        return self.call("sbatch", "--parsable", out, *sbatch, "launch/slurm.sbatch", *words, **given).strip()

    def output(self, job: str) -> str:
        file = self.folder / f"out_{job}"
        return file.read_text() if file.exists() else ""

    def show(self, job: str, key: str) -> list[str]:
        """A field of every task of a job."""
        return re.findall(rf"\b{key}=(\S+)", self.call("scontrol", "show", "job", job))

    def wait(self, job: str, seconds: float = 200) -> list[str]:
        """The states that a job's tasks end in."""
        end = time.monotonic() + seconds
        while not set(states := self.show(job, "JobState")) <= {"COMPLETED", "FAILED", "TIMEOUT", "CANCELLED"}:
            assert time.monotonic() < end, f"{states}\n{self.output(job)}"
            time.sleep(0.5)
        return states


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    missing = [program for program in PROGRAMS if shutil.which(program, path=SYSTEM) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(
            f"a real Slurm needs root and {', '.join(missing) or 'its daemons'} (apt-get install slurm-wlm munge)"
        )
    folder = tmp_path_factory.mktemp("slurm")
    command = [str(ROOT / "tests/slurm/start.sh"), str(folder)]
    with (folder / "start").open("w") as out:  # daemons keep it open: a pipe would never end
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, timeout=60)
    try:
        assert done.returncode == 0, (folder / "start").read_text()
        yield Slurm(folder)
    finally:
        subprocess.run([str(ROOT / "tests/slurm/stop.sh"), str(folder)], timeout=150, check=True)


@pytest.fixture(scope="module")
def quick(books: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """quick(name): the quickstart's two stages on few and short sequences, in a run folder of that name."""
    folder = tmp_path_factory.mktemp("runs")
    options = ["experiment=quickstart", "eval=none", "data.source=pg19", f"data.path={books}", "data.workers=1"]
    options += ["data.seq_len=64", "train.steps=16", "train.global_batch_size=2", "checkpoint.every=1000"]
    options += [f"data.cache={folder / 'cache'}"]
    return lambda name: [*options, f"run.dir={folder / name}"]


def folder_of(words: list[str]) -> Path:
    return Path(words[-1].removeprefix("run.dir="))


def wait_for_step(slurm: Slurm, job: str, words: list[str]) -> None:
    end = time.monotonic() + 100
    while not (folder_of(words) / "01_s16/metrics.jsonl").exists():
        assert time.monotonic() < end, slurm.output(job)
        time.sleep(0.2)


def test_a_job_asked_to_stop_returns_to_the_queue_and_ends_with_the_losses_of_one_that_was_not(slurm, quick):
    whole = slurm.submit(*quick("whole"), workers=2)
    assert slurm.wait(whole) == ["COMPLETED"], slurm.output(whole)
    expected = [course(folder_of(quick("whole")) / stage) for stage in ("01_s16", "02_s32")]
    assert [len(rows) for rows in expected] == [16, 16]

    asked = slurm.submit(*quick("asked"), sbatch=("--nodes=2",))
    wait_for_step(slurm, asked, quick("asked"))
    slurm.call("scancel", "--signal=USR1", "--batch", asked)
    assert slurm.wait(asked) == ["COMPLETED"], slurm.output(asked)
    assert slurm.show(asked, "Restarts") == ["1"]
    assert "resumed from" in slurm.output(asked)
    assert [course(folder_of(quick("asked")) / stage) for stage in ("01_s16", "02_s32")] == expected


def test_slurms_warning_before_the_time_limit_sends_a_job_back_to_the_queue(slurm, quick):
    longer = [word.replace("train.steps=16", "train.steps=400") for word in quick("limited")]
    limited = slurm.submit(*longer, sbatch=("--time=1", "--signal=B:USR1@45"), workers=2)
    wait_for_step(slurm, limited, longer)
    end = time.monotonic() + 200  # on a busy machine its first start may not come to a step
    while not re.search("(?s)which is saved.*back to the queue", slurm.output(limited)):
        assert time.monotonic() < end, slurm.output(limited)
        time.sleep(0.5)
    slurm.call("scancel", limited)


def test_wrong_options_end_a_job_with_their_code(slurm):
    job = slurm.submit("experiment=smoke", "data.seq_lem=64", workers=2)
    assert slurm.wait(job) == ["FAILED"]
    assert (slurm.show(job, "ExitCode"), slurm.show(job, "Restarts")) == (["2:0"], ["0"])
    assert "did you mean data.seq_len?" in slurm.output(job)


def test_a_cancelled_job_does_not_come_back(slurm, quick):
    words = [word.replace("train.steps=16", "train.steps=2000") for word in quick("cancelled")]
    job = slurm.submit(*words, workers=2)
    wait_for_step(slurm, job, words)
    slurm.call("scancel", job)
    end = time.monotonic() + 60
    while slurm.call("squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%T").strip() != "CANCELLED":
        assert time.monotonic() < end, slurm.output(job)
        time.sleep(0.5)
    assert list((folder_of(words) / "01_s16/checkpoints").glob("step_*/COMPLETE"))
    assert slurm.show(job, "Restarts") == ["0"]


@pytest.fixture
def acting(slurm: Slurm, tmp_path: Path) -> Callable[..., str]:
    """acting(act, *options of sbatch): a job whose worker is PYTHON's; it runs when this returns."""
    python = tmp_path / "python"
    python.write_text(PYTHON.replace("{python}", sys.executable))
    python.chmod(0o755)

    def submit(act: str, *sbatch: str, **given: str) -> str:
        job = slurm.submit(f"act={act}", sbatch=sbatch, PYTHON=str(python), **given)
        wait_until(slurm, job, "begins")
        return job

    return submit


def wait_until(slurm: Slurm, job: str, pattern: str, seconds: float = 100) -> None:
    end = time.monotonic() + seconds
    while not re.search(pattern, slurm.output(job)):
        assert time.monotonic() < end, slurm.output(job)
        time.sleep(0.2)


def test_the_last_task_of_an_array_returns_to_the_queue_and_no_other(slurm, acting):
    job = acting("saves", "--array=1-2")
    wait_until(slurm, job, "(?s)begins.*begins")
    slurm.call("scancel", "--signal=USR1", "--batch", f"{job}_2")
    wait_until(slurm, job, "back to the queue")
    assert slurm.show(f"{job}_1", "JobState") == ["RUNNING"]
    assert slurm.wait(f"{job}_2") == ["COMPLETED"], slurm.output(job)
    assert (slurm.show(f"{job}_1", "Restarts"), slurm.show(f"{job}_2", "Restarts")) == (["0"], ["1"])
    slurm.call("scancel", job)


def test_what_does_not_return_to_the_queue_says_why(slurm, acting):
    never = acting("saves", "--no-requeue")
    slurm.call("scancel", "--signal=USR1", "--batch", never)
    assert slurm.wait(never) == ["FAILED"]
    assert "not back to the queue" in slurm.output(never)
    assert "back to the queue, to" not in slurm.output(never)

    short = acting("waits")
    for start in (1, 2):
        wait_until(slurm, short, f"(?s)(begins.*){{{start}}}")
        slurm.call("scancel", "--signal=USR1", "--batch", short)
        wait_until(slurm, short, "back to the queue|two starts")
    assert slurm.wait(short) == ["FAILED"], slurm.output(short)
    assert (slurm.show(short, "ExitCode"), slurm.show(short, "Restarts")) == (["75:0"], ["1"])
    assert "two starts in a row saved no checkpoint" in slurm.output(short)


def test_a_job_that_slurm_brings_back_by_itself_is_left_to_it(slurm, acting):
    job = acting("saves")
    slurm.call("scontrol", "requeue", job)
    assert slurm.wait(job) == ["COMPLETED"], slurm.output(job)
    assert "stopped from outside" not in slurm.output(job)
    assert slurm.show(job, "Restarts") == ["1"]


def test_a_request_before_the_workers_begin_is_heard(slurm, tmp_path):
    job = slurm.submit("experiment=smoke", "train.steps=4000")
    end = time.monotonic() + 60
    while "start 0 on" not in slurm.output(job):
        assert time.monotonic() < end
        time.sleep(0.05)
    slurm.call("scancel", "--signal=USR1", "--batch", job)
    wait_until(slurm, job, "back to the queue")
    slurm.call("scancel", job)


def test_the_code_of_one_node_is_that_of_the_job(slurm, acting):
    job = acting("fails", "--nodes=2")
    assert slurm.wait(job) == ["FAILED"]
    assert slurm.show(job, "ExitCode") == ["3:0"], slurm.output(job)


def test_a_sweep_whose_lines_would_share_a_folder_is_refused(slurm, tmp_path):
    (tmp_path / "sweep.txt").write_text("optim.lr=1e-4\n")
    job = slurm.submit("run.dir=same", sbatch=("--array=1",), SWEEP=str(tmp_path / "sweep.txt"))
    assert slurm.wait(job) == ["FAILED"]
    assert "run.dir is the same folder for every line of SWEEP" in slurm.output(job)


def test_a_sweep_gives_each_task_its_line_and_a_name(slurm, quick, tmp_path):
    sweep = tmp_path / "sweep.txt"
    sweep.write_text("# two learning rates\noptim.lr=1e-4\n\noptim.lr=2e-4 run.seed=7\n")
    words = [*quick("sweep")[:-1], "train.steps=5", "run.dir=" + f"{tmp_path}/${{run.name}}"]
    job = slurm.submit(*words, sbatch=("--array=1-2",), workers=2, SWEEP=str(sweep))
    assert slurm.wait(job) == ["COMPLETED", "COMPLETED"], slurm.output(job)
    peaks = [max(row[3] for row in course(tmp_path / f"quickstart_{task}" / "01_s16")) for task in (1, 2)]
    assert peaks == pytest.approx([1e-4, 2e-4])
