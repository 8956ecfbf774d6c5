"""Every kind of cell of bench.gpu, for real, at sizes for a CPU: all trainers must train the same thing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ROOT, child_env

from bench.gpu import worker
from bench.gpu.cells import Cell, catalogue
from bench.gpu.outcome import MISSING, OK
from bench.gpu.sizes import config, ensure_model
from yarn_train.model.load import load_config
from yarn_train.model.weights import WeightFiles

CELLS = {cell.name: cell for cell in catalogue(tiny=True)}


def task_of(cell: Cell, models: Path) -> dict[str, Any]:
    ((_, part), *_) = cell.variants
    usual = {"kind": cell.kind, "device": "cpu", "models": str(models), "deadline": time.time() + 100}
    return {**cell.spec, **part, **usual}


def run(name: str, models: Path) -> worker.Outcome:
    """A cell in this process."""
    return worker.execute(task_of(CELLS[name], models), lambda result: None)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def ours(models: Path) -> dict[str, Any]:
    outcome = run("side/tiny/64/ours", models)
    assert outcome.status == OK, outcome.reason
    return outcome.result


def test_a_kernel() -> None:
    outcome = run("kernel/sdpa/16-gqa", Path())
    assert outcome.status == OK, outcome.reason
    assert [row["tokens"] for row in outcome.result["rows"]] == [64, 128]
    for row in outcome.result["rows"]:
        assert row["forward_seconds"] * row["forward_tflops"] * 1e12 == pytest.approx(2 * 2 * 16 * row["tokens"] ** 2)
        assert row["both_tflops"] > 0
    assert outcome.machine["torch"] == torch.__version__


def test_a_kernel_that_cannot_run_says_why() -> None:
    outcome = run("kernel/flash_attention_2/16-gqa", Path())
    assert outcome.status == MISSING
    assert "it needs a CUDA GPU" in outcome.reason


def test_weights_are_made_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.gpu.sizes.FILE_BYTES", 20_000)  # several files
    place = ensure_model(tmp_path, "tiny", torch.device("cpu"))
    assert len(list(place.glob("*.safetensors"))) > 2
    assert load_config(str(place)).hidden_size == config("tiny").hidden_size
    before = place.stat().st_mtime_ns
    assert ensure_model(tmp_path, "tiny", torch.device("cpu")) == place
    assert place.stat().st_mtime_ns == before
    with WeightFiles(str(place)) as files:
        assert files.find(["model.norm.weight"]) == "model.norm.weight"


def test_our_steps(ours: dict[str, Any]) -> None:
    assert len(ours["losses"]) == 7
    assert len(ours["seconds"]) == 5, "neither the warm-up nor the first full step"
    assert ours["losses"][0] == pytest.approx(4.852, rel=0.05)  # ln 128
    assert ours["mfu"] is None, "a CPU has no peak in the table"
    by_hand = 6 * (2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64) + 32 * 128) + 6 * 2 * 32 * 64
    assert ours["flops_per_token"] == by_hand
    assert ours["attention_share"] == pytest.approx(6 * 2 * 32 * 64 / by_hand)


def test_a_wrong_update_would_show_in_the_losses(models: Path, ours: dict[str, Any]) -> None:
    task = task_of(CELLS["side/tiny/64/ours"], models)
    still = worker.execute({**task, "lr": 0.0}, lambda result: None).result["losses"]
    halved = worker.execute({**task, "lr": task["lr"] / 2}, lambda result: None).result["losses"]
    assert still[0] == halved[0] == ours["losses"][0]
    for other in (still, halved):
        assert max(abs(a / b - 1) for a, b in zip(other, ours["losses"], strict=True)) > 1e-3


def test_hf_trains_the_same(models: Path, ours: dict[str, Any]) -> None:
    pytest.importorskip("accelerate")
    outcome = run("side/tiny/64/hf", models)
    assert outcome.status == OK, outcome.reason
    assert outcome.result["losses"] == pytest.approx(ours["losses"], rel=1e-4)
    assert len(outcome.result["seconds"]) == 5


def test_liger_needs_a_gpu(models: Path) -> None:
    outcome = run("side/tiny/64/hf-liger", models)
    assert outcome.status == MISSING


def test_alst_trains_the_same(models: Path, ours: dict[str, Any], tmp_path: Path) -> None:
    """In a process of its own: DeepSpeed changes torch, and this cell the model's class."""
    pytest.importorskip("deepspeed")
    file = tmp_path / "answer"
    command = [sys.executable, "-m", "bench.gpu.worker", json.dumps(task_of(CELLS["side/tiny/64/alst"], models)), file]
    done = subprocess.run(command, cwd=ROOT, env=child_env(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert found["status"] == OK, found["reason"]
    assert found["result"]["losses"] == pytest.approx(ours["losses"], rel=1e-4)


def bench(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--tiny", "--out", str(folder), *words]
    done = subprocess.run(command, cwd=ROOT, env=child_env(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_goes_on_where_it_stopped(tmp_path: Path) -> None:
    pattern = ("--cells", "kernel/sdpa/*")
    first = bench(tmp_path, *pattern)
    assert "[1/1] kernel/sdpa/16-gqa ok" in first
    assert "| sdpa | cpu | 2 heads of 16, 1 for keys |" in first
    assert (tmp_path / "report.png").exists()
    (file,) = (tmp_path / "cells").rglob("*.json")
    stamp = file.stat().st_mtime_ns
    assert "[1/1]" not in bench(tmp_path, *pattern)
    assert file.stat().st_mtime_ns == stamp
    assert bench(tmp_path, "--list", *pattern).split() == ["kernel/sdpa/16-gqa", "ok"]
    bench(tmp_path, *pattern, "--again", "failed")
    assert file.stat().st_mtime_ns == stamp


@pytest.mark.long
def test_the_whole_tiny_run(tmp_path: Path) -> None:
    bench(tmp_path)
    rows = [json.loads(file.read_text()) for file in (tmp_path / "cells").rglob("*.json")]
    assert "| tiny | 128 | not reached |" in (tmp_path / "report.md").read_text()
    ends = {row["name"]: row["status"] for row in rows}
    assert set(CELLS) <= set(ends)
    assert {name for name, status in ends.items() if status not in (OK, MISSING)} == set()
    assert {"kernel/sdpa/16-gqa", "train/tiny/64", "longest/tiny", "side/tiny/64/ours"} <= {
        name for name, status in ends.items() if status == OK
    }
