"""Every family that is taken, extended once by two ranks: what the tests and the page are about."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from families.catalogue import LENGTH, TAKEN
from support import ROOT, child_env
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

FACTOR = 4
RUN = ("experiment=extend", "eval=none", "data.source=pg19", f"data.seq_len={LENGTH}", "data.workers=1")
RUN += (f"rope.factor={FACTOR}", "train.steps=1", "schedule.warmup_steps=1", "train.global_batch_size=2")


@dataclass(frozen=True)
class Extended:
    """One family's base and what became of it.

    Attributes:
        base: folder with random weights.
        stage: folder of its only stage.
        errors: per rank, why the run ended; "" if it did not.
    """

    base: Path
    stage: Path
    errors: list[str]


@pytest.fixture(scope="session")
def extended(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast, books: Path
) -> dict[str, Extended]:
    """One optimizer step of every family by two processes, which run one after the other."""
    folder = tmp_path_factory.mktemp("families")
    jobs: list[dict[str, Any]] = []
    for name, family in TAKEN.items():
        torch.manual_seed(0)
        rows = len(tiny_tokenizer) + 8  # some tokenizer classes add tokens of their own
        AutoModelForCausalLM.from_config(family.config(rows)).save_pretrained(folder / name / "base")
        tiny_tokenizer.save_pretrained(folder / name / "base")
        own = (f"model.path={folder / name / 'base'}", f"run.dir={folder / name / 'run'}", f"data.path={books}")
        jobs.append({"options": [*RUN, *own, f"data.cache={folder / family.kind}_data", *family.options]})
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, str(ROOT / "tests/train_ranks.py"), str(folder), json.dumps(jobs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, env=child_env())
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    return {
        name: Extended(
            folder / name / "base", folder / name / "run" / f"01_s{FACTOR}", [rank[number]["error"] for rank in ranks]
        )
        for number, name in enumerate(TAKEN)
    }
