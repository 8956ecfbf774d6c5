"""The report's picture: kernels and MFU against length, trainers side by side, longest sequences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Row = dict[str, Any]


def draw(rows: Sequence[Row], file: Path) -> None:
    """Write `file`, a PNG; what has not run is not in it."""
    figure = Figure(figsize=(13, 9), layout="constrained")
    FigureCanvasAgg(figure)
    device = next((row["machine"]["device"] for row in rows if row["machine"]), "nothing has run")
    figure.suptitle(device)
    panels = figure.subplots(2, 2)
    _kernels(panels[0, 0], rows)
    _training(panels[0, 1], rows)
    _sides(panels[1, 0], rows)
    _longest(panels[1, 1], rows)
    figure.savefig(file, dpi=110)


def _kernels(panel: Axes, rows: Sequence[Row]) -> None:
    panel.set(title="attention kernels, forward and backward", xlabel="tokens", ylabel="causal TFLOP/s")
    for row in (row for row in rows if row["kind"] == "kernel"):
        points = [(c["tokens"], c["both_tflops"]) for c in row["result"].get("rows", []) if "both_tflops" in c]
        shape = row["name"].rsplit("/", 1)[1]
        _line(panel, points, f"{row['spec']['kernel']} {shape}", "--" if shape.startswith("64") else "-")


def _training(panel: Axes, rows: Sequence[Row]) -> None:
    """MFU where the peak is known, else tokens/s."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        if row["name"].startswith("train/") and "tokens_per_second" in row["result"]:
            by_name.setdefault(row["name"].split("/")[1], []).append(row)
    known = any(row["result"].get("mfu") for found in by_name.values() for row in found)
    what = "mfu" if known else "tokens_per_second"
    panel.set(title="training", xlabel="tokens", ylabel="causal MFU" if known else "tokens/s")
    for name, found in by_name.items():
        points = [(r["spec"]["tokens"], r["result"][what]) for r in found if r["result"].get(what)]
        _line(panel, sorted(points), name, "-")


def _sides(panel: Axes, rows: Sequence[Row]) -> None:
    panel.set(title="side by side", xlabel="tokens/s")
    found = [row for row in rows if row["name"].startswith("side/")]
    names = [
        "\n".join((row["name"].split("/", 1)[1].rsplit("/", 1)[0], row["name"].rsplit("/", 1)[1])) for row in found
    ]
    rates = [row["result"].get("tokens_per_second", 0.0) for row in found]
    _bars(panel, names, rates, ["" if rate else row["status"] for rate, row in zip(rates, found, strict=True)])


def _longest(panel: Axes, rows: Sequence[Row]) -> None:
    panel.set(title="longest sequence that ran", xlabel="tokens")
    found = [row for row in rows if row["kind"] == "longest"]
    ends = [f"{row['result']['fails']:,}: {row['result']['status']}" if row["result"]["fails"] else "" for row in found]
    _bars(panel, [row["spec"]["row"] for row in found], [float(row["result"]["fits"]) for row in found], ends)


def _line(panel: Axes, points: Sequence[tuple[float, float]], label: str, style: str) -> None:
    if points:
        panel.plot(*zip(*points, strict=True), style, marker="o", label=label)
        panel.set_xscale("log", base=2)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend(fontsize="x-small")


def _bars(panel: Axes, names: Sequence[str], values: Sequence[float], words: Sequence[str]) -> None:
    if names:
        places = range(len(names))
        panel.barh(places, values)
        panel.set_yticks(list(places), names, fontsize="small")
        panel.invert_yaxis()
        for place, value, word in zip(places, values, words, strict=True):
            panel.text(value, place, f" {value:,.0f} {word}" if value else f" {word}", va="center", fontsize="x-small")
