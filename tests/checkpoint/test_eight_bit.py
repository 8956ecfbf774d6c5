"""torchao's 8-bit moments: what they are made of is stored bit for bit; ranks that would cut a block are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_support import read_all, write_all
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from yarn_train.checkpoint import fragments
from yarn_train.checkpoint.fragments import Piece, pieces
from yarn_train.dist import runtime as dist_runtime

WIDTH = 1024


@pytest.fixture
def moment() -> Any:
    return pytest.importorskip("torchao.optim.subclass_8bit", reason="needs torchao").OptimState8bit


def filled(kind: Any, rows: int, seed: int) -> Any:
    """A moment [rows, 1024] of any bits."""
    made, generator = kind.zeros((rows, WIDTH)), torch.Generator().manual_seed(seed)
    made.codes.copy_(torch.randint(0, 256, (rows, WIDTH), dtype=torch.uint8, generator=generator))
    made.scale.copy_(torch.rand(made.scale.shape, generator=generator))
    return made


def held(local: Any, start: int, rows: int) -> list[Piece]:
    """What a rank holds whose rows of all `rows` begin with element `start`; on its own a tensor would be whole."""
    if hasattr(local, "scale"):
        return list(fragments._quantised("exp_avg.w", (rows, WIDTH), start, local))
    return [Piece("exp_avg.w", (rows, WIDTH), start, local.view(-1), "exp_avg.w")]


def test_they_come_back_bit_for_bit(moment: Any, tmp_path: Path) -> None:
    saved, other = filled(moment, 8, 1), filled(moment, 8, 2)
    dist_runtime.start()
    sharded = DTensor.from_local(saved, init_device_mesh("cpu", (1,)), [Shard(0)], run_check=False)  # as torchao does
    index = write_all(tmp_path, [pieces({"exp_avg": {"w": sharded}})])
    assert set(index.tensors) == {"exp_avg.w.codes", "exp_avg.w.scale", "exp_avg.w.qmap"}
    assert index.tensors["exp_avg.w.codes"].shape == (8, WIDTH)
    assert read_all(tmp_path, index, [pieces({"exp_avg": {"w": other}})]) == []
    assert torch.equal(other.codes, saved.codes)
    assert torch.equal(other.scale, saved.scale)
    assert torch.equal(other.dequantize(), saved.dequantize())


def test_two_ranks_give_one_and_four_the_same(moment: Any, tmp_path: Path) -> None:
    parts = [filled(moment, 8, seed) for seed in (1, 2)]
    index = write_all(tmp_path, [held(part, rank * 8 * WIDTH, 16) for rank, part in enumerate(parts)])
    one = filled(moment, 16, 3)
    assert read_all(tmp_path, index, [held(one, 0, 16)]) == []
    expected = torch.cat([part.dequantize() for part in parts])
    assert torch.equal(one.dequantize(), expected)
    four = [filled(moment, 4, seed) for seed in range(4)]
    assert read_all(tmp_path, index, [held(part, rank * 4 * WIDTH, 16) for rank, part in enumerate(four)]) == []
    assert torch.equal(torch.cat([part.dequantize() for part in four]), expected)


def test_ranks_whose_rows_are_too_few_for_blocks_read_only_what_such_ranks_wrote(moment: Any, tmp_path: Path) -> None:
    """Rank 0 keeps 8 rows in 8 bits, rank 1 its single one in 32: torchao decides it by the size of a rank's part."""
    plain = torch.rand(1, WIDTH)
    index = write_all(tmp_path, [held(filled(moment, 8, 1), 0, 9), held(plain, 8 * WIDTH, 9)])
    back = torch.zeros(1, WIDTH)
    assert read_all(tmp_path, index, [held(filled(moment, 8, 2), 0, 9), held(back, 8 * WIDTH, 9)]) == []
    assert torch.equal(back, plain)
    problems = read_all(tmp_path, index, [held(filled(moment, 9, 2), 0, 9)])
    assert problems[-1] == "2 tensors stored in other blocks or not whole: exp_avg.w.codes, exp_avg.w.scale"


def test_blocks_that_begin_elsewhere_are_not_taken_for_these(moment: Any, tmp_path: Path) -> None:
    first, odd = torch.rand(100), filled(moment, 8, 1)
    rows = (8 * WIDTH + 100) / WIDTH

    def cut(local: Any) -> list[Piece]:
        begin = Piece("exp_avg.w", (int(rows * WIDTH),), 0, first, "exp_avg.w")
        return [begin, *fragments._quantised("exp_avg.w", (int(rows * WIDTH),), 100, local)]

    index = write_all(tmp_path, [cut(odd)])
    same = filled(moment, 8, 2)
    assert read_all(tmp_path, index, [cut(same)]) == []
    assert torch.equal(same.dequantize(), odd.dequantize())
    aligned = list(fragments._quantised("exp_avg.w", (int(rows * WIDTH),), 256, filled(moment, 7, 3)))
    assert "1 tensor not in it: exp_avg.w.scale" in read_all(tmp_path, index, [aligned])
