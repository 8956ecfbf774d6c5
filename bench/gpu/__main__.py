"""What one GPU reaches, in one command: python -m bench.gpu

Kernels: TFLOP/s of every attention kernel that runs here. Training: tokens/s and MFU of Llama shapes at 8k to 256k.
The longest sequence of which a step fits. And the same steps by other trainers: transformers' Trainer with gradient
checkpointing, without and with Liger's kernels, and ALST's recipe by DeepSpeed.

Every cell is a process of its own with a time limit; out of memory, not installed and out of time are results. Each is
a JSON file, so the command goes on where it was stopped. At the end, also with --report alone, the folder has report.md
and report.png. --device cpu --tiny runs every kind of cell at sizes that say nothing about speed.
"""

from __future__ import annotations

import argparse
import fnmatch
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.gpu import report
from bench.gpu.cells import TRAINED, Cell, catalogue, probe_cell
from bench.gpu.outcome import OK, STATUSES
from bench.gpu.runner import Cells, Row, leave_on_signals
from bench.gpu.search import longest, predicted
from bench.gpu.shapes import kept_bytes, layer_state_bytes
from yarn_train.dist import nvidia_smi


def main() -> None:
    """Run the cells that are not finished, one after the other, and write the report."""
    given = arguments()
    name = "cpu" if given.device == "cpu" else device_name()
    folder = (
        given.out or Path("outputs/gpu_bench") / re.sub(r"\W+", "-", name + ("-tiny" if given.tiny else "")).lower()
    )
    cells = Cells(folder, given.device, given.limit)
    everything = catalogue(given.tiny)
    chosen = select(everything, given.cells)
    again = set(STATUSES) if given.again == [] else set(given.again or [])
    if given.list:
        for cell in chosen:
            row = cells.finished(cell, again)
            print(f"{cell.name:40} {row['status'] if row else 'to run'}")
        return
    if not given.report:
        leave_on_signals()
        run_all(cells, everything, chosen, again)
    print(report.write(folder, everything))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU; no figure of these means anything")
    parser.add_argument("--cells", nargs="+", metavar="PATTERN", default=["*"], help="such as 'side/*' or '*/1b/65536'")
    parser.add_argument("--list", action="store_true", help="print the cells and what became of them")
    parser.add_argument("--again", nargs="*", choices=STATUSES, help="run finished cells again: all, or by status")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds that one process may take")
    parser.add_argument("--report", action="store_true", help="run nothing, write the report of what is there")
    parser.add_argument("--out", type=Path, help="folder of results; by default one per device below outputs/gpu_bench")
    return parser.parse_args()


def select(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    """Cells whose names match one of the patterns.

    Raises:
        SystemExit: none does; names those there are.
    """
    found = [cell for cell in cells if any(fnmatch.fnmatch(cell.name, pattern) for pattern in patterns)]
    if not found:
        raise SystemExit(f"--cells {' '.join(patterns)} matches none of: {', '.join(cell.name for cell in cells)}")
    return found


def run_all(cells: Cells, everything: Sequence[Cell], chosen: Sequence[Cell], again: set[str]) -> None:
    """Run what is not finished, needs first, and say so, a line each."""
    by_name = {cell.name: cell for cell in everything}
    done: set[str] = set()
    for number, cell in enumerate(chosen, 1):
        for need in (by_name[name] for name in cell.needs if name not in done):
            if cells.finished(need, set()) is None:
                cells.run(need)
        if cell.name in done or (row := cells.finished(cell, again)) is not None:
            continue
        print(f"[{number}/{len(chosen)}] {cell.name}", end=" ", flush=True)
        row = search(cells, cell, again) if cell.kind == "longest" else cells.run(cell)
        done.add(cell.name)
        print(f"{row['status']} in {row['seconds']:.0f} s {row['variant']} {row['reason']}".rstrip(), flush=True)


def search(cells: Cells, cell: Cell, again: set[str]) -> Row:
    """A longest sequence: its probes are cells too, so a search that was stopped goes on."""
    started, seen = time.time(), []

    def probe(tokens: int) -> Row:
        one = probe_cell(cell.spec["row"], tokens)
        row = cells.finished(one, again) or cells.run(one)
        seen.append(row)
        return row

    found = longest(cell.spec["start"], cell.spec["most"], probe)
    row_of, whole = cell.spec["row"], cell.spec["whole"]
    size = TRAINED[row_of][0] if row_of in TRAINED else row_of
    guess = predicted(seen, layer_state_bytes(whole) - layer_state_bytes(size), kept_bytes(whole))
    row = {
        "name": cell.name,
        "kind": cell.kind,
        "spec": cell.spec,
        "variants": [name for name, _ in cell.variants],
        "status": OK if found.fits else found.status,
        "reason": f"{found.fails:,} tokens: {found.status}: {found.reason}" if found.fails else "",
        "variant": "",
        "tried": [],
        "result": {**asdict(found), "predicted": guess},
        "machine": seen[-1]["machine"],
        "limit": cells.limit,
        "seconds": round(time.time() - started, 1),
    }
    cells.write(cell, row)
    return row


def device_name() -> str:
    """The first GPU's, without making a CUDA context in this process.

    Raises:
        SystemExit: there is none.
    """
    try:
        done = nvidia_smi.query("gpu", ["name"], time.monotonic() + 10.0)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SystemExit(f"no GPU: nvidia-smi: {error}; --device cpu --tiny tries the command without one") from error
    if done.returncode or not done.stdout.strip():
        raise SystemExit(f"no GPU: nvidia-smi: {(done.stderr or done.stdout).strip()}")
    return done.stdout.splitlines()[0].strip()


if __name__ == "__main__":
    main()
