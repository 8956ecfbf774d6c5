"""bench.scaling: exponents against known data and numpy, its tables, and real ranks."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import ROOT, child_env

from bench.scaling import __main__ as command
from bench.scaling import length, ranks
from bench.scaling.case import Built, Case
from bench.scaling.fit import power_law
from yarn_train.data.batch import Batch
from yarn_train.model.flops import hardware_work

X = [1024.0, 2048.0, 4096.0, 8192.0, 16384.0]


def test_an_exact_power_is_found() -> None:
    fit = power_law(X, [3.0 * x**1.7 for x in X])
    assert (fit.exponent, fit.factor) == pytest.approx((1.7, 3.0))
    assert fit.error == pytest.approx(0.0, abs=1e-9)


def test_exponent_and_error_are_numpys() -> None:
    rng = np.random.default_rng(0)
    y = [2.0 * x**1.3 * math.exp(noise) for x, noise in zip(X, rng.normal(0, 0.1, len(X)), strict=True)]
    (slope, offset), covariance = np.polyfit(np.log(X), np.log(y), 1, cov=True)
    fit = power_law(X, y)
    assert fit.exponent == pytest.approx(slope)
    assert fit.factor == pytest.approx(math.exp(offset))
    assert fit.error == pytest.approx(math.sqrt(covariance[0, 0]))


def test_two_points_have_no_error() -> None:
    fit = power_law([1.0, 2.0], [4.0, 2.0])
    assert (str(fit), fit.error) == ("-1.00", None)


@pytest.mark.parametrize(("x", "y"), [([1.0], [1.0]), ([2.0, 2.0], [1.0, 3.0]), ([1.0, 2.0], [1.0, -1.0])])
def test_what_has_no_exponent_is_refused(x: list[float], y: list[float]) -> None:
    with pytest.raises(ValueError, match="power law"):
        power_law(x, y)


def made_up(tokens: int) -> length.Point:
    """A machine with 1 GFLOP/s for products and 2 for attention."""
    flops = length.flops_of(hardware_work(10_000, 0, 1, 64, tokens, False), tokens)
    seconds = {"attention": flops["attention"] / 2e9, "rest": flops["rest"] / 1e9}
    return length.Point(tokens, {"step": sum(seconds.values()), **seconds}, flops)


def test_parts_have_their_exponents() -> None:
    points = [made_up(tokens) for tokens in (1024, 4096, 16384)]
    assert points[0].flops["rest"] == 1024 * 60_000
    assert points[0].flops["attention"] == 3.5 * 2 * 64 * 1024**2
    found = length.fits(points)
    for part, exponent in (("attention", 2.0), ("rest", 1.0)):
        measured, by_flops = found[part]
        assert measured is not None
        assert (measured.exponent, by_flops.exponent) == pytest.approx((exponent, exponent))
    whole, by_flops = found["step"]
    assert whole is not None
    assert 1.0 < whole.exponent < by_flops.exponent < 2.0, "attention is the faster part of this machine"
    text = command.length_text(points)
    assert "attention measured" in text
    assert "2.00 ± 0.00" in text


@pytest.mark.parametrize(("activation", "attention"), [("none", 3 * 0.2), ("full", 3 * 0.2 * 4.5 / 3.5)])
def test_attention_is_that_of_all_layers_and_of_its_second_forward(activation: str, attention: float) -> None:
    case = Case(layers=3, activation=activation)
    sizes = SimpleNamespace(matmul=1000, recomputed=0)
    taken = {("step", 64): [2.0, 1.0, 3.0], ("attention", 64): [0.1, 0.2, 0.3]}
    point = length.point(sizes, case, 64, taken)
    assert point.seconds == pytest.approx({"step": 2.0, "attention": attention, "rest": 2.0 - attention})
    assert point.flops["rest"] == 64 * 6000


def test_ranks_are_judged_per_token() -> None:
    """Shared: 1.8 times as fast on two. A sequence each: twice the tokens in 1.25 times the time is 1.6 times."""
    rows = [
        {"ranks": 1, "way": "context", "seconds": 0.9, "tokens": 100, "loss": 1.0},
        {"ranks": 1, "way": "data", "seconds": 1.0, "tokens": 100, "loss": 1.0},
        {"ranks": 2, "way": "context", "seconds": 0.5, "tokens": 100, "loss": 1.0},
        {"ranks": 2, "way": "data", "seconds": 1.25, "tokens": 200, "loss": 1.0},
    ]
    lines = [line.split() for line in command.rank_text(rows).splitlines()]
    assert ["context", "2", "100", "0.500", "1.80", "90.0%"] in lines
    assert ["data", "2", "200", "1.250", "1.60", "80.0%"] in lines
    assert ["context", f"{-math.log2(1.8):.2f}", "-1.00"] in lines


SMALL = Case(hidden=32, heads=2, kv_heads=1, vocab=64)


def test_a_length_that_does_not_fit_takes_no_other_one_along(monkeypatch: pytest.MonkeyPatch) -> None:
    real, order = length.step, list[str]()

    def step(built: Built, batch: Batch, tokens: float) -> torch.Tensor:
        order.append(f"step of {batch.input_ids.shape[1]}")
        monkeypatch.setattr(built.engine, "skip", lambda: order.append("skip"))
        if batch.input_ids.shape[1] == 64:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return real(built, batch, tokens)

    monkeypatch.setattr(length, "step", step)
    points, failed = length.measure(SMALL, [32, 64, 128], 1, 60.0)
    assert [point.tokens for point in points] == [32, 128]
    assert order[order.index("step of 64") + 1] == "skip", "its gradients"
    lines = command.failed_lines(failed)
    assert lines == ["64 tokens: out of memory: CUDA out of memory. Tried to allocate 2 GiB"]
    assert "seconds ~ tokens ^" in command.length_text(points)
    assert "tokens" in command.length_text([]), "none of them did"


def test_two_ranks_share_a_sequence_without_changing_its_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(ROOT)
    one, _ = ranks.measure(SMALL, 48, [1], 1, cuda=False)
    shared, each = ranks.measure(SMALL, 48, [2], 1, cuda=False)
    assert (one["way"], shared["way"], each["way"]) == ("context", "context", "data")
    assert (shared["tokens"], each["tokens"]) == (48, 96)
    assert shared["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert each["loss"] != pytest.approx(one["loss"], rel=1e-5), "the second rank reads another sequence"


@pytest.mark.long
def test_the_command_prints_and_writes_both_tables(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    sizes = ["--lengths", "64", "128", "256", "--tokens", "64", "--hidden", "64", "--repeats", "1", "--json", str(file)]
    command = [sys.executable, "-m", "bench.scaling", *sizes]
    done = subprocess.run(command, cwd=ROOT, env=child_env(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "seconds ~ tokens ^" in done.stdout
    assert "seconds/token ~ ranks ^" in done.stdout
    found = json.loads(file.read_text())
    assert [point["tokens"] for point in found["length"]] == [64, 128, 256]
    assert [row["ranks"] for row in found["ranks"]] == [1, 1, 2, 2]
