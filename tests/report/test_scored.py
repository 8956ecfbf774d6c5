"""Runs that scored different tokens are not compared; those that are, at a window they were made for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from yarn_train.report.collect import collect
from yarn_train.report.groups import collect_several
from yarn_train.report.objective import common_metric, judging_window
from yarn_train.report.terminal import show_comparison

COUNTS = {"tokens": 100, "documents": 2, "stride": 256, "score_from": 3000}


def rescored(folder: Path, **counts: Any) -> Path:
    """The run's perplexities with these counts, and two documents of every row."""
    file = folder / "eval/perplexity.json"
    rows = [{**row, **COUNTS, **counts} for row in json.loads(file.read_text())]
    file.write_text(json.dumps(rows))
    kept = ("label", "window", "method", "ramp", "factor", "stage")
    documents = [
        {**{key: row[key] for key in kept}, "document": name, "nll": 90.0, "tokens": 50}
        for row in rows
        for name in ("one", "two")
    ]
    (folder / "eval/perplexity_documents.json").write_text(json.dumps(documents))
    return folder


@pytest.fixture
def two(run_folder: Path, tmp_path: Path) -> list[Path]:
    other = tmp_path / "other"
    shutil.copytree(run_folder, other)
    return [rescored(run_folder), rescored(other)]


def report_of(folders: list[Path], out: Path) -> str:
    show_comparison([*folders], out)
    return (out / "report.md").read_text()


def test_runs_that_scored_the_same_are_ranked_beside_one_base(two, tmp_path, capsys):
    text = report_of(two, tmp_path / "out")
    assert "Compared by perplexity at 8192; lower is better." in text
    assert "different tokens" not in text
    assert "base, no scaling" in text


@pytest.mark.parametrize("change", [{"score_from": 9000}, {"stride": 128}, {"tokens": 90}, {"documents": 3}])
def test_runs_that_scored_other_tokens_are_not_ranked(two, tmp_path, capsys, change):
    rescored(two[1], **change)
    metric, _ = common_metric([collect(folder) for folder in two])
    assert metric.startswith("training loss")
    text = report_of(two, tmp_path / "out")
    assert "Perplexities are not ranked: the runs scored different tokens" in text
    assert "so rows do not compare" in text
    assert "base, no scaling" not in text  # it would be that of one of them only
    table = text[text.index("| perplexity at |") :].partition("\n\n")[0]
    assert "**" not in table


def test_equal_counts_of_other_documents_are_other_tokens(two, tmp_path, capsys):
    file = two[1] / "eval/perplexity_documents.json"
    file.write_text(file.read_text().replace('"two"', '"three"'))
    text = report_of(two, tmp_path / "out")
    assert "not ranked" in text
    assert "so rows do not compare" in text


def test_a_run_is_judged_at_a_window_that_it_was_made_for(run_folder):
    run = collect(run_folder)  # L = 256, s = 32
    assert judging_window((256, 8192, 12288), [run]) == 8192
    assert judging_window((12288, 16384), [run]) == 12288


def test_a_folder_that_is_named_twice_is_one_run(two):
    again = two[0].parent / "again" / ".." / two[0].name
    (two[0].parent / "again").mkdir()
    group = collect_several([two[0], two[1], again, str(two[0]) + "/"])
    assert len(group.members) == 2


def test_what_decides_no_result_is_no_axis(two):
    config = two[1] / "config.yaml"
    for file in (config, *two[1].glob("*/config.yaml")):
        file.write_text(file.read_text() + "eval: {windows: [256]}\n")
    assert "eval.windows" not in collect_several(two).axes
