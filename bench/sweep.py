"""What a job of a sweep costs beside its work: a sweep against the same jobs typed one by one, side by side.

    python -m bench.sweep [--jobs 4] [--steps 10]

Both train the same jobs on the shipped base, one after the other, each evaluated. Overhead of a job is its wall time
without data preparation, steps, checkpoints and evaluation, as each run's own clock has them. The data is prepared
before. The one-by-one jobs share nothing; those of the sweep share imports and the evaluation of the base.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from bench.measure import table

ROOT = Path(__file__).resolve().parent.parent


def command(folder: Path, *words: str) -> list[str]:
    """train.py on the ready-made study, short."""
    quiet = ["tracking.wandb=disabled", f"run.dir={folder}"]
    return [sys.executable, str(ROOT / "train.py"), *words[:1], "experiment=study", *words[1:], *quiet]


def timed(words: list[str]) -> float:
    """Wall seconds of a command, whose output is shown only if it fails."""
    began = time.perf_counter()
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    return time.perf_counter() - began


def useful(run: Path) -> float:
    """Seconds of a run's last start on data, steps, checkpoints and evaluation."""
    return sum(json.loads((run / "run.json").read_text())["starts"][-1]["seconds"].values())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=4, help="jobs of the sweep")
    parser.add_argument("--steps", type=int, default=10, help="steps of each")
    options = parser.parse_args()
    betas = [16 + 8 * number for number in range(options.jobs)]
    steps = f"train.steps={options.steps}"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        timed(command(folder / "warm", "rope.beta=8", "train.steps=5"))
        alone = []
        for beta in betas:
            wall = timed(command(folder / f"alone_{beta}", f"rope.beta={beta}", steps))
            alone.append((wall, wall - useful(folder / f"alone_{beta}")))
        whole = timed(command(folder / "sweep", "-m", f"rope.beta={','.join(map(str, betas))}", steps))
        records = [json.loads(path.read_text()) for path in sorted((folder / "sweep" / "jobs").glob("*.json"))]
    swept = [(record["seconds"], record["overhead_seconds"]) for record in sorted(records, key=lambda r: r["number"])]
    rows = [
        [name, f"{wall:.1f}", f"{jobs[0][1]:.1f}", f"{median(cost for _, cost in jobs[1:] or jobs):.1f}"]
        for name, wall, jobs in (("one by one", sum(wall for wall, _ in alone), alone), ("sweep", whole, swept))
    ]
    print(table(["", "all jobs, s", "first job's overhead, s", "median overhead of the others, s"], rows))
    print(f"sweep / one by one: {whole / sum(w for w, _ in alone):.3f} of the time")


if __name__ == "__main__":
    main()
