"""eval=temperature and eval=ramp from their entry: numbers against models built for each table, rounds, going on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from yarn_train import config as schema
from yarn_train.config import RopeConfig
from yarn_train.errors import ConfigError
from yarn_train.eval import __main__ as entry
from yarn_train.eval.documents import evaluated
from yarn_train.eval.perplexity.plan import plan
from yarn_train.eval.perplexity.score import score
from yarn_train.eval.studies import fit, points, ramp, temperature
from yarn_train.report import terminal
from yarn_train.rope.hf import scaled_config

SMALL = ("eval.stride=8", "eval.documents=2", "model.dtype=float32", "study.factors=[2,3]")


@pytest.fixture
def study(compose: Any, monkeypatch: pytest.MonkeyPatch, base: Path, books: Path, tmp_path: Path) -> Any:
    """study(*words) -> how many tables were scored; again and again in the same folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal, "show_report", lambda folder: None)
    calls: list[int] = []
    own = points.scores
    monkeypatch.setattr(points, "scores", lambda *given, **more: calls.append(given[1]) or own(*given, **more))

    def run(*words: str) -> int:
        calls.clear()
        where = (f"model.path={base}", "eval.source=pg19", f"eval.path={books}")
        entry.evaluate_model(compose(*SMALL, *where, *words), (), tmp_path)
        return len(calls)

    return run


def rows(folder: Path, name: str) -> Any:
    return json.loads(next(folder.glob(f"outputs/eval/*/eval/{name}.json")).read_text())


def expected(compose: Any, base: Path, books: Path, rope: RopeConfig, window: int) -> float:
    """Perplexity of a model that was built with this RoPE."""
    words = (*SMALL, "eval.windows=[64,96]", "eval.source=pg19", f"eval.path={books}", f"model.path={base}")
    cfg = schema.build(compose(*words))
    scoring = plan(cfg, evaluated(cfg), AutoTokenizer.from_pretrained(base), 32, 3.0)
    config = scaled_config(AutoConfig.from_pretrained(base), rope)
    model = AutoModelForCausalLM.from_pretrained(base, config=config, dtype=torch.float32)
    return score(model, scoring.documents, window, 8, scoring.score_from, bos_id=0).perplexity("token_mean")


def test_temperature_rows_are_those_of_models_built_for_them(study, compose, base, books, tmp_path, capsys):
    study("eval=temperature", "study.temperatures=[1.0,0.6]")
    found = rows(tmp_path, "temperature")
    assert {(row["factor"], row["window"]) for row in found} == {(2.0, 64), (3.0, 96)}
    for row in [*found[:2], *found[-2:]]:
        rope = RopeConfig(method="yarn", factor=row["factor"], temperature=row["temperature"])
        assert row["perplexity"] == pytest.approx(expected(compose, base, books, rope, row["window"]), rel=1e-6), row
        assert row["low"] < row["perplexity"] < row["high"]
    for factor in (2.0, 3.0):
        asked = {row["temperature"] for row in found if row["factor"] == factor}
        assert {1.0, 0.6} <= asked
        assert min(abs(t - temperature.rule(factor)) for t in asked) < 1e-6, "the paper's rule is always tried"
        assert len(asked) > 3, "and more around the lowest"
    fitted = rows(tmp_path, "temperature_fit")
    assert [best["factor"] for best in fitted["best"]] == [2.0, 3.0]
    (one, two), line = fitted["best"], fitted["fit"]
    assert line["a"] * math.log(2) + line["b"] == pytest.approx(one["temperature"] ** -0.5)  # a line through two points
    assert line["a"] * math.log(3) + line["b"] == pytest.approx(two["temperature"] ** -0.5)
    assert line["a_low"] <= line["a"] <= line["a_high"]
    assert "the paper: 0.1 ln s + 1" in capsys.readouterr().out


def test_the_best_temperature_is_lower_than_its_neighbours_or_said_to_be_at_the_edge(study, tmp_path):
    study("eval=temperature", "study.temperatures=[1.0,0.6]")
    found, fitted = rows(tmp_path, "temperature"), rows(tmp_path, "temperature_fit")
    for best in fitted["best"]:
        curve = sorted((r["temperature"] ** -0.5, r["perplexity"]) for r in found if r["factor"] == best["factor"])
        lowest = min(range(len(curve)), key=lambda n: curve[n][1])
        if best["at_edge"]:
            assert lowest in (0, len(curve) - 1)
            assert best["low"] is best["high"] is None
        else:
            near = [x for x, _ in curve[lowest - 1 : lowest + 2]]
            assert near[0] <= best["temperature"] ** -0.5 <= near[2]
            assert min(near[1] - near[0], near[2] - near[1]) <= temperature.FINE
            assert best["low"] <= best["temperature"] <= best["high"]


def test_an_interval_of_t_goes_from_the_larger_root_to_the_smaller():
    best = temperature._best(2.0, fit.Minimum(1.2, "", np.linspace(1.1, 1.3, 101)))
    assert best["low"] < best["temperature"] < best["high"]
    assert (best["low"], best["high"]) == pytest.approx((1.295**-2, 1.105**-2))


@pytest.mark.parametrize("factor", [2.0, 16.0, 32.0])
def test_the_rule_is_the_papers(factor):
    assert temperature.rule(factor) == pytest.approx((0.1 * math.log(factor) + 1) ** -2, rel=1e-12)


def test_the_best_ramp_is_finite_and_said_to_be_chosen():
    cells = [(1.0, 8.0, "by_index"), ramp.DEFAULT, (2.0, 32.0, "by_index")]
    listed = [
        points.Point({"factor": 2.0, "alpha": a, "beta": b, "ramp": r}, RopeConfig(factor=2.0), 64) for a, b, r in cells
    ]
    losses = [[math.nan, 1.0, 1.0], [2.0, 3.0, 4.0], [1.0, 2.0, 3.0]]
    sums = {point.key: points.Sums(loss, [1, 1, 1]) for point, loss in zip(listed, losses, strict=True)}
    known = SimpleNamespace(
        of=lambda point: sums[point.key],
        row=lambda point: {"perplexity": points.perplexity(sums[point.key])},
        scoring=SimpleNamespace(bootstrap=100),
    )
    best = ramp._best(known, listed)
    assert (best["alpha"], best["beta"], best["cells"]) == (2.0, 32.0, 3)
    assert best["ratio"] == pytest.approx(math.exp(-1))
    said = ramp._said(best)
    assert said.endswith("of the default's perplexity, chosen as the best of 3 on these documents")
    assert "noise" not in said


def curves(compose: Any, base: Path, books: Path, temperature: float) -> np.ndarray:
    """Loss at every position of a window of 64, ``[documents, 63]``, of a model built with s = 2 and this t."""
    words = (*SMALL, "eval.windows=[64]", "eval.source=pg19", f"eval.path={books}", f"model.path={base}")
    cfg = schema.build(compose(*words))
    scoring = plan(cfg, evaluated(cfg), AutoTokenizer.from_pretrained(base), 32, 2.0)
    config = scaled_config(AutoConfig.from_pretrained(base), RopeConfig(factor=2.0, temperature=temperature))
    model = AutoModelForCausalLM.from_pretrained(base, config=config, dtype=torch.float32)
    found = score(model, scoring.documents, 64, 8, scoring.score_from, bos_id=0, curves=True)
    return np.stack([curve[:63] for curve in found.curves]).astype(np.float64)


def test_gains_by_position_are_the_losses_difference(study, compose, base, books, tmp_path):
    study("eval=temperature", "study.temperatures=[1.0,0.6]", "study.factors=[2]", "eval.windows=[64]")
    gains, best = rows(tmp_path, "temperature_positions"), rows(tmp_path, "temperature_fit")["best"][0]
    assert (gains[0]["begin"], gains[-1]["end"]) == (1, 64)
    assert {g["temperature"] for g in gains} == {best["temperature"]}
    assert sum(g["tokens"] for g in gains) == 63 * 2
    assert any(g["improvement"] != 0 for g in gains)
    warm, plain = (curves(compose, base, books, t) for t in (best["temperature"], 1.0))
    for gain in gains:  # positive: the loss at t = 1 is higher
        at = slice(gain["begin"] - 1, gain["end"] - 1)
        assert gain["improvement"] == pytest.approx(float((plain[:, at] - warm[:, at]).mean()), abs=1e-5), gain
    assert rows(tmp_path, "temperature_fit")["fit"] is None  # one s makes no line


def test_what_was_scored_is_not_scored_again(study, tmp_path, monkeypatch):
    first = study("eval=temperature", "study.temperatures=[1.0,0.6]", "study.factors=[2]")
    whole = rows(tmp_path, "temperature")
    file = next(tmp_path.glob("outputs/eval/*/eval/temperature_documents.json"))
    kept = json.loads(file.read_text())
    file.write_text(json.dumps(kept[:-1]))  # of the last point one document is missing
    again = study("eval=temperature", "study.temperatures=[1.0,0.6]", "study.factors=[2]")
    curves = 2  # the losses by position are not kept
    assert (first - curves, again - curves) == (len(kept) // 2, 1)
    assert rows(tmp_path, "temperature") == whole


def test_every_ramp_is_scored_and_the_best_compared_with_the_default(study, compose, base, books, tmp_path, capsys):
    study("eval=ramp", "study.alphas=[1]", "study.betas=[4,32]", "study.factors=[3]", "eval.windows=[64]")
    found = rows(tmp_path, "ramp")
    cells = {(r["alpha"], r["beta"], r["ramp"], r["window"]) for r in found}
    assert cells == {(1, b, r, w) for b in (4, 32) for r in ("by_index", "by_rotations") for w in (64, 96)}
    for row in found[:2]:
        rope = RopeConfig(factor=3.0, alpha=row["alpha"], beta=row["beta"], ramp=row["ramp"])
        assert row["perplexity"] == pytest.approx(expected(compose, base, books, rope, row["window"]), rel=1e-6)
    for best in rows(tmp_path, "ramp_best"):
        chosen = {(r["alpha"], r["beta"], r["ramp"]): r["perplexity"] for r in found if r["window"] == best["window"]}
        assert best["perplexity"] == min(chosen.values())
        assert best["ratio"] == pytest.approx(best["perplexity"] / chosen[ramp.DEFAULT])
        assert best["low"] <= best["ratio"] <= best["high"]
    assert "s=3 at 96: best" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("eval=temperature", "study.temperatures=[1.0]"), "study.temperatures: got [1.0]"),
        (("eval=temperature", "study.factors=[1,2]"), "study.factors: got 1.0"),
        (("eval=temperature", "rope.temperature=0.7"), "list them in study.temperatures"),
        (("eval=ramp", "study.alphas=[40]"), "alpha=40 with beta=8"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_loads(study, words, said):
    with pytest.raises(ConfigError) as error:
        study(*words)
    assert said in str(error.value)
