"""Moves activations to host memory between a block's forward and its backward.

One side stream per device does all copies, in both directions. The compute stream is never synchronised: it waits for
events only, each recorded about one block earlier, so that copies run under the compute of a whole block.

Device memory is given back by event order, not by ``record_stream``: before the mover drops its reference to a tensor
that the side stream reads or writes, the tensor's own stream waits for that copy. The allocator may then hand the
memory out at once, in stream order. ``record_stream`` would leave the block unusable until the host polls an event,
which fragments the pool and makes the peak depend on how far the host runs ahead.
"""

from __future__ import annotations

import math
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

MIN_BYTES = 2**20  # smaller tensors stay: a copy costs more than it saves
MIN_PIECE = 2**20


class Mover:
    """Host memory for activations: pooled pinned buffers, the copies to and fro, and what is held where.

    Attributes:
        host: bytes of the tensors that live in host memory now, and the most so far.
        device: bytes that the mover itself holds on the device now (leaving, or fetched ahead), and the most so far.
    """

    def __init__(self, min_bytes: int = MIN_BYTES):
        self.min_bytes = min_bytes
        self.host = Gauge()
        self.device = Gauge()
        self._lanes: dict[torch.device, Lane] = {}
        self._newest: weakref.ref[Layer] | None = None

    @property
    def host_bytes(self) -> int:
        """Bytes of activations in host memory now."""
        return self.host.now

    @property
    def pool_bytes(self) -> int:
        """Bytes of all host buffers, in use or waiting for the next step."""
        return sum(lane.pool.nbytes for lane in self._lanes.values())

    def open(self) -> Layer:
        """The place for what the next block keeps; the block before now gives up its device memory."""
        before = self._newest() if self._newest is not None else None
        if before is not None:
            before.leave()
        layer = Layer(self, before)
        self._newest = weakref.ref(layer)
        return layer

    def lane(self, device: torch.device) -> Lane:
        """The copies of one device."""
        if device not in self._lanes:
            self._lanes[device] = Lane(device)
        return self._lanes[device]


class Layer:
    """What one block keeps in one forward, and the block that ran before it: that one is fetched ahead in backward.

    Held by its handles only, which autograd holds: a graph that is dropped takes its layers and host memory with it.
    """

    def __init__(self, mover: Mover, before: Layer | None):
        self.mover = mover
        self._before = weakref.ref(before) if before is not None else None
        self._handles: list[weakref.ref[Handle]] = []

    def pack(self, tensor: Tensor) -> Tensor | Handle:
        """Start moving `tensor` out, or return it without its graph when it is too small to be worth it."""
        tensor = tensor.detach()
        if tensor.nbytes < max(self.mover.min_bytes, 1):
            return tensor
        handle = Handle(self, tensor)
        self._handles.append(weakref.ref(handle))
        return handle

    @staticmethod
    def unpack(packed: Tensor | Handle) -> Tensor:
        """The tensor that :meth:`pack` was given."""
        return packed.take() if isinstance(packed, Handle) else packed

    def handles(self) -> Iterator[Handle]:
        """Those that are still wanted."""
        return (handle for ref in self._handles if (handle := ref()) is not None)

    def leave(self) -> None:
        """Give up the device memory of this layer."""
        for handle in self.handles():
            handle.release()

    def fetch_before(self) -> None:
        """Start the way back of what the block before keeps, while this one computes."""
        before = self._before() if self._before is not None else None
        for handle in before.handles() if before is not None else ():
            handle.fetch()


class Handle:
    """One tensor in host memory; while it leaves or is fetched ahead, on the device too."""

    def __init__(self, layer: Layer, tensor: Tensor):
        self.layer, self.mover = layer, layer.mover
        dense = tensor if tensor.stride() == torch.empty_like(tensor, device="meta").stride() else tensor.contiguous()
        self.size, self.stride = dense.size(), dense.stride()
        self.dtype, self.device, self.nbytes = dense.dtype, dense.device, dense.nbytes
        self.taken = False
        self.pieces = self._lane.pool.take(self.nbytes)
        self.mover.host.add(self.nbytes)
        self.resident: Tensor | None = dense
        self.mover.device.add(self.nbytes)
        self.copied = self._lane.copy((host, part) for part, host in _pairs(dense, self.pieces))

    def fetch(self) -> None:
        """Start the copy to the device, once."""
        if self.resident is not None or self.taken:
            return
        self.resident = torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=self.device)
        self.mover.device.add(self.nbytes)
        self.copied = self._lane.copy(_pairs(self.resident, self.pieces))

    def take(self) -> Tensor:
        """The tensor, for the compute stream; the block before is on its way when this returns."""
        self.taken = False  # a graph that is kept for a second backward comes here again
        self.fetch()
        self.taken = True
        self.layer.fetch_before()
        tensor = self.resident
        assert tensor is not None
        self.release()
        return tensor

    def release(self) -> None:
        """Drop the device memory, in stream order after the copy that reads or writes it."""
        if self.resident is not None:
            self._lane.wait(self.copied)
            self.resident = None
            self.mover.device.add(-self.nbytes)

    @property
    def _lane(self) -> Lane:
        return self.mover.lane(self.device)

    def __del__(self) -> None:
        if hasattr(self, "copied"):  # built completely
            self.release()
            self.mover.host.add(-self.nbytes)
            self._lane.pool.give(self.pieces)


class Lane:
    """All copies between one device and the host, in the order they were asked for, and the host buffers.

    One stream for both directions, so a host buffer can be used again without asking whether its last copy is done.
    On the CPU a copy happens at once and there is nothing to wait for.
    """

    def __init__(self, device: torch.device):
        # Fake CUDA tensors can be traced on a machine that has no such device.
        has_streams = device.type == "cuda" and torch.cuda.is_available()
        self.side = torch.cuda.Stream(device) if has_streams else None
        self.compute: torch.cuda.Stream | None = None  # where the tensors live, set by every copy
        self.pool = Pool(pinned=has_streams)

    @torch.no_grad()
    def copy(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> torch.cuda.Event | None:
        """Start copies (target, source) after the work queued so far; returns the event of their end."""
        if self.side is None:
            for target, source in pairs:
                target.copy_(source)
            return None
        self.compute = torch.cuda.current_stream(self.side.device)
        self.side.wait_stream(self.compute)
        with torch.cuda.stream(self.side):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
        return self.side.record_event()

    def wait(self, event: torch.cuda.Event | None) -> None:
        """Make the compute stream, not the host, wait for a copy.

        The stream is remembered, not looked up: a dropped graph may be collected while another one is current.
        """
        if event is not None and self.compute is not None:
            self.compute.wait_event(event)


class Pool:
    """Host buffers by size, kept and used again by every later step.

    torch rounds pinned memory up to a power of two, so a tensor gets several such buffers, its size in binary: at most
    ``MIN_PIECE`` is lost, and buffers fit tensors of other sizes.
    """

    def __init__(self, pinned: bool):
        self.pinned = pinned
        self.nbytes = 0  # of all buffers ever made
        self._free: dict[int, list[Tensor]] = defaultdict(list)

    def take(self, nbytes: int) -> list[Tensor]:
        """Buffers, uint8, largest first, that hold `nbytes` together."""
        return [self._one(size) for size in piece_sizes(nbytes)]

    def give(self, pieces: Iterable[Tensor]) -> None:
        """Hand back what :meth:`take` gave."""
        for piece in pieces:
            self._free[piece.numel()].append(piece)

    def _one(self, size: int) -> Tensor:
        free = self._free[size]
        if free:
            return free.pop()
        self.nbytes += size
        return torch.empty(size, dtype=torch.uint8, pin_memory=self.pinned)


class Gauge:
    """A number of bytes and its peak."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def add(self, nbytes: int) -> None:
        """Change it by so many bytes."""
        self.now += nbytes
        self.peak = max(self.peak, self.now)


def piece_sizes(nbytes: int) -> list[int]:
    """`nbytes`, rounded up to ``MIN_PIECE``, as a sum of different powers of two, largest first."""
    units = math.ceil(nbytes / MIN_PIECE)
    return [MIN_PIECE << bit for bit in reversed(range(units.bit_length())) if units >> bit & 1]


def _pairs(tensor: Tensor, pieces: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """(part of the dense `tensor`, part of a host buffer) for all of its bytes, in order."""
    flat = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
    start = 0
    for piece in pieces:
        part = flat[start : start + piece.numel()]
        yield part, piece[: part.numel()]
        start += piece.numel()
