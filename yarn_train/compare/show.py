"""The comparison as a person reads it: what is equal in a line each, then the first difference and its cause."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .comparison import Comparison, StageComparison
from .options import NOTHING, Fact, roles
from .weights import Weights

WIDTH = 12
SHOWN = 4


def lines(comparison: Comparison) -> Iterator[str]:
    """The text, line by line."""
    yield f"A  {comparison.folders[0]}"
    yield f"B  {comparison.folders[1]}"
    yield _row("software", _facts(comparison.place))
    for stage in comparison.stages:
        yield from _stage(stage)
    if comparison.others:
        yield _row("only one has", ", ".join(comparison.others))
    if comparison.perplexities:
        told = f"{comparison.perplexities} compared, " + (
            f"{len(comparison.perplexity)} differ, first {comparison.perplexity[0]}"
            if comparison.perplexity
            else "equal"
        )
        yield _row("perplexity", told)
    yield _verdict(comparison)


def _stage(stage: StageComparison) -> Iterator[str]:
    a, b = stage.names
    yield ""
    yield a if a == b else f"{a} | {b}"
    telling = [fact for fact in stage.options if roles(fact.key) != (NOTHING,)]
    yield _row("options", _facts(telling, len(telling)))
    if stage.data:
        yield _row("data", _facts(stage.data))
    steps, first = stage.steps, stage.steps.first
    more = "".join(f"; {side} has {n} more" for side, n in zip("AB", steps.only, strict=True) if n)
    yield _row(
        "steps",
        f"{steps.compared} compared{more}; "
        + ("all equal" if first is None else f"first difference at step {first.step}: {first.key}"),
    )
    if first is not None:
        yield _row("", f"A {_value(first.a)}   B {_value(first.b)}")
        if first.gap is not None:
            ulps = "" if first.gap.ulps is None else f", {first.gap.ulps:,} units in the last place"
            yield _row("", f"apart by {first.gap.absolute:.3g}, relative {first.gap.relative:.2g}{ulps}")
        yield _row(
            "", f"losses: at most {steps.worst[0]:.2g} apart (step {steps.worst[1]}), {steps.last:.2g} at the end"
        )
    if stage.cause is not None:
        yield _row("likely cause", stage.cause)
    for step, weights in stage.checkpoints.items():
        yield _row(f"step {step}", _weights(weights))
    if stage.model is not None:
        yield _row("model", _weights(stage.model))


def _weights(weights: Weights | None) -> str:
    if weights is None:
        return "not read: an older format"
    if weights.equal and not weights.read:
        return "the same sizes and recorded hashes; not read (--quick)"
    if weights.equal:
        return f"{weights.compared} tensors equal" if weights.compared else "the same files, read"
    told = [f"damaged: {_some(weights.damaged)}"] if weights.damaged else []
    if weights.gaps:
        worst = max(weights.gaps, key=lambda gap: gap.absolute)
        told.append(
            f"{len(weights.gaps)} of {weights.compared} tensors differ, first {weights.gaps[0].name}; "
            f"most {worst.name}, by {worst.absolute:.3g} (relative {worst.relative:.2g})"
        )
    if weights.others:
        told.append(f"{len(weights.others)} in one only, or of another shape or type: {_some(weights.others)}")
    return "; ".join(told)


def _verdict(comparison: Comparison) -> str:
    if not comparison.equal:
        return "\nDIFFERENT"
    parts = any(any(stage.steps.only) for stage in comparison.stages) or bool(comparison.others)
    return "\nEQUAL" + (" as far as both go" if parts else "")


def _facts(facts: Sequence[Fact], shown: int = SHOWN) -> str:
    return _some([str(fact) for fact in facts], shown) if facts else "equal"


def _some(names: Sequence[str], shown: int = SHOWN) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _value(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    return f"{value[:SHOWN]} and {len(value) - SHOWN} more" if len(value) > SHOWN else str(value)


def _row(name: str, text: str) -> str:
    return f"  {name:<{WIDTH}} {text}"
