"""What an option can change in a run's numbers: the facts that likely causes follow from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..config import defaults
from .numbers import same

DATA = "data"  # which segments are read when
SCHEDULE = "schedule"  # the learning rate of a step
MODEL = "model"  # what the forward computes
UPDATE = "update"  # what the optimizer does with a gradient
SUMS = "sums"  # nothing but the order in which numbers are added, or the kernel that adds them
EXPORT = "export"  # the model that is written at a stage's end
EVALUATION = "evaluation"
NOTHING = "nothing"

# By option, or by section for those that are not named.
ROLES: dict[str, tuple[str, ...]] = {
    "run": (NOTHING,),
    "run.seed": (DATA, MODEL),
    "run.init_from": (MODEL,),
    "run.deterministic": (SUMS,),
    "model": (MODEL,),
    "model.attention": (SUMS,),
    "adapter": (MODEL, UPDATE),
    "rope": (MODEL,),
    "data": (DATA,),
    "data.document_mask": (MODEL,),
    "data.cache": (NOTHING,),
    "data.workers": (NOTHING,),
    "data.prefetch": (NOTHING,),
    "train": (UPDATE,),
    "train.steps": (SCHEDULE,),
    "train.global_batch_size": (DATA,),
    "train.micro_batch_size": (SUMS,),
    "train.stop_after": (NOTHING,),
    "train.max_skipped": (NOTHING,),
    "optim": (UPDATE,),
    "optim.lr": (SCHEDULE,),
    "optim.state": (MODEL, UPDATE),
    "schedule": (SCHEDULE,),
    "engine": (SUMS,),
    "parallel": (SUMS,),
    "memory": (SUMS,),
    "compile": (SUMS,),
    "checkpoint": (NOTHING,),
    "checkpoint.export_dtype": (EXPORT,),
    "eval": (EVALUATION,),
    "passkey": (EVALUATION,),
    "harness": (EVALUATION,),
    "study": (EVALUATION,),
    "plan": (NOTHING,),
    "launch": (NOTHING,),
    "tracking": (NOTHING,),
    "profile": (NOTHING,),
    "sweep": (NOTHING,),
    "curriculum": (NOTHING,),  # the stages' own options are compared
}


@dataclass(frozen=True)
class Fact:
    """Something that is not the same in both runs: an option, a version, a place."""

    key: str
    a: Any
    b: Any

    def __str__(self) -> str:
        return f"{self.key} ({_short(self.a)} | {_short(self.b)})"


def roles(key: str) -> tuple[str, ...]:
    """What option ``section.name`` can change."""
    return ROLES[key] if key in ROLES else ROLES[key.partition(".")[0]]


def option_facts(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Fact]:
    """Options that differ; one that a folder is too old to have had its default's effect."""
    default = dict(_flat(defaults()))
    ours, theirs = default | dict(_flat(a)), default | dict(_flat(b))
    keys = [key for key in dict.fromkeys([*ours, *theirs]) if key.partition(".")[0] in ROLES]
    return [Fact(k, ours.get(k), theirs.get(k)) for k in keys if not same(ours.get(k), theirs.get(k))]


def having(facts: list[Fact], *wanted: str) -> list[Fact]:
    """Those of the options that can change one of these."""
    return [fact for fact in facts if set(roles(fact.key)) & set(wanted)]


def _flat(nested: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, values in nested.items():
        if isinstance(values, Mapping) and section != "curriculum":
            yield from ((f"{section}.{key}", value) for key, value in values.items())


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"
