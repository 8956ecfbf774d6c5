"""Learning-rate schedules as one pure function of the step; nothing is stored, so nothing can be resumed wrongly."""

from __future__ import annotations

import math


def lr_at(step: int, *, name: str, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Learning rate of 0-based optimizer step `step`.

    Rises linearly over `warmup_steps` (step 0 gets peak/warmup_steps, so no step is wasted at 0), then is `constant`,
    or falls to 0 at `total_steps`, in a line (`linear`) or half a cosine (`cosine`).

    Raises:
        ValueError: unknown name, or a step outside the schedule.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step {step} is outside the schedule of {total_steps} steps")
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    remaining = (total_steps - step) / (total_steps - warmup_steps)
    if name == "constant":
        return peak
    if name == "linear":
        return peak * remaining
    if name == "cosine":
        return peak * 0.5 * (1.0 + math.cos(math.pi * (1.0 - remaining)))
    raise ValueError(f"unknown schedule {name!r}")
