"""The likely cause of a first difference: rules that follow from what is known, the most certain first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .numbers import is_number
from .options import DATA, MODEL, SCHEDULE, SUMS, UPDATE, Fact, having
from .rows import Difference

# Relative distance of two mean losses that another order of sums explains, by compute dtype; of gradients ten times
# that. A mean over a step's tokens is far closer than one bfloat16 value is, whose last bit is 2**-8.
ROUNDING = {"float32": 1e-5, "bfloat16": 2.0**-11}
ADDS = ("world_size", "device", "versions.torch", "versions.flash-attn", "versions.deepspeed", "versions.liger-kernel")
CODE = ("git", "versions.transformers", "versions.torchao", "python")
HARMLESS = "sums in another order, harmless"


@dataclass(frozen=True)
class Known:
    """What two stages are known to differ in.

    Attributes:
        options: that differ.
        data: of the prepared data, where both runs say what theirs are; None where one does not.
        place: software and machines.
        resumed: the starts after which the step of the difference is the first or second one.
        inherited: whether an earlier stage's model, which this one starts from, differs.
        dtype: of computation.
    """

    options: Sequence[Fact]
    data: Sequence[Fact] | None
    place: Sequence[Fact]
    resumed: tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]
    inherited: bool
    dtype: str

    def option(self, *roles: str) -> list[Fact]:
        """Options that can change one of these."""
        return having(list(self.options), *roles)

    def of_place(self, keys: Sequence[str]) -> list[Fact]:
        """Those of the software and machines."""
        return [fact for fact in self.place if fact.key in keys]

    @property
    def sums(self) -> list[Fact]:
        """What changes the order of sums and nothing else."""
        return [*self.option(SUMS), *self.of_place(ADDS)]


def likely(found: Difference, known: Known) -> str:
    """Why this is the first difference, in one sentence."""
    if found.key in ("segments", "tokens", "step_tokens", "epoch"):
        return _read_otherwise(known)
    if found.key == "lr":
        return _named("another learning rate", known.option(SCHEDULE)) or _unexplained("the schedule's step", known)
    if found.key == "skipped" or not (is_number(found.a) and is_number(found.b)):
        return "one run skipped this step and the other did not: a loss or gradient that is not finite, or a spike"
    if found.gap is None or found.gap.ulps is None:
        return "a value that is not finite in one run only: look at the loss of the steps before"
    if found.key == "loss" and (told := _other_text(found, known)):
        return told
    small = found.gap.relative <= ROUNDING.get(known.dtype, 1e-5) * (10 if found.key == "grad_norm" else 1)
    if any(known.resumed):
        return _after_resume(found, known, small)
    if small and known.sums and not known.option(MODEL, UPDATE):
        return f"{HARMLESS}: {_list(known.sums)}"
    if found.key == "grad_norm":
        return _backward(known, small)
    return _first_forward(known, small) if found.step == 1 else _after_update(found, known, small)


def of_weights(known: Known, damaged: bool) -> str:
    """Why weights differ although no value of metrics.jsonl does."""
    if damaged:
        return "files of a checkpoint were changed or damaged after it was saved"
    told = _named("the update differs", known.option(UPDATE)) or _named("exported otherwise", known.option("export"))
    if told:
        return told
    if known.sums:
        return f"{HARMLESS}: {_list(known.sums)}"
    return "nothing known explains it: a last update whose sums vary from run to run, or files that were changed"


def _read_otherwise(known: Known) -> str:
    options = known.option(DATA)
    if options:
        return _named("other segments were read", options)
    if known.data:
        return _named("the prepared data are not the same", list(known.data))
    return _unexplained("the position in the data", known)


def _other_text(found: Difference, known: Known) -> str:
    """Segments of the same numbers, read from data that are not the same, or that nobody can say are."""
    data = known.option(DATA) if known.data is None else list(known.data)
    also = known.option(MODEL if found.step == 1 else UPDATE)
    if not data:
        return ""
    what = (
        "segments of the same numbers hold other text" if known.data else "other data may be behind the same segments"
    )
    return _named(what, [*data, *(fact for fact in also if fact not in data)])


def _after_resume(found: Difference, known: Known, small: bool) -> str:
    who, at = _resume(known)
    first = found.step == at + 1
    when = f"the {'first' if first else 'second'} step after a resume ({who}, from step {at})"
    if known.option(MODEL, UPDATE):
        return _named(f"{when}, since which options differ", known.option(MODEL, UPDATE))
    lost = (
        "part of the state was not restored (weights, moments, step or random numbers)"
        if first
        else "the optimizer's moments or step count were not restored, which the update before this step uses"
    )
    if not small:
        return f"{when}: {lost}"
    if not known.sums:
        return f"{when}: {lost}; or {_varies()}"
    if first:
        return f"{when}, which changed the order of sums, harmless: {_list(known.sums)}"
    return f"{when}: as small as another order of sums explains ({_list(known.sums)}); or {lost}"


def _first_forward(known: Known, small: bool) -> str:
    if known.option(MODEL):
        return _named("another model", known.option(MODEL))
    if known.inherited:
        return "other weights: this stage starts from the model of the one before, which differs"
    cause = _named("other weights, or another forward", known.of_place(CODE)) or (
        "other weights: same options, so the files below model.path or run.init_from are not the same"
    )
    return f"{cause}; or {_varies()}" if small else cause


def _after_update(found: Difference, known: Known, small: bool) -> str:
    update = known.option(UPDATE)
    if update:
        return _named(f"the update of step {found.step - 1} differs", update)
    if known.option(MODEL):
        return _named("another model, which first shows here", known.option(MODEL))
    cause = _named("other code", known.of_place(CODE)) or (
        f"the update of step {found.step - 1} differs and nothing known explains it: a step skipped in one run, a "
        "damaged value, or changed code"
    )
    return f"{cause}; or {_varies()}" if small else cause


def _backward(known: Known, small: bool) -> str:
    facts = [*known.option(MODEL, SUMS), *known.of_place((*ADDS, *CODE))]
    cause = _named("the forward agrees and the backward does not", facts) or (
        "the forward agrees and the backward does not: a kernel's gradient, or changed code"
    )
    return f"{cause}; or {_varies()}" if small else cause


def _varies() -> str:
    return "as small as rounding, so sums that vary from run to run; run.deterministic=true in both tells"


def _unexplained(what: str, known: Known) -> str:
    if any(known.resumed):
        return f"{what} was lost at the resume from step {_resume(known)[1]}"
    code = _named(f"{what} differs: other code", known.of_place(CODE))
    return code or f"{what} differs although options and data agree: a changed metrics.jsonl, or changed code"


def _resume(known: Known) -> tuple[str, int]:
    """(whose, from which step) of the resumes near the difference, the last one."""
    steps = {name: int(start["step"]) for name, start in zip("AB", known.resumed, strict=True) if start}
    last = max(steps.values())
    return " and ".join(name for name, step in steps.items() if step == last), last


def _named(what: str, facts: Sequence[Fact]) -> str:
    return f"{what}: {_list(facts)}" if facts else ""


def _list(facts: Sequence[Fact]) -> str:
    return ", ".join(str(fact) for fact in facts)
