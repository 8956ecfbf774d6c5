"""Every byte of a traced step: which storage lives when, and what it is for.

torch's own memory tracker (``torch.distributed._tools``, private) decides what a storage is for when it is allocated,
by module and phase; so it books AdamW's temporaries as state and cannot tell what is kept for backward from what a
block uses for a moment. Here a storage's category may be learnt at any later time (a gradient when it hangs on its
parameter, a kept activation when it outlives the forward pass); the peak is found by replaying the log afterwards.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, UntypedStorage
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WEIGHTS, GRADIENTS, OPTIMIZER = "weights", "gradients", "optimizer"
SAVED, LOSS, COMMUNICATION, TEMPORARY = "saved activations", "loss", "communication", "temporary"
BATCH = "batch"
HOST = "host"  # activations moved to host memory; like all else that is booked, on the CPU while it is traced
CATEGORIES = (WEIGHTS, GRADIENTS, OPTIMIZER, BATCH, SAVED, LOSS, COMMUNICATION, TEMPORARY)

# Allocated below one of these: buffers of a sharding engine, of a collective, of context parallelism.
_COMMUNICATION = ("torch/distributed/fsdp/", "torch/distributed/distributed_c10d", "parallel/ring", "parallel/ulysses")
_MODULE_CALL = "torch/nn/modules/module.py"


@dataclass(frozen=True)
class Moment:
    """The fullest instant of a part of the step.

    Attributes:
        part: of the step, e.g. "forward", "backward".
        live: bytes by category at that instant.
    """

    part: str
    live: Mapping[str, int]

    def total(self, without: Iterable[str] = ()) -> int:
        """Bytes, of all categories but those in `without`."""
        return sum(size for category, size in self.live.items() if category not in set(without))


class Ledger(TorchDispatchMode):
    """Follows storages while it is active; use as a context manager, inside of a fake tensor mode or on real tensors.

    Args:
        hidden: (bytes taken while it runs, bytes sent) of an operator (name, arguments) whose result shows neither.

    Attributes:
        moved: bytes read and written by kernels that are neither matrix products nor attention nor collectives.
        sent: bytes of each collective's largest tensor (the gathered side), by operator name.
    """

    def __init__(self, hidden: Callable[[str, Sequence[Any]], tuple[int, int]] = lambda name, args: (0, 0)) -> None:
        super().__init__()
        self._hidden = hidden
        self.moved = 0
        self.sent: Counter[str] = Counter()
        self._events: list[tuple[int, int, str]] = []  # (storage number, bytes more or less, part of the step)
        self._category: list[str] = []
        self._size: dict[int, int] = {}  # live storages
        self._known: dict[int, tuple[int, weakref.ref[UntypedStorage]]] = {}  # address -> (number, storage)
        self._part = ""
        self._default = TEMPORARY

    def __enter__(self) -> Ledger:
        self._resize = UntypedStorage.resize_
        ledger = self

        def resize(storage: UntypedStorage, size: int) -> UntypedStorage:  # FSDP frees and regains parameters with it
            result = ledger._resize(storage, size)
            ledger._note(storage)
            return result

        UntypedStorage.resize_ = resize  # type: ignore[method-assign, assignment]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # let it run first: what it does to its local tensors comes here
        result = func(*args, **(kwargs or {}))
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        taken, sent = self._hidden(func._schema.name, args)
        self._pass(taken)
        self.sent[func._schema.name.partition("::")[2]] += sent
        for tensor in outputs:
            self._note(tensor.untyped_storage())
        self._count(func, args, outputs)
        return result

    def _pass(self, nbytes: int) -> None:
        """Memory that is taken and given back at once."""
        if nbytes:
            number = len(self._category)
            self._category.append(TEMPORARY)
            self._events += [(number, nbytes, self._part), (number, -nbytes, self._part)]

    # ---- what the tracer says ----

    @contextmanager
    def part(self, name: str, category: str = TEMPORARY) -> Iterator[None]:
        """What is allocated inside belongs to this part of the step and, unless better known, to `category`."""
        before = self._part, self._default
        self._part, self._default = name, category
        try:
            yield
        finally:
            self._part, self._default = before

    def enter(self, name: str, category: str = TEMPORARY) -> None:
        """The same from here on."""
        self._part, self._default = name, category

    def label(self, tensors: Iterable[Any], category: str) -> None:
        """Book the storages of these tensors, wrappers looked through, under `category` from their first byte on."""
        for tensor in _plain(tensors):
            self._category[self._note(tensor.untyped_storage())] = category

    def label_live(self, old: str, new: str) -> None:
        """Book every live storage of category `old` as `new`."""
        for number, size in self._size.items():
            if size and self._category[number] == old:
                self._category[number] = new

    def live(self) -> Counter[str]:
        """Bytes by category now."""
        total: Counter[str] = Counter()
        for number, size in self._size.items():
            total[self._category[number]] += size
        return total

    def moments(self, without: Iterable[str] = ()) -> list[Moment]:
        """The fullest instant of each part, in order of first appearance; parts without a name are left out.

        Args:
            without: categories that live elsewhere and do not make an instant fuller (they are still listed).
        """
        absent = set(without)
        running: Counter[str] = Counter()
        fullest: dict[str, tuple[int, dict[str, int]]] = {}
        on_device = 0
        for number, delta, part in self._events:
            category = self._category[number]
            running[category] += delta
            on_device += 0 if category in absent else delta
            if part and on_device > fullest.get(part, (-1, {}))[0]:
                fullest[part] = on_device, dict(running)
        return [Moment(part, live) for part, (_, live) in fullest.items()]

    # ---- following storages ----

    def _note(self, storage: UntypedStorage) -> int:
        """The storage's number; logs what changed since it was last seen."""
        address = storage._cdata
        known = self._known.get(address)
        if known is None or known[1]() is not storage:
            number = len(self._category)
            self._category.append(_category_by_caller(self._default))
            self._size[number] = 0
            self._known[address] = number, weakref.ref(storage, self._freed(number, address))
        else:
            number = known[0]
        size = storage.nbytes()
        if size != self._size[number]:
            self._events.append((number, size - self._size[number], self._part))
            self._size[number] = size
        return number

    def _freed(self, number: int, address: int) -> Callable[[Any], None]:
        def freed(_: Any) -> None:
            self._events.append((number, -self._size.pop(number), self._part))
            if self._known.get(address, (None,))[0] == number:
                del self._known[address]

        return freed

    def _count(self, func: Any, args: Any, outputs: list[Tensor]) -> None:
        name = func._schema.name
        space, _, operator = name.partition("::")
        if space in ("c10d", "_c10d_functional"):
            self.sent[operator] += max((t.nbytes for t in _plain(tree_leaves(args))), default=0)
        elif space == "aten" and operator not in _MATRIX_PRODUCTS and not func.is_view:
            self.moved += sum(t.nbytes for t in outputs) + sum(t.nbytes for t in _plain(tree_leaves(args)))


_MATRIX_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "empty", "empty_like", "empty_strided", "new_empty", "detach"}


def _plain(tensors: Iterable[Any]) -> Iterator[Tensor]:
    """The plain tensors inside of DTensors and other wrappers; what is no tensor is left out."""
    for tensor in tensors:
        if isinstance(tensor, DTensor):
            yield from _plain([tensor._local_tensor])
        elif isinstance(tensor, Tensor) and hasattr(tensor, "__tensor_flatten__"):
            yield from _plain(getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
        elif isinstance(tensor, Tensor):
            yield tensor


def _category_by_caller(default: str) -> str:
    """Communication when the nearest callers, up to the module that is being called, move data between ranks."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if any(part in name for part in _COMMUNICATION):
            return COMMUNICATION
        if name.endswith(_MODULE_CALL):
            return default
        frame = frame.f_back  # type: ignore[assignment]
    return default
