"""Which documents the evaluation reads, from the options of eval and data."""

from __future__ import annotations

from typing import Any

import pytest

from yarn_train.config import Config, DataConfig, EvalConfig
from yarn_train.eval.suite import evaluated

BOOKS = {"source": "pg19", "path": "emozilla/pg19", "revision": "abc"}


@pytest.mark.parametrize(
    ("data", "options", "expected"),
    [
        (BOOKS, {}, ("pg19", "emozilla/pg19", "abc")),
        (BOOKS, {"source": "text"}, ("text", "emozilla/pg19", "abc")),
        (BOOKS, {"source": "text", "path": "own"}, ("text", "own", None)),  # the commit is the other data set's
        ({"source": "mixture"}, {"source": "pg19", "path": "books"}, ("pg19", "books", None)),
        (
            {"source": "pretokenized", "path": "rows", "revision": "abc"},
            {"source": "stdlib"},
            ("stdlib", "rows", "abc"),
        ),
    ],
)
def test_eval_takes_what_it_does_not_say_from_data(data: Any, options: Any, expected: tuple[str, str, str | None]):
    found = evaluated(Config(data=DataConfig(**data, column="story", held_out=0.3), eval=EvalConfig(**options)))
    assert (found.source, found.path, found.revision) == expected
    assert (found.column, found.held_out) == ("story", 0.3)
