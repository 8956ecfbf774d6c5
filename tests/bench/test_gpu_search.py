"""The longest sequence that fits, and where a line through peak memory says it ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from bench.gpu.outcome import MEMORY, OK, TIME
from bench.gpu.search import FINENESS, Found, longest, memory_line, predicted
from bench.gpu.shapes import kept_bytes, layer_state_bytes
from bench.gpu.sizes import config


def search(limit: int, start: int = 64, most: int = 4096) -> Found:
    return longest(start, most, lambda tokens: {"status": OK if tokens <= limit else MEMORY, "reason": "full"})


@pytest.mark.parametrize("limit", [64, 65, 100, 127, 128, 500, 1000, 1023, 1024, 2047, 3000, 4095])
def test_the_gap_ends_at_an_eighth(limit: int) -> None:
    found = search(limit)
    assert found.fails is not None
    assert found.fits <= limit < found.fails
    power = 2 ** (found.fits.bit_length() - 1)
    assert found.fails - found.fits <= power // FINENESS
    assert len(found.probes) == len(dict(found.probes)), "nothing is tried twice"
    assert len(found.probes) <= 7 + 3 + 1


def test_nothing_longer_than_asked_for() -> None:
    assert search(10**6) == Found(4096, None, OK, "", tuple((64 * 2**n, OK) for n in range(7)))


def test_nothing_fits() -> None:
    assert search(10) == Found(0, 64, MEMORY, "full", ((64, MEMORY),))


def test_out_of_time_ends_the_search() -> None:
    """What is longer takes longer still."""
    ends = {64: OK, 128: OK, 256: TIME}
    found = longest(64, 4096, lambda tokens: {"status": ends[tokens], "reason": "60 s"})
    assert (found.fits, found.fails, found.status, found.reason) == (128, 256, TIME, "60 s")


def row(tokens: int, peak: int, status: str = OK) -> dict[str, Any]:
    return {"status": status, "result": {"tokens": tokens, "peak_bytes": peak}, "machine": {"memory_bytes": 10_000}}


def test_the_line_through_peaks() -> None:
    rows = [row(10, 1_020), row(20, 1_040), row(40, 1_080), row(80, 99, MEMORY)]
    assert memory_line(rows) == pytest.approx((1_000.0, 2.0))
    assert predicted(rows) == 4_500
    assert predicted(rows[:1]) is None
    assert predicted([row(10, 50), row(20, 50)]) is None


def test_what_a_whole_model_adds_and_what_the_host_keeps_end_it_earlier() -> None:
    rows = [row(10, 1_020), row(20, 1_040)]
    assert predicted(rows, more_bytes=2_000) == 3_500
    assert predicted(rows, more_bytes=99_000) == 0
    assert predicted(rows, host_per_token=7.0) == 4_500, "host memory is not known"
    rows[1]["machine"] = {"memory_bytes": 10_000, "host_bytes": 14_000.0}
    assert predicted(rows, host_per_token=7.0) == 2_000
    assert predicted(rows, host_per_token=1.0) == 4_500


@pytest.mark.parametrize("size", ["1b", "3b"])
def test_what_layers_take_is_what_the_models_have(size: str) -> None:
    """By transformers: parameters of the model without those of the embedding and the last norm."""
    with torch.device("meta"):
        whole, part = (
            sum(p.numel() for p in LlamaForCausalLM(config(s)).parameters()) for s in (size, f"{size}-4layers")
        )
    assert layer_state_bytes(size) - layer_state_bytes(f"{size}-4layers") == 16 * (whole - part)
    assert kept_bytes("3b") == 172_032
