"""The main job in miniature: two stages, evaluation and report, through the same entries a user types."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support import ROOT, child_env, course, metrics

EVAL = ("eval=perplexity", "eval.documents=2", "eval.stride=16", "eval.windows_per_document=3")


@pytest.fixture
def quick(tiny_args) -> list[str]:
    dropped = ("rope.factor", "eval=", "train.steps")
    stages = ("+curriculum.stages.s4.rope.factor=4", "+curriculum.stages.s8.rope.factor=8", "train.steps=3")
    return [a for a in tiny_args if not a.startswith(dropped)] + [*stages, *EVAL]


def test_the_main_job_trains_evaluates_and_reports(train, quick, tmp_path, capsys):
    run = train(tmp_path / "run", *quick)
    rows = json.loads((run / "eval/perplexity.json").read_text())
    keys = {"label", "method", "ramp", "factor", "stage", "window", "stride", "mode"}
    keys |= {"perplexity", "tokens", "documents"}
    assert all(keys <= row.keys() for row in rows)
    assert {row["window"] for row in rows} == {32, 64, 128, 256}
    assert {row["mode"] for row in rows} == {"token_mean", "window_mean"}
    untrained = {(r["method"], r["ramp"]) for r in rows if r["stage"] is None}
    ramps = {("ntk_by_parts", "by_index"), ("yarn", "by_index"), ("yarn", "by_rotations")}
    assert untrained == ramps | {("none", None), ("pi", None), ("ntk", None)}
    assert [r["factor"] for r in rows if r["stage"] == "02_s8"] == [8.0] * 8
    assert len({row["tokens"] for row in rows}) == 1  # every window scores the same tokens
    for name in ("report.md", "index.html", "perplexity.png", "training.png", "frequencies.png"):
        assert (run / "report" / name).stat().st_size > 0
    assert "YaRN s=8, after 02_s8" in (run / "report/report.md").read_text()
    assert "perplexity" in capsys.readouterr().out

    stamp = (run / "eval/perplexity.json").stat().st_mtime_ns
    train(run, *quick)
    assert "complete" in capsys.readouterr().out
    assert (run / "eval/perplexity.json").stat().st_mtime_ns == stamp


def test_an_interrupted_evaluation_keeps_what_it_has(train, quick, tmp_path, monkeypatch):
    from yarn_train.eval.perplexity import task

    scored = []
    original = task.scores

    def dying(model, window, *rest, **options):
        if len(scored) == 9:  # in the third model
            raise RuntimeError("power cut")
        scored.append(window)
        return original(model, window, *rest, **options)

    monkeypatch.setattr(task, "scores", dying)
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path / "run", *quick)
    monkeypatch.setattr(task, "scores", lambda *a, **k: scored.append(a[1]) or original(*a, **k))
    run = train(tmp_path / "run", *quick)
    assert len(scored) == 4 * 8  # nine windows of the first three of eight models were not scored again
    assert scored[8:12] == [32, 64, 128, 256]
    assert len(json.loads((run / "eval/perplexity.json").read_text())) == 8 * 4 * 2


def test_other_evaluation_options_keep_the_old_rows_beside(train, quick, tmp_path):
    run = train(tmp_path / "run", *quick, "eval.baselines=false")
    train(run, *quick, "eval.baselines=false", "eval.documents=1")
    assert json.loads((run / "eval/perplexity.1.json").read_text())[0]["documents"] == 2
    assert json.loads((run / "eval/perplexity.json").read_text())[0]["documents"] == 1


def test_eval_entry_reads_an_exported_model_as_its_config_says(train, quick, tmp_path):
    run = train(tmp_path / "run", *quick, "eval.baselines=false")
    wanted = {r["window"]: r["perplexity"] for r in json.loads((run / "eval/perplexity.json").read_text())}
    options = [a for a in quick if a.startswith(("data.", "eval"))]
    command = [sys.executable, "-m", "yarn_train.eval", *options, f"model.path={run / '02_s8/model'}"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**child_env(), "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    (out,) = (tmp_path / "outputs/eval").glob("*/eval/perplexity.json")
    got = {r["window"]: r["perplexity"] for r in json.loads(out.read_text())}
    assert got == pytest.approx(wanted, rel=1e-6)


def test_export_entry_gives_the_model_of_the_run(train, tiny_args, tmp_path):
    from safetensors.torch import load_file

    from yarn_train import export

    run = train(tmp_path / "run", *tiny_args)
    assert export.main([str(run / "01_s4"), str(tmp_path / "out")]) == 0
    ours = load_file(tmp_path / "out/model.safetensors")
    theirs = load_file(run / "01_s4/model/model.safetensors")
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert export.main([str(run / "01_s4"), str(tmp_path / "out")]) == 2  # never overwrites
    assert export.main([str(run), str(tmp_path / "other")]) == 2  # a run folder is no checkpoint


@pytest.mark.long
def test_a_sweep_makes_one_complete_run_folder_per_job(launch, tiny_args, tmp_path):
    sweep = ["-m", "rope.alpha=0.1,1", "rope.beta=16,32", f"run.dir={tmp_path / 'sweep'}", "train.steps=2"]
    args = [a for a in tiny_args if not a.startswith("train.steps")]
    launch(*sweep, *args)
    folders = sorted(p.parent for p in (tmp_path / "sweep").glob("*/run.json"))
    assert len(folders) == 4
    for folder in folders:
        assert json.loads((folder / "run.json").read_text())["exit_reason"] == "complete"
        assert len(metrics(folder / "01_s4")) == 2
        assert (folder / "01_s4/model/model.safetensors").is_file()
        assert folder.name.startswith("alpha_")
    first_losses = {course(folder / "01_s4")[0][2] for folder in folders}
    assert len(first_losses) > 1  # the swept options really reached the model


def test_misspelt_options_are_all_named_and_nothing_is_made(launch, tmp_path):
    done = launch("rope.alhpa=1", "modle.path=x", f"run.dir={tmp_path / 'run'}", check=False)
    assert done.returncode == 2
    assert "rope.alhpa: unknown option; did you mean rope.alpha?" in done.stderr
    assert "modle.path: unknown option; did you mean model.path?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_bad_configuration_is_one_message_without_a_traceback(launch, tiny_args, tmp_path):
    done = launch(*tiny_args, "rope.beta=0.5", f"run.dir={tmp_path / 'run'}", check=False)
    assert done.returncode == 2
    assert "rope.beta: got 0.5; allowed: > rope.alpha (1)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_prepare_entry_prepares_once(tiny_args, tmp_path):
    def prepare() -> str:
        command = [sys.executable, str(ROOT / "data/prepare.py"), *tiny_args]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=child_env())
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "prepared in" in prepare()
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*")}
    assert "already prepared, nothing to do" in prepare()
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*")} == files
