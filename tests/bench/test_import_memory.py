"""What a rank holds while it loads, beside what it keeps: bounded by one tensor, whatever the model's size."""

from __future__ import annotations

import pytest

from bench.import_memory import MIB, measure

NOISE = 8 * MIB  # of an allocator's own


@pytest.mark.parametrize("gigabytes", [0.25, pytest.param(2.0, marks=pytest.mark.long)])
def test_a_model_streams_into_its_shards(gigabytes: float) -> None:
    found = measure(gigabytes, 2)
    assert found["model"] == pytest.approx(gigabytes * 1e9, rel=0.2)
    for seen in found["ranks"]:
        assert seen["shards"] == pytest.approx(found["model"], rel=0.01)  # float32, half of the rows
        assert seen["own"] < found["largest"] + NOISE < seen["shards"] / 4
