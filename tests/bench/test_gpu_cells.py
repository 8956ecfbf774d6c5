"""Cells of bench.gpu as a state machine: what is kept, what runs again, and what each way to end is called."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import wait_for
from support import ROOT, child_env

from bench.gpu.__main__ import run_all, search, select
from bench.gpu.cells import Cell, catalogue, kernels, probe_cell
from bench.gpu.outcome import FAILED, MEMORY, MISSING, OK, TIME, Missing, Outcome, of_error
from bench.gpu.runner import Cells, in_process, set_allocator
from yarn_train.model.primitives import primitive_for

CELL = Cell("train/x/64", "train", {"tokens": 64}, (("fast", {"policy": 1}), ("lean", {"policy": 2})))


class Scripted:
    """Ends as told, in this order, and remembers the tasks."""

    def __init__(self, *outcomes: Outcome | BaseException):
        self.outcomes = list(outcomes)
        self.tasks: list[dict[str, Any]] = []

    def __call__(self, task: dict[str, Any], log: Path, limit: float) -> Outcome:
        self.tasks.append(task)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def test_a_finished_cell_is_read_and_not_run(tmp_path: Path) -> None:
    process = Scripted(Outcome(OK, "", {"tokens_per_second": 5.0}, {"device": "d"}))
    row = Cells(tmp_path, "cpu", 60, process).run(CELL)
    assert row["result"] == {"tokens_per_second": 5.0}
    assert process.tasks == [
        {"tokens": 64, "policy": 1, "kind": "train", "device": "cpu", "models": str(tmp_path / "models")}
    ]
    assert Cells(tmp_path, "cpu", 60, process).finished(CELL) == row  # another start


def test_what_must_run_again(tmp_path: Path) -> None:
    cells = Cells(tmp_path, "cpu", 60, Scripted(Outcome(TIME, "late"), Outcome(FAILED, "bug")))
    assert cells.finished(CELL) is None
    cells.run(CELL)
    assert cells.finished(CELL) is not None
    assert cells.finished(CELL, again={TIME}) is None
    assert cells.finished(CELL, again={FAILED}) is not None
    assert cells.finished(Cell(CELL.name, "train", {"tokens": 65}, CELL.variants)) is None, "another spec"
    assert cells.finished(Cell(CELL.name, "train", CELL.spec)) is None, "other variants"
    assert Cells(tmp_path, "cpu", 61, Scripted()).finished(CELL) is None, "more time"
    assert Cells(tmp_path, "cpu", 59, Scripted()).finished(CELL) is not None
    cells.file(CELL).write_text('{"status": "o')
    assert cells.finished(CELL) is None, "half a file"


def test_an_interrupted_cell_leaves_nothing(tmp_path: Path) -> None:
    cells = Cells(tmp_path, "cpu", 60, Scripted(KeyboardInterrupt(), Outcome(OK)))
    with pytest.raises(KeyboardInterrupt):
        cells.run(CELL)
    assert cells.finished(CELL) is None
    assert cells.run(CELL)["status"] == OK


@pytest.mark.parametrize(
    ("ends", "variant", "tried"),
    [
        ([OK], "fast", 1),
        ([MEMORY, OK], "lean", 2),
        ([MEMORY, MEMORY], "lean", 2),
        ([TIME], "fast", 1),
        ([FAILED], "fast", 1),
        ([MISSING], "fast", 1),
    ],
)
def test_the_next_policy_is_tried_for_memory_only(tmp_path: Path, ends: list[str], variant: str, tried: int) -> None:
    process = Scripted(*(Outcome(status, f"r{number}") for number, status in enumerate(ends)))
    row = Cells(tmp_path, "cpu", 60, process).run(CELL)
    assert (row["status"], row["variant"], row["reason"]) == (ends[-1], variant, f"r{tried - 1}")
    assert [(one["variant"], one["status"]) for one in row["tried"]] == list(zip(("fast", "lean"), ends, strict=False))


def names(cells: list[Cell]) -> list[str]:
    return [cell.name for cell in cells]


class Fits:
    """One step fits up to so many tokens."""

    def __init__(self, most: int):
        self.most, self.ran = most, list[str]()

    def __call__(self, task: dict[str, Any], log: Path, limit: float) -> Outcome:
        self.ran.append(log.parent.name + "/" + log.stem)
        tokens = task.get("tokens", 0)
        machine = {"memory_bytes": 10_000}
        if tokens > self.most:
            return Outcome(MEMORY, "no room", {}, machine)
        return Outcome(OK, "", {"tokens": tokens, "peak_bytes": 100 * tokens}, machine)


def test_a_search_that_was_stopped_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everything = catalogue(tiny=True)
    (longest,) = select(everything, ["longest/*"])
    process = Fits(100)
    cells = Cells(tmp_path, "cpu", 60, process)
    run_all(cells, everything, [longest], set())
    assert process.ran == ["model/tiny", *(f"tiny/{tokens}" for tokens in (32, 64, 128, 96, 112, 104))]
    found = cells.finished(longest)
    assert found is not None
    result = found["result"]
    assert (found["status"], result["fits"], result["fails"], result["predicted"]) == (OK, 96, 104, 100)
    assert "longest/tiny ok" in capsys.readouterr().out

    cells.file(longest).unlink()
    (tmp_path / "cells/longest/tiny/112.json").unlink()
    process.ran.clear()
    assert json.loads(json.dumps(search(cells, longest, set())["result"])) == result
    assert process.ran == ["tiny/112"]
    run_all(cells, everything, [longest], set())
    assert process.ran == ["tiny/112"], "finished"
    run_all(cells, everything, [longest], {OK})
    assert process.ran[1:] == ["tiny/32", "tiny/64", "tiny/96"]


def test_a_pattern_that_matches_nothing_names_the_cells() -> None:
    everything = catalogue(tiny=True)
    assert names(select(everything, ["side/*/ours", "model/*"])) == ["model/tiny", "side/tiny/64/ours"]
    with pytest.raises(SystemExit, match=r"--cells trian/\* matches none of: kernel/.*train/tiny/64"):
        select(everything, ["trian/*"])


def child(tmp_path: Path, body: str, limit: float = 20.0, device: str = "cpu") -> Outcome:
    """A worker with this body, where `file` is its answer's and `answer` writes it."""
    head = "import json, os, signal, subprocess, sys, time\nfile = sys.argv[2]\n"
    head += "answer = lambda **row: open(file, 'w').write(json.dumps(row))\n"
    return in_process({"a": 1, "device": device}, tmp_path / "cell.log", limit, [sys.executable, "-c", head + body])


def test_an_answer_is_the_outcome(tmp_path: Path) -> None:
    body = "answer(status='ok', reason='', result=json.loads(sys.argv[1]), machine={})"
    outcome = child(tmp_path, body)
    assert outcome.status == OK
    assert outcome.result["a"] == 1
    assert time.time() < outcome.result["deadline"] < time.time() + 20.0
    assert [file.name for file in tmp_path.iterdir()] == ["cell.log"]


def test_a_cell_sees_one_gpu_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine has: trainers take what they see."""
    body = "answer(status='ok', reason='', result={'seen': os.environ['CUDA_VISIBLE_DEVICES']}, machine={})"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    assert child(tmp_path, body).result == {"seen": ""}
    assert child(tmp_path, body, device="cuda").result == {"seen": "3"}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert child(tmp_path, body, device="cuda").result == {"seen": "0"}


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "a:1"}, "a:1"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "a:1", "PYTORCH_ALLOC_CONF": "b:2"}, "b:2"),
    ],
)
def test_the_allocator_of_a_cell_is_the_users_where_there_is_one(given: dict[str, str], used: str) -> None:
    set_allocator(given)
    assert given["PYTORCH_ALLOC_CONF"] == used


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether a process ends, or is only waited for, within so long; it is ended if not."""
    until = time.time() + seconds
    while time.time() < until:
        try:
            if "Z" in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]:
                return True
        except OSError:
            return True
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    return False


COMMAND = """
import json, signal, sys
from pathlib import Path
from bench.gpu.runner import in_process, leave_on_signals
signal.signal(signal.SIGINT, signal.default_int_handler)  # both may be ignored around a test
signal.signal(signal.SIGHUP, signal.SIG_DFL)
leave_on_signals()
in_process({"device": "cpu"}, Path(sys.argv[1]), 60.0, [sys.executable, "-c", sys.argv[2]])
"""
CELL_AT_WORK = """
import json, os, sys, time
from yarn_train.dist.orphans import die_with
die_with(json.loads(sys.argv[1])["parent"])
with open(sys.argv[2] + ".new", "w") as out:
    print(os.getpid(), os.getsid(0), os.getpgid(0), file=out)
os.rename(sys.argv[2] + ".new", sys.argv[2] + ".told")
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_cell_outlives_the_command(tmp_path: Path, number: signal.Signals) -> None:
    """It would go on holding the GPU. SIGKILL leaves the command no word to say."""
    arguments = [sys.executable, "-c", COMMAND, str(tmp_path / "cell.log"), CELL_AT_WORK]
    command = subprocess.Popen(arguments, cwd=ROOT, env=child_env(), stderr=subprocess.DEVNULL)
    told = tmp_path / "cell.answer.told"
    wait_for(told.exists, 60.0)
    pid, session, group = map(int, told.read_text().split())
    assert (session, group) == (os.getsid(0), pid), "a group of its own in the session of the command"
    command.send_signal(number)
    code = command.wait(20)
    assert gone(pid)
    assert code == {signal.SIGKILL: -9, signal.SIGINT: -2}.get(number, 128 + number)


def test_at_the_limit_everything_that_was_started_ends_and_what_was_said_stays(tmp_path: Path) -> None:
    body = f"""
answer(result={{"tokens": 7}}, machine={{"device": "d"}})
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
time.sleep(60)
"""
    began = time.time()
    outcome = child(tmp_path, body, 2.0)
    assert time.time() - began < 10
    assert (outcome.status, outcome.result, outcome.machine) == (TIME, {"tokens": 7}, {"device": "d"})
    pid = int((tmp_path / "pid").read_text())
    assert gone(pid), "what the worker started still runs"


def test_a_death_without_an_answer_is_named(tmp_path: Path) -> None:
    assert child(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)").status == MEMORY
    failed = child(tmp_path, "sys.exit('CUDA error: an illegal memory access')")
    assert (failed.status, failed.reason) == (FAILED, "exit code 1: CUDA error: an illegal memory access")
    crashed = child(tmp_path, "os.kill(os.getpid(), signal.SIGSEGV)")
    assert (crashed.status, crashed.reason) == (FAILED, "killed by signal 11")
    partly = child(tmp_path, "answer(result={'rows': [1]}); sys.exit(3)")
    assert (partly.status, partly.result) == (FAILED, {"rows": [1]})


def test_errors_have_their_status() -> None:
    with pytest.raises(RuntimeError) as host:
        torch.empty(2**55)
    assert of_error(host.value)[0] == MEMORY
    assert of_error(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))[0] == MEMORY
    assert of_error(MemoryError())[0] == MEMORY
    for library in ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED"):
        assert of_error(RuntimeError(f"CUDA error: {library} when calling `cublasCreate(handle)`"))[0] == MEMORY
    assert of_error(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"))[0] == FAILED
    assert of_error(Missing("flash-attn is not installed")) == (MISSING, "flash-attn is not installed")
    assert of_error(ModuleNotFoundError("No module named 'x'"))[0] == MISSING
    assert of_error(TimeoutError("late"))[0] == TIME
    assert of_error(RuntimeError("shapes"))[0] == FAILED
    assert "\n" not in of_error(RuntimeError("a\nb"))[1]


def test_the_catalogue() -> None:
    cells = catalogue(tiny=False)
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names)
    assert {cell.kind for cell in cells} == {cell.kind for cell in catalogue(tiny=True)}, "tiny tries every kind"
    assert set(kernels()) == {cell.spec["kernel"] for cell in cells if cell.kind == "kernel"}
    assert not {"auto", "sdpa_flash"} & set(kernels())
    assert primitive_for("sdpa_flash", "cuda", torch.bfloat16) == primitive_for("sdpa", "cuda", torch.bfloat16)
    shapes = {(c.spec["heads"], c.spec["kv_heads"], c.spec["head_dim"]) for c in cells if c.kind == "kernel"}
    assert shapes == {(16, 16, 128), (16, 4, 128), (32, 32, 64), (32, 8, 64)}
    for row in ("1b", "3b", "8b-bfloat16", "8b-offload"):
        assert {f"train/{row}/{k * 1024}" for k in (8, 32, 64, 128, 256)} <= set(names)
    for cell in cells:
        assert set(cell.needs) <= set(names)
        assert names.index(cell.name) > max((names.index(need) for need in cell.needs), default=-1)
        json.dumps(cell.spec)


def test_trainers_side_by_side_have_the_same_choice_of_what_to_keep() -> None:
    cells = {cell.name: cell for cell in catalogue(tiny=False)}
    for tokens, kept in ((8192, ["none", "full"]), (65536, ["full"])):
        ours = [name for name, _ in cells[f"side/1b/{tokens}/ours"].variants]
        assert ("none" in ours) == ("none" in kept)
        for trainer in ("hf", "hf-liger"):
            variants = dict(cells[f"side/1b/{tokens}/{trainer}"].variants)
            assert list(variants) == kept
            assert variants["full"] == {"checkpoint": True}
            assert variants.get("none", {"checkpoint": False}) == {"checkpoint": False}
    assert cells["side/1b/65536/ours-cudnn"].spec["options"] == {"model": {"attention": "sdpa_cudnn"}}


def test_what_offloads_warms_up_at_its_own_length() -> None:
    """The first such step makes the pinned buffers. A probe for memory takes one step only, whatever it costs."""
    cells = {cell.name: cell for cell in catalogue(tiny=False)}
    cell = cells["train/3b/65536"]
    for name, part in cell.variants:
        assert {**cell.spec, **part}["warm"] == (65536 if "offload" in name else 8192), name
    ((_, part),) = probe_cell("3b-4layers", 65536).variants
    assert {**probe_cell("3b-4layers", 65536).spec, **part}["warm"] == 8192


def test_searches_begin_with_what_a_minute_is_enough_for() -> None:
    """Attention of four layers of the 3B, 6 * 4 * 3072 * tokens^2, is less than a second of 500 TFLOP/s."""
    for cell in catalogue(tiny=False):
        if cell.kind == "longest":
            assert cell.spec["row"] == cell.spec["whole"] + "-4layers"
            assert 6 * 4 * 3072 * cell.spec["start"] ** 2 < 500e12


def test_the_command_itself_never_imports_torch() -> None:
    """It would hold a CUDA context beside every cell, and seconds before each."""
    code = "import sys, bench.gpu.__main__; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=child_env(), check=True)
