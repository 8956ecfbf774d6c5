"""Whole runs under the other engines and under context parallelism: the same curve, model and commands."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file
from support import course, metrics, same_weights

from yarn_train import export


def test_a_deepspeed_run_stops_resumes_and_exports(forked, train, tiny_args, tmp_path):
    args = [*tiny_args, "engine.name=deepspeed"]  # ZeRO-3, bfloat16
    forked(*args, f"run.dir={tmp_path / 'whole'}")
    forked(*args, f"run.dir={tmp_path / 'parts'}", "train.stop_after=4")
    done = forked(*args, f"run.dir={tmp_path / 'parts'}")
    assert "DeepSpeed ZeRO-3: everything sharded over 2 rank(s)" in done.stdout
    whole, parts = tmp_path / "whole/01_s4", tmp_path / "parts/01_s4"
    assert course(whole) == course(parts)
    assert same_weights(whole / "model", parts / "model")
    fsdp = train(tmp_path / "fsdp", *tiny_args) / "01_s4"
    for ours, theirs in zip(metrics(whole), metrics(fsdp), strict=True):
        assert ours["segments"] == theirs["segments"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=3e-3)
    assert export.main([str(whole), str(tmp_path / "exported")]) == 0
    assert same_weights(whole / "model", tmp_path / "exported")


def test_a_context_parallel_run_trains_evaluates_and_resumes_like_one_process(forked, train, tiny_args, tmp_path):
    evaluation = ["eval=perplexity", "eval.documents=2", "eval.windows=[50]", "eval.stride=16", "eval.split=test"]
    args = [a for a in tiny_args if a != "eval=none"]
    args += [*evaluation, "eval.baselines=false", "model.dtype=float32", "memory.activation=attention"]
    one = train(tmp_path / "one", *args)
    here = ["parallel.context=2", f"run.dir={tmp_path / 'two'}"]
    forked(*args, *here, "train.stop_after=4")  # Ulysses, as 2 divides the heads
    # How a sequence is shared is a matter of the moment, not of the checkpoint; the evaluation runs on the ring too.
    forked(*args, *here, "parallel.context_method=ring")
    for a, b in zip(course(one / "01_s4"), course(tmp_path / "two/01_s4"), strict=True):
        assert a[2] == pytest.approx(b[2], rel=1e-5)
        assert a[4] == pytest.approx(b[4], rel=1e-4)
        assert a[5] == b[5]
    rows = [json.loads((run / "eval/perplexity.json").read_text()) for run in (one, tmp_path / "two")]
    assert [r["tokens"] for r in rows[0]] == [r["tokens"] for r in rows[1]]
    for a, b in zip(*rows, strict=True):
        assert a["perplexity"] == pytest.approx(b["perplexity"], rel=1e-4)
    weights = [load_file(run / "01_s4/model/model.safetensors") for run in (one, tmp_path / "two")]
    for name in weights[0]:
        assert (weights[0][name] - weights[1][name]).norm() <= 1e-3 * weights[0][name].norm(), name


@pytest.mark.long
def test_replicas_and_offloaded_state_change_nothing(launch, train, tiny_args, tmp_path):
    args = [*tiny_args, "model.dtype=float32"]
    one = train(tmp_path / "one", *args)
    options = ["parallel.replicate=2", "memory.tiled_mlp=true", "memory.activation=offload"]
    here = f"run.dir={tmp_path / 'two'}"
    done = launch(*args, *options, here, "engine.offload=optimizer", "train.stop_after=4", ranks=2)
    assert "2 copies (HSDP)" in done.stdout
    launch(*args, *options, here, "engine.offload=all", ranks=2)  # where the state lives is not what it is
    for a, b in zip(course(one / "01_s4"), course(tmp_path / "two/01_s4"), strict=True):
        assert a[2] == pytest.approx(b[2], rel=1e-5)
        assert a[5] == b[5]
