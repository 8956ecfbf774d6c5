"""Turning queries and keys by their positions, as Hugging Face's Llama does, bit for bit.

Pairs are dimensions (i, i + r/2) of the first r of D; the rest stay. cos and sin are [S, r/2], of S positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

PIECE = 2**17  # elements at once on a CPU: what is between two operations stays in its cache
ROOM = 256  # positions that a buffer has ahead


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """A new [B, H, S, D]."""
    half = cos.shape[1]
    a, b = x[..., :half], x[..., half : 2 * half]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]), dim=-1)


class KeyBuffer:
    """Memory for the rotated keys of one layer, used again for the next: fresh memory costs more than the rotation."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    @torch.no_grad()
    def rotated(self, keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotated keys [B, H, S, D], in memory that the next call overwrites; they have no gradient."""
        out = self._room(keys)
        step = keys.shape[2]
        if keys.device.type == "cpu":
            step = max(1, PIECE * step // keys.numel())
        for begin in range(0, keys.shape[2], step):
            some = slice(begin, begin + step)
            _into(out[:, :, some], keys[:, :, some], cos[some], sin[some])
        return out

    def _room(self, like: Tensor) -> Tensor:
        batch, heads, tokens, dim = like.shape
        have = self._memory
        fits = have.dim() == 4 and (have.shape[0], have.shape[1], have.shape[3]) == (batch, heads, dim)
        if not fits or have.shape[2] < tokens or have.dtype != like.dtype or have.device != like.device:
            self._memory = like.new_empty(batch, heads, tokens + ROOM, dim)
        return self._memory[:, :, :tokens]


def _into(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> None:
    half = cos.shape[1]
    a, b = x[..., :half], x[..., half : 2 * half]
    torch.mul(a, cos, out=out[..., :half]).sub_(b * sin)
    torch.mul(b, cos, out=out[..., half : 2 * half]).add_(a * sin)
    if x.shape[3] > 2 * half:
        out[..., 2 * half :] = x[..., 2 * half :]
