"""A rank's part of a checkpoint in host memory, so that training can go on while it is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .safetensors_file import CHUNK, raw

BUFFER = 256 << 20  # bytes; torch rounds pinned memory up to a power of two: a single buffer could take twice as much


class HostCopy:
    """Buffers that are kept from save to save: fresh memory, pinned above all, costs more than the copy itself."""

    def __init__(self, device: torch.device):
        self._device = device
        self._buffers: list[Tensor] = []

    @torch.no_grad()
    def take(self, tensors: Sequence[Tensor]) -> list[memoryview]:
        """The bytes of the tensors one after another, as they are now, in parts; valid until the next call.

        Args:
            tensors: one-dimensional, those of wider elements first.
        """
        size = sum(tensor.nbytes for tensor in tensors)
        self._make_room(size)
        end = 0
        for tensor in tensors:
            done = 0
            while done < tensor.numel():
                number, begin = divmod(end, BUFFER)
                count = min(tensor.numel() - done, (BUFFER - begin) // tensor.itemsize)
                part = self._buffers[number][begin : begin + count * tensor.itemsize].view(tensor.dtype)
                part.copy_(tensor[done : done + count], non_blocking=True)
                done += count
                end += part.nbytes
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        sizes = [min(BUFFER, size - begin) for begin in range(0, size, BUFFER)]
        return [raw(buffer[:filled]) for buffer, filled in zip(self._buffers, sizes, strict=False)]

    def _make_room(self, size: int) -> None:
        """Whole buffers, and a last one for the rest. One that is too small goes back to torch, not to the system."""
        sizes = [min(BUFFER, size - begin) for begin in range(0, size, BUFFER)]
        for number, wanted in enumerate(sizes):
            if number < len(self._buffers) and self._buffers[number].numel() >= wanted:
                continue
            del self._buffers[number:]
            self._buffers.append(torch.empty(wanted, dtype=torch.uint8, pin_memory=self._device.type == "cuda"))


def chunks(tensors: Sequence[Tensor]) -> Iterator[memoryview]:
    """The same bytes straight from the tensors, through host memory for one chunk at a time."""
    for tensor in tensors:
        for part in tensor.detach().split(CHUNK // tensor.itemsize):
            yield raw(part.cpu())
