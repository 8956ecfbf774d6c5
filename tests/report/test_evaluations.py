"""What is read of a folder's evaluations, and what is computed from them."""

from __future__ import annotations

import json
import math
import random

import pytest
from evaluation_rows import BASE, FIRST, SECOND, document_rows, files, harness_rows, name, write_evaluation

from yarn_train.errors import DataError
from yarn_train.report.collect import collect, is_run
from yarn_train.report.eval_tables import (
    document_grid,
    harness_grid,
    passkey_grid,
    percent,
    price_grid,
    ramp_grid,
    score_grid,
    temperature_grid,
)
from yarn_train.report.evaluations import Evaluations, read_evaluations
from yarn_train.report.figures.passkey import cells
from yarn_train.report.figures.temperature import corridor, rule
from yarn_train.report.paired import Change, change, change_at
from yarn_train.report.regressions import by_model, regressions
from yarn_train.report.rows import Document, Line, Passkey, Row, Score


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return read_evaluations(write_evaluation(tmp_path_factory.mktemp("made") / "model"))


def test_every_file_is_read(found):
    written = files()
    for kind, file in (("documents", "perplexity_documents"), ("gains", "temperature_positions")):
        assert len(getattr(found, kind)) == len(written[file])
    for kind in ("perplexity", "positions", "passkey", "harness", "dynamic", "temperature", "ramp"):
        assert len(getattr(found, kind)) == len(written[kind]), kind
    assert len(found.best) == 4
    assert found.line == Line(0.08, 1.0, 0.06, 0.1, 0.97, 1.03)
    assert math.isnan(found.perplexity[1].low)  # null: no interval
    assert found.passkey[-1].variant == "reference"
    assert math.isnan(found.harness[3].stderr)


def test_a_folder_with_an_evaluation_alone_is_one_to_report(tmp_path):
    folder = write_evaluation(tmp_path / "model", {"passkey": files()["passkey"]})
    assert is_run(folder)
    run = collect(folder)
    assert not run.trained_here
    assert run.evaluations.labels() == [m["label"] for m in (BASE, FIRST, SECOND)]
    assert not is_run(tmp_path)
    (tmp_path / "other" / "eval").mkdir(parents=True)
    (tmp_path / "other" / "eval" / "notes.json").write_text("[]")
    assert not is_run(tmp_path / "other")
    with pytest.raises(DataError, match=r"give the folder around it, .*model"):
        collect(folder / "eval")
    assert not Evaluations()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("positions", [{"label": "x", "begin": 0, "end": 1}]),
        ("passkey", [{"label": "x", "length": 8, "depth": "deep", "correct": 1, "total": 2}]),
        ("harness", {"results": {}}),
        ("temperature_fit", {"best": [{"factor": 2}]}),
        ("temperature_fit", {"best": 3}),
        ("ramp", [["factor"]]),
        ("dynamic", [None]),
    ],
)
def test_a_damaged_evaluation_is_named(tmp_path, file, content):
    with pytest.raises(DataError, match=rf"{file}\.json: got .*allowed: .*fix: "):
        collect(write_evaluation(tmp_path / "model", {file: content}))


def test_a_change_is_measured_on_the_same_documents():
    before = [Document("a", 8, d, nll, tokens) for d, nll, tokens in (("x", 10.0, 10), ("y", 40.0, 20), ("z", 9.0, 3))]
    after = [Document("b", 8, d, nll, tokens) for d, nll, tokens in (("x", 11.0, 10), ("y", 42.0, 20), ("w", 9.0, 3))]
    two = change(before, after)
    assert two is not None
    assert two.ratio == pytest.approx(math.exp(3 / 30))
    assert two.low == pytest.approx(math.exp(0.1))  # 1 nat of 10 tokens in one, 2 of 20 in the other
    one = change(before[:1], after)
    assert one is not None
    assert math.isnan(one.low)  # one document says nothing of others
    assert change(before, [Document("b", 8, "x", 11.0, 9)]) is None  # other tokens were scored
    assert change(before, []) is None


def test_the_interval_of_a_change_knows_that_documents_are_hard_for_both():
    noise = random.Random(0)
    hard = [noise.gauss(2.5, 0.8) for _ in range(12)]
    before = [Document("a", 8, f"{i}", 100 * h, 100) for i, h in enumerate(hard)]
    after = [Document("b", 8, f"{i}", 100 * (h + 0.03 + noise.gauss(0, 0.01)), 100) for i, h in enumerate(hard)]
    paired = change(before, after)
    assert paired is not None
    assert 1.02 < paired.low < math.exp(0.03) < paired.high < 1.04
    assert paired.sure
    assert not Change(1.05, 0.9, 1.2).sure
    assert not Change(1.05).sure


def test_the_interval_covers_the_truth():
    noise, inside = random.Random(1), 0
    for _ in range(60):
        before = [Document("a", 8, f"{i}", 0.0, 50) for i in range(20)]
        after = [Document("b", 8, f"{i}", 50 * noise.gauss(0.1, 0.1), 50) for i in range(20)]
        found = change(before, after)
        assert found is not None
        inside += found.low <= math.exp(0.1) <= found.high
    assert 51 <= inside <= 60


def test_without_documents_the_change_is_the_plain_ratio():
    rows = [Row("base", 256, 8.0), Row("model", 256, 8.4), Row("model", 512, math.nan)]
    assert change_at(rows, [], "base", "model", 256) == pytest.approx(Change(1.05), nan_ok=True)
    assert change_at(rows, [], "base", "model", 512) is None
    assert percent(Change(1.05)) == "+5.0 %"
    assert percent(Change(0.98, 0.97, 0.99)) == "-2.0 % (-3.0 to -1.0)"
    assert percent(Change(31.0)) == "x 31.00"
    assert percent(None) == ""


def test_the_price_is_asked_at_the_bases_own_windows(found):
    grid = price_grid(found.perplexity, found.documents, 512)
    assert grid is not None
    assert grid.header == ["more than the base at", "256", "512"]
    assert [row[0] for row in grid.body] == ["YaRN s=16, untrained", FIRST["label"], SECOND["label"]]
    assert grid.muted == {0}
    assert grid.body[1][1].startswith("+9.")
    assert price_grid(found.perplexity, found.documents, None) is None
    only = [row for row in found.perplexity if row.label == "base"]
    assert price_grid(only, found.documents, 256) is None


def test_the_document_that_stands_out_is_bold(found):
    grid = document_grid(found.documents, 256)
    assert grid is not None
    assert grid.header == [
        "document",
        "tokens",
        "base at 256",
        f"{FIRST['label']} at 4096",
        f"{SECOND['label']} at 8192",
    ]
    assert grid.body[0][:2] == ["stdlib/typing.py", "512"]
    assert grid.bold == {(0, 2), (0, 3), (0, 4)}
    losses = [float(row[-1]) for row in grid.body]
    assert losses == sorted(losses, reverse=True)
    calm = [row for row in found.documents if row.document != "stdlib/typing.py"]
    assert document_grid(calm, 256).bold == frozenset()


def test_passkeys_are_averaged_over_depths():
    rows = [Passkey("m", 256, d, c, 4) for d, c in ((0.0, 4), (0.5, 1), (1.0, 4))] + [Passkey("m", 512, 0.5, 0, 4)]
    assert passkey_grid(rows).body == [["m", "75", "0", "37.5"]]
    both = [*rows, Passkey("m", 256, 0.0, 2, 4, variant="book")]
    assert [row[0] for row in passkey_grid(both).body] == ["m: plain", "m: book"]
    assert passkey_grid(both).body[1] == ["m: book", "50", "", "50.0"]


def test_keys_at_random_places_are_counted_at_even_depths():
    rows = [Passkey("m", n, d, 1, 2) for n, depths in ((8, (0.02, 0.9, 0.98)), (16, (0.1, 0.47, 0.8))) for d in depths]
    lengths, depths, found = cells(rows)
    assert (lengths, depths) == ([8, 16], [0.0, 0.5, 1.0])
    shown = [[(c.correct, c.total) if c else None for c in row] for row in found]
    assert shown == [[(1, 2), (1, 2)], [None, (1, 2)], [(2, 4), (1, 2)]]
    even = [Passkey("m", 8, d, 1, 2) for d in (0.0, 0.33, 1.0)]
    assert cells(even)[1] == [0.0, 0.33, 1.0]


def test_a_result_has_changed_beyond_two_combined_errors():
    def score(label, value, stderr, **more):
        named = name(label, "none" if label == "base" else "yarn", 1.0)
        return Score(**{**named, "task": "t", "metric": "acc", "value": value, "stderr": stderr, **more})

    base = score("base", 0.50, 0.03)
    pairs = regressions([score("m", 0.39, 0.04), base, score("n", 0.41, 0.04), score("o", 0.7, math.nan)])
    assert [p.stderr for p in pairs[:2]] == pytest.approx([0.05, 0.05])
    assert [p.verdict for p in pairs] == ["worse", "", ""]
    assert regressions([base, score("m", 0.61, 0.04)])[0].verdict == "better"
    cost = {"task": "lambada", "metric": "word_perplexity"}
    dearer = regressions([score("base", 20.0, 0.5, **cost), score("m", 30.0, 0.5, **cost)])
    assert [p.verdict for p in dearer] == ["worse"]
    assert harness_grid(dearer).body == [["lambada", "word_perplexity", "", "", "20.000", "30.000", "+10.000", "0.707",
                                          "worse"]]  # fmt: skip
    table = score_grid([score("m", 0.25, math.nan, samples=1200), score("n", 30.0, 0.5, **cost)])
    assert [row[4:] for row in table.body] == [["1,200", "25.00", "not known"], ["", "30.000", "0.500"]]
    assert regressions([base, score("m", 0.4, 0.01, group="g"), score("m", math.nan, 0.01)]) == []
    assert regressions([base, score("m", 0.2, 0.01, shots=5)]) == []  # another number of shots is another task
    assert list(by_model(pairs)) == ["m", "n", "o"]


def test_the_papers_rule_and_the_band_of_a_fit():
    assert rule(16) == pytest.approx(1 / 1.631390, rel=1e-5)
    line = Line(0.08, 1.0, 0.06, 0.10, 0.95, 1.05)
    points = [math.log(s) for s in (2, 4, 8)]
    middle = sum(points) / 3
    low, high = corridor(line, points, [0.0, middle, 2 * middle])
    half = [(h - v) / 2 for v, h in zip(low, high, strict=True)]
    assert half[0] == pytest.approx(0.05)  # at ln s = 0 it is the interval of b
    assert half[1] == pytest.approx(math.sqrt(0.05**2 - (middle * 0.02) ** 2))
    assert half[2] == pytest.approx(half[0])


def test_tables_of_the_studies(found):
    first = temperature_grid(found.best).body[0]
    assert first == ["2", "0.898", "0.868-0.938", "0.875", "1.055", "1.069"]
    assert temperature_grid(found.best).body[3][2] == "0.640-0.710 (at the edge of what was tried)"
    assert ramp_grid(found.ramp, found.ramp_best).body[1] == [
        "16", "4,096", "alpha 1, beta 16, by_rotations", "20.00 (18.0-22.0)", "21.70 (19.5-23.9)",
        "-7.8 % (-10.0 to -5.0)",
    ]  # fmt: skip


def test_the_made_rows_are_json():
    assert json.loads(json.dumps(files(), allow_nan=False))
    assert len(document_rows()) == 4 * 6 * 6
    assert len(harness_rows()) == 12
