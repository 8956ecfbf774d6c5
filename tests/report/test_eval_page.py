"""Pages, pictures and terminals of evaluations: of a run, of one alone, and of several side by side."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from evaluation_rows import BASE, FIRST, SECOND, UNTRAINED, bins, files, write_evaluation
from report_folders import options, write_run
from rich.console import Console

from yarn_train.report import stills
from yarn_train.report.collect import collect
from yarn_train.report.eval_figures import PANELS, Scene, scene_of
from yarn_train.report.figures.base import GREY
from yarn_train.report.figures.looks import looks
from yarn_train.report.groups import collect_several
from yarn_train.report.rows import Row
from yarn_train.report.side_by_side import side_by_side
from yarn_train.report.style import TRAINED
from yarn_train.report.terminal import show_comparison, show_run
from yarn_train.report.write import write_report

MEASURED = ("perplexity", "perplexity_documents", "positions", "passkey", "harness")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An evaluation of everything, without training."""
    return write_evaluation(tmp_path_factory.mktemp("made") / "model")


@pytest.fixture(scope="module")
def scene(folder):
    return Scene(collect(folder).evaluations, [(256, "L"), (4096, "s=16")])


def alone(folder, model, label):
    """An evaluation of one model, as its own config reads it."""
    rows = {key: [r for r in files()[key] if r["label"] == model["label"]] for key in MEASURED}
    return write_evaluation(folder, {k: [{**r, "label": label, "stage": None} for r in v] for k, v in rows.items()})


def lines(made):
    return {t["name"]: t for t in made["data"] if not t.get("fill")}


def test_an_evaluation_alone_has_every_part_but_training(folder, capsys):
    written = [path.name for path in write_report(folder)]
    assert written[2:] == ["perplexity.png", *(f"{name}.png" for name in PANELS)]
    text = (folder / "report" / "report.md").read_text()
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings == ["Perplexity", "Passkey", "Benchmarks", "Dynamic scaling", "Temperature", "Ramp"]
    assert "An evaluation without training: base; " in text
    assert "| base | **20.78 (16.6-27.0)** |" in text
    assert re.search(r"\| YaRN s=16, after 01_s16 \| \+9\.\d % \(", text)
    assert "a = 0.080 (0.060 to 0.100), b = 1.000 (0.970 to 1.030). The paper: a = 0.1, b = 1." in text
    assert "optimizer step" not in text
    page = (folder / "report" / "index.html").read_text()
    assert "<summary>Averaged otherwise: window_mean (every window weighs alike" in page
    show_run(Console(width=200), collect(folder))
    out = capsys.readouterr().out
    for said in ("keys found (%)", "benchmarks against the base", "Dynamic YaRN", "a = 0.080", "by_rotations"):
        assert said in out


def test_pictures_of_an_earlier_report_go_with_their_rows(folder, tmp_path):
    copy = write_evaluation(tmp_path / "model", {key: files()[key] for key in ("positions", "harness")})
    assert "harness.png" in [path.name for path in write_report(copy)]
    (copy / "eval" / "harness.json").unlink()
    assert "harness.png" not in [path.name for path in write_report(copy)]
    assert not (copy / "report" / "harness.png").exists()
    assert "Benchmarks" not in (copy / "report" / "report.md").read_text()


def test_a_run_shows_its_evaluations_between_perplexity_and_training(run_folder):
    kept = {key: value for key, value in files().items() if key in ("positions", "passkey", "harness")}
    write_evaluation(run_folder, kept)
    write_report(run_folder)
    text = (run_folder / "report" / "report.md").read_text()
    found = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert found == ["Perplexity", "Passkey", "Benchmarks", "Training", "Frequencies", "How to get it again"]


def test_bands_are_those_of_trained_models_and_the_base(scene):
    ((_, made),) = PANELS["positions"](scene)
    groups = [t["legendgroup"] for t in made["data"] if t.get("fill")]
    assert sorted(groups) == sorted([BASE["label"], FIRST["label"], SECOND["label"]])
    drawn = lines(made)
    assert len(drawn) == 4
    assert len(drawn["base"]["x"]) == len(bins(8192))
    assert drawn["base"]["x"][0] == 1
    assert drawn["base"]["customdata"][0].endswith("1 to 1 tokens before it")
    assert [note["text"] for note in made["layout"]["annotations"]] == ["L", "s=16"]


def test_documents_are_shown_at_a_chosen_window(scene):
    ((_, made),) = PANELS["documents"](scene)
    assert made["controls"][0]["options"] == ["8192", "4096", "2048", "1024", "512", "256"]
    assert made["layout"]["yaxis"]["categoryarray"][-1] == "stdlib/typing.py"  # the hardest is above
    first = [t for t in made["data"] if t["when"] == {"window": "8192"}]
    assert [t["name"] for t in first] == ["base", "YaRN s=16, untrained", FIRST["label"], SECOND["label"]]
    assert [t.get("visible") for t in first] == [None, "legendonly", None, None]


def test_passkeys_have_a_map_per_model_and_variant_and_a_line_per_model(scene):
    maps = [title for title, _ in PANELS["passkey"](scene)]
    assert len(maps) == 12
    assert maps[:2] == ["base: plain", "base: many_keys"]
    panels = PANELS["passkey_lengths"](scene)
    assert [title for title, _ in panels] == ["plain", "many_keys", "book", "reference"]
    assert lines(panels[0][1])["base"]["y"][:3] == [100, 100, 10]


def test_benchmarks_are_drawn_as_differences_with_two_errors(scene):
    ((_, made),) = PANELS["harness"](scene)
    second = lines(made)[SECOND["label"]]
    assert made["layout"]["yaxis"]["categoryarray"][-1] == "arc_challenge acc_norm"
    assert second["x"] == pytest.approx([-3.3, 0.63, -4.02, -1.62])
    assert second["error_x"]["array"][0] == pytest.approx(2 * 1.46 * 2**0.5, rel=1e-3)
    assert second["error_x"]["array"][3] is None


def test_dynamic_scaling_stands_beside_every_fixed_factor(scene):
    panels = dict(PANELS["dynamic"](scene))
    assert list(panels) == ["Dynamic scaling", "PI", "NTK-aware", "YaRN"]
    assert set(lines(panels["Dynamic scaling"])) == {"base", "Dynamic PI", "Dynamic NTK-aware", "Dynamic YaRN"}
    yarn = lines(panels["YaRN"])
    assert list(yarn)[-1] == "Dynamic YaRN"  # above the others
    assert yarn["Dynamic YaRN"]["line"]["width"] > yarn["YaRN s=2"]["line"]["width"]
    assert len(yarn) == 6


def test_temperatures_have_the_best_and_the_papers_marked(scene):
    panels = PANELS["temperature"](scene)
    assert [title for title, _ in panels][-1] == "s = 16 at 4,096 tokens"
    rule, best, interval = panels[-1][1]["layout"]["shapes"]
    assert rule["x0"] == pytest.approx(0.61298, rel=1e-4)
    assert best["x0"] == pytest.approx((0.08 * math.log(16) + 1) ** -2)
    assert interval["x1"] - interval["x0"] == pytest.approx(0.07)
    ((_, made),) = PANELS["temperature_fit"](scene)
    drawn = lines(made)
    assert list(drawn) == ["paper: 0.1 ln s + 1", "fit: 0.080 ln s + 1.000", "best t"]
    bars = drawn["best t"]["error_y"]
    assert bars["array"][0] > bars["arrayminus"][0] * 0.5 > 0
    assert [t for t, _ in PANELS["temperature_positions"](scene)] == ["s = 2", "s = 4", "s = 8", "s = 16"]


def test_the_lowest_cell_of_a_factor_is_framed_once_and_the_default_has_a_dot(scene):
    panels = PANELS["ramp"](scene)
    assert len(panels) == 4
    assert [len(made["layout"]["shapes"]) for _, made in panels] == [0, 1, 0, 1]
    texts = [text for _, made in panels for trace in made["data"] for row in trace["text"] for text in row]
    assert [text for text in texts if "•" in text] == ["18.70 •", "21.70 •"]


def test_stills_show_what_the_figures_say(scene):
    panels = PANELS["harness"](scene)
    (axes,) = stills.still(panels).axes
    assert axes.get_xlabel() == "points more than the base"
    assert [text.get_text() for text in axes.get_yticklabels()][-1] == "arc_challenge acc_norm"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [SECOND["label"], FIRST["label"]]
    drawn = stills.still(PANELS["positions"](scene)).axes[0]
    base = next(line for line in drawn.get_lines() if line.get_label() == "base")
    assert np.allclose(base.get_ydata(), lines(PANELS["positions"](scene)[0][1])["base"]["y"])
    assert len(drawn.patches) == 3
    grid = stills.still(PANELS["passkey"](scene)[:1]).axes[0]
    assert grid.get_images()[0].get_array()[0, 0] == 1.0
    assert grid.yaxis_inverted()
    assert len(stills.still(PANELS["passkey"](scene), 4).axes) == 12
    assert stills.still([]) is None


def test_several_models_side_by_side_have_one_base_and_their_own_names(tmp_path, capsys):
    folders = [
        alone(tmp_path / "base-1", BASE, "base (none s=1)"),
        alone(tmp_path / "s16-2", FIRST, "model (yarn s=16)"),
        write_run(tmp_path / "chain", options(), steps=20),
    ]
    write_evaluation(folders[2], {key: files()[key] for key in MEASURED})
    group = collect_several(folders)
    found = side_by_side(group).found
    for kind in ("perplexity", "documents", "positions", "passkey", "harness"):
        labels = list(dict.fromkeys(row.label for row in getattr(found, kind)))
        assert labels == ["base-1", "s16-2", "chain"], kind
    assert {row.stage for row in found.perplexity} == {None, "s16-2", "chain"}
    assert {row.factor for row in found.perplexity if row.label == "chain"} == {32.0}
    assert [m.status for m in group.members] == ["complete"] * 3
    show_comparison(folders, tmp_path / "both")
    text = (tmp_path / "both" / "report.md").read_text()
    assert "| base-1 | **20.78 (16.6-27.0)** |" in text
    assert re.search(r"\| s16-2 \| \+9\.\d % ", text)
    assert "### s16-2" in text
    show_comparison(folders[:2], tmp_path / "two")
    two = (tmp_path / "two" / "report.md").read_text()
    assert "| run | perplexity at 8192 | status |" in two
    assert "What was run" not in two
    out = capsys.readouterr().out
    assert "Compared by perplexity at 8192" in out
    assert "more than the base at" in out


def test_an_evaluation_by_truncation_alone_is_the_one_shown(tmp_path):
    rows = [{**row, "mode": "truncate"} for row in files()["perplexity"] if row["mode"] == "token_mean"]
    folder = write_evaluation(tmp_path / "model", {"perplexity": rows})
    assert "perplexity.png" in [path.name for path in write_report(folder)]
    assert "| base | **20.78" in (folder / "report" / "report.md").read_text()
    assert scene_of(collect(folder)).length == 256


def test_what_an_evaluation_is_about_is_in_colour():
    def colours(*models):
        found = looks([Row(window=8, perplexity=1.0, **model) for model in models])
        return [look.color for look in found.values()], list(found)

    assert colours(BASE) == ([TRAINED[0]], ["base"])
    extended = {**FIRST, "stage": None}
    assert colours(extended, BASE) == ([GREY, TRAINED[0]], ["base", FIRST["label"]])
    assert colours(UNTRAINED, SECOND, FIRST, BASE) == (
        [GREY, GREY, TRAINED[1], TRAINED[0]],
        [UNTRAINED["label"], "base", SECOND["label"], FIRST["label"]],
    )


def test_members_of_groups_are_folded_unless_they_changed(tmp_path):
    row = {"metric": "acc", "shots": 5, "stderr": 0.01, "samples": 100}
    tasks = [("mmlu", None, 0.42), ("mmlu_law", "mmlu", 0.41), ("mmlu_art", "mmlu", 0.30)]
    rows = [
        {**m, **row, "task": t, "group": g, "value": v if m is FIRST else 0.42}
        for m in (BASE, FIRST)
        for t, g, v in tasks
    ]
    folder = write_evaluation(tmp_path / "model", {"harness": rows})
    write_report(folder)
    page = (folder / "report" / "index.html").read_text()
    shown, _, folded = page.partition("<details><summary>All 3 results, members of groups too</summary>")
    assert "mmlu_art" in shown
    assert "mmlu_law" not in shown
    assert "mmlu_law" in folded
    ((_, made),) = PANELS["harness"](scene_of(collect(folder)))
    assert made["layout"]["yaxis"]["categoryarray"] == ["mmlu acc"]
