"""Run folders and sweeps as training writes them, with numbers that look like those of real runs."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from yarn_train.config import defaults
from yarn_train.sweep import record
from yarn_train.sweep.names import job_name

WINDOWS = (256, 512, 1024, 2048, 4096, 8192)


def options(**changed: Any) -> dict[str, Any]:
    """Resolved options of a run, ``rope__alpha=2`` for an option of a section."""
    made = json.loads(json.dumps(defaults()))
    made["model"]["path"] = "data/base"
    made["rope"]["factor"], made["data"]["source"], made["data"]["seq_len"] = 16.0, "stdlib", 4096
    for key, value in changed.items():
        section, _, name = key.partition("__")
        made[section][name] = value
    return made


def write_metrics(folder: Path, steps: int, last: float, seed: int = 0, lr: float = 3e-4) -> None:
    """metrics.jsonl of a stage whose loss falls to about `last`."""
    noise = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    spike = noise.randrange(steps // 2, steps) if steps > 20 else -1
    with (folder / "metrics.jsonl").open("w") as out:
        for step in range(1, steps + 1):
            loss = last + 0.8 * math.exp(-8 * step / steps) + noise.gauss(0, 0.05) + (1.4 if step == spike else 0)
            row = {
                "step": step,
                "tokens": step * 16384,
                "loss": loss,
                "lr": lr * min(step / 20, 1 - max(0.0, (step - 20) / steps)),
                "grad_norm": 0.5 + 1.2 * math.exp(-8 * step / steps) + abs(noise.gauss(0, 0.08)),
                "skipped": None,
                "skipped_total": 0,
                "tokens_per_second": 4100 + noise.gauss(0, 60),
                "mfu": 0.38 + noise.gauss(0, 0.004),
                "peak_memory_bytes": 1_361_000_000 + 4096 * seed,
                "data_wait_seconds": 0.002,
                "seconds": 4.0,
                "save_seconds": 0.0,
                "step_tokens": 16384,
                "segments": [3421, 364, 1920, 366],
                "epoch": step / 900,
            }
            out.write(json.dumps(row) + "\n")


def perplexity_rows(final: float, factor: float = 16.0, stage: str = "01_s16") -> list[dict[str, Any]]:
    """The base and one trained model, at every window; `final` is the trained model's at the largest."""
    shared = {"ramp": None, "stride": 256, "mode": "token_mean", "tokens": 6144, "documents": 12, "score_from": 7936}
    base = {"label": "base, no scaling", "method": "none", "factor": 1.0, "stage": None}
    model = {"label": f"YaRN s={factor:g}", "method": "yarn", "factor": factor, "stage": stage}
    rows = []
    for i, window in enumerate(WINDOWS):
        rows.append({**shared, **base, "window": window, "perplexity": 8.1 * 1.8**i})
        rows.append({**shared, **model, "window": window, "perplexity": final * (1.5 - 0.1 * i)})
    return rows


def write_run(
    folder: Path, config: Mapping[str, Any], *, steps: int = 400, final: float | None = 5.3, seed: int = 0,
    exit_reason: str | None = "complete",
) -> Path:  # fmt: skip
    """A run of one stage; without `final` it was not evaluated."""
    stage = folder / "01_s16"
    write_metrics(stage, steps, last=math.log(final or 5.5), seed=seed, lr=config["optim"]["lr"])
    text = yaml.safe_dump({**config, "run": {**config["run"], "name": folder.name, "dir": str(folder)}})
    for path in (folder, stage):
        (path / "config.yaml").write_text(text)
    info = {
        "name": folder.name,
        "command": f"python train.py experiment=extend run.name={folder.name}",
        "seed": 0,
        "world_size": 1,
        "host": "node-a",
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        "git": "0123456789abcdef",
        "started": "2026-11-22T08:00:00+00:00",
        "ended": "2026-11-22T08:31:00+00:00" if exit_reason else None,
        "exit_reason": exit_reason,
        "starts": [{"host": "node-a", "world_size": 1}],
        "changes": [],
    }
    (folder / "run.json").write_text(json.dumps(info))
    if final is not None:
        (folder / "eval").mkdir(exist_ok=True)
        (folder / "eval" / "perplexity.json").write_text(json.dumps(perplexity_rows(final)))
    return folder


def passkey_rows(lengths: Sequence[int] = WINDOWS, total: int = 10) -> list[dict[str, Any]]:
    """A base that finds nothing beyond 512 tokens, and an extended model that fails in the middle of the longest."""
    return [
        {"label": label, "length": length, "depth": depth, "total": total,
         "correct": total if length <= reach else (3 if 0.2 < depth < 0.8 and label != "base" else 0)}
        for label, reach in (("base", 512), ("YaRN s=16", 4096))
        for length in lengths
        for depth in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]  # fmt: skip


def objective(swept: Mapping[str, Any]) -> float:
    """A bowl with its bottom at alpha 2, beta 32, temperature auto."""
    alpha, beta = math.log2(float(swept.get("rope.alpha", 1))), math.log2(float(swept.get("rope.beta", 32)))
    warm = swept.get("rope.temperature", "auto")
    heat = 0.0 if warm == "auto" else 0.03 + abs(float(warm) - 0.9)
    extra = 0.3 * abs(math.log10(float(swept.get("optim.lr", 3e-4)) / 3e-4))
    seed = 0.01 * swept.get("run.seed", 0)
    return 5.2 + 0.25 * (alpha - 1) ** 2 + 0.12 * (beta - 5) ** 2 + heat + extra + seed


def write_sweep(
    folder: Path, axes: Mapping[str, Sequence[Any]], *, steps: int = 400, fail: Sequence[int] = (),
    left_out: Sequence[int] = (), sweeper: str = "grid",
) -> Path:  # fmt: skip
    """A sweep over a grid; jobs in `fail` failed half way, those in `left_out` never began."""
    grid = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    words = [f"{key}={','.join(map(str, values))}" for key, values in axes.items()]
    common = ["experiment=extend", "train.steps=400"]
    command = f"python train.py -m {' '.join([*common, *words])}"
    when = "2026-11-22T08:00:00+00:00"
    sweep = record.Sweep(folder.name, command, sweeper, "basic", {k: list(v) for k, v in axes.items()}, common)
    record.write(folder, record.Sweep(**{**vars(sweep), "total": len(grid), "started": when, "ended": when}))
    for number, swept in enumerate(grid):
        if number in left_out:
            continue
        name, failed = job_name(swept), number in fail
        final = objective(swept)
        config = options(**{key.replace(".", "__"): value for key, value in swept.items()})
        made = steps // 3 if failed else steps
        run = write_run(folder / name, config, steps=made, final=None if failed else final, seed=number,
                        exit_reason="failed: loss is not finite" if failed else "complete")  # fmt: skip
        (run / "job.log").write_text("a line\n")
        job = record.Job(
            name=name, number=number, swept=swept, overrides=[*common, *(f"{k}={v}" for k, v in swept.items())],
            status="failed" if failed else "complete", exit_code=4 if failed else 0,
            reason="loss is not finite at 3 steps in a row: lower optim.lr" if failed else None,
            metric="perplexity at 8192", objective=None if failed else final, started=when, ended=when,
            seconds=1800.0 + number, overhead_seconds=3.2 + number / 100, devices=[str(number % 4)], host="node-a",
        )  # fmt: skip
        record.write(folder, job)
    return folder
