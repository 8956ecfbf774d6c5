"""The loss and its gradients do not depend on how a batch is split into ranks and micro-batches."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file
from support import course, metrics


def test_accumulation_of_four_equals_one_pass(train, tiny_args, tmp_path):
    args = [*tiny_args, "model.dtype=float32"]
    one = train(tmp_path / "one", *args, "train.micro_batch_size=4")
    four = train(tmp_path / "four", *args, "train.micro_batch_size=1")
    _assert_close(one / "01_s4", four / "01_s4")


def test_two_ranks_equal_one(train, forked, tiny_args, tmp_path):
    args = [*tiny_args, "model.dtype=float32"]
    one = train(tmp_path / "one", *args, "train.micro_batch_size=2")
    forked(*args, "train.micro_batch_size=2", f"run.dir={tmp_path / 'two'}")
    _assert_close(one / "01_s4", tmp_path / "two/01_s4")


def test_recomputed_activations_and_full_logits_change_nothing(train, tiny_args, tmp_path):
    args = [*tiny_args, "model.dtype=float32"]
    plain = train(tmp_path / "plain", *args, "memory.loss=chunked", "memory.activation=none")
    other = train(tmp_path / "other", *args, "memory.loss=full", "memory.activation=full")
    _assert_close(plain / "01_s4", other / "01_s4")


def test_the_gradient_is_clipped_and_the_norm_before_clipping_is_logged(train, tiny_args, tiny_model, tmp_path):
    # With a large epsilon AdamW follows the gradient's scale, so a clipped run must hardly move.
    args = [*tiny_args, "model.dtype=float32", "optim.eps=1.0"]
    tight = train(tmp_path / "tight", *args, "optim.grad_clip=0.001")
    loose = train(tmp_path / "loose", *args, "optim.grad_clip=1000")
    first = [metrics(run / "01_s4")[0]["grad_norm"] for run in (tight, loose)]
    assert first[0] == first[1] > 0.01
    start = load_file(tiny_model / "model.safetensors")
    ends = [load_file(run / "01_s4/model/model.safetensors") for run in (tight, loose)]
    moved = [sum((end[name] - start[name]).norm() ** 2 for name in start) ** 0.5 for end in ends]
    assert 0 < moved[0] < 0.1 * moved[1]


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
