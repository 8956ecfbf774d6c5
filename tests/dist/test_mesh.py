"""How ranks are laid out, without any process group."""

from __future__ import annotations

import pytest

from yarn_train.config import ParallelConfig
from yarn_train.dist.mesh import ulysses_size


@pytest.mark.parametrize(
    ("context", "heads", "method", "ulysses", "expected"),
    [
        (1, 32, "auto", None, 1),
        (8, 32, "auto", None, 8),
        (8, 32, "ring", None, 1),
        (8, 32, "auto", 2, 2),
        (64, 32, "auto", None, 32),
        (3, 4, "auto", None, 1),
        (6, 4, "auto", None, 2),
        (4, 4, "ulysses", None, 4),
    ],
)
def test_auto_exchanges_as_many_heads_as_divide(context, heads, method, ulysses, expected):
    parallel = ParallelConfig(context=context, context_method=method, ulysses=ulysses)
    assert ulysses_size(parallel, heads) == expected
