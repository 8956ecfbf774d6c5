"""Whatever way tensors are cut over ranks, ranks that cut them otherwise read the same bits."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_support import read_all, write_all
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from yarn_train.checkpoint import layout
from yarn_train.checkpoint.fragments import Fragment, Piece, pieces
from yarn_train.checkpoint.index import Index, tensor_file
from yarn_train.checkpoint.layout import Range, reads, shares
from yarn_train.errors import CheckpointError

DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def bits(shape: Sequence[int], dtype: torch.dtype, seed: int) -> Tensor:
    """Any bit pattern, NaNs included."""
    count = math.prod(shape)
    raw = torch.randint(0, 256, (count * dtype.itemsize,), dtype=torch.uint8, generator=torch.manual_seed(seed))
    return ((raw & 1).bool() if dtype == torch.bool else raw.view(dtype)).view(shape)


def write(folder: Path, states: Sequence[dict[str, Any]], copied: bool) -> Index:
    """A checkpoint of what several ranks hold."""
    return write_all(folder, [pieces(state) for state in states], copied)


def read(folder: Path, index: Index, states: Sequence[dict[str, Any]]) -> None:
    assert read_all(folder, index, [pieces(state) for state in states]) == []


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    count = draw(st.integers(1, 4))
    shapes = [draw(st.lists(st.integers(0, 7), max_size=3)) for _ in range(count)]
    return {f"t{n}": bits(shape, draw(st.sampled_from(DTYPES)), n) for n, shape in enumerate(shapes)}


@st.composite
def cut(draw: st.DrawFn, whole: dict[str, Tensor]) -> list[dict[str, Any]]:
    """What ranks hold: several copies, each cut over several ranks anywhere, as ZeRO does; or everybody everything."""
    ranks, copies = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    held: list[dict[str, Any]] = [{} for _ in range(ranks)]
    for name, tensor in whole.items():
        total = tensor.numel()
        inner = sorted(draw(st.lists(st.integers(0, total), min_size=ranks - 1, max_size=ranks - 1)))
        for rank, (begin, end) in enumerate(zip([0, *inner], [*inner, total], strict=True)):
            held[rank][name] = Fragment(tensor.reshape(-1)[begin:end].clone(), begin, total)
    return [{"a": {k: clone(v) for k, v in state.items()}} for _ in range(copies) for state in held]


def clone(fragment: Fragment) -> Fragment:
    return Fragment(fragment.local.clone(), fragment.start, fragment.numel)


def emptied(states: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for state in states:
        for fragment in state["a"].values():
            fragment.local.zero_()
    return states


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_cut_read_with_any_other_cut_gives_the_same_bits(data: st.DataObject) -> None:
    whole = data.draw(tensors())
    wrote, copied = data.draw(cut(whole)), data.draw(st.booleans())
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "WHOLE", data.draw(st.sampled_from([0, 16, 1 << 20])))
        patch.setattr("yarn_train.checkpoint.host_copy.CHUNK", 8)
        patch.setattr("yarn_train.checkpoint.host_copy.BUFFER", data.draw(st.sampled_from([8, 64, 1 << 20])))
        index = write(Path(name), wrote, copied)
        held = emptied(data.draw(cut(whole)))
        read(Path(name), index, held)
        plain = {"a": {key: torch.zeros_like(tensor) for key, tensor in whole.items()}}
        read(Path(name), index, [plain])
    for key, tensor in whole.items():
        flat = tensor.reshape(-1)
        assert plain["a"][key].reshape(-1).view(torch.uint8).tolist() == flat.view(torch.uint8).tolist()
        for state in held:
            part = state["a"][key]
            expected = flat[part.start : part.start + part.local.numel()]
            assert part.local.view(torch.uint8).tolist() == expected.contiguous().view(torch.uint8).tolist()


@given(whole=tensors(), ranks=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_copies_write_everything_once_and_share_it_out(whole: dict[str, Tensor], ranks: int) -> None:
    held = [[Range.of(piece) for piece in pieces(whole)] for _ in range(ranks)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "WHOLE", 0)
        written = shares(held)
    loads = [sum(part.nbytes for part in rank) for rank in written]
    assert sum(loads) == sum(tensor.nbytes for tensor in whole.values())
    assert max(loads) - min(loads) <= sum(tensor.itemsize for tensor in whole.values())
    names = [part.name for rank in written for part in rank]
    assert all(len({p.name for p in rank}) == len(rank) for rank in written), names


def test_small_tensors_of_copies_are_dealt_out_whole() -> None:
    state = {f"t{n}": torch.zeros(10) for n in range(12)}
    written = shares([[Range.of(piece) for piece in pieces(state)] for _ in range(4)])
    assert [len(rank) for rank in written] == [3, 3, 3, 3]
    assert {part.length for rank in written for part in rank} == {10}


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ([(0, 3), (4, 6)], "up to element 3 and from element 4"),
        ([(0, 4), (3, 7)], "up to element 4 and from element 3"),
        ([(0, 4), (4, 5)], "9 of 10 elements of a.t"),
        ([(2, 8)], "from element 2"),
    ],
)
def test_what_ranks_do_not_hold_once_and_whole_is_never_written(held: list[tuple[int, int]], message: str) -> None:
    states = [{"a": {"t": Fragment(torch.zeros(length), start, 10)}} for start, length in held]
    with pytest.raises(ValueError, match=message):
        shares([[Range.of(piece) for piece in pieces(state)] for state in states])


def test_ranks_that_disagree_about_a_tensor_are_refused() -> None:
    with pytest.raises(ValueError, match="on one rank and"):
        shares([[Range.of(p) for p in pieces({"t": torch.zeros(shape)})] for shape in ((2, 3), (3, 2))])


def test_elements_that_no_file_holds_cannot_be_read() -> None:
    stored = [("a", 0, 4), ("b", 6, 4)]
    assert reads(stored, 1, 3) == [layout.Read("a", 1, 4, 0)]
    assert reads(stored, 3, 4) is None
    assert reads(stored, 8, 3) is None


def test_the_library_reads_our_files_and_we_read_its(tmp_path: Path) -> None:
    whole = {f"t{n}": bits([5 + n], dtype, n) for n, dtype in enumerate(DTYPES)}
    write(tmp_path, [whole], copied=True)
    found = load_file(tmp_path / tensor_file(0))
    assert {name: t.view(torch.uint8).tolist() for name, t in found.items()} == {
        name: t.view(torch.uint8).tolist() for name, t in whole.items()
    }
    save_file(whole, tmp_path / tensor_file(0))
    index = Index.load(tmp_path, [tensor_file(0)])
    state = {name: torch.zeros_like(tensor) for name, tensor in whole.items()}
    read(tmp_path, index, [state])
    assert all(torch.equal(state[n].view(torch.uint8), whole[n].view(torch.uint8)) for n in whole)


def test_a_fragment_must_lie_within_its_tensor() -> None:
    assert Fragment(torch.arange(3.0), start=4, numel=7).start == 4
    with pytest.raises(ValueError, match="do not lie within"):
        Fragment(torch.arange(3.0), start=5, numel=7)


def test_names_are_joined_and_must_be_unlike() -> None:
    assert [p.name for p in pieces({"a": {"b.c": torch.zeros(1), "d": {"e": torch.zeros(1)}}})] == ["a.b.c", "a.d.e"]
    with pytest.raises(ValueError, match=r"are called a\.b"):
        pieces({"a.b": torch.zeros(1), "a": {"b": torch.zeros(1)}})
    with pytest.raises(ValueError, match="t is not contiguous"):
        pieces({"t": torch.zeros(2, 3).t()})


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../other.safetensors"},
        {"file": "/etc/passwd"},
        {"file": "rank_00001.safetensors"},
        {"start": -1},
        {"length": "many"},
    ],
)
def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    write(tmp_path, [{"t": torch.zeros(4)}], copied=False)
    content = json.loads((tmp_path / "index.json").read_text())
    content["tensors"]["t"]["pieces"][0].update(change)
    (tmp_path / "index.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"index\.json is not what was written"):
        Index.load(tmp_path, [tensor_file(0)])


def test_a_file_of_another_dtype_than_the_index_says_is_refused(tmp_path: Path) -> None:
    index = write(tmp_path, [{"t": torch.zeros(4)}], copied=False)
    save_file({"t": torch.zeros(4, dtype=torch.float64)}, tmp_path / tensor_file(0))
    with pytest.raises(CheckpointError, match="t is F64"):
        index.read(tmp_path, pieces({"t": torch.zeros(4)}))


class Moments(torch.Tensor):
    """Stands for a tensor subclass that nobody told checkpoints of."""

    tensor_attrs = ("packed",)


def test_an_unknown_kind_of_tensor_is_named() -> None:
    with pytest.raises(ValueError, match="exp_avg is a Moments"):
        pieces({"exp_avg": torch.zeros(3).as_subclass(Moments)})


def test_a_piece_is_a_view() -> None:
    tensor = torch.zeros(2, 3)
    (piece,) = pieces({"t": tensor})
    assert isinstance(piece, Piece)
    piece.local.fill_(1)
    assert tensor.sum() == 6
