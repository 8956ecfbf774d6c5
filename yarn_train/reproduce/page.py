"""The reproduction's page: what the paper found, what was found here, side by side. Pure; never imports torch."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..report.blocks import Block, Heading, Picture
from ..report.tables import Grid
from .experiments import METHODS, L
from .figures import curves, dynamic, losses, passkey, temperature
from .judged import keys_found
from .runner import STDLIB

Json = dict[str, Any]
PAPERS = (1.0, 32.0)  # alpha and beta
NAMES = {
    "base": "base, no scaling",
    "pi": "PI",
    "ntk": "NTK-aware",
    "ntk_by_parts": "NTK-by-parts",
    "yarn": "YaRN",
    "yarn_eq18": "YaRN, Eq. 18 ramp",
    "yarn_by_rotations": "YaRN, Eq. 18 ramp",
}


def blocks(found: Json) -> list[Block]:
    """The page of :func:`results.collect`'s value; a part without numbers is left out."""
    parts = [_claims, _table1, _table2, _losses, _passkey, _dynamic, _temperature, _ramp, _commands]
    head: list[Block] = [Heading("Results of the reproduction", 1), _summary(found)]
    return head + [block for part in parts for block in part(found)]


def name(model: str) -> str:
    """yarn_s16_untrained as "YaRN s=16, untrained"."""
    method, _, rest = model.partition("_s")
    if method == "ntk_by_parts" or model == "base" or not rest:
        method, _, rest = model.rpartition("_s") if model != "base" else (model, "", "")
    untrained = rest.endswith("_untrained")
    factor = rest.removesuffix("_untrained")
    return NAMES.get(method, method) + (f" s={factor}" if factor else "") + (", untrained" if untrained else "")


def _summary(found: Json) -> str:
    parts = []
    for before, said in ((True, "written down before the first run"), (False, "written down later")):
        known = [claim for claim in found["claims"] if claim["holds"] is not None and claim["before"] == before]
        if known:
            parts.append(f"{sum(claim['holds'] for claim in known)} of {len(known)} statements {said}")
    books = found["inputs"].get("books")
    read = f" Texts: {books if books == STDLIB else f'books, fingerprint {books[:12]}'}." if books else ""
    return (
        f"Of the paper's findings {' and '.join(parts)} hold at this scale (seeds {_listed(found['seeds'])}). L is {L} "
        "tokens, and all lengths are the paper's divided by 16. Values are token-mean perplexities of sliding windows, "
        "the mean over seeds with the standard deviation over seeds where there are several. Each table scores other "
        f"places of the texts: values compare within a table only.{read}"
    )


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _claims(found: Json) -> list[Block]:
    body = []
    for claim in found["claims"]:
        verdict = {True: "holds", False: "does not hold", None: "not measured"}[claim["holds"]]
        of = f"{claim['seeds_holding']} of {claim['seeds']}" if claim["seeds"] else ""
        numbers = ", ".join(f"{key} {value:.4g}" for key, value in claim["numbers"].items())
        body.append([claim["statement"], claim["source"], verdict, of, numbers, "" if claim["before"] else "later"])
    header = ("statement", "paper", "here", "seeds", "numbers", "written")
    return [Heading("What the paper found"), Grid(header, body, numeric=False)]


def _table1(found: Json) -> list[Block]:
    text = (
        "Extension by two, all trained alike: 40 steps of 16 segments of 2L. The paper's columns are 2k, 4k, 6k, 8k, "
        "10k and 16k tokens."
    )
    return _table(found, "table1", "Table 1: a small extension", text)


def _table2(found: Json) -> list[Block]:
    text = (
        "YaRN s=16 (40 steps of 4 segments of 16L), then s=32 from there (20 steps on segments of the same length); "
        "PI, NTK-aware and NTK-by-parts at s=16, trained alike. Windows up to 1.5 times each model's length. The "
        "paper's columns are 4k, 8k, 16k, 32k, 64k, 96k, 128k and 192k tokens."
    )
    return _table(found, "table2", "Table 2: s=16 and s=32", text)


def _table(found: Json, table: str, title: str, text: str) -> list[Block]:
    cells = found["tables"][table]
    if not cells:
        return []
    windows = sorted({cell["window"] for cell in cells})
    models = sorted(
        dict.fromkeys(cell["model"] for cell in cells), key=lambda m: (m != "base", m.endswith("untrained"))
    )
    by_place = {(cell["model"], cell["window"]): cell for cell in cells}
    most = max(len(cell["values"]) for cell in cells)
    body = [[name(m), *(_cell(by_place.get((m, w)), most) for w in windows), _folders(cells, m)] for m in models]
    header = ("model", *(f"{window / L:g} L" for window in windows), "runs")
    untrained = frozenset(i for i, m in enumerate(models) if m == "base" or m.endswith("untrained"))
    figure = curves({m: [by_place[m, w] for w in windows if (m, w) in by_place] for m in models}, name)
    scored = f" Every value is of the same {cells[0]['tokens']} tokens of {cells[0]['documents']} held-out documents."
    grid = Grid(header, body, muted=untrained, words=frozenset({len(header) - 1}))
    return [Heading(title), text + (scored if cells[0]["tokens"] else ""), grid, _drawn(table, title, figure)]


def _folders(cells: Sequence[Json], model: str) -> str:
    """The run folders of a row, without their seeds."""
    folders = {value["run"].rsplit("/", 1)[0] for cell in cells if cell["model"] == model for value in cell["values"]}
    return ", ".join(sorted(folders))


def _cell(cell: Json | None, most: int) -> str:
    """The mean, its spread, and the number of seeds where it is smaller than that of other trained models."""
    if cell is None or cell["mean"] is None:
        return "-"
    mean = _digits(cell["mean"], cell["mean"])
    if cell["spread"] is None:
        return mean
    fewer = f" ({len(cell['values'])} seeds)" if len(cell["values"]) < most else ""
    return f"{mean} ± {_digits(cell['spread'], cell['mean'])}{fewer}"


def _digits(value: float, size: float) -> str:
    """As many decimals as four digits of `size` leave."""
    return f"{value:.{max(0, 3 - max(0, math.floor(math.log10(size))))}f}" if size > 0 else f"{value:g}"


def _losses(found: Json) -> list[Block]:
    if not found["losses"]:
        return []
    body = []
    for method in METHODS:
        rows = [row for row in found["losses"] if row["method"] == method]
        if rows:
            folders = ", ".join(sorted({row["run"].rsplit("/", 1)[0] for row in rows}))
            body.append([NAMES[method], *(_over_seeds(rows, key) for key in ("first", "tenth", "last")), folders])
    text = (
        "Training loss at s=16 in nats per token, the same segments for all four methods. Lines are means over seeds, "
        "bands reach from the lowest to the highest."
    )
    grid = Grid(("method", "first step", "tenth step", "mean of the last ten", "runs"), body, words=frozenset({4}))
    title = "Training loss of the four methods"
    return [Heading(title), text, grid, _drawn("losses", title, losses(found["losses"], lambda method: NAMES[method]))]


def _over_seeds(rows: Sequence[Json], key: str) -> str:
    values = [row[key] for row in rows]
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.3f}"
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return f"{mean:.3f} ± {spread:.3f}"


def _passkey(found: Json) -> list[Block]:
    rows = found["passkey"]
    if not rows:
        return []
    lengths = sorted({row["length"] for row in rows})
    counts = keys_found(rows, {row["seed"] for row in rows})
    body = [
        [name(model), *("{}/{}".format(*of[length]) if length in of else "-" for length in lengths)]
        for model, of in counts.items()
    ]
    folders = ", ".join(sorted({row["run"].rsplit("/", 1)[0] for row in rows}))
    text = (
        "Keys found of those asked for, by the length of the prompt, with keys in ten places. This base was taught to "
        "answer prompts of up to L tokens first (300 steps); its extension read books and longer prompts by halves. "
        f"Bars are 95 % intervals (Wilson). From {folders}."
    )
    grid = Grid(("model", *(f"{length / L:g} L" for length in lengths)), body)
    title = "Table 5: passkey retrieval"
    return [Heading(title), text, grid, _drawn("passkey", title, passkey(counts, name))]


def _dynamic(found: Json) -> list[Block]:
    rows = [row for row in found["studies"].get("dynamic", []) if row["mode"] == "token_mean"]
    if not rows:
        return []
    text = (
        "The base without any training. A fixed factor pays at short windows for what it gives at long ones; "
        "s = max(1, l'/L) has neither price. Bars are 95 % intervals over documents, common to all lines. From "
        "studies/dynamic."
    )
    windows = sorted({row["window"] for row in rows})
    labels = list(dict.fromkeys(row["label"] for row in rows))
    values = {(row["label"], row["window"]): row["perplexity"] for row in rows}
    body = [[label, *(_plain(values.get((label, window))) for window in windows)] for label in labels]
    grid = Grid(("scaling", *(f"{window / L:g} L" for window in windows)), body)
    title = "Figure 5: dynamic scaling"
    return [Heading(title), text, grid, _drawn("dynamic", title, dynamic(rows))]


def _plain(value: float | None) -> str:
    return "-" if value is None else _digits(value, value)


def _temperature(found: Json) -> list[Block]:
    fit = found["studies"].get("temperature_fit")
    if not fit:
        return []
    body = [
        [
            f"{best['factor']:g}",
            f"{best['temperature']:.3f}",
            f"{best['low']:.3f} to {best['high']:.3f}" if best["low"] is not None else "edge of the grid",
            f"{best['rule']:.3f}",
        ]
        for best in fit["best"]
    ]
    text = (
        "Temperature t with the lowest perplexity at window s L, untrained, with its 95 % interval over documents, and "
        "the paper's rule. From studies/temperature."
    )
    made: list[Block] = [Heading("Temperature"), text, Grid(("s", "best t", "95 %", "rule"), body)]
    if line := fit.get("fit"):
        made.append(
            f"Fitted: sqrt(1/t) = {line['a']:.3f} ln s + {line['b']:.3f}; 95 % intervals "
            f"{line['a_low']:.3f} to {line['a_high']:.3f} and {line['b_low']:.3f} to {line['b_high']:.3f}. "
            "The paper: 0.1 ln s + 1."
        )
    figure = temperature(found["studies"].get("temperature", []))
    return [*made, _drawn("temperature", "Perplexity by temperature", figure)] if figure else made


def _ramp(found: Json) -> list[Block]:
    rows = [row for row in found["studies"].get("ramp", []) if row["perplexity"] is not None]
    body = []
    for factor, ramp in sorted({(row["factor"], row["ramp"]) for row in rows}):
        here = sorted((r for r in rows if (r["factor"], r["ramp"]) == (factor, ramp)), key=lambda r: r["perplexity"])
        usual = [r for r in here if (r["alpha"], r["beta"]) == PAPERS]
        best = here[0]
        cells = [_interval(usual[0]) if usual else "-", _interval(best), f"{best['alpha']:g}, {best['beta']:g}"]
        body.append([f"{factor:g}", ramp, str(best["window"]), *cells, _interval(here[-1])])
    if not body:
        return []
    text = (
        f"Perplexity at window s L over alpha x beta ({len(rows) // len(body)} cells each). by_index is the "
        "ramp of the paper's code and of servers, by_rotations that of its Eq. 18. From studies/ramp."
    )
    header = ("s", "ramp", "window", "alpha 1, beta 32", "lowest", "alpha, beta of it", "highest")
    return [Heading("Alpha, beta and the two ramps, untrained"), text, Grid(header, body, words=frozenset({1}))]


def _interval(row: Json) -> str:
    known = row.get("low") is not None and row.get("high") is not None
    return f"{row['perplexity']:.4g}" + (f" ({row['low']:.4g} to {row['high']:.4g})" if known else "")


def _drawn(file: str, text: str, figure: dict[str, Any]) -> Picture:
    """A figure, and the PNG of it that stands beside the page."""
    return Picture(Path(f"results_{file}.png"), text, [("", figure)])


def _commands(found: Json) -> list[Block]:
    body = [[key, shlex.join(["python", *words])] for key, words in found["commands"].items()]
    if not body:
        return []
    text = (
        "Every command as it is typed in the repository, `{out}` being the reproduction's folder and `{books}` that of "
        "the books. The seed is the last part of a folder's name."
    )
    return [Heading("Where the numbers come from"), text, Grid(("folder", "command"), body, numeric=False)]
