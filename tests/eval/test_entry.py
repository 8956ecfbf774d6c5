"""``python -m yarn_train.eval``: what it refuses before anything loads, what it takes as a model, what it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, ViTConfig

from yarn_train import app
from yarn_train import config as schema
from yarn_train.checks import evaluation
from yarn_train.errors import CheckpointError, ConfigError
from yarn_train.eval import tasks
from yarn_train.eval.__main__ import evaluate_model
from yarn_train.prepare import Arguments, prepare_stages
from yarn_train.rope import hf as rope_hf
from yarn_train.stages import resolve


def test_ranks_that_share_a_window_must_divide_the_ranks(compose, tiny_model, tmp_path):
    raw = compose(f"model.path={tiny_model}", "eval=perplexity", "parallel.context=2")
    with pytest.raises(ConfigError, match=r"parallel.context: got 2; allowed: a divisor of the number of ranks \(1\)"):
        evaluate_model(raw, (), tmp_path)


def test_a_model_that_is_no_language_model_is_one_clear_error(compose, tmp_path):
    ViTConfig().save_pretrained(tmp_path)
    raw = compose("experiment=smoke", f"model.path={tmp_path}")
    with pytest.raises(ConfigError, match=r"model|RoPE|rope"):
        evaluate_model({**raw, "eval": {**raw["eval"], "enabled": True}}, (), tmp_path)
    with pytest.raises(ConfigError):
        app.check_run(resolve(raw, Path(tmp_path)))


def test_entries_that_cannot_try_a_run_do_not_do_the_real_thing(compose, tmp_path):
    raw = compose("experiment=smoke", "launch.nproc_per_node=2", "launch.dry_run=true")
    with pytest.raises(ConfigError, match=r"launch\.dry_run: got True; allowed: false here"):
        evaluate_model(raw, (), tmp_path)
    with pytest.raises(ConfigError, match=r"launch\.dry_run: got True; allowed: false here"):
        prepare_stages(raw, (), tmp_path / "run", Arguments())


SMALL = ("eval=perplexity", "eval.windows=[32,64]", "eval.stride=16", "eval.documents=2", "eval.bootstrap=0")


def entry(compose, monkeypatch, where: Path, *words: str) -> Path:
    """Evaluate in this process, with `where` as the working folder; returns the model's folder of results."""
    monkeypatch.chdir(where)
    raw = compose(*words)
    evaluate_model(raw, (), where)
    return next((where / "outputs" / "eval").iterdir())


def rows_of(folder: Path) -> list[dict]:
    return json.loads((folder / "eval" / "perplexity.json").read_text())


def test_a_model_gets_rows_and_a_report_in_a_folder_of_its_own(
    compose, monkeypatch, tiny_model, books, tmp_path, capsys
):
    words = (*SMALL, f"model.path={tiny_model}", "eval.source=pg19", f"eval.path={books}", "model.dtype=float32")
    folder = entry(compose, monkeypatch, tmp_path, *words)
    assert {(row["window"], row["method"], row["factor"], row["stage"]) for row in rows_of(folder)} == {
        (32, "none", 1.0, None),
        (64, "none", 1.0, None),
    }
    assert all(row["perplexity"] > 1 for row in rows_of(folder))
    assert (folder / "report" / "index.html").is_file()
    assert f"wrote {folder.relative_to(tmp_path)}" in capsys.readouterr().out


def test_a_folder_that_was_named_is_taken_unless_a_training_wrote_it(compose, tiny_model, books, tmp_path):
    typed = {"run.dir": f"run.dir={tmp_path / 'own'}"}
    words = (*SMALL, f"model.path={tiny_model}", "eval.source=pg19", f"eval.path={books}")
    raw = compose(*words, *typed.values())
    evaluate_model(raw, typed, tmp_path / "own")
    assert len(rows_of(tmp_path / "own")) == 4
    (tmp_path / "own" / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"run\.dir: got .*a folder of its own"):
        evaluate_model(raw, typed, tmp_path / "own")


def test_a_run_folder_stands_for_the_model_of_its_last_stage(
    compose, monkeypatch, train, tiny_args, books, tmp_path, capsys
):
    run = train(tmp_path / "run", *tiny_args, "train.steps=2", f"run.dir={tmp_path / 'run'}")
    stage = next(run.glob("01_*"))
    words = (*SMALL, "eval.source=pg19", f"eval.path={books}", "model.dtype=float32")
    found = {}
    for number, named in enumerate((run, stage, stage / "model")):
        (tmp_path / str(number)).mkdir()
        found[named] = rows_of(entry(compose, monkeypatch, tmp_path / str(number), *words, f"model.path={named}"))
    assert found[run] == found[stage] == found[stage / "model"]
    assert {(row["label"], row["stage"], row["factor"]) for row in found[run]} == {
        (f"run/{stage.name} (yarn s=4)", stage.name, 4.0)
    }


def test_a_stage_without_a_finished_model_is_refused_by_name(compose, tmp_path):
    (tmp_path / "01_s4" / "checkpoints").mkdir(parents=True)
    raw = compose("eval=perplexity", f"model.path={tmp_path}")
    with pytest.raises(CheckpointError, match=r"model\.path=.*its last stage has no finished model/"):
        evaluate_model(raw, (), tmp_path)


@pytest.mark.parametrize("study", ["dynamic", "temperature", "ramp"])
def test_studies_take_an_unscaled_base(compose, tiny_model, tmp_path, study):
    config = AutoConfig.from_pretrained(tiny_model)
    config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    config.save_pretrained(tmp_path)
    raw = compose(f"eval.tasks=[{study}]", "eval.enabled=true", f"model.path={tmp_path}")
    with pytest.raises(ConfigError) as error:
        evaluate_model(raw, (), tmp_path)
    assert error.value.problems == [
        f"model.path: got 'a model whose RoPE is scaled already (pi)'; allowed: an unscaled base, as "
        f"eval.tasks={study} scales it; fix: name the base that it was made from"
    ]


def test_a_training_refuses_studies_with_the_command_that_runs_them(train, tiny_args, tmp_path):
    options = ("eval.enabled=true", "eval.tasks=[perplexity,temperature]", "eval.windows=[32]")
    with pytest.raises(ConfigError) as error:
        train(tmp_path / "run", *tiny_args, *options)
    (problem,) = error.value.problems
    assert problem.startswith(
        "eval.tasks: got 'temperature'; allowed: perplexity | passkey | harness; fix: leave it out"
    )
    assert "python -m yarn_train.eval eval=temperature model.path=" in problem
    assert not (tmp_path / "run").exists()


def test_problems_of_tasks_are_found_before_a_training_starts(train, tiny_args, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks.TASKS["perplexity"], "problems", lambda cfg, base: ["perplexity: cannot"])
    with pytest.raises(ConfigError, match="perplexity: cannot"):
        train(tmp_path / "run", *tiny_args, "eval.enabled=true", "eval.windows=[32]")
    assert not (tmp_path / "run").exists()


def test_a_model_that_does_not_say_its_length_needs_sizes_for_each_task(compose, tiny_model, tmp_path):
    config = AutoConfig.from_pretrained(tiny_model)
    config.rope_parameters = {"rope_type": "longrope", "rope_theta": 1e4} | {
        key: [1.0] * 4 for key in ("short_factor", "long_factor")
    }
    assert rope_hf.pretrained_length(config) is None
    cfg = schema.build({"eval": {"tasks": ["perplexity", "passkey"]}})
    found = evaluation.problems_of_a_model(cfg, config)
    assert [line.partition(":")[0] for line in found[:2]] == ["eval.windows", "passkey.lengths"]
