"""An unexpected error: one message, its traceback in the run folder, without secrets; all of it where asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

PROGRAM = """
import sys
from yarn_train import cli
from yarn_train.console import crash
from yarn_train.errors import DataError

def task(raw, typed, folder):
    kind = raw["run"]["name"]
    if kind != "empty":
        (folder / "run.json").write_text("{}")
    error = DataError("data: wrong") if kind == "user" else RuntimeError("it broke\\nwith sesame-open-sesame")
    crash.end_with(error, "how it ended")
    raise error

sys.argv[0] = "train.py"
cli.run(task)
"""


def crash(folder: Path, kind: str, **variables: str) -> subprocess.CompletedProcess[str]:
    words = ["experiment=smoke", f"run.name={kind}", f"run.dir={folder}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MY_API_KEY": "sesame-open-sesame", **variables}
    env.pop("HYDRA_FULL_ERROR", None) if "HYDRA_FULL_ERROR" not in variables else None
    command = [sys.executable, "-c", PROGRAM, *words]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


def test_the_traceback_goes_into_the_run_folder(tmp_path: Path) -> None:
    done = crash(tmp_path / "run", "run")
    assert done.returncode == 1
    (file,) = (tmp_path / "run" / "logs").iterdir()
    assert file.name.startswith("traceback-")
    assert file.name.endswith("-rank0.txt")
    text = file.read_text()
    assert text.startswith("Traceback (most recent call last)")
    assert "RuntimeError: it broke\nwith ***" in text
    assert "sesame" not in text + done.stderr + done.stdout
    first, second, third = done.stderr.splitlines()
    assert first.startswith("unexpected error: RuntimeError: it broke with *** (at yarn_train/cli.py:")
    assert second == f"the traceback is in {file}; HYDRA_FULL_ERROR=1 prints it"
    assert third == "how it ended"


def test_without_a_run_the_traceback_is_printed_and_no_folder_stays(tmp_path: Path) -> None:
    done = crash(tmp_path / "run", "empty")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last)")
    assert done.stderr.splitlines()[-3].startswith("unexpected error: RuntimeError: it broke with ***")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("kind", "code", "error"), [("run", 1, "RuntimeError"), ("user", 2, "DataError")])
def test_tracebacks_are_printed_where_asked(tmp_path: Path, kind: str, code: int, error: str) -> None:
    done = crash(tmp_path / "run", kind, HYDRA_FULL_ERROR="1")
    assert done.returncode == code
    assert "Traceback (most recent call last)" in done.stderr
    assert f"{error}: " in done.stderr
    assert not (tmp_path / "run" / "logs").exists()


def test_a_users_error_has_no_traceback_but_the_ending(tmp_path: Path) -> None:
    done = crash(tmp_path / "run", "user")
    assert (done.returncode, done.stderr) == (2, "error: data: wrong\nhow it ended\n")
