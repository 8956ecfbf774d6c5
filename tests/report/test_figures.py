from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_folders import passkey_rows, write_sweep

from yarn_train.report.collect import collect
from yarn_train.report.figures import context, frequencies, many, passkey, swept, training
from yarn_train.report.figures.base import short, text
from yarn_train.report.figures.parallel import parallel
from yarn_train.report.groups import collect_group
from yarn_train.report.plotly import for_script, packed_script
from yarn_train.report.thin import smooth, thin

GRID = {"rope.alpha": [1, 2, 4], "rope.beta": [16, 32, 64], "rope.temperature": ["auto", 0.9]}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """18 jobs, one of them failed, one never begun."""
    return write_sweep(tmp_path_factory.mktemp("made") / "sweep", GRID, steps=30, fail=[7], left_out=[17])


@given(st.lists(st.floats(-10, 10) | st.just(math.nan), min_size=1, max_size=400), st.integers(10, 100))
def test_thinning_keeps_ends_and_extremes(values, most):
    kept = thin(values, most)
    assert kept == sorted(set(kept))
    assert len(kept) <= max(most, 4)
    assert {0, len(values) - 1} <= set(kept)
    finite = [v for v in values if math.isfinite(v)]
    if finite:
        shown = [values[i] for i in kept if math.isfinite(values[i])]
        assert (min(shown), max(shown)) == (min(finite), max(finite))


def test_a_spike_of_one_step_in_a_million_is_kept():
    values = [2.0] * 1_000_000
    values[777_777] = 9.0
    kept = thin(values, 2000)
    assert 777_777 in kept
    assert len(kept) <= 2000


def test_smoothing_goes_around_what_is_not_finite():
    assert smooth([1.0, math.nan, 3.0], 2) == pytest.approx([1.5, 2.0, 2.5])
    assert smooth([5.0] * 20, 6) == pytest.approx([5.0] * 20)
    assert math.isnan(smooth([math.nan] * 5, 1)[2])


def test_numbers_are_short_and_json():
    assert short([math.nan, None, math.inf, 3.0, 1.23456789]) == [None, None, None, 3, 1.2346]
    assert for_script({"a": {"text": "</script><!-- \u2028"}}).isascii()
    assert "<" not in for_script({"a": {"text": "</script>"}})
    assert json.loads(for_script({"a": {"text": "</script>&"}})) == {"a": {"text": "</script>&"}}
    assert text("<b>&") == "&lt;b&gt;&amp;"
    with pytest.raises(ValueError, match="JSON"):
        for_script({"a": {"x": math.nan}})


def test_the_script_is_packed_to_less_than_half():
    assert 1_000_000 < len(packed_script()) < 2_200_000


def test_perplexity_has_trained_models_in_colour_and_the_others_grey(run_folder):
    made = context.perplexity(collect(run_folder))
    assert made is not None
    assert made["layout"]["xaxis"]["ticktext"] == ["256", "512", "1k", "2k", "4k", "8k"]
    colors = {trace["name"]: trace["line"]["color"] for trace in made["data"]}
    assert len(colors) == 8
    assert len({c for name, c in colors.items() if "untrained" in name or "base" in name}) == 1
    assert len({c for name, c in colors.items() if "steps" in name}) == 2
    assert made["data"][-1]["y"] == [8.67, 5.99, 5.63, 5.45, 5.46, 5.49]
    assert [note["text"] for note in made["layout"]["annotations"]] == ["L", "s=16", "s=32"]


def test_losses_of_a_chain_are_joined_and_skipped_steps_marked(run_folder):
    path = run_folder / "01_s16" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[9] |= {"loss": None, "skipped": "loss is not finite"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = training.loss(collect(run_folder))
    assert made is not None
    measured = [trace for trace in made["data"] if trace.get("when") == {"lines": "as measured"}]
    assert [trace["xs"]["steps"][-1] for trace in measured] == [40, 60]
    assert [trace["xs"]["tokens"][-1] for trace in measured] == [40 * 4 * 4096, 60 * 4 * 4096]
    assert measured[0]["y"][9] is None
    (marks,) = [trace for trace in made["data"] if trace["mode"] == "markers"]
    assert marks["xs"]["steps"] == [10]
    assert marks["text"] == ["loss is not finite"]
    assert marks["y"][0] == pytest.approx(rows[8]["loss"], rel=1e-4)


def test_frequencies_and_their_marks(run_folder):
    (title, first), (_, second) = frequencies.frequencies(collect(run_folder))
    assert title == "s = 16"
    assert [trace["name"] for trace in first["data"]][2] == "NTK-by-parts / YaRN"
    assert first["data"][0]["y"] == [0.0625] * 32
    assert [note["text"] for note in second["layout"]["annotations"]] == ["beta", "alpha"]


def test_passkey_cells_are_shares(run_folder):
    rows = passkey_rows(lengths=(256, 8192), total=4)
    (run_folder / "eval" / "passkey.json").write_text(json.dumps(rows))
    maps = passkey.maps(collect(run_folder).evaluations.passkey)
    assert [title for title, _ in maps] == ["base", "YaRN s=16"]
    (trace,) = maps[1][1]["data"]
    assert trace["x"] == ["256", "8k"]
    assert trace["z"][0] == [1.0, 0.0]
    assert trace["z"][2] == [1.0, 0.75]
    assert trace["text"][2] == ["4/4", "3/4"]


def test_heat_maps_have_every_cell_the_best_and_what_is_missing(sweep):
    group = collect_group(sweep)
    panels = swept.panels(group)
    assert [panel.rest for panel in panels] == ["rope.temperature = 0.9", "rope.temperature = auto"]
    cold, auto = (swept.heat_map(group, panel) for panel in panels)
    states, values, dark = cold["data"]
    assert values["x"] == ["1", "2", "4"]
    assert values["y"] == ["16", "32", "64"]
    shown = [
        [pale or deep for pale, deep in zip(*rows, strict=True)] for rows in zip(values["z"], dark["z"], strict=True)
    ]
    assert [[z is None for z in row] for row in shown] == [[0, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert [z for row in dark["z"] for z in row if z is not None] == [5.23]  # white text on what is dark
    assert states["text"][0] == ["", "failed", ""]
    assert states["text"][2] == ["", "", "not run"]
    assert states["customdata"][0][1].startswith("loss is not finite")
    assert cold["layout"]["shapes"] == []
    assert auto["data"][2]["text"][1][1] == "★ 5.2"
    (frame,) = auto["layout"]["shapes"]
    assert (frame["x0"] + frame["x1"], frame["y0"] + frame["y1"]) == (2, 2)
    assert values["zmin"] == auto["data"][1]["zmin"] == 5.2  # one scale of colours


def test_what_is_hopeless_does_not_take_the_colours_of_all_others(tmp_path):
    folder = write_sweep(tmp_path / "sweep", {"rope.alpha": [1, 2, 4, 8, 1e6], "rope.beta": [16, 32]}, steps=4)
    low, high = swept.color_range(collect_group(folder))
    assert low == pytest.approx(5.2)
    assert high < 10


def test_a_study_has_points_and_a_single_option_a_line(tmp_path):
    study = tmp_path / "study"
    for number in range(12):
        write_sweep(study, {"rope.alpha": [1 + number / 7], "optim.lr": [1e-5 * 1.5**number]}, steps=4)
    group = collect_group(study)
    assert len(group.members) == 12
    assert swept.panels(group) == []  # a grid of 12 x 12 with 12 cells is no map
    alpha, lr = (swept.over_one(group, key) for key in ("rope.alpha", "optim.lr"))
    assert alpha["data"][0]["mode"] == lr["data"][0]["mode"] == "markers"
    assert lr["layout"]["xaxis"]["type"] == "log"
    assert lr["layout"]["xaxis"]["ticktext"] == ["1e-05", "2e-05", "5e-05", "0.0001", "0.0002", "0.0005", "0.001"]
    line = swept.over_one(
        collect_group(write_sweep(tmp_path / "one", {"rope.beta": [64, 16, 32]}, steps=4)), "rope.beta"
    )
    assert line["data"][0]["mode"] == "lines+markers"
    assert line["data"][0]["x"] == [16, 32, 64]
    methods = write_sweep(tmp_path / "methods", {"rope.method": ["pi", "ntk", "yarn"]}, steps=4)
    assert swept.over_one(collect_group(methods), "rope.method")["layout"]["xaxis"]["type"] == "category"


def test_parallel_coordinates_have_a_line_per_result_and_the_best_on_top(sweep):
    group = collect_group(sweep)
    made = parallel(group)
    assert made is not None
    assert len(made["data"]) == 16
    assert made["layout"]["xaxis"]["ticktext"] == ["alpha", "beta", "temperature", "perplexity<br>at 8192"]
    best = made["data"][-1]
    assert best["text"][0].startswith("alpha_2__beta_32__temperature_auto")
    assert best["y"] == [0.5, 0.5, 1, 0]
    assert {line["line"]["width"] for line in made["data"][:-1]} == {1.6}


def test_curves_of_many_runs_name_only_the_best(sweep):
    group = collect_group(sweep)
    made = many.losses(group)
    named = [trace["name"] for trace in made["data"] if trace.get("showlegend", True)]
    assert set(named) == {"best: alpha_2__beta_32__temperature_auto", "15 complete", "1 failed"}
    assert len(made["data"]) == 2 * 17  # each smoothed and as measured
    assert many.perplexities(group)["data"][0]["visible"] == "legendonly"  # the base is far above
    assert len(many.speed_and_memory(group)["data"][0]["x"]) == 17
    assert len(many.perplexities(group)["data"]) == 1 + 16
