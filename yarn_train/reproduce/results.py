"""What the runs found, as one JSON value: every number with the run folder it comes from. Never imports torch."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, problem
from .experiments import METHODS
from .judged import MODE, judged, mean_and_spread, model_of
from .runner import DONE, INPUTS

Json = dict[str, Any]
LAST = 10  # steps that the end of a training is the mean of


def collect(out: Path) -> Json:
    """Every complete run below a reproduction's folder; what is not there yet is left out.

    Returns:
        ``{seeds, inputs, tables: {name: [cell]}, losses, passkey, studies, claims, commands}``; a cell is ``{model,
        window, tokens, documents, values: [{seed, perplexity, low, high, run}], mean, spread}``, spread being the
        standard deviation over seeds.

    Raises:
        DataError: there is nothing.
    """
    done = _json(out / DONE) if (out / DONE).is_file() else {}
    folders = [out / key for key in sorted(done) if key.startswith("runs/")]
    rows = [row for folder in folders for row in _perplexity(out, folder)]
    losses = [row for folder in folders for row in _losses(out, folder)]
    if not done:
        fix = "run python -m yarn_train.reproduce first"
        raise DataError(problem("--out", str(out), "the folder of a reproduction", fix))
    tables = {name: cells([row for row in rows if row["table"] == name]) for name in ("table1", "table2")}
    studies = [out / key for key in sorted(done) if key.startswith("studies/")]
    files = [file for folder in studies for file in sorted(folder.glob("eval/*.json"))]
    found = {
        "seeds": sorted({row["seed"] for row in rows}),
        "inputs": _json(out / INPUTS) if (out / INPUTS).is_file() else {},
        "tables": tables,
        "losses": losses,
        "passkey": [row for folder in folders for row in _passkey(out, folder)],
        "studies": {file.stem: _json(file) for file in files if _kept(file)},
        "commands": done,
    }
    return {**found, "claims": judged(found)}


def cells(rows: Sequence[Json]) -> list[Json]:
    """One cell per model and window, in the order of their appearance."""
    found: dict[tuple[str, int], list[Json]] = {}
    for row in rows:
        found.setdefault((row["model"], row["window"]), []).append(row)
    return [
        {
            "model": model,
            "window": window,
            "tokens": group[0]["tokens"],
            "documents": group[0]["documents"],
            "values": [{k: r[k] for k in ("seed", "perplexity", "low", "high", "run")} for r in group],
            **mean_and_spread([r["perplexity"] for r in group]),
        }
        for (model, window), group in found.items()
    ]


def _perplexity(out: Path, folder: Path) -> Iterable[Json]:
    """Rows of one run, its models by the names that the tables use."""
    path = folder / "eval" / "perplexity.json"
    table = "table1" if folder.parent.name.endswith("_s2") else "table2"
    for row in _json(path) if path.is_file() else []:
        if row["mode"] == MODE:
            yield {
                "table": table,
                "model": model_of(row),
                "window": row["window"],
                "seed": _seed(folder),
                "perplexity": row["perplexity"],
                "low": row.get("low"),
                "high": row.get("high"),
                "tokens": row.get("tokens"),
                "documents": row.get("documents"),
                "run": folder.relative_to(out).as_posix(),
            }


def _losses(out: Path, folder: Path) -> Iterable[Json]:
    """The training loss at s=16: of its first and tenth step, and the mean of its last ten."""
    name = folder.parent.name
    method = "yarn" if name == "yarn_s16_s32" else name.removesuffix("_s16")
    path = folder / "01_s16" / "metrics.jsonl"
    if method not in METHODS or not path.is_file():
        return
    steps = {row["step"]: row["loss"] for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    values = [steps[step] for step in sorted(steps)]
    if len(values) >= LAST and all(value is not None for value in values):
        yield {
            "method": method,
            "seed": _seed(folder),
            "first": values[0],
            "tenth": values[9],
            "last": statistics.fmean(values[-LAST:]),
            "curve": values,
            "run": folder.relative_to(out).as_posix(),
        }


def _passkey(out: Path, folder: Path) -> Iterable[Json]:
    path = folder / "eval" / "passkey.json"
    for row in _json(path) if path.is_file() else []:
        yield {**row, "seed": _seed(folder), "run": folder.relative_to(out).as_posix()}


def _seed(folder: Path) -> int:
    return int(folder.name.removeprefix("seed_"))


def _kept(path: Path) -> bool:
    return not path.stem.endswith("_settings")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            problem(str(path), str(error), "JSON that an evaluation wrote", "evaluate that run again")
        ) from error
