"""The loss and its gradients do not depend on how a batch is split into ranks and micro-batches."""

from __future__ import annotations

import pytest
from support import course, metrics


def test_accumulation_of_four_equals_one_pass(train, tiny_args, tmp_path):
    args = [*tiny_args, "model.dtype=float32"]
    one = train(tmp_path / "one", *args, "train.micro_batch_size=4")
    four = train(tmp_path / "four", *args, "train.micro_batch_size=1")
    _assert_close(one / "01_s4", four / "01_s4")


def test_two_ranks_equal_one(train, launch, tiny_args, tmp_path):
    args = [*tiny_args, "model.dtype=float32"]
    one = train(tmp_path / "one", *args, "train.micro_batch_size=2")
    launch(*args, "train.micro_batch_size=2", f"run.dir={tmp_path / 'two'}", ranks=2)
    _assert_close(one / "01_s4", tmp_path / "two/01_s4")


def test_recomputed_activations_and_full_logits_change_nothing(train, tiny_args, tmp_path):
    args = [*tiny_args, "model.dtype=float32"]
    plain = train(tmp_path / "plain", *args, "memory.loss=chunked", "memory.activation=none")
    other = train(tmp_path / "other", *args, "memory.loss=full", "memory.activation=full")
    _assert_close(plain / "01_s4", other / "01_s4")


def test_the_gradient_is_clipped_and_the_norm_before_clipping_is_logged(train, tiny_args, tmp_path):
    free = train(tmp_path / "free", *tiny_args, "model.dtype=float32", "optim.grad_clip=1000")
    tight = train(tmp_path / "tight", *tiny_args, "model.dtype=float32", "optim.grad_clip=0.001", "optim.eps=0.1")
    loose = train(tmp_path / "loose", *tiny_args, "model.dtype=float32", "optim.grad_clip=1000", "optim.eps=0.1")
    first = [metrics(run / "01_s4")[0]["grad_norm"] for run in (free, tight, loose)]
    assert first[0] == first[1] == first[2] > 0.001
    # With a large epsilon AdamW is no longer blind to the gradient's scale: clipped steps must move the loss less.
    moved = [abs(metrics(run / "01_s4")[-1]["loss"] - metrics(run / "01_s4")[0]["loss"]) for run in (tight, loose)]
    assert moved[0] < 0.5 * moved[1]


def test_metrics_have_what_the_run_folder_promises(train, tiny_args, tmp_path):
    row = metrics(train(tmp_path / "run", *tiny_args) / "01_s4")[0]
    promised = {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "mfu", "peak_memory_bytes"}
    assert promised | {"data_wait_seconds", "segments"} <= row.keys()
    assert row["mfu"] is None
    assert len(row["segments"]) == 4
    assert row["tokens"] == 4 * 64


def _assert_close(a, b) -> None:
    for x, y in zip(course(a), course(b), strict=True):
        assert x[0:2] == y[0:2]
        assert x[2] == pytest.approx(y[2], rel=1e-5)
        assert x[3] == y[3]
        assert x[4] == pytest.approx(y[4], rel=1e-4)
        assert x[5] == y[5]
