"""What the console says about epochs."""

from __future__ import annotations

from typing import Any

import pytest

from yarn_train.metrics.console import ConsoleSink, Epoch, begun_epochs


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        (0.0, 0.5, []),  # the first needs no line
        (0.5, 1.0, []),  # done, and nothing of the next is read
        (1.0, 1.5, ["epoch 2 begins at step 7"]),
        (0.9, 1.1, ["epoch 2 begins at step 7"]),
        (1.1, 1.9, []),
        (0.5, 4.2, ["epoch 5 begins at step 7"]),  # a step longer than the data: the newest only
        ({"a": 0.5, "b": 1.5}, {"a": 0.9, "b": 2.1}, ["b: epoch 3 begins at step 7"]),
        ({"a": 0.9, "b": 1.0}, {"a": 1.1, "b": 1.1}, ["a: epoch 2 begins at step 7", "b: epoch 2 begins at step 7"]),
    ],
)
def test_an_epoch_begins_with_its_first_segment(before: Epoch, after: Epoch, lines: list[str]) -> None:
    assert begun_epochs(before, after, step=7) == lines


def test_the_console_says_it_once_also_after_a_resume(capsys: pytest.CaptureFixture[str]) -> None:
    def row(step: int, epoch: float) -> dict[str, Any]:
        numbers = {"loss": 1.0, "lr": 1.0, "grad_norm": 1.0, "tokens_per_second": 1.0, "seconds": 8.0}
        return {"step": step, "epoch": epoch, "skipped": None, **numbers}

    console = ConsoleSink("01_s4", 2, 1000, 50, epoch=1.6)
    for step, epoch in ((3, 1.9), (4, 2.2), (5, 2.5)):
        console.write(row(step, epoch))
    console.close()
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("01_s4  step 3/1000  loss 1.0000  ")  # the first line comes at once, others later
    assert out[1:] == ["01_s4  epoch 3 begins at step 4"]
