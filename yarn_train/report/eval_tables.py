"""Tables of evaluations: the price at short windows, hard documents, keys found, benchmarks, best temperatures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from .figures.looks import is_base, looks
from .figures.passkey import mean_accuracy, variants
from .figures.ramp import best as lowest
from .figures.ramp import is_default
from .figures.scored import tail
from .figures.temperature import PAPER
from .figures.temperature import rule as paper_rule
from .paired import Change, change_at
from .regressions import Regression, is_cost
from .rows import Best, BestRamp, Document, Line, Passkey, Ramp, Row, Score
from .tables import Grid, main_mode, number, span

DOCUMENTS = 40  # rows of the table of documents, the hardest
OUTLIER = 3.0  # robust standard deviations from the median


def price_grid(rows: Sequence[Row], documents: Sequence[Document], length: int | None) -> Grid | None:
    """Perplexity of every label in % more than the base's, at the windows that the base was pretrained for.

    None without a base, with nothing to compare it with, or where L is not known.
    """
    rows = [row for row in main_mode(rows) if math.isfinite(row.perplexity)]
    base = [row for row in rows if is_base(row)]
    labels = [label for label in dict.fromkeys(row.label for row in rows) if label not in {r.label for r in base}]
    if not base or not labels or length is None:
        return None
    name = base[0].label
    windows = sorted({row.window for row in base if row.label == name and row.window <= length})
    changes = [[change_at(rows, documents, name, label, w) for w in windows] for label in labels]
    if not any(cell for row in changes for cell in row):
        return None
    trained = {row.label for row in rows if row.stage is not None}
    body = [[label, *(percent(cell) for cell in cells)] for label, cells in zip(labels, changes, strict=True)]
    muted = frozenset(i for i, label in enumerate(labels) if trained and label not in trained)
    return Grid(["more than the base at", *map(str, windows)], body, muted=muted)


def percent(found: Change | None) -> str:
    """``+4.2 % (3.1 to 5.5)``."""
    if found is None:
        return ""
    if found.ratio > 10:
        return f"x {number(found.ratio)}"
    interval = math.isfinite(found.low) and math.isfinite(found.high)
    ends = f" ({100 * (found.low - 1):+.1f} to {100 * (found.high - 1):+.1f})" if interval else ""
    return f"{100 * (found.ratio - 1):+.1f} %{ends}"


def document_grid(rows: Sequence[Document], length: int | None) -> Grid | None:
    """One row per document, the hardest for the last model first: losses of the base at L and of each model.

    A model is shown at its largest window within s * L. Losses far from the median of their column are bold.
    """
    rows = [row for row in rows if math.isfinite(row.loss)]
    columns = _columns(rows, length)
    if not columns:
        return None
    found = {(row.label, row.window, row.document): row for row in rows}
    names = list(dict.fromkeys(row.document for row in rows))
    losses = [[found.get((*column, name)) for column in columns] for name in names]
    order = sorted(range(len(names)), key=lambda i: -(cell.loss if (cell := losses[i][-1]) else -math.inf))
    kept = order[:DOCUMENTS]
    body = [[tail(names[i], 60), *_tokens(losses[i]), *(f"{c.loss:.3f}" if c else "" for c in losses[i])] for i in kept]
    bold = {
        (line, 2 + j)
        for j in range(len(columns))
        for line, i in enumerate(kept)
        if (cell := losses[i][j]) and cell.document in _outliers([row[j] for row in losses])
    }
    header = ["document", "tokens", *(f"{label} at {window}" for label, window in columns)]
    return Grid(header, body, frozenset(bold))


def _columns(rows: Sequence[Document], length: int | None) -> list[tuple[str, int]]:
    """Base at its own window, then each label of interest at its largest window within s * L."""
    found, shown = [], looks(rows)
    for label in dict.fromkeys(row.label for row in rows):
        of_label = [row for row in rows if row.label == label]
        if is_base(of_label[0]) or shown[label].main:
            reach = (length or math.inf) * of_label[0].factor
            windows = {row.window for row in of_label}
            found.append((label, max((w for w in windows if w <= reach), default=min(windows))))
    return found


def _tokens(cells: Sequence[Document | None]) -> list[str]:
    counts = {cell.tokens for cell in cells if cell}
    return [f"{min(counts):,}" if len(counts) == 1 else f"{min(counts):,}-{max(counts):,}" if counts else ""]


def _outliers(cells: Sequence[Document | None]) -> set[str]:
    known = [cell for cell in cells if cell]
    if len(known) < 5:
        return set()
    middle = median(cell.loss for cell in known)
    spread = 1.4826 * median(abs(cell.loss - middle) for cell in known)
    return {cell.document for cell in known if spread and abs(cell.loss - middle) > OUTLIER * spread}


def passkey_grid(rows: Sequence[Passkey]) -> Grid:
    """Mean accuracy over all depths, % by label and length, and the mean of the lengths: the paper's Table 5."""
    lengths = sorted({row.length for row in rows})
    several = len(variants(rows)) > 1
    body = []
    for variant in variants(rows):
        for label in dict.fromkeys(row.label for row in rows if row.variant == variant):
            found = mean_accuracy([row for row in rows if (row.variant, row.label) == (variant, label)])
            known = [share for share in found.values() if math.isfinite(share)]
            mean = f"{100 * sum(known) / len(known):.1f}" if known else ""
            cells = [f"{100 * found[n]:.0f}" if math.isfinite(found.get(n, math.nan)) else "" for n in lengths]
            body.append([f"{label}: {variant}" if several else label, *cells, mean])
    return Grid(["keys found (%) at", *map(str, lengths), "mean"], body)


def harness_grid(found: Sequence[Regression]) -> Grid:
    """One row per result of one model: beside the base's, their difference, and whether that is more than chance."""
    header = ["task", "metric", "shots", "questions", "base", "model", "difference", "standard error", ""]
    body = []
    for r in found:
        values = [_said(r.score, r.base.value), _said(r.score, r.score.value), _said(r.score, r.difference, "+")]
        body.append([r.score.task, r.score.metric, *_asked(r.score), *values, _said(r.score, r.stderr), r.verdict])
    bold = frozenset((i, j) for i, r in enumerate(found) if r.verdict for j in (6, 8))
    return Grid(header, body, bold, words=frozenset({1, 8}))


def score_grid(scores: Sequence[Score]) -> Grid:
    """One row per result, where there is no base to compare with."""
    header = ["model", "task", "metric", "shots", "questions", "value", "standard error"]
    values = [[_said(s, s.value), _said(s, s.stderr)] for s in scores]
    body = [[s.label, s.task, s.metric, *_asked(s), *v] for s, v in zip(scores, values, strict=True)]
    return Grid(header, body, words=frozenset({1, 2}))


def _asked(score: Score) -> list[str]:
    return ["" if number is None else f"{number:,}" for number in (score.shots, score.samples)]


def _said(score: Score, value: float, sign: str = "") -> str:
    """A share of right answers in points of 100; of perplexities and the like the number itself."""
    if not math.isfinite(value):
        return "not known"
    return f"{value:{sign}.3f}" if is_cost(score) else f"{100 * value:{sign}.2f}"


def temperature_grid(best: Sequence[Best]) -> Grid:
    """The best t of each factor with its interval, beside the paper's rule."""
    header = ["s", "best t", "95 % interval", "paper's t", "sqrt(1/t)", "paper's"]
    body = []
    for b in best:
        rule = b.rule if math.isfinite(b.rule) else paper_rule(b.factor)
        interval = f"{b.low:.3f}-{b.high:.3f}" if math.isfinite(b.low + b.high) else ""
        interval += " (at the edge of what was tried)" if b.at_edge else ""
        roots = [f"{b.temperature**-0.5:.3f}", f"{rule**-0.5:.3f}"]
        body.append([f"{b.factor:g}", f"{b.temperature:.3f}", interval, f"{rule:.3f}", *roots])
    return Grid(header, body)


def line_sentence(line: Line) -> str:
    """The fit in words, beside the paper's."""

    def ends(low: float, high: float) -> str:
        return f" ({low:.3f} to {high:.3f})" if math.isfinite(low + high) else ""

    a = f"a = {line.a:.3f}{ends(line.a_low, line.a_high)}"
    b = f"b = {line.b:.3f}{ends(line.b_low, line.b_high)}"
    return f"Fit of sqrt(1/t) = a ln s + b through the best t: {a}, {b}. The paper: a = {PAPER[0]}, b = {PAPER[1]:g}."


def ramp_grid(rows: Sequence[Ramp], found: Sequence[BestRamp] = ()) -> Grid:
    """The best alpha, beta and ramp of each factor and window, beside the default's perplexity.

    Args:
        found: how much lower it is, on the same documents.
    """
    body = []
    changes = {(b.factor, b.window): percent(Change(b.ratio, b.low, b.high)) for b in found if math.isfinite(b.ratio)}
    for factor, window in sorted({(row.factor, row.window) for row in rows}):
        here = [row for row in rows if (row.factor, row.window) == (factor, window)]
        first, default = lowest(here), next((row for row in here if is_default(row)), None)
        if first is not None:
            named = f"alpha {first.alpha:g}, beta {first.beta:g}, {first.ramp}"
            plain = f"{number(default.perplexity)}{span(default.low, default.high)}" if default else "not run"
            cells = [named, number(first.perplexity) + span(first.low, first.high), plain]
            body.append([f"{factor:g}", f"{window:,}", *cells, changes.get((factor, window), "")])
    header = ["s", "window", "best", "perplexity", "default (1, 32, by_index)", "difference"]
    return Grid(header, body, words=frozenset({2}))
