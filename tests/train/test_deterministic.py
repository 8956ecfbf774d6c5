"""run.deterministic, and what is random on each rank."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor
from support import course, same_weights

from yarn_train.dist.deterministic import deterministic, explained, seed_shard
from yarn_train.errors import ConfigError
from yarn_train.model.causal_lm import CausalLM
from yarn_train.train import loop

Train = Callable[..., Path]
STATE = (
    torch.are_deterministic_algorithms_enabled,
    lambda: torch.backends.cudnn.deterministic,
    lambda: torch.backends.cudnn.benchmark,
    lambda: os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    lambda: os.environ.get("NCCL_ALGO"),
)


def state() -> list[Any]:
    return [read() for read in STATE]


def test_it_is_on_inside_the_run_and_off_after(
    train: Train, tiny_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen, before, train_step = [], state(), loop.train_step

    def watched(*args: Any) -> dict[str, Any]:
        seen.append(state())
        return train_step(*args)

    monkeypatch.setattr(loop, "train_step", watched)
    args = [*tiny_args, "train.steps=2"]
    a = train(tmp_path / "a", *args, "run.deterministic=true")
    assert seen
    assert all(found == [True, True, False, ":4096:8", "^NVLS"] for found in seen)
    assert state() == before
    seen.clear()
    b = train(tmp_path / "b", *args, "run.deterministic=true")
    c = train(tmp_path / "c", *args)  # the next job of a multirun
    assert seen[-1] == before
    stages = [run / "01_s4" for run in (a, b, c)]
    assert course(stages[0]) == course(stages[1]) == course(stages[2])
    assert same_weights(stages[0] / "model", stages[1] / "model")


def test_it_is_off_after_a_failure_and_keeps_what_somebody_chose(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    before = state()
    seen = []

    def job() -> None:
        with deterministic(True, compiled=True):
            seen.extend([os.environ["NCCL_ALGO"], inductor.deterministic])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        job()
    assert seen == ["Ring", True]
    assert state() == before
    assert not inductor.deterministic


def test_an_operation_without_such_a_kernel_names_the_option(
    train: Train, tiny_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    forward = CausalLM.forward

    def varies(self: CausalLM, *args: Any, **kwargs: Any) -> torch.Tensor:
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(CausalLM, "forward", varies)
    args = [*tiny_args, "train.steps=1", "schedule.warmup_steps=0"]
    with pytest.raises(ConfigError, match=r"run\.deterministic: got 'true, and put_ has no deterministic kernel"):
        train(tmp_path / "a", *args, "run.deterministic=true")
    train(tmp_path / "b", *args)


def test_cublas_in_use_before_is_explained_and_other_errors_are_not():
    # what torch raises, shortened
    text = (
        "Deterministic behavior was enabled with `torch.use_deterministic_algorithms(True)`, but this operation is not "
        "deterministic because it uses CuBLAS; set CUBLAS_WORKSPACE_CONFIG=:4096:8"
    )
    assert "an earlier use of cuBLAS in the same process" in str(explained(RuntimeError(text)))
    assert explained(RuntimeError("CUDA error: an illegal memory access was encountered")) is None
    with pytest.raises(RuntimeError, match="shapes"), deterministic(True):
        raise RuntimeError("shapes")


def drawn(seed: int, shard: int) -> list[int]:
    seed_shard(seed, shard)
    return torch.randint(0, 1 << 16, (64,)).tolist()


def test_shards_round_with_noise_of_their_own_and_copies_of_one_alike():
    shards = [drawn(0, shard) for shard in range(4)]
    assert len({tuple(noise) for noise in shards}) == 4
    assert drawn(0, 2) == shards[2]
    assert drawn(1, 0) not in shards


def test_training_draws_from_the_seed_of_the_shard(train: Train, tiny_args: list[str], tmp_path: Path):
    """Random weights take numbers from the seed of all ranks; how many, what follows does not depend on."""
    train(tmp_path / "run", *tiny_args, "model.init=random", "train.stop_after=1")
    after = torch.get_rng_state()
    seed_shard(0, 0)
    assert torch.equal(after, torch.get_rng_state())


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_two_runs_on_a_gpu_are_bit_equal(train: Train, tiny_args: list[str], tmp_path: Path, attention: str):
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn")
    args = [*tiny_args, "run.deterministic=true", f"model.attention={attention}", "data.document_mask=block"]
    a, b = (train(tmp_path / name, *args) / "01_s4" for name in "ab")
    assert course(a) == course(b)
    assert same_weights(a / "model", b / "model")
