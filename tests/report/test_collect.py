from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from yarn_train.errors import DataError
from yarn_train.report.collect import collect


def test_a_finished_run_is_read_whole(run_folder):
    run = collect(run_folder)
    assert run.name == "quickstart"
    assert run.info["seed"] == 0
    assert [s.name for s in run.stages] == ["01_s16", "02_s32"]
    assert [len(s.metrics) for s in run.stages] == [40, 20]
    assert [s.option("rope.factor") for s in run.stages] == [16.0, 32.0]
    assert run.stages[0].option("rope.factor.deeper") is None
    assert len(run.perplexity) == 8 * 6 * 2
    assert run.perplexity[0].stage is None
    assert run.perplexity[-1].stage == "02_s32"
    assert run.frequencies is not None
    assert len(run.frequencies.tables) == 8
    assert run.frequencies.base()[:2] == pytest.approx([1.0, 10_000 ** (-2 / 64)])
    assert run.original_length() == 256


def test_stages_come_in_numeric_order_of_their_names(run_folder):
    for name in ("10_s64", "03_s48"):
        (run_folder / name).mkdir()
    (run_folder / "eval_cache").mkdir()
    assert [s.name for s in collect(run_folder).stages] == ["01_s16", "02_s32", "03_s48", "10_s64"]


def test_an_unfinished_run_lacks_parts(tmp_path):
    (tmp_path / "run" / "01_s16").mkdir(parents=True)
    run = collect(tmp_path / "run")
    assert (run.info, run.config, run.perplexity, run.frequencies) == ({}, {}, (), None)
    assert run.stages[0].metrics == ()
    assert run.original_length() is None


def test_a_resumed_and_killed_run_has_each_step_once(run_folder):
    path = run_folder / "01_s16" / "metrics.jsonl"
    with path.open("a") as out:
        out.write(json.dumps({"step": 39, "loss": 0.39}) + "\n" + json.dumps({"step": 40, "loss": 0.4}) + "\n")
        out.write('{"step": 41, "lo')  # killed while it wrote
    stage = collect(run_folder).stages[0]
    assert stage.series("step") == list(range(1, 41))
    assert stage.series("loss")[-2:] == [0.39, 0.4]
    assert math.isnan(stage.series("mfu")[0])
    assert math.isnan(stage.series("no such metric")[0])


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("run.json", "{"),
        ("run.json", "[]"),
        ("config.yaml", "a: [1"),
        ("01_s16/metrics.jsonl", 'not json\n{"step": 1}\n'),
        ("01_s16/metrics.jsonl", '{"loss": 1}\n{"step": 1}\n'),
        ("eval/perplexity.json", '[{"label": "no window", "perplexity": 1}]'),
        ("eval/perplexity.json", "[3]"),
        ("frequencies.json", '{"head_dim": 64}'),
    ],
)
def test_a_damaged_file_is_named(run_folder, file, text):
    (run_folder / file).write_text(text)
    with pytest.raises(DataError, match=rf"{file}.*allowed: .*fix: "):
        collect(run_folder)


def test_unknown_keys_of_later_versions_are_ignored_and_null_is_not_finite(run_folder):
    path = run_folder / "eval" / "perplexity.json"
    path.write_text(json.dumps([{"label": "x", "window": 8, "perplexity": None, "stage": None, "later": 1}]))
    (row,) = collect(run_folder).perplexity
    assert math.isnan(row.perplexity)
    assert row.stage is None


def test_what_is_not_a_run_folder_is_refused(tmp_path, run_folder):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="no such folder"):
        collect(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"without run\.json.*outputs/<run\.name>"):
        collect(empty)
    with pytest.raises(DataError, match=r"this is a stage; give .*quickstart"):
        collect(run_folder / "01_s16")


def test_the_report_never_imports_torch():
    code = "import sys, yarn_train.report.__main__; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
