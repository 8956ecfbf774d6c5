"""One run, handed on between engines, shardings and numbers of ranks: nothing of its state changes on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from engine_state import watch
from support import ROOT, child_env, metrics

from yarn_train.train.skipped import GRADIENT, LOSS, SPIKE

ZERO = "engine.name=deepspeed"


@pytest.fixture
def train_on(tmp_path: Path) -> Callable[..., list[list[dict[str, Any]]]]:
    """train_on(ranks, job, ...) -> what every rank found of every job; see train_ranks."""

    def run(ranks: int, *jobs: dict[str, Any]) -> list[list[dict[str, Any]]]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command = [sys.executable, *launcher, str(ROOT / "tests/train_ranks.py"), str(tmp_path), json.dumps(jobs)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, env=child_env())
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        return [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(ranks)]

    return run


@pytest.mark.parametrize(
    "four",
    [[], pytest.param([["parallel.replicate=2"], ["parallel.context=2"]], marks=pytest.mark.long)],
    ids=["2 and 1 ranks", "then 4"],
)
def test_a_run_goes_on_under_any_engine_and_number_of_ranks(train, train_on, tiny_args, tmp_path, four):
    args = [*tiny_args, "model.dtype=float32", "train.global_batch_size=8", "checkpoint.every=100", "train.steps=8"]
    args += ["optim.weight_decay=0.1", "optim.lr=3e-3"]
    whole = metrics(train(tmp_path / "whole", *args, "train.micro_batch_size=8") / "01_s4")

    parts = [*args, f"run.dir={tmp_path / 'parts'}"]
    two = [[], [ZERO, "engine.zero_stage=1"], [ZERO, "engine.zero_stage=2"], [ZERO, "engine.zero_stage=3"]]
    seen: list[dict[str, Any]] = []

    def jobs(options: list[list[str]], first: int) -> list[dict[str, Any]]:
        return [{"options": [*parts, *own, f"train.stop_after={first + i}"]} for i, own in enumerate(options)]

    seen += train_on(2, *jobs(two, 2))[0]
    with pytest.MonkeyPatch.context() as patch:
        found = watch(patch)
        train(tmp_path / "parts", *args, "engine.offload=optimizer", "train.stop_after=6")
        seen.append(json.loads(json.dumps({"error": "", **found})))
    if four:
        seen += train_on(4, *jobs(four, 7))[0]

    assert [job["error"] for job in seen] == [""] * (5 + len(four))
    for step, (before, after) in enumerate(pairwise(seen), start=2):
        saved, loaded = before["saved"][str(step)], after["loaded"][str(step)]
        assert saved.keys() >= {"step", "weights.model.model.embed_tokens.weight", "exp_avg_sq.model.model.norm.weight"}
        assert loaded == saved, f"step {step}"
    rows = metrics(tmp_path / "parts/01_s4")
    whole = whole[: 6 + len(four)]
    assert [row["segments"] for row in rows] == [row["segments"] for row in whole]
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in rows] == pytest.approx([row[key] for row in whole], rel=1e-5)
    assert rows[0]["loss"] > 1.01 * rows[-1]["loss"]


QUICK = {
    "fsdp2": ["model.dtype=bfloat16"],
    "zero-0": [ZERO, "engine.zero_stage=0", "model.dtype=float32"],
    "bf16 zero-2 offloaded": [ZERO, "engine.zero_stage=2", "engine.offload=optimizer"],
}
SLOW = {
    "hsdp": ["model.dtype=bfloat16", "parallel.replicate=2"],
    **{f"zero-{stage}": [ZERO, f"engine.zero_stage={stage}", "model.dtype=float32"] for stage in (1, 2, 3)},
    **{f"bf16 zero-{stage}": [ZERO, f"engine.zero_stage={stage}"] for stage in (1, 2, 3)},
    "bf16 zero-1 offloaded": [ZERO, "engine.zero_stage=1", "engine.offload=optimizer"],
    "bf16 zero-3 offloaded": [ZERO, "engine.zero_stage=3", "engine.offload=all"],
}


@pytest.mark.parametrize("engines", [QUICK, pytest.param(SLOW, marks=pytest.mark.long)], ids=["quick", "slow"])
def test_one_ranks_bad_step_is_skipped_by_all_under_every_engine(train_on, tiny_args, tmp_path, engines):
    """Rank 1's loss, then its gradient; in bfloat16 and in float32."""
    args = [*tiny_args, "checkpoint.every=1", "train.steps=5"]
    jobs = [
        {"options": [*args, *own, f"run.dir={tmp_path / name}"], "rank": 1, "poison": {2: "loss", 4: "gradient"}}
        for name, own in engines.items()
    ]
    spike = [*args, ZERO, "engine.zero_stage=2", "train.steps=13", "train.spike_factor=3", f"run.dir={tmp_path}/spike"]
    jobs.append({"options": spike, "rank": 1, "poison": {12: "spike"}})
    ranks = train_on(2, *jobs)
    ours, theirs = (rank[-1] for rank in ranks)
    assert ours["error"] == theirs["error"] == ""
    assert ours["saved"]["12"] == ours["saved"]["11"] == theirs["saved"]["12"]
    assert ours["saved"]["13"]["step"] != ours["saved"]["12"]["step"]
    assert [row["step"] for row in metrics(tmp_path / "spike/01_s4") if row["skipped"] == SPIKE] == [12]
    for number, name in enumerate(engines):
        ours, theirs = (rank[number] for rank in ranks)
        assert ours["error"] == theirs["error"] == "", name
        states = ours["saved"]
        assert states == theirs["saved"], name
        assert states["2"] == states["1"], name
        assert states["4"] == states["3"], name
        assert len({states[step]["step"] for step in ("1", "3", "5")}) == 3, name
        rows = metrics(tmp_path / name / "01_s4")
        assert [row["skipped"] for row in rows] == [None, LOSS, None, GRADIENT, None], name
        assert rows[3]["loss"] is not None
