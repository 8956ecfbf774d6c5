"""The doctor as a program on this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import ROOT, child_env

from yarn_train.doctor.__main__ import check, main, parser, same_machine
from yarn_train.doctor.checks import disk
from yarn_train.doctor.finding import OK, WARN, Finding, merged_facts, verdict
from yarn_train.doctor.run import Clock, run_checks
from yarn_train.doctor.show import Printer
from yarn_train.doctor.suite import names, suite

LONG = 200.0  # seconds: nothing here depends on how fast this machine is


def doctor(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "yarn_train.doctor", *words]
    return subprocess.run(command, cwd=ROOT, env={**child_env(), **env}, capture_output=True, text=True, timeout=100)


def test_lines_are_aligned_and_say_what_to_do():
    from io import StringIO

    out = StringIO()
    Printer(out).finding(Finding(WARN, "hub", "not reached", "no downloads", "HF_HUB_OFFLINE=1"))
    Printer(out).finding(Finding(OK, "host name", "vm", "unseen", "unseen"))
    assert out.getvalue().splitlines() == [
        "warn  hub                not reached",
        "                         means: no downloads",
        "                         do:    HF_HUB_OFFLINE=1",
        "ok    host name          vm",
    ]


def head() -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def test_every_check_finds_something_here_and_every_figure_is_true(tmp_path, compose):
    """Held against the operating system's own words."""
    folder, heads = tmp_path / "run", [head()]
    folder.mkdir()
    options = compose("experiment=quickstart", f"run.dir={folder}")
    checks = [dataclasses.replace(one, limit=LONG) for one in suite(options)]
    per_check = {one.name: run_checks([one], 2 * LONG) for one in checks}
    assert list(per_check) == names()
    found = [finding for several in per_check.values() for finding in several]
    assert {f.status for f in found} <= {"ok", "warn", "skip"}, found
    unfinished = ("not ", "still computing", "no process")
    assert [f for f in found if f.what in names() and f.figure.startswith(unfinished)] == []
    assert all(per_check.values())
    facts, lines = merged_facts(found), {f.what: f for f in found}
    assert facts["cores"] == len(os.sched_getaffinity(0))
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert facts["host_memory"] == int(meminfo["MemTotal"].split()[0]) * 1024
    space = os.statvfs(tmp_path)
    assert facts["output_free"] == pytest.approx(space.f_bavail * space.f_frsize, abs=2**30)
    assert facts["host"] == socket.gethostname()
    versions = subprocess.run([sys.executable, "-m", "pip", "list", "--format=json"], capture_output=True, text=True)
    installed = {entry["name"].lower(): entry["version"] for entry in json.loads(versions.stdout)}
    assert {k: v for k, v in facts["versions"].items() if installed[k] != v} == {}
    heads.append(head())  # somebody may commit in the meantime
    assert not all(heads) or facts["git"].removesuffix("+dirty") in heads
    assert lines["open files"].status == ("ok" if facts["nofile"] >= 4096 else "warn")
    assert facts["output_write"] > 0
    assert facts["all_reduce_bus"] > 0
    assert list(folder.iterdir()) == []  # nothing is left of the trials
    alone = [finding for finding in found if "gpu_names" in finding.facts]
    assert [finding.what for finding in alone] == ["torch and driver"]
    assert "CPU only" not in verdict(per_check["compute"])


def test_a_broken_machine_exits_with_1_and_secrets_are_never_printed(tmp_path):
    secrets = {"HF_TOKEN": "hf_s3cr3t", "WANDB_API_KEY": "s3cr3t"}
    words = ("--only", "hub", "--only", "logging", "--experiment", "yarn_llama2_7b_64k", "--json", "-")
    done = doctor(*words, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path), **secrets)
    assert done.returncode == 1
    assert "NOT READY: 1 broken: hub" in done.stderr
    assert "the cache lacks meta-llama/Llama-2-7b-hf's config.json, tokenizer, weights" in done.stderr
    assert "s3cr3t" not in done.stdout + done.stderr
    assert json.loads(done.stdout)["facts"]["hub_token"] is True


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--experiment smok", "smoke"),
        ("run.name=x", "add --experiment"),
        ("--hosts a", "add --nodes"),
        ("--experiment smoke train.stps=1", "did you mean train.steps"),
        ("--quick --only compute", "leave --quick out"),
        ("--only fit --only cores", "add --experiment"),
        ("--json /nowhere/report.json", "a folder that exists"),
        ("--json /", "a folder that exists"),
        ("--exp smoke", "unrecognized arguments"),
    ],
)
def test_what_is_asked_wrongly_is_refused_before_any_check(words, said, capsys):
    try:
        code = main(words.split())
    except SystemExit as error:  # argparse's own
        code = int(str(error.code))
    assert code == 2
    assert said in capsys.readouterr().err


def test_the_command_that_shows_one_check_alone_is_accepted():
    options = parser().parse_args(["--experiment", "smoke", "run.name=a b", "train.steps=3", "--quick"])
    for one in suite({"model": {"path": "."}, "data": {"cache": None}, "run": {"dir": "x"}}, quick=True):
        command = Clock(1.0, 1.0, same_machine(options)).alone(one)
        again = parser().parse_args(shlex.split(command, comments=True)[3:])
        check(again)
        assert again.only == [one.name]
        assert same_machine(again) == same_machine(options)


def test_json_goes_to_stdout_alone_and_a_full_disk_is_no_traceback(capsys):
    assert main(["--json", "-", "--only", "cores"]) == 0
    seen = capsys.readouterr()
    data = json.loads(seen.out)
    assert [finding["what"] for finding in data["findings"]] == ["CPU cores"]
    assert data["verdict"].startswith("ready: ")
    assert "CPU only" not in data["verdict"]  # nobody looked
    assert "CPU cores" in seen.err
    if not Path("/dev/full").exists():
        return
    assert main(["--json", "/dev/full", "--only", "cores"]) == 2
    assert "error: --json /dev/full: No space left" in capsys.readouterr().err


def test_a_folder_without_locks_or_renames_is_noticed(tmp_path, monkeypatch):
    assert disk.tried(tmp_path, 2**40, speed=False) == disk.Trial(skew=pytest.approx(0.0, abs=1.0))

    def refused(*_: object) -> None:
        raise OSError(37, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(disk.fcntl, "flock", refused)
        assert not disk.tried(tmp_path, 2**40, speed=False).locks
    with monkeypatch.context() as patch:
        patch.setattr(disk.os, "replace", refused)
        assert not disk.tried(tmp_path, 2**40, speed=False).renames


def test_a_nearly_full_disk_is_not_filled(tmp_path, monkeypatch):
    assert disk.tried(tmp_path, 100 * 2**20, speed=True).write is None
    seen = []
    monkeypatch.setattr(disk, "_speed", lambda place, size: seen.append(size) or (1.0, 1.0))
    disk.tried(tmp_path, 2**30, speed=True)
    assert seen == [48 * 2**20]  # a twentieth in whole blocks


def test_a_slow_disk_is_measured_in_time_and_nothing_stays_behind(tmp_path, monkeypatch):
    """Each sync takes a while, as on a disk that cannot keep up with memory; a kill at that moment leaves no file."""
    seen: list[list[Path]] = []

    def sync(_: int) -> None:
        seen.append(list(tmp_path.iterdir()))
        time.sleep(0.2)

    monkeypatch.setattr(disk.os, "fsync", sync)
    monkeypatch.setattr(disk, "SECONDS", 0.5)
    write, _ = disk._speed(tmp_path, disk.MOST)
    assert 1 <= len(seen) <= 3
    assert not any(seen)
    assert 0 < write < 4 * 2**20 / 0.4


def test_only_what_a_killed_doctor_left_long_ago_is_removed(tmp_path):
    old, young = tmp_path / ".yarn-doctor-old", tmp_path / ".yarn-doctor-young"
    for folder in (old, young):
        folder.mkdir()
        (folder / "trial").write_bytes(b"new")
    os.utime(old, (0, 0))
    disk.tried(tmp_path, 2**40, speed=False)
    assert list(tmp_path.iterdir()) == [young]


def test_what_an_interrupted_run_has_written_is_not_needed_again(tmp_path, compose, tiny_model):
    from yarn_train.doctor.checks.need import run_bytes
    from yarn_train.stages import resolve

    options = compose("experiment=quickstart", f"model.path={tiny_model}")
    whole = run_bytes(options, str(tmp_path / "run"))
    folder = resolve(options, tmp_path / "run")[0].folder / "checkpoints/step_00000001"
    folder.mkdir(parents=True)
    (folder / "shard").write_bytes(bytes(1000))
    (folder / "COMPLETE").touch()
    assert run_bytes(options, str(tmp_path / "run")) == whole - 1000 > 0
