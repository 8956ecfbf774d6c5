"""The curves of an evaluation: which weights are read with which RoPE, and what they are called. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from ..config import RopeConfig
from ..stages import Stage

RAMP_NAMES = {"by_index": "", "by_rotations": ", Eq. 18 ramp"}
METHOD_NAMES = {"none": "base", "pi": "PI", "ntk": "NTK-aware", "ntk_by_parts": "NTK-by-parts", "yarn": "YaRN"}


@dataclass(frozen=True)
class Variant:
    """One curve of the evaluation: which weights, read with which RoPE (None: as their own config says)."""

    label: str
    method: str
    ramp: str | None
    factor: float
    stage: str | None
    weights: str
    rope: RopeConfig | None

    @classmethod
    def of(cls, label: str, rope: RopeConfig, stage: str | None, weights: str) -> Variant:
        """A variant whose names are those of its RoPE options."""
        ramp = rope.ramp if rope.method in ("yarn", "ntk_by_parts") else None
        return cls(label, rope.method, ramp, rope.factor, stage, weights, rope)


def variants(stages: Sequence[Stage], weights: str | None, came: RopeConfig | None = None) -> list[Variant]:
    """The base, each method untrained at the first stage's factor, then the model after each stage.

    Args:
        weights: what the first stage started from; None (random) leaves the untrained curves out.
        came: the scaling of a base that was extended already, which its own curve is read with.
    """
    first = stages[0].cfg
    found = []
    if weights is not None and first.eval.baselines:
        plain = dataclasses.replace(first.rope, method="none", factor=1.0, temperature="auto")
        label = "base" if came is None else f"base, {_title(came)}"
        found.append(Variant.of(label, came or plain, None, weights))
        if first.rope.method != "none":
            found += [_untrained(first.rope, method, ramp, weights) for method, ramp in _baselines()]
    for stage in stages:
        how = f"after {stage.folder.name}" if stage.trains else f"untrained, {stage.folder.name}"
        name = f"{_title(stage.cfg.rope)}, {how}"
        found.append(Variant.of(name, stage.cfg.rope, stage.folder.name, str(stage.model_folder)))
    return found


def _baselines() -> list[tuple[str, str]]:
    return [
        ("pi", "by_index"),
        ("ntk", "by_index"),
        ("ntk_by_parts", "by_index"),
        ("yarn", "by_rotations"),
        ("yarn", "by_index"),
    ]


def _untrained(rope: RopeConfig, method: str, ramp: str, weights: str) -> Variant:
    changed = dataclasses.replace(rope, method=method, ramp=ramp)
    if method != "yarn":
        changed = dataclasses.replace(changed, temperature="auto")
    if ramp == "by_rotations":
        changed = dataclasses.replace(changed, truncate=True)
    return Variant.of(f"{_title(changed)}, untrained", changed, None, weights)


def _title(rope: RopeConfig) -> str:
    if rope.method == "none":
        return METHOD_NAMES["none"]
    return f"{METHOD_NAMES[rope.method]}{RAMP_NAMES[rope.ramp]} s={rope.factor:g}"
