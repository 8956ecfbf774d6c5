"""Which tasks are wanted, with how many examples each: the names in ``harness.tasks``. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from ...errors import problem
from ...options_eval import HarnessConfig


@dataclass(frozen=True)
class Wanted:
    """One task, group or tag of lm-evaluation-harness.

    Attributes:
        shots: examples in front of each question; None: the task's own number.
    """

    name: str
    shots: int | None


@dataclass(frozen=True)
class Published:
    """A benchmark of the paper's Table 3: how many examples it is asked with and which metric is printed."""

    shots: int
    metric: str


# the Open LLM Leaderboard's protocol of 2023, which the paper follows
PAPER: Mapping[str, Published] = {
    "arc_challenge": Published(25, "acc_norm"),
    "hellaswag": Published(10, "acc_norm"),
    "mmlu": Published(5, "acc_macro"),
    "truthfulqa_mc2": Published(0, "acc"),
}


def in_short_table(task: str, group: str | None, metric: str, shots: int | None) -> bool:
    """Whether a result belongs there: no members of groups, and of the paper's tasks the paper's metric."""
    published = PAPER.get(task)
    if group is not None or published is None or published.shots != shots:
        return group is None
    return published.metric == metric


def wanted(options: HarnessConfig) -> list[Wanted]:
    """Every task by itself; ``paper`` stands for the four of Table 3."""
    found: list[Wanted] = []
    for name in options.tasks:
        if name == "paper":
            found += [
                Wanted(task, entry.shots if options.shots is None else options.shots) for task, entry in PAPER.items()
            ]
        else:
            found.append(Wanted(name, options.shots))
    return found


def list_problems(options: HarnessConfig) -> list[str]:
    """What is wrong with the list itself, whatever tasks there are."""
    if not options.tasks:
        return [problem("harness.tasks", [], "names of tasks", "harness.tasks=[paper]")]
    names = [task.name for task in wanted(options)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not twice:
        return []
    return [problem("harness.tasks", options.tasks, "each task once", f"name {', '.join(twice)} once")]


def unknown_problem(name: str, known: Sequence[str]) -> str:
    """A name that no task has, with the nearest ones."""
    near = get_close_matches(name, ["paper", *known], n=5)
    tasks = " | ".join(near) if near else "names that lm-eval ls tasks prints"
    fix = "correct the name, or say where your own task files are: harness.include_path=FOLDER"
    return problem("harness.tasks", name, tasks, fix)
