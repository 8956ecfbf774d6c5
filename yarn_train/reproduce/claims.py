"""What the paper found, as statements about numbers that hold or do not. Pure.

The thresholds are the paper's own numbers with room for a model a thousand times smaller, see the comments. Values are
token-mean perplexities, the mean over seeds; every claim names the numbers it looked at. "Authors' data" are the files
of jquesnelle/yarn, folder data/, those of the ablation (Llama 7B, L = 2,048, s = 16) on its branch "ablations".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from .experiments import METHODS, L

Curve = Mapping[int, float]  # window in tokens -> perplexity
Curves = Mapping[str, Curve]  # name of a model -> its curve
OTHERS = tuple(method for method in METHODS if method != "yarn")


@dataclass(frozen=True)
class Claim:
    """One statement of the paper.

    Attributes:
        name: short, for tables and tests.
        source: where the paper says it, with its numbers.
        statement: what was expected here.
        holds: whether it does; None where its numbers are missing.
        numbers: what was looked at, by name.
        before: whether it was written down before the first run, so that no result could shape it.
        trained: whether it is about trained models, of which every seed has its own.
    """

    name: str
    source: str
    statement: str
    holds: bool | None
    numbers: Mapping[str, float] = field(default_factory=dict)
    before: bool = True
    trained: bool = True


def claims(
    table1: Curves, table2: Curves, losses: Mapping[str, Mapping[str, float]], passkey: Curves, dynamic: Curves
) -> list[Claim]:
    """Every claim.

    Args:
        table1: base, pi_s2, ntk_s2, yarn_s2, at windows from L/2 to 4L.
        table2: base, yarn_s16, yarn_s32, pi_s16, ntk_s16, ntk_by_parts_s16, at windows from L to 48L.
        losses: of each method's training at s = 16, by the method's name: first, tenth and last (mean of the last 10
            steps), nats per token.
        passkey: share of keys found by length: base, yarn_s16, yarn_s32.
        dynamic: without training: base, dynamic pi, dynamic ntk, dynamic yarn, at windows from L/2 to 16L.
    """
    return [
        _falls_to_the_length(table2),
        _explodes_beyond(table1, "yarn_s2", 2.5, 2, 1.2, "Table 1: 3.36 at 2L, 6.05 at 2.5L"),
        _explodes_beyond(table1, "pi_s2", 2.5, 2, 1.2, "Table 1: 3.34 at 2L, 8.07 at 2.5L"),
        _explodes_beyond(table2, "yarn_s16", 24, 16, 2.0, "Table 2: 2.42 at 16L, 15.5 at 24L"),
        _second_stage_reaches(table2),
        _tax(table2, 16, "price of s=32 at the first stage's length", "Table 2: 2.422 and 2.453"),
        _tax(table2, 1, "price of s=32 at the base's own length", "Table 2: 3.689 and 3.752"),
        _base_breaks(table2),
        _yarn_is_best(table1),
        _yarn_is_best_at_length(table2),
        _losses(losses, "first", "authors' data: 3.02 for YaRN, 4.65 by parts, 5.50 NTK-aware, 5.52 PI"),
        _losses(losses, "last", "authors' data, last 50 of 400: 1.97 for YaRN, 1.98, 2.30, 2.06"),
        replace(_finds(passkey, "yarn_s16", 16, "Table 5: 96.3 %"), before=False),
        replace(_finds(passkey, "yarn_s32", 32, "Table 5: 99.4 %"), before=False),
        replace(_dynamic_yarn_is_best(dynamic), before=False, trained=False),
    ]


def _claim(
    name: str, source: str, statement: str, numbers: Mapping[str, float | None], holds: Callable[..., bool]
) -> Claim:
    """`holds` is given the numbers by their place."""
    there = {key: value for key, value in numbers.items() if value is not None and math.isfinite(value)}
    known = len(there) == len(numbers)
    return Claim(name, source, statement, bool(holds(*there.values())) if known else None, there)


def _said(name: str) -> str:
    method, _, factor = name.partition("_s")
    names = {"yarn": "YaRN", "pi": "PI"}
    return f"{names[method]} s={factor}"


def _at(curves: Curves, name: str, times: float) -> float | None:
    return curves.get(name, {}).get(round(times * L))


def _falls_to_the_length(curves: Curves) -> Claim:
    """The paper's rows have one bump of 0.7 % at 4k-6k; 1 % is allowed."""
    numbers = {f"{times}L": _at(curves, "yarn_s16", times) for times in (1, 2, 4, 8, 16)}
    statement = "YaRN s=16: perplexity falls from L to 16L, no step up by more than 1 %"

    def falls(*values: float) -> bool:
        return values[-1] < values[0] and all(b <= 1.01 * a for a, b in itertools.pairwise(values))

    source = "Table 2: 3.69, 3.51, 2.99, 2.66, 2.42"
    return _claim("longer is better up to s L", source, statement, numbers, falls)


def _explodes_beyond(curves: Curves, name: str, beyond: float, length: float, least: float, source: str) -> Claim:
    """The paper: x1.8 (YaRN s=2) and x2.4 (PI s=2) at 1.25 times the length, x6.4 (YaRN s=16) at 1.5 times."""
    numbers = {f"{length:g}L": _at(curves, name, length), f"{beyond:g}L": _at(curves, name, beyond)}
    statement = f"{_said(name)}: perplexity at {beyond:g}L is at least {least:g} times that at {length:g}L"
    return _claim(f"{name} ends at s L", source, statement, numbers, lambda a, b: b >= least * a)


def _second_stage_reaches(curves: Curves) -> Claim:
    """The paper's value at 32L is 0.967 of that at 16L."""
    numbers = {f"{times}L": _at(curves, "yarn_s32", times) for times in (16, 24, 32)}
    statement = "YaRN s=32, trained on segments of 16L only: at 32L at most 2 % above 16L"
    source = "Table 2: 2.453, 2.364, 2.372"
    return _claim("s=32 reaches past its data", source, statement, numbers, lambda a, b, c: c <= 1.02 * a)


def _tax(curves: Curves, times: int, name: str, source: str) -> Claim:
    """The paper: 1.3 % and 1.7 %."""
    numbers = {"s=16": _at(curves, "yarn_s16", times), "s=32": _at(curves, "yarn_s32", times)}
    return _claim(
        name, source, f"at {times}L YaRN s=32 is at most 4 % worse than s=16", numbers, lambda a, b: b <= 1.04 * a
    )


def _base_breaks(curves: Curves) -> Claim:
    numbers = {"L": _at(curves, "base", 1), "2L": _at(curves, "base", 2)}
    statement = "the untouched base is at least 1.5 times worse at 2L than at L"
    source = "authors' data, 70B: 2.96 at 4k, 56 at 8k"
    return replace(
        _claim("the base breaks inside 2L", source, statement, numbers, lambda a, b: b >= 1.5 * a), trained=False
    )


def _yarn_is_best(curves: Curves) -> Claim:
    numbers = {
        f"{name} {times:g}L": _at(curves, f"{name}_s2", times)
        for times in (0.5, 1, 2)
        for name in ("yarn", "ntk", "pi")
    }

    def best(*values: float) -> bool:
        threes = [values[i : i + 3] for i in range(0, len(values), 3)]
        return all(yarn < ntk and yarn <= 1.01 * pi for yarn, ntk, pi in threes)

    statement = "s=2, trained: YaRN better than NTK-aware at L/2, L and 2L, and within 1 % of PI or better"
    source = "Table 1, YaRN, NTK-aware, PI: 3.92, 4.20, 3.92; 3.51, 3.75, 3.51; 3.36, 3.59, 3.34"
    return _claim("YaRN at s=2", source, statement, numbers, best)


def _yarn_is_best_at_length(curves: Curves) -> Claim:
    numbers = {method: _at(curves, f"{method}_s16", 16) for method in ("yarn", *OTHERS)}
    statement = "s=16, equally trained: YaRN is the best at 16L"
    source = "authors' data: 2.77 for YaRN, 3.57 PI, 8.49 NTK-aware, 2.81 by parts"
    return _claim("YaRN at s=16", source, statement, numbers, lambda yarn, *others: yarn <= min(others))


def _finds(shares: Curves, name: str, times: int, source: str) -> Claim:
    """The paper's shares are means over lengths up to the model's."""
    numbers = {f"{_said(name)} {times}L": _at(shares, name, times), "base 2L": _at(shares, "base", 2)}
    statement = f"{_said(name)} finds at least 90 % of the keys at {times}L, its base at most 10 % at 2L"
    return _claim(f"{name} finds keys", source, statement, numbers, lambda share, base: share >= 0.9 and base <= 0.1)


def _dynamic_yarn_is_best(curves: Curves) -> Claim:
    names = ("dynamic yarn", "dynamic ntk", "dynamic pi", "base")
    numbers = {f"{name} {times}L": _at(curves, name, times) for times in (2, 4, 8, 16) for name in names}

    def best(*values: float) -> bool:
        return all(values[i] < min(values[i + 1 : i + len(names)]) for i in range(0, len(values), len(names)))

    statement = "untrained, from 2L to 16L: Dynamic YaRN better than Dynamic NTK, Dynamic PI and the base"
    return _claim("Dynamic YaRN is best", "Figure 5, for Dynamic PI and the base", statement, numbers, best)


def _losses(losses: Mapping[str, Mapping[str, float]], which: str, source: str) -> Claim:
    numbers = {method: losses.get(method, {}).get(which) for method in ("yarn", *OTHERS)}
    words = {"first": "of the first step", "last": "of the last ten steps"}[which]
    statement = f"s=16, same data: the training loss {words} is lowest for YaRN"
    return _claim(f"{which} training loss", source, statement, numbers, lambda yarn, *others: yarn <= min(others))
