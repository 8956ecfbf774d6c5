"""Rows are kept for the weights, dtype and RoPE that made them, label by label."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import passkey_ranks
import pytest
import torch
from transformers import AutoModelForCausalLM

from yarn_train.config import RopeConfig, build
from yarn_train.dist import runtime as dist_runtime
from yarn_train.eval import __main__ as entry
from yarn_train.eval import made_by
from yarn_train.eval.documents import evaluated
from yarn_train.eval.harness import task as harness
from yarn_train.eval.job import Job
from yarn_train.eval.passkey import task as passkey
from yarn_train.eval.perplexity import task as perplexity
from yarn_train.eval.rows import MODELS, earlier_rows, settings_beside, write_rows
from yarn_train.eval.variants import Variant
from yarn_train.model.load import load_config
from yarn_train.model.registry import Kernel
from yarn_train.report import terminal

SMALL = ("eval=perplexity", "eval.windows=[32]", "eval.stride=16", "eval.documents=2", "eval.bootstrap=0")


def copied(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder)
    return folder


def change(folder: Path) -> None:
    """Other weights of the same size, at the same path."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    file = folder / "model.safetensors"
    size, time = file.stat().st_size, file.stat().st_mtime_ns
    model.save_pretrained(folder)
    assert file.stat().st_size == size
    os.utime(file, ns=(time + 10**9, time + 10**9))  # also on a file system with a coarse clock


def values(folder: Path) -> dict[str, float]:
    rows = json.loads((folder / "perplexity.json").read_text())
    return {row["label"]: row["perplexity"] for row in rows if row["mode"] == "token_mean"}


def test_only_the_model_that_changed_is_evaluated_again(compose, tiny_args, base, tiny_tokenizer, tmp_path):
    one, two = copied(base, tmp_path / "one"), copied(base, tmp_path / "two")
    cfg = build(compose(*tiny_args, *SMALL, "model.dtype=float32"))
    said: list[str] = []

    def evaluate(*models: Path) -> dict[str, float]:
        said.clear()
        chosen = [Variant.of(m.name, RopeConfig(method="none", factor=1.0), None, str(m)) for m in models]
        data = evaluated(cfg)
        perplexity.run(
            Job(
                cfg,
                chosen,
                load_config(str(one)),
                tiny_tokenizer,
                32,
                1.0,
                data,
                tmp_path,
                dist_runtime.start(),
                said.append,
            )
        )
        return values(tmp_path)

    first = evaluate(one)
    both = evaluate(one, two)  # a stage that came later
    assert both == {"one": first["one"], "two": first["one"]}
    assert not (tmp_path / "perplexity.1.json").exists()
    change(two)
    after = evaluate(one, two)
    assert said[0].startswith("two: other weights than before, evaluated again; earlier rows kept as perplexity.1.json")
    assert after["one"] == first["one"]
    assert after["two"] != both["two"]
    kept = json.loads((tmp_path / "perplexity.1.json").read_text())
    assert {row["label"] for row in kept} == {"one", "two"}
    evaluate(one, two)
    assert not (tmp_path / "perplexity.2.json").exists()


@pytest.mark.parametrize("changed", ["dtype", "weights", "path"])
def test_the_entry_gives_what_a_fresh_folder_gives(compose, monkeypatch, base, books, tmp_path, changed):
    monkeypatch.setattr(terminal, "show_report", lambda folder: None)
    model, other = copied(base, tmp_path / "a" / "base"), copied(base, tmp_path / "b" / "base")

    def evaluate(path: Path, out: str, dtype: str) -> float:
        where = (f"model.path={path}", "eval.source=pg19", f"eval.path={books}", f"run.dir={tmp_path / out}")
        entry.evaluate_model(compose(*SMALL, *where, f"model.dtype={dtype}"), {"run.dir"}, tmp_path / out)
        return next(iter(values(tmp_path / out / "eval").values()))

    first = evaluate(model, "out", "bfloat16")
    if changed == "weights":
        change(model)
    change(other)
    again = (other if changed == "path" else model), "float32" if changed == "dtype" else "bfloat16"
    second = evaluate(again[0], "out", again[1])
    assert second != first
    assert second == evaluate(again[0], "fresh", again[1])


@pytest.mark.parametrize("task", ["temperature", "ramp", "dynamic"])
def test_studies_start_afresh_with_other_weights(compose, monkeypatch, base, books, tmp_path, task):
    monkeypatch.setattr(terminal, "show_report", lambda folder: None)
    model = copied(base, tmp_path / "model")
    few = ("study.factors=[2]", "study.temperatures=[1.0,0.6]", "study.alphas=[1]", "study.betas=[32]")
    few = (*few, "study.methods=[yarn]", "eval.stride=16", "eval.documents=2", "eval.bootstrap=0")

    def evaluate(*more: str) -> set[float]:
        where = (f"model.path={model}", "eval.source=pg19", f"eval.path={books}", f"run.dir={tmp_path / 'out'}")
        words = (f"eval={task}", *few, *where, *(more or ("model.dtype=float32",)))
        entry.evaluate_model(compose(*words), {"run.dir"}, tmp_path / "out")
        return {row["perplexity"] for row in json.loads((tmp_path / "out" / "eval" / f"{task}.json").read_text())}

    first = evaluate()
    assert evaluate() == first
    change(model)
    second = evaluate()
    assert not first & second
    assert not second & evaluate("model.dtype=bfloat16")


def test_passkeys_and_benchmarks_know_their_models_too(base, tmp_path, monkeypatch):
    """What is asked for of the files, without asking any model."""
    job = passkey_ranks.job(base, tmp_path, dist_runtime.start(), "a", "b")
    out, answers = tmp_path / "passkey.json", tmp_path / "passkey_answers.json"
    assert passkey._earlier(job, out, answers, {}) == []
    rows = [{"label": label, "variant": "plain", "length": 400} for label in "ab"]
    for file in (out, answers):
        write_rows(file, rows)
    assert passkey._earlier(job, out, answers, {}) == rows
    real = made_by.marks
    monkeypatch.setattr(made_by, "marks", lambda variants: {**real(variants), "b": "others"})
    assert passkey._earlier(job, out, answers, {}) == rows[:1]
    assert json.loads(out.read_text()) == rows[:1]
    half = dataclasses.replace(
        job, cfg=dataclasses.replace(job.cfg, model=dataclasses.replace(job.cfg.model, dtype="bfloat16"))
    )
    assert passkey._earlier(half, out, answers, {}) == []

    out = tmp_path / "harness.json"
    monkeypatch.setattr(made_by, "marks", real)
    assert harness._earlier(job, out) == []
    write_rows(out, rows)
    assert harness._earlier(job, out) == rows
    monkeypatch.setattr(made_by, "marks", lambda variants: {**real(variants), "b": "others"})
    assert harness._earlier(job, out) == rows[:1]


def test_rows_of_a_file_without_marks_are_kept_aside(tmp_path):
    out, said = tmp_path / "perplexity.json", list[str]()
    assert earlier_rows(out, {"stride": 1}, said.append, {"a": "1"}) == []
    write_rows(out, [{"label": "a"}])
    assert earlier_rows(out, {"stride": 1}, said.append, {"b": "2"}) == [{"label": "a"}]
    settings = json.loads(settings_beside(out).read_text())
    assert settings.pop(MODELS) == {"a": "1", "b": "2"}
    assert said == []
    settings_beside(out).write_text(json.dumps(settings))
    assert earlier_rows(out, {"stride": 1}, said.append, {"a": "1"}) == []
    assert json.loads((tmp_path / "perplexity.1.json").read_text()) == [{"label": "a"}]
    assert "other evaluation options, dtype or weights; kept as perplexity.1.json" in said[0]


def test_a_mark_is_of_files_and_rope_and_not_of_the_place(base, tmp_path):
    plain = Variant.of("a", RopeConfig(method="none", factor=1.0), None, str(base))
    moved = tmp_path / "moved"
    shutil.copytree(base, moved)  # with its times
    assert made_by.mark(dataclasses.replace(plain, weights=str(moved))) == made_by.mark(plain)
    assert made_by.mark(dataclasses.replace(plain, rope=RopeConfig(factor=2.0))) != made_by.mark(plain)
    config = moved / "config.json"
    config.write_text(config.read_text() + " ")
    assert made_by.mark(dataclasses.replace(plain, weights=str(moved))) != made_by.mark(plain)


def test_what_generates_with_a_cache_counts_where_it_is_another_kernel(monkeypatch, base):
    device, model = torch.device("cpu"), load_config(str(base))
    plain = made_by.options_of(build({}), device, model)
    assert plain["attention"] == ["yarn_train_torch", "cpu"]
    kernel = Kernel("flex", "yarn_train_flex", "", "flex")
    monkeypatch.setattr(made_by, "choose_kernel", lambda *asked: kernel)
    assert made_by.options_of(build({}), device, model)["attention"] == [
        "yarn_train_flex",
        "flex",
        "generation by cpu",
    ]
