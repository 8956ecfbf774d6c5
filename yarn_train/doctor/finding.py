"""What a check found out: one line of the report. Never imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

OK, WARN, FAIL, SKIP = "ok", "warn", "FAIL", "skip"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        status: ok; warn: a run works but not as well as it could; FAIL: a run that needs this does not work; skip: not
            looked at, the figure says why.
        what: the subject, a few words.
        figure: what was seen, in units.
        means: for anything not ok, what it means for a run.
        fix: for anything not ok, what to type or change.
        facts: the same for machines, in bytes, seconds and FLOP/s; the verdict is made of them.
    """

    status: str
    what: str
    figure: str
    means: str = ""
    fix: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def worst(statuses: Sequence[str]) -> str:
    """The status of several parts together."""
    return max(statuses, key=[SKIP, OK, WARN, FAIL].index, default=SKIP)


def broken(findings: Sequence[Finding]) -> bool:
    """Whether something does not work that a run needs."""
    return any(finding.status == FAIL for finding in findings)


def merged_facts(findings: Sequence[Finding]) -> dict[str, Any]:
    """All facts in one mapping; every fact has one check that states it."""
    return {key: value for finding in findings for key, value in finding.facts.items()}


def verdict(findings: Sequence[Finding], experiment: str | None = None) -> str:
    """One line: what this machine can run."""
    failed = [finding.what for finding in findings if finding.status == FAIL]
    if failed:
        return f"NOT READY: {len(failed)} broken: {', '.join(failed)}"
    facts = merged_facts(findings)
    warned = sum(finding.status == WARN for finding in findings)
    note = f" ({warned} warning{'s' if warned != 1 else ''} above)" if warned else ""
    names = facts.get("gpu_names")
    if names is None:  # nobody looked
        passed = sum(finding.status == OK for finding in findings)
        return f"ready: {passed} check{'s' if passed != 1 else ''} passed{note}"
    if not names:
        runs = f"CPU only; experiment {experiment}" if experiment else "CPU only; experiments smoke and quickstart"
        return f"ready: {runs}{note}"
    kinds = sorted(set(names))
    machine = " + ".join(f"{names.count(kind)} x {kind}" for kind in kinds)
    kernel = f", {facts['attention']}" if "attention" in facts else ""
    chosen = f"; experiment {experiment}" if experiment else ""
    return f"ready: {machine}{kernel}{chosen}{note}"
