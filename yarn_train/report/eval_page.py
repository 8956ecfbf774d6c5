"""The part of a page that shows evaluations: of a run, of one model, or of several side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .blocks import Block, Folded, Heading, Picture
from .eval_figures import PANELS, Scene
from .eval_tables import (
    document_grid,
    harness_grid,
    line_sentence,
    passkey_grid,
    price_grid,
    ramp_grid,
    score_grid,
    temperature_grid,
)
from .figures.dynamic import DYNAMIC
from .figures.passkey import variants
from .regressions import Regression, by_model, regressions
from .tables import Grid, main_mode, perplexity_grid

Pictures = Mapping[str, Path]
MODES = {
    "token_mean": "every token weighs alike",
    "window_mean": "every window weighs alike, as in the reference implementation",
    "truncate": "one pass over the beginning of each document, as the reference ran on Proof-pile",
}


def after_perplexity(scene: Scene, pictures: Pictures) -> list[Block]:
    """What belongs below the table of perplexities: the price at short windows, other modes, documents, positions."""
    found = scene.found
    page: list[Block] = []
    price = price_grid(found.perplexity, found.documents, scene.length)
    if price:
        page += [Heading("The price at short windows", 3)]
        page += ["Perplexity more than the base's where the base can read; in brackets 95 % of the difference itself, "
                 "both models on the same documents.", price]  # fmt: skip
    shown = {row.mode for row in main_mode(found.perplexity)}
    for mode in dict.fromkeys(row.mode for row in found.perplexity if row.mode not in shown):
        other = perplexity_grid(found.perplexity, mode, intervals=True)
        page.append(Folded(f"Averaged otherwise: {mode} ({MODES.get(mode, mode)})", other))
    page += _shown("positions", "Loss against position", scene, pictures, POSITIONS)
    grid = document_grid(found.documents, scene.length)
    if grid:
        page += _shown("documents", "Documents", scene, pictures, DOCUMENTS)
        page.append(Folded("Every document's loss at each model's own window", grid))
    return page


POSITIONS = (
    "The largest window over the beginning of every document that fills it. Where far text is used, the loss goes on "
    "falling; beyond the length that a model can read it rises."
)
DOCUMENTS = "Nats per token, the hardest document above. One document far from the others can decide a mean."


def others(scene: Scene, pictures: Pictures, level: int = 2) -> list[Block]:
    """Passkey, benchmarks, dynamic scaling and the studies, those that there are."""
    found = scene.found
    page: list[Block] = []
    if found.passkey:
        page += [Heading("Passkey", level), *_passkey(scene, pictures)]
    if found.harness:
        page += [Heading("Benchmarks", level), *_harness(scene, pictures)]
    if found.dynamic:
        page += [Heading("Dynamic scaling", level), *_dynamic(scene, pictures)]
    if found.temperature or found.best or found.gains:
        page += [Heading("Temperature", level), *_temperature(scene, pictures)]
    if found.ramp:
        page += [Heading("Ramp", level), *_ramp(scene, pictures)]
    return page


def _shown(name: str, title: str, scene: Scene, pictures: Pictures, how: str = "") -> list[Block]:
    panels = PANELS[name](scene)
    return [Heading(title, 3), *([how] if how else []), Picture(pictures.get(name), title, panels)] if panels else []


def _picture(name: str, text: str, scene: Scene, pictures: Pictures, how: str = "") -> list[Block]:
    panels = PANELS[name](scene)
    return [Picture(pictures.get(name), text, panels, how)] if panels else []


def _passkey(scene: Scene, pictures: Pictures) -> list[Block]:
    rows = scene.found.passkey
    page: list[Block] = ["Right answers of all tries, by the length of the text; below by the key's place in it too."]
    page += _picture("passkey_lengths", "Keys found by length", scene, pictures)
    page += [passkey_grid(rows)]
    several = len(variants(rows)) > 1
    panels = PANELS["passkey"](scene)
    if not several:
        return [*page, Picture(pictures.get("passkey"), "Passkey retrieval", panels)]
    for number, label in enumerate(dict.fromkeys(row.label for row in rows)):
        of_label = [
            (title.removeprefix(f"{label}: "), made) for title, made in panels if title.startswith(f"{label}: ")
        ]
        page += [Heading(label, 3), Picture(None if number else pictures.get("passkey"), "Passkey retrieval", of_label)]
    return page


def _harness(scene: Scene, pictures: Pictures) -> list[Block]:
    scores = scene.found.harness
    pairs = regressions(scores)
    if not pairs:
        return [score_grid(scores), "Beside its base: python -m yarn_train.report BASE EXTENDED -o outputs/comparison"]
    page: list[Block] = [
        "Points of 100. A difference is marked where it is more than 2 standard errors, those of both models combined; "
        "of many tasks, 1 in 20 is beyond that by chance alone."
    ]
    page += _picture("harness", "Differences to the base", scene, pictures)
    models = by_model(pairs)
    for label, here in models.items():
        page += [Heading(label, 3)] if len(models) > 1 else []
        page += _results(here)
    return page


def _results(pairs: list[Regression]) -> list[Block]:
    """What was asked for by name, and the members of groups (57 subjects of MMLU) that changed; the rest is folded."""
    first = [pair for pair in pairs if pair.score.group is None or pair.verdict]
    if len(first) == len(pairs):
        return [harness_grid(pairs)]
    return [harness_grid(first), Folded(f"All {len(pairs)} results, members of groups too", harness_grid(pairs))]


def _dynamic(scene: Scene, pictures: Pictures) -> list[Block]:
    rows = scene.found.dynamic
    text = (
        "Without training. Dynamic scaling takes s = max(1, window / L), so up to L it is the unscaled base; a fixed "
        "factor is the same at every window, at short ones too."
    )
    grid = perplexity_grid(rows, intervals=True)
    moving = {row.label for row in rows if row.method.startswith(DYNAMIC)}
    muted = frozenset(i for i, line in enumerate(grid.body) if line[0] not in moving)
    drawn = _picture("dynamic", "Dynamic against fixed scaling", scene, pictures)
    return [text, *drawn, Grid(grid.header, grid.body, grid.bold, muted)]


def _temperature(scene: Scene, pictures: Pictures) -> list[Block]:
    found = scene.found
    page: list[Block] = ["Without training: only the table of YaRN and the temperature of attention change."]
    how = "Solid line and shade: the best t at s x L and its 95 % interval; dotted: the paper's rule."
    page += _picture("temperature", "Perplexity against temperature", scene, pictures, how)
    if found.best:
        page += [Heading("The rule", 3), temperature_grid(found.best)]
        page += [line_sentence(found.line)] if found.line else []
        page += _picture("temperature_fit", "Best temperatures and the rule", scene, pictures)
    page += _shown("temperature_positions", "Improvement by position", scene, pictures)
    return page


def _ramp(scene: Scene, pictures: Pictures) -> list[Block]:
    how = (
        "Without training. Perplexity in each cell, dark is low; the lowest of a factor is framed, the default has a "
        "dot. Colours compare within one factor."
    )
    drawn = _picture("ramp", "Perplexity by alpha and beta", scene, pictures, how)
    return [*drawn, ramp_grid(scene.found.ramp, scene.found.ramp_best)]
