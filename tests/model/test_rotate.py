"""Rotation in one piece and in many, into memory that is used again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from yarn_train.model import rotate
from yarn_train.model.rotate import KeyBuffer, rotated


def given(tokens: int, dtype: torch.dtype, rotary: int = 8, rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(tokens)
    angles = torch.randn(tokens, rotary // 2, generator=g)
    keys = torch.randn(rows, 3, tokens, 12, generator=g)
    return keys.to(dtype), angles.cos().to(dtype), angles.sin().to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_turns_pairs_as_transformers_does_and_leaves_the_rest(dtype: torch.dtype):
    keys, cos, sin = given(7, dtype)
    whole = [torch.cat((t, t), dim=-1).expand(2, -1, -1) for t in (cos, sin)]
    expected = apply_rotary_pos_emb(keys[..., :8], keys[..., :8], *whole)[1]
    assert torch.equal(rotated(keys, cos, sin), torch.cat([expected, keys[..., 8:]], dim=-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rotary", [8, 12])
@pytest.mark.parametrize("piece", [1, 200, 2**17])
def test_in_pieces_it_is_the_same_bit_for_bit(monkeypatch, piece: int, rotary: int, dtype: torch.dtype):
    monkeypatch.setattr(rotate, "PIECE", piece)
    buffer = KeyBuffer()
    for tokens, rows in ((5, 2), (6, 2), (600, 2), (3, 2), (4, 1)):  # it grows, and serves other shapes
        keys, cos, sin = given(tokens, dtype, rotary, rows)
        assert torch.equal(buffer.rotated(keys, cos, sin), rotated(keys, cos, sin))


def test_a_growing_sequence_stays_where_it_is():
    buffer, places = KeyBuffer(), set()
    for tokens in range(100, 300):
        places.add(buffer.rotated(*given(tokens, torch.float32)).data_ptr())
    assert len(places) == 1
