"""Whole runs with documents kept apart: the same curve however sequences are batched, compiled and shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import course, metrics

RUN = ("model.dtype=float32", "train.steps=4")


def same(a: Path, b: Path) -> bool:
    """Losses, norms and segments of two runs' first stages."""
    pairs: list[Any] = list(zip(course(a / "01_s16"), course(b / "01_s16"), strict=True))
    return all(x[2] == pytest.approx(y[2], rel=1e-5) and x[4] == pytest.approx(y[4], rel=1e-3) for x, y in pairs)


@pytest.fixture
def args(tiny_args: list[str]) -> list[str]:
    # 8 books in 15 segments: most segments hold a boundary, at another place each
    return [*tiny_args, "data.document_mask=block", "data.seq_len=512", "rope.factor=16", *RUN]


def test_rows_of_a_micro_batch_have_documents_of_their_own(train: Any, args: list[str], tmp_path: Path) -> None:
    one = train(tmp_path / "one", *args)
    assert same(one, train(tmp_path / "four", *args, "train.micro_batch_size=4", "memory.activation=attention"))
    assert not same(one, train(tmp_path / "none", *args, "data.document_mask=none"))


def test_mfu_counts_what_documents_attend_to(
    train: Any, args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yarn_train.model.flops.peak_flops", lambda device: 1e12)
    per_token = {}
    for mask in ("none", "block"):
        run = train(tmp_path / mask, *args, f"data.document_mask={mask}")
        per_token[mask] = [row["mfu"] * 1e12 / row["tokens_per_second"] for row in metrics(run / "01_s16")]
    assert max(per_token["none"]) == pytest.approx(min(per_token["none"]))
    assert max(per_token["block"]) < min(per_token["none"])
    assert len({round(one, 3) for one in per_token["block"]}) > 1


@pytest.mark.long
def test_two_ranks_with_documents_are_one(launch: Any, train: Any, args: list[str], tmp_path: Path) -> None:
    one = train(tmp_path / "one", *args)
    ring = ["parallel.context=2", "parallel.context_method=ring"]
    launch(*args, *ring, f"run.dir={tmp_path / 'ring'}", ranks=2)
    assert same(one, tmp_path / "ring")


@pytest.mark.long
def test_compiled_blocks_take_other_documents_at_every_step(train: Any, args: list[str], tmp_path: Path) -> None:
    one = train(tmp_path / "one", *args)
    assert same(one, train(tmp_path / "compiled", *args, "compile.enabled=true", "train.micro_batch_size=4"))
