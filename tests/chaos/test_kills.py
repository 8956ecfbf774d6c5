"""kill -9 at any moment of a run of two ranks and two stages: it goes on, and ends as if nothing had happened.

CHAOS_KILLS (30) and CHAOS_SEED choose how many kills and which; `make chaos` makes more of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, child_env, course, same_weights

from yarn_train.checkpoint.complete import complete_checkpoints, problems_of

KILLS = int(os.environ.get("CHAOS_KILLS", "30"))
SEED = int(os.environ.get("CHAOS_SEED", str(random.randrange(10**6))))
STAGES = ("01_s4", "02_s8")
OPTIONS = (
    "model.dtype=float32",
    "train.steps=12",
    "train.global_batch_size=4",
    "checkpoint.every=1",
    "checkpoint.keep=2",
    "checkpoint.keep_every=5",
    "launch.timeout=30",
    "plan.check=off",
    "+curriculum.stages.s4.rope.factor=4",
    "+curriculum.stages.s8.rope.factor=8",
)


@dataclass
class Life:
    """One start of a run: how it was to die, and how it did."""

    codes: list[int]
    calls: list[int]
    seconds: float
    how: str


@dataclass
class Nursery:
    """The process that starts runs, see nursery.py."""

    process: subprocess.Popen[str]
    options: dict[str, Any]
    typed: dict[str, str]
    log: Path
    lives: list[Life] = field(default_factory=list)

    def live(
        self, folder: Path, die: tuple[int, int] | None = None, kill: tuple[float, list[int]] | None = None
    ) -> Life:
        """Start the run in `folder` and wait for its end.

        Args:
            die: rank and number of the call right before which it dies.
            kill: seconds after which, and ranks that, are killed.
        """
        order = {"options": self.options, "typed": self.typed, "folder": str(folder), "ranks": 2, "die": die}
        started = time.monotonic()
        self.log = folder.with_name(f"{folder.name}.life{len(self.lives)}")
        assert self.process.stdin
        print(json.dumps({**order, "log": str(self.log)}), file=self.process.stdin, flush=True)
        pids = self.answer()["pids"]
        if kill:
            time.sleep(kill[0])
            for rank in kill[1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pids[rank], signal.SIGKILL)
        ended = self.answer()
        how = f"rank {die[0]} before call {die[1]}" if die else f"ranks {kill[1]} after {kill[0]:.2f} s" if kill else ""
        self.lives.append(Life(ended["codes"], ended["calls"], time.monotonic() - started, how))
        return self.lives[-1]

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, "the nursery died"
        found: dict[str, Any] = json.loads(line)
        return found

    def said(self) -> str:
        """What the ranks of the newest life printed."""
        return "\n".join(Path(f"{self.log}.{rank}").read_text()[-3000:] for rank in (0, 1))


@pytest.fixture
def nursery(compose, tiny_args, tmp_path) -> Iterator[Nursery]:
    words = [a for a in tiny_args if not a.startswith(("rope.factor", "train.steps", "checkpoint."))] + list(OPTIONS)
    typed = {word.partition("=")[0].lstrip("+"): word for word in words}
    command = [sys.executable, str(ROOT / "tests/chaos/nursery.py")]
    env = {**child_env(), "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        made = Nursery(process, compose(*words), typed, tmp_path / "log")
        assert made.answer() == {"ready": True}
        yield made
        process.kill()


@pytest.mark.timeout(60 + 20 * KILLS)
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_never_was(nursery, tmp_path):
    rng = random.Random(SEED)
    print(f"CHAOS_SEED={SEED}")
    whole = tmp_path / "whole"
    reference = nursery.live(whole)
    assert reference.codes == [0, 0], nursery.said()
    kills, runs = 0, 0
    while kills < KILLS:
        run = tmp_path / f"run{runs}"
        runs += 1
        completed = False
        while not completed:
            life = nursery.live(run, **death(rng, reference) if kills < KILLS else {})
            completed = life.codes == [0, 0]
            kills += not completed
            assert completed or killed(life, run), f"seed {SEED}, {life}\n{nursery.said()}"
            look(run)
        for stage in STAGES:
            assert course(run / stage) == course(whole / stage), f"seed {SEED}: {stage} after {nursery.lives}"
            assert same_weights(run / stage / "model", whole / stage / "model"), f"seed {SEED}: {stage}"
            assert kept(run / stage) == kept(whole / stage)
    print(f"{kills} kills, {runs} runs, {sum(life.seconds for life in nursery.lives):.0f} s")


def death(rng: random.Random, reference: Life) -> dict[str, Any]:
    """How and when the next life ends: at a call that changes files, or at any time, one rank or both."""
    rank = rng.randrange(2)
    if rng.random() < 0.5:
        return {"die": (rank, rng.randint(1, max(1, reference.calls[rank] * 2 // 3)))}
    ranks = [rank] if rng.random() < 0.6 else [0, 1]
    return {"kill": (rng.uniform(0.0, reference.seconds * 0.8), ranks)}


def killed(life: Life, run: Path) -> bool:
    """Whether somebody was killed, nobody waited for ever, and nobody took that for a success before there was one."""
    over = (run / STAGES[-1] / "model").exists()
    return -signal.SIGKILL in life.codes and (over or all(life.codes)) and life.seconds < 60


def look(run: Path) -> None:
    """Nothing that counts as complete may be half written."""
    for stage in STAGES:
        for checkpoint in complete_checkpoints(run / stage / "checkpoints"):
            assert not problems_of(checkpoint), (checkpoint, problems_of(checkpoint))
        model = run / stage / "model"
        assert not model.exists() or (model / "model.safetensors").is_file()


def kept(stage: Path) -> list[str]:
    """Names of everything in a stage's checkpoint folder."""
    return sorted(path.name for path in (stage / "checkpoints").iterdir())
