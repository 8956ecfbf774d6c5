"""Forward and backward of one sequence against its length, and how much of it is attention."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from bench.gpu.kernel import work as attention_work
from bench.gpu.timing import Stopwatch, in_turns
from bench.scaling.case import Built, Case, build, step
from bench.scaling.fit import Fit, power_law
from yarn_train.data.batch import make_batch
from yarn_train.model.flops import Work, hardware_work
from yarn_train.model.load import DTYPES

PARTS = ("step", "attention", "rest")


@dataclass(frozen=True)
class Point:
    """One length.

    Attributes:
        seconds: of step, attention (its kernel alone, in all layers) and rest, the difference.
        flops: the same by ``model.flops``.
    """

    tokens: int
    seconds: dict[str, float]
    flops: dict[str, float]


class Size(Protocol):
    """Weights of a model as :class:`bench.scaling.case.Built` counts them."""

    @property
    def matmul(self) -> int:
        """That every token is multiplied with."""

    @property
    def recomputed(self) -> int:
        """Those again in backward."""


def measure(case: Case, lengths: Sequence[int], repeats: int, limit: float) -> tuple[list[Point], dict[int, Exception]]:
    """Steps and attention of every length in turns, in this process.

    Args:
        limit: seconds after which no other round begins.

    Returns:
        Lengths that ran, and why the others did not: out of memory or of time.
    """
    built = build(case)
    device = built.runtime.device
    works: dict[Any, Callable[[Stopwatch], float]] = {}
    for length in lengths:
        works["step", length] = _step(built, length, case.vocab)
        works["attention", length] = _attention(built, case, length)
    seconds, errors = in_turns(works, device, repeats, time.time() + limit)
    failed = {length: error for (_, length), error in errors.items()}
    return [point(built, case, length, seconds) for length in lengths if length not in failed], failed


def fits(points: Sequence[Point]) -> dict[str, tuple[Fit | None, Fit]]:
    """Per part: the measured exponent, None where a difference of times is not positive; and that of its FLOPs."""
    tokens = [float(point.tokens) for point in points]
    found: dict[str, tuple[Fit | None, Fit]] = {}
    for part in PARTS:
        seconds = [point.seconds[part] for point in points]
        measured = power_law(tokens, seconds) if min(seconds) > 0 else None
        found[part] = (measured, power_law(tokens, [point.flops[part] for point in points]))
    return found


def flops_of(work: Work, tokens: int) -> dict[str, float]:
    """FLOPs of a whole sequence, by part."""
    attention = tokens * (work.attention_forward + work.attention_backward)
    return {"step": tokens * work.total, "attention": attention, "rest": tokens * work.linear}


def point(size: Size, case: Case, length: int, seconds: dict[Any, list[float]]) -> Point:
    """Medians of what was measured; attention's of all layers, with the forward that is run again where it is.

    Args:
        seconds: of ("step", length), and of ("attention", length): one layer's kernel, forward and backward.
    """
    whole, attention = (statistics.median(seconds[what, length]) for what in ("step", "attention"))
    width = case.hidden
    again = case.activation in ("full", "offload")
    work = hardware_work(size.matmul, size.recomputed, case.layers, width, length, again)
    # one timed call is a forward and a backward; a second forward is as long as its part of the FLOPs
    once = hardware_work(0, 0, case.layers, width, length, False).total
    attention *= case.layers * (work.attention_forward + work.attention_backward) / once
    return Point(length, {"step": whole, "attention": attention, "rest": whole - attention}, flops_of(work, length))


def _step(built: Built, length: int, vocab: int) -> Callable[[Stopwatch], float]:
    rows = torch.randint(0, vocab, (1, length), generator=torch.Generator().manual_seed(1))
    batch = make_batch(rows).to(built.runtime.device)

    def work(watch: Stopwatch) -> float:
        watch.start()
        try:
            step(built, batch, float(batch.num_valid))
        except Exception:
            built.engine.skip()  # gradients of a part of it would take the memory of the next length
            raise
        return watch.stop()

    return work


def _attention(built: Built, case: Case, length: int) -> Callable[[Stopwatch], float]:
    shape = {"heads": case.heads, "kv_heads": case.kv_heads, "head_dim": case.hidden // case.heads}
    return attention_work(built.kernel.primitive, shape, length, True, built.runtime.device, DTYPES[case.dtype])
