from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from yarn_train.report.rows import Row
from yarn_train.report.tables import (
    Grid,
    number,
    perplexity_caption,
    perplexity_grid,
    to_html,
    to_markdown,
    to_rich,
)

ROWS = [
    Row("base", 256, 8.14, tokens=100, documents=3, stride=50, score_from=206),
    Row("base", 512, math.nan, tokens=100, documents=3, stride=50, score_from=206),
    Row("yarn | [x] <y>", 512, 5.9, stage="01", tokens=100, documents=3, stride=50, score_from=206),
    Row("yarn | [x] <y>", 256, 8.1401, stage="01", tokens=100, documents=3, stride=50, score_from=206),
    Row("yarn | [x] <y>", 256, 1.0, mode="window_mean"),
    Row("pi", 256, 999.0),
    Row("pi", 256, 12.345),
]


def test_the_grid_has_labels_by_windows_and_marks_the_best():
    grid = perplexity_grid(ROWS)
    assert grid.header == ["perplexity at", "256", "512"]
    assert grid.body == [["base", "8.140", "not finite"], ["yarn | [x] <y>", "8.140", "5.900"], ["pi", "12.35", ""]]
    assert grid.bold == {(0, 1), (1, 1), (1, 2)}  # what prints the same is equally good
    assert grid.muted == {0, 2}
    assert perplexity_grid(ROWS, "window_mean").body == [["yarn | [x] <y>", "1.000"]]
    assert perplexity_grid([]).body == []
    assert perplexity_grid([Row("broken", 8, math.nan)]).bold == frozenset()


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (math.inf, "not finite"), (2.4221, "2.422"), (12.345, "12.35"), (106, "106.0"), (11458.4, "11,458")],
)
def test_numbers(value, text):
    assert number(value) == text
    assert number(3.2e9) == "3.20e+09"


def test_markdown():
    lines = to_markdown(perplexity_grid(ROWS)).splitlines()
    assert lines[:2] == ["| perplexity at | 256 | 512 |", "| :-- | --: | --: |"]
    assert lines[3] == r"| yarn \| [x] <y> | **8.140** | **5.900** |"


def test_html_is_escaped():
    text = to_html(perplexity_grid(ROWS))
    assert "<th>yarn | [x] &lt;y&gt;</th><td><b>8.140</b></td>" in text
    assert text.count("<tr") == 4
    assert text.count('class="muted"') == 2


@pytest.mark.parametrize("labels", [3, 200])
def test_the_terminal_shows_every_number(labels):
    rows = [Row(f"a label that is rather long [{i}]", w, 5.0 + i) for i in range(labels) for w in (256, 512, 1024)]
    out = io.StringIO()
    Console(file=out, width=60).print(to_rich(perplexity_grid(rows), title="t"))
    assert out.getvalue().count("│") >= 3 * labels
    assert "[2]" in out.getvalue()
    assert "…" not in out.getvalue()


def test_the_caption_says_what_was_scored():
    same = perplexity_caption(ROWS[:4])
    assert same == "The same 100 tokens of 3 held-out documents are scored at every window, in blocks of 50."
    reference = [Row("a", 8, 1.0, tokens=900, documents=3), Row("a", 16, 1.0, tokens=1100, documents=3)]
    assert perplexity_caption(reference).startswith("900 to 1,100 tokens of 3 held-out documents")
    assert perplexity_caption([]) == ""


def test_texts_are_left_aligned():
    grid = Grid(["a", "b"], [["x", "y"]], numeric=False)
    assert "| :-- | :-- |" in to_markdown(grid)
    assert 'class="texts"' in to_html(grid)
