"""What TensorBoard reads back: each step once, also those that were done again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support import metrics

pytest.importorskip("tensorboard")


def test_a_resumed_run_reads_as_one_curve_with_its_options_and_results(
    train: Callable[..., Path], tiny_args: list[str], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    small = ["eval=perplexity", "eval.windows=[64]", "eval.stride=16", "eval.documents=1", "eval.baselines=false"]
    words = [*(word for word in tiny_args if word != "eval=none"), *small, "tracking.tensorboard=true"]
    train(run, *words, "train.stop_after=5")
    for step in (4, 5):
        shutil.rmtree(run / "01_s4" / "checkpoints" / f"step_{step:08d}")
    train(run, *words, "optim.lr=0.001", "run.allow_change=[optim.lr]")  # steps 3 to 5 are done again, otherwise

    assert len(list((run / "tensorboard").glob("events.*"))) == 2
    read = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    read.Reload()
    rows = metrics(run / "01_s4")
    for name, key in (("train/loss", "loss"), ("train/lr", "lr"), ("train/tokens", "tokens")):
        scalars = [(event.step, event.value) for event in read.Scalars(name)]
        assert [step for step, _ in scalars] == list(range(1, 9))
        assert [value for _, value in scalars] == pytest.approx([row[key] for row in rows], rel=1e-6)
    tags = read.Tags()
    assert [tag for tag in tags["scalars"] if tag.startswith("eval/perplexity/")] == [
        "eval/perplexity/YaRN s=4_ after 01_s4@64"
    ]
    assert any(b'"alpha": 1.0' in event.tensor_proto.string_val[0] for event in read.Tensors("config/text_summary"))
    assert "_hparams_/experiment" in read.summary_metadata
