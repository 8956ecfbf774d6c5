"""Names of a sweep's jobs: readable, safe, one for each set of values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yarn_train.sweep.names import LONGEST, job_name

VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=200)
SWEPT = st.dictionaries(
    st.sampled_from(["rope.alpha", "rope.beta", "optim.lr", "x.lr", "run.name"]), VALUES, min_size=1
)


@pytest.mark.parametrize(
    ("swept", "name"),
    [
        ({"rope.alpha": 1, "rope.beta": 16}, "alpha_1__beta_16"),
        ({"rope.temperature": "auto", "optim.lr": 3e-05}, "temperature_auto__lr_3e-05"),
        ({"rope.truncate": True, "train.stop_after": None}, "truncate_true__stop_after_null"),
        ({"optim.lr": 1, "x.lr": 2}, "optim.lr_1__x.lr_2"),
        ({"rope": "yarn"}, "rope_yarn"),
        ({"rope.factor": -1.5}, "factor_-1.5"),
        ({}, "only"),
    ],
)
def test_a_name_says_what_is_swept(swept: dict[str, Any], name: str) -> None:
    assert job_name(swept) == name


@given(SWEPT)
def test_a_name_is_one_safe_and_short_part_of_a_path(swept: dict[str, Any]) -> None:
    name = job_name(swept)
    assert len(name) <= LONGEST
    assert name not in (".", "..")
    assert not set(name) & set("/\\=,:'\"[]{}()$ \n\0*?")


@given(st.lists(SWEPT, min_size=2, max_size=2).filter(lambda two: {*two[0]} == {*two[1]}))
def test_other_values_have_another_name(two: list[dict[str, Any]]) -> None:
    a, b = (
        {key: "null" if v is None else str(v).lower() if isinstance(v, bool) else str(v) for key, v in t.items()}
        for t in two
    )
    assert (job_name(two[0]) == job_name(two[1])) == (a == b)
