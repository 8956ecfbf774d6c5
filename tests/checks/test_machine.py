"""GPUs that are not there, too few, shared or too old: problems of the list, found with a faked device query."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from yarn_train.checks.machine import dtype_problems, worker_problems
from yarn_train.checks.ranks import ranks
from yarn_train.config import Config, build

Gpus = Callable[..., None]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Gpus:
    """gpus(2, (7, 5)): torch sees two GPUs of that capability."""

    def fake(count: int, capability: tuple[int, int] = (9, 0)) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla T4")

    return fake


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """launched(here=4, local_rank=1): what a launcher of four workers on one machine sets."""

    def fake(here: int, local_rank: int = 0, world: int | None = None) -> None:
        values = {"RANK": local_rank, "WORLD_SIZE": world or here, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": here}
        for name, value in {**values, "MASTER_ADDR": "localhost", "MASTER_PORT": 29500}.items():
            monkeypatch.setenv(name, str(value))

    return fake


def launch(**options: Any) -> Any:
    return build({"launch": options}).launch


def test_more_workers_than_visible_gpus(gpus: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    (problem,) = worker_problems(launch(nproc_per_node=8))
    assert problem.startswith("launch.nproc_per_node: got 8; allowed: <= 2 ")
    assert worker_problems(launch(nproc_per_node=2)) == []
    assert worker_problems(launch(nproc_per_node="gpu")) == []
    assert ranks(build({"launch": {"nproc_per_node": "gpu"}})) == 2


def test_more_workers_of_torchrun_than_gpus_would_share_one(
    gpus: Gpus, launched: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(1)
    launched(2, local_rank=1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    (problem,) = worker_problems(launch())
    assert problem == (
        "LOCAL_WORLD_SIZE: got '2 workers on this machine for 1 visible GPU (CUDA_VISIBLE_DEVICES=3)'; allowed: <= 1; "
        "fix: start torchrun with --nproc-per-node=1: two workers cannot share a GPU"
    )
    gpus(2)
    assert worker_problems(launch()) == []
    gpus(0)  # on the CPU any number may work
    assert worker_problems(launch()) == []


def test_a_worker_that_sees_only_the_gpu_of_another_number(
    gpus: Gpus, launched: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(1)
    launched(1, local_rank=0, world=4)
    assert worker_problems(launch()) == []
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert [problem.partition(":")[0] for problem in worker_problems(launch())] == ["LOCAL_WORLD_SIZE"]


@pytest.mark.parametrize(("capability", "refused"), [((7, 5), True), ((8, 0), False), ((9, 0), False)])
def test_bfloat16_on_a_gpu_that_emulates_it(gpus: Gpus, capability: tuple[int, int], refused: bool) -> None:
    gpus(1, capability)
    found = dtype_problems([Config()])
    assert bool(found) is refused
    if refused:
        allowed = "float32 on Tesla T4 of compute capability 7.5, which does not compute in bfloat16 (8.0 and later do)"
        assert found == [f"model.dtype: got 'bfloat16'; allowed: {allowed}; fix: set model.dtype=float32"]
    assert dtype_problems([build({"model": {"dtype": "float32"}})]) == []


def test_on_the_cpu_every_dtype_runs(gpus: Gpus) -> None:
    gpus(0)
    assert dtype_problems([Config()]) == []
