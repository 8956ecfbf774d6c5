"""Minima and lines against closed forms and against other programs' answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yarn_train.eval.studies import fit


def parabola(x: list[float], vertices: list[float], tokens: list[int]) -> np.ndarray:
    """Summed losses of documents whose own loss is lowest at these places."""
    return np.array([[n * (2.0 + 3.0 * (at - v) ** 2) for v, n in zip(vertices, tokens, strict=True)] for at in x])


@settings(max_examples=50, deadline=None)
@given(
    vertex=st.floats(1.05, 1.75),
    x=st.lists(st.integers(0, 100), min_size=4, max_size=12, unique=True),
    documents=st.integers(2, 6),
)
def test_the_vertex_of_a_parabola_is_found_exactly(vertex: float, x: list[int], documents: int) -> None:
    grid = sorted({0.9, 1.0, 1.8, 1.9, *(0.9 + n / 100 for n in x)})
    found = fit.minimum(grid, parabola(grid, [vertex] * documents, [7] * documents), [7] * documents, 20)
    assert found.x == pytest.approx(vertex, abs=1e-6)
    assert found.edge == ""
    assert found.interval() == pytest.approx((vertex, vertex), abs=1e-6)


def test_resamples_are_of_whole_documents() -> None:
    """Two documents: a resample has one of them twice or both, so its minimum is at one of three places."""
    grid, tokens = [1.0, 1.2, 1.4, 1.6, 1.8], [100, 300]
    found = fit.minimum(grid, parabola(grid, [1.2, 1.6], tokens), tokens, 400)
    assert found.x == pytest.approx(1.5)  # token-weighted mean of the vertices
    assert {round(float(x), 6) for x in found.drawn} == {1.2, 1.5, 1.6}
    assert 0.4 < np.mean(np.isclose(found.drawn, 1.5)) < 0.6
    assert found.interval() == pytest.approx((1.2, 1.6))


@pytest.mark.parametrize(("vertex", "edge", "x"), [(0.5, "low", 1.0), (3.0, "high", 1.8)])
def test_a_minimum_at_the_edge_is_said_to_be_there(vertex: float, edge: str, x: float) -> None:
    grid = [1.0, 1.2, 1.5, 1.8]
    found = fit.minimum(grid, parabola(grid, [vertex] * 3, [5] * 3), [5] * 3, 0)
    assert (found.edge, found.x) == (edge, x)
    assert found.interval() is None


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match="three or more"):
        fit.minimum([1.0, 1.2], np.zeros((2, 1)), [1], 0)
    with pytest.raises(ValueError, match="ascending"):
        fit.minimum([1.0, 1.2, 1.1], np.zeros((3, 1)), [1], 0)


def test_the_papers_rule_is_found_from_its_own_minima() -> None:
    factors = [2.0, 4.0, 8.0, 16.0, 32.0]
    grid = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]
    minima = [fit.minimum(grid, parabola(grid, [0.1 * math.log(s) + 1] * 4, [9] * 4), [9] * 4, 50) for s in factors]
    line = fit.line([math.log(s) for s in factors], minima)
    assert line is not None
    assert (line.a, line.b) == pytest.approx((0.1, 1.0), abs=1e-9)
    assert line.a_interval == pytest.approx((0.1, 0.1), abs=1e-9)


def test_the_line_is_numpys_least_squares_and_needs_two_points() -> None:
    u, y = [0.7, 1.4, 2.1, 2.8], [1.05, 1.16, 1.19, 1.31]
    minima = [fit.Minimum(v, "", np.array([v, v + 0.1])) for v in y]
    line = fit.line(u, minima)
    assert line is not None
    assert [line.a, line.b] == pytest.approx(np.polyfit(u, y, 1))
    assert line.b_interval == pytest.approx((line.b + 0.0025, line.b + 0.0975))
    assert fit.line(u[:1], minima[:1]) is None


def test_a_document_that_is_not_finite_somewhere_moves_no_interval() -> None:
    """Without that document a resample would find its minimum where only the others were measured."""
    grid = [1.0, 1.2, 1.4, 1.6, 1.8]
    nll = parabola(grid, [1.2] * 5, [7] * 5)
    nll[-1, 0] = np.inf
    found = fit.minimum(grid, nll, [7] * 5, 200)
    assert (found.x, found.edge) == (pytest.approx(1.2), "")
    assert found.interval() == pytest.approx((1.2, 1.2))
    nll[:, 0] = np.inf
    nowhere = fit.minimum(grid, nll, [7] * 5, 200)
    assert math.isnan(nowhere.x)
    assert nowhere.edge
    assert nowhere.interval() is None


def test_the_line_leaves_out_what_lies_at_an_edge() -> None:
    u, y = [0.7, 1.4, 2.1, 2.8], [1.07, 1.14, 1.21, 1.8]
    minima = [fit.Minimum(v, "high" if v == 1.8 else "", np.array([v, v])) for v in y]
    line = fit.line(u, minima)
    assert line is not None
    assert (line.a, line.b) == pytest.approx((0.1, 1.0))
    assert line.a_interval == pytest.approx((0.1, 0.1))
    assert minima[-1].interval() is None
    assert fit.line(u[-2:], minima[-2:]) is None
