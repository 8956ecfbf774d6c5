"""Every kind of cell of bench.gpu, for real, at sizes for a CPU: all trainers must train the same thing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ROOT, child_env
from torch.nn.attention import SDPBackend
from transformers.models.llama.modeling_llama import LlamaMLP

from bench.gpu import host, peer, worker
from bench.gpu.cells import Cell, catalogue
from bench.gpu.outcome import MEMORY, MISSING, OK
from bench.gpu.sizes import config, ensure_model
from yarn_train import config as schema
from yarn_train.model.load import load_config
from yarn_train.model.weights import WeightFiles

CELLS = {cell.name: cell for cell in catalogue(tiny=True)}


def task_of(cell: Cell, models: Path) -> dict[str, Any]:
    ((_, part), *_) = cell.variants
    usual = {"kind": cell.kind, "device": "cpu", "models": str(models), "deadline": time.time() + 100}
    return {**cell.spec, **part, **usual}


def run(name: str, models: Path, variant: str | None = None) -> worker.Outcome:
    """A cell in this process; its first variant unless one is named."""
    part = dict(CELLS[name].variants)[variant] if variant is not None else {}
    return worker.execute({**task_of(CELLS[name], models), **part}, lambda result: None)


@pytest.fixture(scope="module", autouse=True)
def without_a_gpu() -> Iterator[None]:
    """As in the process of a cell of --device cpu, which sees none, also where the machine has one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # for processes that these tests start themselves
        yield


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


@pytest.mark.parametrize("kept", ["none", "full"])
def test_hf_trains_the_same(models: Path, ours: dict[str, Any], kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate")
    layers = []
    forward = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: layers.append(1) or forward(self, x))
    outcome = run("side/tiny/64/hf", models, kept)
    assert outcome.status == OK, outcome.reason
    assert outcome.result["losses"] == pytest.approx(ours["losses"], rel=1e-4)
    assert len(outcome.result["seconds"]) == 5
    assert len(layers) == 7 * 2 * (2 if kept == "full" else 1), "two layers, run again in backward or not"
    assert outcome.result["kernel"] == "sdpa (flash)", "which is what torch takes on a CPU"


@pytest.mark.parametrize(
    ("generation", "installed", "taken"),
    [
        (9, {2, 3}, "flash_attention_3"),
        (9, {2}, "sdpa"),
        (9, set(), "sdpa"),
        (10, {2, 3}, "sdpa"),
        (8, {2, 3}, "flash_attention_2"),
        (8, set(), "sdpa"),
    ],
)
def test_peers_have_the_fastest_attention_that_transformers_has(
    monkeypatch: pytest.MonkeyPatch, generation: int, installed: set[int], taken: str
) -> None:
    """From Hopper on torch takes cuDNN for sdpa, which FlashAttention-2 is slower than."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (generation, 0))
    for version in (2, 3):
        monkeypatch.setattr(peer, f"is_flash_attn_{version}_available", lambda version=version: version in installed)
    assert peer.attention("cuda") == taken
    assert peer.attention("cpu") == "sdpa"


def test_names_of_backends_are_torchs() -> None:
    names = {number: str(SDPBackend(number).name).lower() for number in peer.BACKENDS}
    assert names == {0: "math", 1: "flash_attention", 2: "efficient_attention", 3: "cudnn_attention"}
    assert all(names[number].startswith(name) for number, name in peer.BACKENDS.items())


def test_what_would_fill_the_host_is_out_of_memory(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers keep 64 tokens of 32 dimensions each, in float32 here: 16 KiB."""
    part = {"policy": {"memory": {"activation": "full", "offload": True}}}
    task = {**task_of(CELLS["train/tiny/64"], models), **part, "steps": 1}
    monkeypatch.setattr(host, "available_host_bytes", lambda: 16 * 1024.0 - 1)
    outcome = worker.execute(task, lambda result: None)
    assert outcome.status == MEMORY
    assert outcome.reason.startswith("host memory: 0.0 GiB would be kept there")
    monkeypatch.setattr(host, "available_host_bytes", lambda: 16 * 1024.0)
    assert worker.execute(task, lambda result: None).status == OK


def test_pinned_moments_of_an_8b_take_more_than_their_bytes() -> None:
    """By hand, two moments in float32 of 2^n bytes each: embedding and head 2 GiB (of 1.96), per layer q and o 64 MiB,
    k and v 16, MLP 256 (of 224) three times, and norms: 4,096 dimensions are 16 KiB, already a power of two."""
    cfg = schema.build({"engine": {"offload": "optimizer"}})
    layer = 2 * 64 + 2 * 16 + 3 * 256 + 2 / 64
    assert host.needed(cfg, config("8b")) == 2 * 2**20 * (2 * 2048 + 32 * layer + 1 / 64)


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
