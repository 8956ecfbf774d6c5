"""The comparison with other trainers: its ratios, and that all of them train the same model on the same data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, child_env

from bench import cpu_vs_peers
from bench.peers.case import Case

MIB = 2**20


def row(seconds: list[float], losses: list[float], mebibytes: int) -> dict[str, object]:
    return {"seconds": seconds, "losses": losses, "peak_bytes": mebibytes * MIB, "tokens_per_second": 1234.0}


CELL = {
    "ours": row([1.0, 2.0, 1.0], [8.0, 4.0], 300),
    "hf": row([1.5, 3.0, 9.0], [8.0, 4.002], 600),
}


def test_the_ratio_is_the_median_over_rounds() -> None:
    """The third round, where something else slowed one of them down, does not count."""
    assert cpu_vs_peers.speed(CELL, "hf") == 1.5
    assert cpu_vs_peers.speed(CELL, "ours") == 1.0


def test_losses_are_compared_step_by_step() -> None:
    assert cpu_vs_peers.loss_difference(CELL, "hf") == pytest.approx(5e-4)


def test_a_line_says_what_is_compared() -> None:
    _, hf = cpu_vs_peers.lines(Case("", vocab=4096, checkpointing=True), CELL)
    assert hf == ["4,096", "yes", "hf", "1,234", "1.50", "600", "0.50", "5.0e-04"]


def tiny(tmp_path: Path, trainers: list[str], *more: str) -> dict[str, dict[str, list[float]]]:
    """Losses of a few steps of a model of two blocks."""
    pytest.importorskip("accelerate")
    sizes = {"vocab": 96, "seq-len": 96, "layers": 2, "hidden": 64, "steps": 4, "warm": 1, "threads": 1}
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "bench.cpu_vs_peers", *options, "--json", str(tmp_path / "found.json")]
    command += ["--trainers", *trainers, *more]
    done = subprocess.run(command, cwd=ROOT, env=child_env(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "largest loss diff." in done.stdout
    (cell,) = json.loads((tmp_path / "found.json").read_text())
    assert list(cell["trainers"]) == trainers
    return cell["trainers"]


def assert_equal_losses(found: dict[str, dict[str, list[float]]], tolerance: float) -> None:
    ours = found.pop("ours")["losses"]
    assert len(ours) == 4
    assert ours[-1] < ours[0]
    for theirs in found.values():
        assert theirs["losses"] == pytest.approx(ours, rel=tolerance)


@pytest.mark.long
def test_a_trainer_in_turns_trains_as_ours_does(tmp_path: Path) -> None:
    options = ("--checkpointing", "yes", "--dtype", "float32")
    assert_equal_losses(tiny(tmp_path, ["ours", "accelerate"], *options), 1e-5)


@pytest.mark.long
@pytest.mark.parametrize("checkpointing", ["yes", "no"])
def test_all_trainers_train_the_same(tmp_path: Path, checkpointing: str) -> None:
    names = ["ours", "ours compiled", "hf", "hf compiled", "accelerate"]
    assert_equal_losses(tiny(tmp_path, names, "--checkpointing", checkpointing), 1e-3)
