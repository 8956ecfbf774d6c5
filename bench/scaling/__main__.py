"""What a step costs against the sequence length and against ranks: python -m bench.scaling

Length: forward and backward of one sequence, and its attention kernel alone, in turns in one process. The exponents are
those of power laws fitted in logarithms, with their standard errors; beside each is the exponent of the FLOPs that
model/flops.py counts at the same lengths, and beside the measured share of attention the one that they predict.

Ranks: the same step under torchrun, one sequence shared by all ranks (context) and a sequence per rank (data). Seconds
per token of all ranks have the exponent -1 where nothing is lost. On a CPU every rank has one thread.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.gpu.outcome import of_error
from bench.gpu.runner import set_allocator
from bench.measure import table
from bench.scaling import ranks as over_ranks
from bench.scaling.case import Case
from bench.scaling.fit import power_law
from bench.scaling.length import PARTS, Point, fits, measure

KI = 1024
CPU = {"lengths": [KI * 2**n for n in range(5)], "tokens": 4 * KI, "hidden": 128, "layers": 1, "dtype": "float32"}
CUDA = {"lengths": [8 * KI * 2**n for n in range(6)], "tokens": 64 * KI, "hidden": 2048, "layers": 2}


def main() -> None:
    """Measure, print both tables."""
    set_allocator(os.environ)  # here and in the ranks
    given = arguments()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    case = Case(
        hidden=given.hidden,
        layers=given.layers,
        heads=given.heads or given.hidden // 64,
        kv_heads=given.kv_heads or given.heads or given.hidden // 64,
        dtype=given.dtype,
        activation=given.activation,
    )
    print(f"{case.layers} layer(s), hidden {case.hidden}, {case.heads} heads, {case.kv_heads} for keys, {case.dtype}")
    found: dict[str, Any] = {"case": asdict(case)}
    if "ranks" in given.what:  # first: these processes share the machine with nobody
        rows = over_ranks.measure(case, given.tokens, given.ranks, given.repeats, torch.cuda.is_available())
        print(rank_text(rows), end="\n\n")
        found["ranks"] = rows
    if "length" in given.what:
        points, failed = measure(case, given.lengths, given.repeats, given.limit)
        print("\n".join([length_text(points), *failed_lines(failed)]))
        found["length"] = [asdict(point) for point in points]
        found["failed"] = failed_lines(failed)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    """The command line; what it leaves out depends on the device."""
    usual = CUDA if torch.cuda.is_available() else CPU
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=["length", "ranks"], default=["length", "ranks"])
    parser.add_argument("--lengths", type=int, nargs="+", default=usual["lengths"])
    parser.add_argument("--ranks", type=int, nargs="+", default=usual_ranks())
    parser.add_argument("--tokens", type=int, default=usual["tokens"], help="of a sequence that ranks are timed with")
    parser.add_argument("--hidden", type=int, default=usual["hidden"])
    parser.add_argument("--layers", type=int, default=usual["layers"])
    parser.add_argument("--heads", type=int, help="by default of 64 dimensions")
    parser.add_argument("--kv-heads", type=int, help="as many as --heads by default")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default=usual.get("dtype", "bfloat16"))
    parser.add_argument("--activation", choices=["none", "full", "attention", "offload"], default="none")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds after which no round of lengths begins")
    parser.add_argument("--json", type=Path, help="write all numbers here too")
    return parser.parse_args()


def usual_ranks() -> list[int]:
    """1 and 2 on a CPU; powers of two up to the GPUs that are here."""
    most = torch.cuda.device_count() if torch.cuda.is_available() else 2
    return [2**n for n in range(most.bit_length()) if 2**n <= most]


def length_text(points: Sequence[Point]) -> str:
    """A line per length, and the exponents of every part."""
    rows = [
        [
            f"{point.tokens:,}",
            f"{point.seconds['step']:.3f}",
            f"{point.seconds['attention']:.3f}",
            f"{point.seconds['attention'] / point.seconds['step']:.1%}",
            f"{point.flops['attention'] / point.flops['step']:.1%}",
            f"{point.flops['step'] / point.seconds['step'] / 1e9:,.1f}",
        ]
        for point in points
    ]
    columns = ["tokens", "step s", "attention s", "attention measured", "by FLOPs", "GFLOP/s"]
    if len({point.tokens for point in points}) < 2:
        return table(columns, rows)
    found = fits(points)
    exponents = [[part, str(found[part][0] or "-"), f"{found[part][1].exponent:.2f}"] for part in PARTS]
    return f"{table(columns, rows)}\n\n{table(['seconds ~ tokens ^', 'measured', 'by FLOPs'], exponents)}"


def failed_lines(failed: dict[int, Exception]) -> list[str]:
    """A line per length that has no figures."""
    return [f"{length:,} tokens: {': '.join(of_error(error))}" for length, error in failed.items()]


def rank_text(rows: Sequence[dict[str, Any]]) -> str:
    """A line per number of ranks and way, with its speed-up, and the exponents."""
    first = {way: next(row for row in rows if row["way"] == way) for way in over_ranks.WAYS}
    lines, exponents = [], []
    for way in over_ranks.WAYS:
        mine = [row for row in rows if row["way"] == way]
        per_token = [row["seconds"] / row["tokens"] for row in mine]
        for row, cost in zip(mine, per_token, strict=True):
            faster = first[way]["seconds"] / first[way]["tokens"] / cost
            share = faster / (row["ranks"] / first[way]["ranks"])
            tokens = f"{row['tokens']:,}"
            lines.append([way, str(row["ranks"]), tokens, f"{row['seconds']:.3f}", f"{faster:.2f}", f"{share:.1%}"])
        if len(mine) > 1:
            exponents.append([way, str(power_law([float(row["ranks"]) for row in mine], per_token)), "-1.00"])
    text = table(["way", "ranks", "tokens", "step s", "faster", "of ideal"], lines)
    if exponents:
        text += "\n\n" + table(["seconds/token ~ ranks ^", "measured", "ideal"], exponents)
    return text


if __name__ == "__main__":
    main()
