from __future__ import annotations

import itertools
import json
import re
import shutil

import matplotlib.image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yarn_train.errors import DataError
from yarn_train.report import page, plots
from yarn_train.report.__main__ import main
from yarn_train.report.collect import collect
from yarn_train.report.figures import training
from yarn_train.report.style import spread
from yarn_train.report.write import write_report

PICTURES = ["perplexity.png", "training.png", "frequencies.png"]


def names(paths):
    return [p.name for p in paths]


def test_a_finished_run_gets_the_whole_report(run_folder):
    written = write_report(run_folder)
    assert names(written) == ["index.html", "report.md", *PICTURES]
    assert all(p.parent == run_folder / "report" and p.stat().st_size > 500 for p in written)
    text = (run_folder / "report" / "report.md").read_text()
    for expected in (
        "Model data/base, pretrained at L = 256 tokens; 01_s16: yarn to s = 16, 40 steps of 4 x 4096 tokens of stdlib",
        "The same 6,144 tokens of 12 held-out documents are scored at every window",
        "| YaRN s=32, 40 + 20 steps | 8.670 | 5.990 | 5.630 | 5.450 | 5.460 | **5.490** |",
        "| 02_s32 | 32 | 20 | 327,680 |",
        "| versions.torch | 2.13.0 |",
        "| starts | host a, world_size 1; host b, world_size 1 |",
        "python train.py experiment=quickstart",
    ):
        assert expected in text
    assert re.findall(r"!\[.*?\]\((.*?)\)", text) == PICTURES


def test_the_html_needs_no_other_file(run_folder):
    write_report(run_folder)
    text = (run_folder / "report" / "index.html").read_text()
    shown = text[: text.index('id="plotly"')]
    assert "http" not in shown.replace("http-equiv", "")
    assert re.findall(r'src="([^"]*)"', shown) == PICTURES  # all inside <noscript>
    assert shown.count("<noscript><img") == 3
    assert text.count("<table") == 5  # perplexities, the price, window_mean, training, run.json
    assert "<b>5.490</b>" in text


def test_mean_speed_weighs_tokens_and_seconds_add_up(run_folder):
    records = [
        {"step": 1, "tokens": 100, "tokens_per_second": 100},
        {"step": 2, "tokens": 200, "tokens_per_second": 50},
    ]
    path = run_folder / "01_s16" / "metrics.jsonl"
    path.write_text("".join(json.dumps({**r, "loss": 2.0}) + "\n" for r in records))
    row = page.training_grid(collect(run_folder).stages[:1]).body[0]
    assert row == ["01_s16", "16", "2", "200", "2.000", "2.000", "67", "not recorded", "3 s"]
    path.write_text("".join(json.dumps({**r, "loss": 2.0, "seconds": 4000.0}) + "\n" for r in records))
    assert page.training_grid(collect(run_folder).stages[:1]).body[0][-1] == "2 h 13 min"  # measured, where it was


def test_steps_unlike_the_others_are_no_part_of_speed_and_mfu(run_folder):
    """By hand: steps 2 and 4 have 100 and 300 tokens in 1 and 2 s; MFU 0.5 for 1 s and 0.2 for 2 s."""
    records = [
        {"step": 1, "tokens": 100, "tokens_per_second": 10, "seconds": 10.0, "mfu": 0.01, "untimed": "first step"},
        {"step": 2, "tokens": 200, "tokens_per_second": 100, "seconds": 1.0, "mfu": 0.5, "untimed": None},
        {"step": 3, "tokens": 300, "tokens_per_second": 20, "seconds": 5.0, "mfu": 0.02, "untimed": "save"},
        {"step": 4, "tokens": 600, "tokens_per_second": 150, "seconds": 2.0, "mfu": 0.2},
    ]
    path = run_folder / "01_s16" / "metrics.jsonl"
    path.write_text("".join(json.dumps({**r, "loss": 2.0}) + "\n" for r in records))
    run = collect(run_folder)
    grid = page.training_grid(run.stages[:1])
    assert grid.header[-4:] == ["tokens/s", "MFU", "peak memory", "training time"]
    assert grid.body[0][-4:] == ["133", "30.0%", "not recorded", "18 s"]
    rates, used = (trace for trace in training.resources(run)["data"] if trace["legendgroup"] == "0")
    assert (rates["xs"]["steps"], rates["y"]) == ([2, 4], [100, 150])
    assert used["y"] == [50, 20]
    path.write_text("".join(json.dumps({**r, "loss": 2.0, "untimed": "save"}) + "\n" for r in records))
    assert page.training_grid(collect(run_folder).stages[:1]).body[0][-4] == "33"  # nothing else is known


@pytest.mark.parametrize(
    ("missing", "gone", "said"),
    [
        ("eval", "perplexity.png", "has not been evaluated"),
        ("frequencies.json", "frequencies.png", None),
        ("0*_s*/metrics.jsonl", "training.png", "No optimizer step has been recorded"),
        ("run.json", None, None),
        ("0*_s*/config.yaml", None, None),
    ],
)
def test_missing_parts_are_left_out_and_old_pictures_go(run_folder, missing, gone, said):
    write_report(run_folder)
    for path in run_folder.glob(missing):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert names(write_report(run_folder))[2:] == [p for p in PICTURES if p != gone]
    folder = run_folder / "report"
    assert gone is None or not (folder / gone).exists()
    assert said is None or said in (folder / "report.md").read_text()


def test_a_run_that_just_started_has_a_report(tmp_path):
    (tmp_path / "run" / "01_s16").mkdir(parents=True)
    assert names(write_report(tmp_path / "run")) == ["index.html", "report.md"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        write_report(tmp_path / "empty")


def test_a_sweep_of_many_labels_and_answers_that_are_not_finite(run_folder):
    path = run_folder / "eval" / "perplexity.json"
    rows = json.loads(path.read_text())
    many = [{**row, "label": f"alpha={i} {row['label']}"} for i in range(10) for row in rows]
    many += [{**rows[0], "label": "broken", "perplexity": None}]
    path.write_text(json.dumps(many))
    run = collect(run_folder)
    picture = plots.perplexity(run, run_folder / "many.png")
    height, width = matplotlib.image.imread(picture).shape[:2]
    assert width < 625
    assert height < 300


def test_pictures_differ_where_their_numbers_do(run_folder, tmp_path):
    run = collect(run_folder)
    draw = [plots.perplexity, plots.training, plots.frequencies]
    first = [f(run, tmp_path / f"{i}.png").read_bytes() for i, f in enumerate(draw)]
    assert [f(run, tmp_path / "again.png").read_bytes() for f in draw] == first
    for name in ("eval/perplexity.json", "frequencies.json", "01_s16/metrics.jsonl"):
        path = run_folder / name
        path.write_text(re.sub(r'("loss": |"perplexity": |"inv_freq": \[\d\.\d+, )\d', r"\g<1>3", path.read_text()))
    changed = collect(run_folder)
    assert all(f(changed, tmp_path / "x.png").read_bytes() != old for f, old in zip(draw, first, strict=True))


def test_what_the_perplexity_picture_shows(run_folder, monkeypatch):
    figure = _figure(plots.perplexity, run_folder, monkeypatch)
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines["YaRN s=16, 40 steps"].get_xdata()) == [256, 512, 1024, 2048, 4096, 8192]
    assert list(lines["YaRN s=16, 40 steps"].get_ydata()) == [8.49, 5.90, 5.46, 5.29, 5.26, 58.7]
    trained, untrained = lines["YaRN s=32, 40 + 20 steps"], lines["YaRN s=16, untrained"]
    assert (trained.get_linestyle(), untrained.get_linestyle()) == ("-", "--")
    assert trained.get_linewidth() > 2 * untrained.get_linewidth()
    vertical = sorted({line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1})
    assert vertical == [256, 16 * 256, 32 * 256]
    colors = [lines[label].get_color() for label in lines if not label.startswith("_")]
    assert len(set(colors)) == len(colors) == 8


def test_what_the_training_picture_shows(run_folder, monkeypatch):
    figure = _figure(plots.training, run_folder, monkeypatch)
    loss, lr, _ = figure.axes
    assert [list(line.get_xdata()) for line in lr.lines[:2]] == [list(range(1, 41)), list(range(41, 61))]
    assert lr.lines[1].get_ydata()[4] == pytest.approx(3e-4)
    assert any(list(line.get_xdata()) == [40.5, 40.5] for line in loss.lines)


def test_what_the_frequency_picture_shows(run_folder, monkeypatch):
    figure = _figure(plots.frequencies, run_folder, monkeypatch)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["s = 16", "s = 32"]
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert lines["PI"] == [1 / 16] * 32
    both = lines["NTK-by-parts / YaRN"]  # one line, because they scale alike
    assert both[0] == 1
    assert both[-1] == 1 / 16
    assert both == sorted(both, reverse=True)


def test_frequencies_of_a_sweep_are_told_apart_by_their_labels(run_folder, monkeypatch):
    path = run_folder / "frequencies.json"
    data = json.loads(path.read_text())
    swept = [
        {**t, "label": f"beta={b}", "inv_freq": [f * b for f in t["inv_freq"]]}
        for t in data["tables"][-1:]
        for b in (1, 2)
    ]
    path.write_text(json.dumps({**data, "tables": swept}))
    (axes,) = _figure(plots.frequencies, run_folder, monkeypatch).axes
    assert {"beta=1", "beta=2"} <= {line.get_label() for line in axes.lines}


def _figure(draw, folder, monkeypatch):
    """The figure a plot would save."""
    seen = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, *args, **kwargs: seen.append(self))
    draw(collect(folder), folder / "x.png")
    return seen[0]


@given(st.lists(st.floats(-1, 2), max_size=12), st.floats(0.01, 0.2))
def test_labels_are_spread_and_stay_near(wanted, gap):
    wanted = sorted(wanted)
    placed = spread(wanted, gap)
    assert len(placed) == len(wanted)
    assert all(b - a >= gap - 1e-9 for a, b in itertools.pairwise(placed))
    if all(b - a >= gap for a, b in itertools.pairwise(wanted)):
        assert placed == pytest.approx(wanted, abs=1e-9)
    assert sum(placed) == pytest.approx(sum(wanted), abs=1e-6)


def test_the_command_prints_the_table_and_the_paths(run_folder, capsys):
    assert main([str(run_folder)]) == 0
    out = capsys.readouterr().out
    assert "YaRN s=32, 40 + 20 steps" in out
    assert "5.490" in out
    assert "The same 6,144 tokens of 12 held-out documents" in out
    assert str(run_folder / "report" / "index.html") in out.splitlines()


def test_the_command_says_what_is_no_run(run_folder, tmp_path, capsys):
    assert main([str(tmp_path / "nothing")]) == 1
    captured = capsys.readouterr()
    assert "no such folder" in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
