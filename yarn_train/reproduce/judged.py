"""The claims, judged by what was measured: which numbers stand for a model. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Container, Sequence
from dataclasses import asdict
from typing import Any

from .claims import Claim, claims
from .experiments import METHODS

Json = dict[str, Any]
MODE = "token_mean"


def judged(found: Json) -> list[Json]:
    """Every claim about the means over the seeds that all trained models have, and for how many of them it holds alone.

    Args:
        found: what :func:`collect` returns, with or without its claims.
    """
    seeds = _common(found)
    whole = _claims(found, seeds)
    each = [_claims(found, {seed}) for seed in sorted(seeds)]
    return [{**asdict(claim), **_seeds(claim, [one[n] for one in each])} for n, claim in enumerate(whole)]


def _common(found: Json) -> set[int]:
    """Seeds of which every trained model is there: means of others would compare different data orders."""
    trained = [cell for table in found["tables"].values() for cell in table if not _fixed(cell)]
    each = [{value["seed"] for value in cell["values"]} for cell in trained]
    each += [
        {row["seed"] for row in found["losses"] if row["method"] == m} for m in {r["method"] for r in found["losses"]}
    ]
    each += [{row["seed"] for row in found["passkey"]}] if found["passkey"] else []
    return set.intersection(*each) if each else set()


def _claims(found: Json, seeds: set[int]) -> list[Claim]:
    one, two = (_curves(found["tables"][name], seeds) for name in ("table1", "table2"))
    shares = {
        model: {length: right / of for length, (right, of) in counts.items()}
        for model, counts in keys_found(found["passkey"], seeds).items()
    }
    return claims(one, two, _endings(found["losses"], seeds), shares, _dynamic(found["studies"].get("dynamic", [])))


def keys_found(rows: Sequence[Json], seeds: Container[int]) -> dict[str, dict[int, tuple[int, int]]]:
    """Keys found and asked for with these seeds, by model and length."""
    counts: dict[str, dict[int, tuple[int, int]]] = {}
    for row in rows:
        if row["seed"] in seeds:
            of = counts.setdefault(model_of(row), {})
            correct, total = of.get(row["length"], (0, 0))
            of[row["length"]] = (correct + row["correct"], total + row["total"])
    return counts


def _dynamic(rows: Sequence[Json]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        name = "base" if row["method"] == "none" else row["method"]
        if row["mode"] == MODE and row["perplexity"] is not None and name.startswith(("base", "dynamic")):
            found.setdefault(name, {})[row["window"]] = row["perplexity"]
    return found


def _seeds(claim: Claim, each: Sequence[Claim]) -> Json:
    known = [one.holds for one in each if one.holds is not None] if claim.trained else []
    return {"seeds_holding": sum(known), "seeds": len(known)}


def _curves(table: Sequence[Json], seeds: Container[int]) -> dict[str, dict[int, float]]:
    """Means over these seeds; a model that nobody trained has one value, which stands for all."""
    found: dict[str, dict[int, float]] = {}
    for cell in table:
        values = [value["perplexity"] for value in cell["values"] if value["seed"] in seeds or _fixed(cell)]
        mean = mean_and_spread(values)["mean"]
        if mean is not None:
            found.setdefault(cell["model"], {})[cell["window"]] = mean
    return found


def _fixed(cell: Json) -> bool:
    return cell["model"] == "base" or cell["model"].endswith("untrained")


def _endings(losses: Sequence[Json], seeds: Container[int]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for method in METHODS:
        chosen = [row for row in losses if row["method"] == method and row["seed"] in seeds]
        if chosen:
            found[method] = {key: statistics.fmean(row[key] for row in chosen) for key in ("first", "tenth", "last")}
    return found


def model_of(row: Json) -> str:
    """A model's name in tables: base, yarn_s16 or yarn_s16_untrained."""
    if row["method"] == "none":
        return "base"
    ramp = "_eq18" if row["ramp"] == "by_rotations" else ""
    return f"{row['method']}{ramp}_s{row['factor']:g}" + ("" if row["stage"] else "_untrained")


def mean_and_spread(values: Sequence[float | None]) -> Json:
    """The mean and the standard deviation (n - 1) of perplexities; neither where one of them is not finite."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    if len(known) < len(values) or not known:
        return {"mean": None, "spread": None}
    return {"mean": statistics.fmean(known), "spread": statistics.stdev(known) if len(known) > 1 else None}
