"""On a GPU: micro-batches and updates are queued without waiting, blocks compile once, and a profile adds up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from support import metrics

from yarn_train.engine.fsdp2 import FSDP2Engine
from yarn_train.metrics.costs import ATTENTION, OPTIMIZER, PRODUCTS
from yarn_train.parallel import compiled
from yarn_train.train import loop

pytestmark = pytest.mark.gpu


@pytest.fixture
def args(tiny_args: list[str]) -> list[str]:
    """No save beside the steps that are watched: it waits for the GPU, in a thread of its own."""
    return [a for a in tiny_args if not a.startswith("checkpoint.every")] + ["checkpoint.every=100"]


@contextmanager
def never_waiting(allowed: bool) -> Iterator[None]:
    """Inside, whatever waits for the GPU is an error, unless `allowed`."""
    torch.cuda.set_sync_debug_mode("default" if allowed else "error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def watch(patch: pytest.MonkeyPatch) -> list[str]:
    """Forbid waiting in all micro-batches and updates but the first step's, which meet libraries for the first time."""
    seen: list[str] = []
    forward, step = loop.forward_and_backward, FSDP2Engine.step

    def forward_watched(trainer: Any, batches: Any) -> torch.Tensor:
        with never_waiting(trainer.state.step == 0):
            seen.append("micro-batches")
            return forward(trainer, batches)

    def step_watched(engine: Any, lr: float, norm: torch.Tensor | None = None) -> torch.Tensor:
        with never_waiting("update" not in seen):
            seen.append("update")
            return step(engine, lr, norm)

    patch.setattr(loop, "forward_and_backward", forward_watched)
    patch.setattr(FSDP2Engine, "step", step_watched)
    return seen


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["data.document_mask=block"],
        ["memory.activation=attention", "engine.prefetch=2"],
        ["memory.activation=offload"],
    ],
)
def test_only_the_reading_of_a_step_waits_for_the_gpu(
    train: Any, args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    with monkeypatch.context() as patch:
        seen = watch(patch)
        run = train(tmp_path / "run", *args, *options, "train.micro_batch_size=8")
    assert seen == ["micro-batches", "update"] * 8
    assert metrics(run / "01_s4")[-1]["skipped"] is None


def test_the_watch_notices_an_item(
    train: Any, args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = loop.forward_and_backward

    def reading(trainer: Any, batches: Any) -> torch.Tensor:
        loss = forward(trainer, batches)
        loss.item()
        return loss

    monkeypatch.setattr(loop, "forward_and_backward", reading)
    watch(monkeypatch)
    with pytest.raises(RuntimeError, match="synchronizing"):
        train(tmp_path / "run", *args)


def test_two_stages_compile_once(train: Any, args: list[str], tmp_path: Path) -> None:
    stages = ["+curriculum.stages.a.rope.factor=4", "+curriculum.stages.b.rope.factor=8"]
    options = [a for a in args if not a.startswith("rope.factor")] + ["compile.enabled=true"]
    torch._dynamo.reset()
    before = compiled.graphs()
    with torch._dynamo.config.patch(error_on_recompile=True):
        run = train(tmp_path / "run", *options, *stages)
    assert compiled.graphs() == before + 1
    assert [row["untimed"] for row in metrics(run / "02_b")] == ["first step"] + [None] * 7


def test_a_profile_of_kernels_adds_up(train: Any, args: list[str], tmp_path: Path) -> None:
    run = train(tmp_path / "run", *args, "profile.steps=2")
    folder = run / "01_s4/profile/step_00000003"
    costs = json.loads((folder / "costs.json").read_text())
    groups = {group["group"]: group["share"] for group in costs["groups"]}
    assert {ATTENTION, PRODUCTS, OPTIMIZER, "GPU idle"} <= groups.keys()
    assert 0.9 < sum(groups.values()) < 1.5  # one rank: hardly anything runs side by side
    adam = [cost["group"] for cost in costs["costs"] if "adam" in cost["name"].lower()]
    assert set(adam) == {OPTIMIZER}
    assert (folder / "rank_0.json.gz").stat().st_size > 1000
