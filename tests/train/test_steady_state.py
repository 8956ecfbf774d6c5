"""The steady state: the host reads from the device once per optimizer step, however many micro-batches it has."""

from __future__ import annotations

import inspect
from collections import Counter
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import torch
from support import metrics
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from yarn_train.dist.collectives import max_ints, max_scalar, to_host
from yarn_train.train import loop

# What makes a host wait for a GPU. tolist() of a CPU tensor is no operator, so methods are counted as well.
OPERATORS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select"}
METHODS = {torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.__bool__}
METHODS |= {torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.__index__}


class Reads(TorchDispatchMode):
    """Counts operators that give a tensor's value to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.counted[name] += name in OPERATORS
        return func(*args, **(kwargs or {}))


def ours(code: CodeType) -> bool:
    """Whether it is a function of the package; Python 3.11 gives comprehensions frames of their own."""
    return "yarn_train/" in code.co_filename and not code.co_name.startswith("<")


class Calls(TorchFunctionMode):
    """Counts methods that do, with the function of ours that called them."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in METHODS:
            frame = inspect.currentframe()
            while frame is not None and not ours(frame.f_code):
                frame = frame.f_back
            self.counted[f"{func.__name__} in {frame.f_code.co_name if frame else '?'}"] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    """What every step of a run read, by operator and by method."""
    found: list[dict[str, int]] = []
    step = loop.train_step

    def counted(trainer: Any, data: Any) -> dict[str, Any]:
        next_step = next(data)  # made on this thread where nothing is read ahead; no part of what is counted
        with Calls() as calls, Reads() as operators:
            row = step(trainer, iter([next_step]))
        found.append({name: n for name, n in {**operators.counted, **calls.counted}.items() if n})
        return row

    monkeypatch.setattr(loop, "train_step", counted)
    return found


@pytest.mark.parametrize("options", [[], ["data.document_mask=block"], ["memory.activation=attention"]])
def test_a_step_reads_once_with_one_micro_batch_and_with_many(
    train: Any, tiny_args: list[str], tmp_path: Path, reads: list[dict[str, int]], options: list[str]
) -> None:
    args = [a for a in tiny_args if not a.startswith("train.steps")] + ["train.steps=3", *options]
    args += ["train.global_batch_size=8", "data.prefetch=0"]
    train(tmp_path / "one", *args, "train.micro_batch_size=8")
    train(tmp_path / "many", *args, "train.micro_batch_size=1")
    assert len(reads) == 6
    assert reads[0] == reads[1] == reads[3] == reads[5], reads
    assert reads[0] == {"_local_scalar_dense": 3, "__float__ in to_host": 3}  # loss, norm, memory: together on a GPU


def test_a_step_that_is_skipped_reads_no_more(
    train: Any, tiny_args: list[str], tmp_path: Path, reads: list[dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from poison import poison

    poison(monkeypatch, {2: "loss", 4: "gradient"})
    rows = metrics(train(tmp_path / "run", *tiny_args) / "01_s4")
    assert [bool(row["skipped"]) for row in rows[:4]] == [False, True, False, True]
    assert len({tuple(sorted(read.items())) for read in reads}) == 1


def test_values_reach_the_host_exactly() -> None:
    memory = 85_899_345_921  # more than float32 can tell from its neighbours
    assert to_host(torch.tensor(0.1), torch.tensor(memory)) == [torch.tensor(0.1).item(), memory]
    assert to_host(torch.tensor(float("inf")))[0] == float("inf")
    assert to_host(torch.tensor(float("nan")))[0] != 0.0


def test_a_lone_process_agrees_with_itself_without_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    from yarn_train.dist import runtime

    runtime.start()
    monkeypatch.setattr(torch, "tensor", lambda *_, **__: pytest.fail("made a tensor"))
    assert max_ints([3, True], torch.device("cpu")) == [3, 1]
    assert max_scalar(torch.full((), 2.0)).item() == 2.0
