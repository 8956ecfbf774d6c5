"""What to change: the cheapest options that make a run fit, or the faster ones that fit too. Each is traced."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .. import config as schema
from ..config import Config
from ..errors import ConfigError
from .estimate import Estimate, Target, estimates
from .jobs import Tracer
from .machines import fixed_bytes, usable_bytes
from .memory import lower_bound
from .sizes import Sizes

Change = Mapping[str, Any]  # option -> value, as typed on the command line
GPUS = "plan.gpus"
FASTER = 0.98  # a change worth telling takes at most this share of the time


@dataclass(frozen=True)
class Advice:
    """Options to change and what comes of it."""

    change: Change
    estimate: Estimate

    @property
    def text(self) -> str:
        """As typed on the command line."""
        return " ".join(f"{key}={str(value).lower()}" for key, value in self.change.items())


class Adviser:
    """Tries changes of one configuration."""

    def __init__(self, cfg: Config, tracer: Tracer, sizes: Sizes, target: Target):
        self.cfg, self.tracer, self.sizes, self.target = cfg, tracer, sizes, target

    def to_fit(self) -> list[Advice]:
        """Changes after which it fits: on these GPUs first, fastest first; none when no three of them are enough.

        Chunked logits cost nothing, so where all are built, every other change comes on top of them.
        """
        free: dict[str, Any] = {"memory.loss": "chunked"} if self.cfg.memory.loss == "full" else {}
        if free and (found := self._fitting([free])):
            return found
        steps = list(_savings(self.cfg, self.target.gpus))
        for count in (1, 2, 3):
            combined = [free | _merged(parts) for parts in itertools.combinations(steps, count) if _apart(parts)]
            if found := self._fitting(combined):
                return found
        return []

    def faster(self, now: Estimate) -> list[Advice]:
        """Changes that fit and save time, fastest first."""
        memory = self.cfg.memory
        kept = [
            {"memory.activation": "none", "memory.offload": False},
            {"memory.activation": "attention", "memory.offload": False},
            {"memory.activation": "attention", "memory.offload": True},
        ]
        current = {"memory.activation": memory.activation, "memory.offload": memory.offload}
        changes = [{k: v for k, v in change.items() if v != current[k]} for change in kept]
        found = self._fitting([change for change in changes if change])
        return [advice for advice in found if advice.estimate.time.seconds <= FASTER * now.time.seconds]

    def _fitting(self, changes: list[dict[str, Any]]) -> list[Advice]:
        wanted = []
        for change in changes:
            changed = _changed(self.cfg, change, self.target.gpus)
            if changed is not None and self._may_fit(*changed):
                wanted.append((change, changed))
        found = estimates([changed for _, changed in wanted], self.tracer, self.sizes, self.target)
        fitting = [Advice(change, e) for (change, _), e in zip(wanted, found, strict=True) if e.runs]
        return sorted(fitting, key=lambda advice: (advice.estimate.gpus, advice.estimate.time.seconds))

    def _may_fit(self, cfg: Config, gpus: int) -> bool:
        return lower_bound(cfg, self.sizes, gpus) + fixed_bytes(gpus) <= usable_bytes(self.target.memory)


def _savings(cfg: Config, gpus: int) -> Iterator[dict[str, Any]]:
    """Single changes that save memory."""
    if cfg.train.micro_batch_size > 1:
        yield {"train.micro_batch_size": 1}
    stronger = {"none": ("attention", "full", "offload"), "attention": ("full", "offload"), "full": ("offload",)}
    for activation in stronger.get(cfg.memory.activation, ()):
        yield {"memory.activation": activation} | ({"memory.offload": False} if cfg.memory.offload else {})
    if cfg.memory.activation == "attention" and not cfg.memory.offload:
        yield {"memory.offload": True}
    if not cfg.memory.tiled_mlp:
        yield {"memory.tiled_mlp": True}
    for context in (2, 4, 8):
        if context > cfg.parallel.context:
            yield {"parallel.context": context}
    stages = {"none": ("optimizer", "all"), "optimizer": ("all",)}
    for offload in stages.get(cfg.engine.offload, ()):
        yield {"engine.offload": offload}
    for more in (2, 4):
        yield {GPUS: gpus * more}


def _merged(parts: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    return {key: value for part in parts for key, value in part.items()}


def _apart(parts: tuple[dict[str, Any], ...]) -> bool:
    """Whether no option is changed twice."""
    return len(_merged(parts)) == sum(len(part) for part in parts)


def _changed(cfg: Config, change: Change, gpus: int) -> tuple[Config, int] | None:
    """The changed configuration and its number of GPUs, or None where it is not a valid one."""
    raw = dataclasses.asdict(cfg)
    for key, value in change.items():
        section, _, option = key.partition(".")
        raw[section][option] = value
    gpus = change.get(GPUS, gpus)
    try:
        changed = schema.build(raw)
        schema.validate(changed, gpus)
    except ConfigError:
        return None
    return changed, gpus
