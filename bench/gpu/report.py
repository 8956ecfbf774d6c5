"""Tables and a picture of what the cells found; reads their files and nothing else. Never imports torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu.cells import Cell
from bench.gpu.outcome import OK
from bench.gpu.picture import draw

Row = dict[str, Any]
LOGITS = (
    "hf keeps weights, and with autocast the sum that runs through the blocks, in float32, and has all logits at once: "
    "at 65,536 tokens and a vocabulary of 128,256 16.8 GB in bfloat16, 33.6 in float32 and 33.6 of gradients. It is "
    "out of memory there on a card of 80 GB whatever is recomputed; hf-liger never makes them."
)
FORMULA = "MFU = tokens/s * (6 * N_matmul + 6 * layers * heads * head_dim * tokens) / dense bf16 peak"


def read(folder: Path) -> list[Row]:
    """All rows, by name."""
    return [json.loads(file.read_text()) for file in sorted((folder / "cells").rglob("*.json"))]


def write(folder: Path, order: Sequence[Cell]) -> str:
    """Write report.md and report.png; returns the former's text.

    Args:
        order: cells in the order in which the tables name them.
    """
    place = {cell.name: number for number, cell in enumerate(order)}
    rows = sorted(read(folder), key=lambda row: (place.get(row["name"], len(place)), row["name"]))
    folder.mkdir(parents=True, exist_ok=True)
    draw(rows, folder / "report.png")
    text = markdown(rows)
    (folder / "report.md").write_text(text)
    return text


def markdown(rows: Sequence[Row]) -> str:
    """The report's text."""
    parts = [machines(rows), FORMULA + "; attention is counted once, as the causal half, recomputation is not."]
    sections = {
        "Attention kernels, TFLOP/s forward / forward and backward": kernel_table(rows),
        "Training": train_table([row for row in rows if row["name"].startswith("train/")]),
        "Longest sequence of which a step fits": longest_table(rows),
        "Side by side": side_table([row for row in rows if row["name"].startswith("side/")]),
        "What did not run": missing_list(rows),
    }
    parts += [f"## {title}\n\n{text}" for title, text in sections.items() if text]
    return "\n\n".join(parts) + "\n"


def machines(rows: Sequence[Row]) -> str:
    """Device, driver and versions, a line per machine that cells ran on; usually one."""
    told: list[str] = []
    for row in rows:
        if machine := row["machine"]:
            versions = {key: machine.get(key) for key in ("driver", "cuda", "cudnn", "python", "torch")}
            versions |= machine.get("packages", {})
            line = ", ".join([machine["device"], *(f"{name} {value}" for name, value in versions.items() if value)])
            told += [line] if line not in told else []
    return "\n".join(told) or "no cell has run"


def kernel_table(rows: Sequence[Row]) -> str:
    """A line per kernel and shape, a column per length."""
    shown = [row for row in rows if row["kind"] == "kernel" and row["result"].get("rows")]
    lengths = sorted({cell["tokens"] for row in shown for cell in row["result"]["rows"]})
    body = []
    for row in shown:
        spec, by_length = row["spec"], {cell["tokens"]: cell for cell in row["result"]["rows"]}
        heads = f"{spec['heads']} heads of {spec['head_dim']}, {spec['kv_heads']} for keys"
        cells = [_kernel_cell(by_length.get(length, {})) for length in lengths]
        body.append([spec["kernel"], row["result"].get("primitive", ""), heads, *cells])
    return _table(["kernel", "computed by", "shape", *(f"{length:,}" for length in lengths)], body)


def _kernel_cell(cell: Row) -> str:
    return " / ".join(
        f"{cell[f'{what}_tflops']:.3g}" if f"{what}_tflops" in cell else cell.get(f"{what}_status", "-")
        for what in ("forward", "both")
    )


def train_table(rows: Sequence[Row]) -> str:
    """A line per model and length."""
    body = []
    for row in rows:
        _, name, tokens = row["name"].split("/")
        body.append([name, f"{int(tokens):,}", *_speed(row), row["variant"], row["result"].get("kernel", "")])
    return _table(["model", "tokens", *SPEED, "kept for backward", "kernel"], body)


SPEED = ["tokens/s", "MFU", "peak GiB", "steps"]


def _speed(row: Row) -> list[str]:
    result = row["result"]
    if "tokens_per_second" not in result:
        return [row["status"], "", "", ""]
    rate = f"{result['tokens_per_second']:,.0f}" + ("" if row["status"] == OK else f" ({row['status']})")
    used = f"{result['mfu']:.1%}" if result.get("mfu") is not None else ""
    steps = "1, its first" if result.get("cold") else str(len(result["seconds"]))
    return [rate, used, f"{result['peak_bytes'] / 2**30:.1f}", steps]


def longest_table(rows: Sequence[Row]) -> str:
    """A line per model; the prediction is where its peaks, or what it keeps on the host, reach the memory."""
    body = []
    for row in (row for row in rows if row["kind"] == "longest"):
        found = row["result"]
        ends = f"{found['fails']:,}: {found['status']}" if found["fails"] else "not reached"
        guess = f"{found['predicted']:,}" if found.get("predicted") else ""
        body.append(
            [row["spec"]["row"], f"{found['fits']:,}", ends, row["spec"].get("whole", "") if guess else "", guess]
        )
    return _table(["model", "ran", "did not", "predicted for", "tokens"], body)


def side_table(rows: Sequence[Row]) -> str:
    """A line per trainer, with our speed over its and the largest relative difference of losses."""
    ours = {row["name"].rsplit("/", 1)[0]: row for row in rows if row["name"].endswith("/ours")}
    body = []
    for row in rows:
        case, trainer = row["name"].rsplit("/", 1)
        _, model, tokens = case.split("/")
        other = ours.get(case, {"result": {}})
        how = [row["variant"], row["result"].get("kernel", "")]
        body.append([model, f"{int(tokens):,}", trainer, *_speed(row), ratio(other, row), difference(other, row), *how])
    columns = ["ours x", "largest loss diff.", "kept for backward", "kernel"]
    return _table(["model", "tokens", "trainer", *SPEED, *columns], body) + (f"\n\n{LOGITS}" if body else "")


def ratio(ours: Row, row: Row) -> str:
    """How many times as fast ours is; "" without both figures."""
    mine, its = (r["result"].get("tokens_per_second") for r in (ours, row))
    return f"{mine / its:.2f}" if mine and its else ""


def difference(ours: Row, row: Row) -> str:
    """The largest relative difference of the losses of one step."""
    pairs = list(zip(ours["result"].get("losses", []), row["result"].get("losses", []), strict=False))
    return f"{max(abs(a - b) / abs(a) for a, b in pairs):.1e}" if pairs else ""


def missing_list(rows: Sequence[Row]) -> str:
    """What did not end well, why, and what was tried before what did."""
    lines = []
    for row in rows:
        if row["status"] != OK:
            lines.append(f"- {row['name']}: {row['status']}: {row['reason']}")
        for tried in row["tried"]:
            if tried["status"] != OK and tried["variant"] != row["variant"]:
                lines.append(f"- {row['name']}, {tried['variant']}: {tried['status']}")
        for cell in row["result"].get("rows", []):
            reasons = {what: cell.get(f"{what}_reason") for what in ("forward", "both")}
            lines += [f"- {row['name']}, {cell['tokens']:,} tokens, {w}: {r}" for w, r in reasons.items() if r]
    return "\n".join(lines)


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    if not body:
        return ""
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
