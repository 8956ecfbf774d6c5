"""What the harness found as rows of ``eval/harness.json``. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]


def rows(name: str, results: Mapping[str, Any], leaves: Sequence[str]) -> list[Row]:
    """Rows of one wanted task: its metrics, or those of a group and of every task in it.

    A group also gets ``<metric>_macro``: the plain mean over its tasks, which leaderboards print for MMLU; the harness
    itself weighs MMLU's subjects by their questions.

    Args:
        name: what was wanted; ``group`` is null in its own rows and `name` in those of a group's members.
        results: what ``lm_eval.evaluator.evaluate`` returns.
        leaves: the tasks that were run: [name], or those of a group.

    Returns:
        {task, group, metric, shots, value, stderr, samples}; `value` is null where it is not finite, `stderr` where
        there is none, `shots` where members differ.
    """
    found = [row for task in results["results"] for row in _of_task(task, name, results, leaves)]
    return found + (_macro(name, [row for row in found if row["task"] in leaves], leaves) if name not in leaves else [])


def _of_task(task: str, name: str, results: Mapping[str, Any], leaves: Sequence[str]) -> list[Row]:
    numbers = results["results"][task]
    samples = results["n-samples"][task]["effective"] if task in leaves else numbers.get("sample_len", 0)
    found = []
    for key, value in numbers.items():
        metric, comma, selected = key.partition(",")
        if not comma or metric.endswith("_stderr") or isinstance(value, str) or _absent(metric, value):
            continue
        row = {
            "task": task,
            "group": None if task == name else name,
            "metric": metric if selected == "none" else f"{metric} ({selected})",
            "shots": results["n-shot"].get(task),
            "value": _number(value),
            "stderr": _number(numbers.get(f"{metric}_stderr,{selected}")),
            "samples": samples,
        }
        found.append(row)
    return found


def _absent(metric: str, value: Any) -> bool:
    """RULER writes -1 under each length that it did not ask for."""
    return metric.isdigit() and value == -1


def _macro(name: str, members: Sequence[Row], leaves: Sequence[str]) -> list[Row]:
    found = []
    for metric in dict.fromkeys(row["metric"] for row in members):
        of = [row for row in members if row["metric"] == metric]
        if len(of) != len(leaves) or any(row["value"] is None for row in of):
            continue
        shots = {row["shots"] for row in of}
        errors = [row["stderr"] for row in of]
        known = all(error is not None for error in errors)
        found.append(
            {
                "task": name,
                "group": None,
                "metric": f"{metric}_macro",
                "shots": shots.pop() if len(shots) == 1 else None,
                "value": math.fsum(row["value"] for row in of) / len(of),
                "stderr": math.sqrt(math.fsum(error**2 for error in errors)) / len(of) if known else None,
                "samples": sum(row["samples"] for row in of),
            }
        )
    return found


def _number(value: Any) -> float | None:
    """A finite number; None for "N/A", infinities and NaN, which JSON cannot hold."""
    if value is None or isinstance(value, str) or not math.isfinite(value):
        return None
    return float(value)
