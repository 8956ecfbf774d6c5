"""All readers side by side: how far each is from the first, and whether anything is wrong with the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import llama_cpp, rule, sglang, tensorrt_llm, transformers4, transformers5, vllm
from .faults import faults_of
from .finding import FAULT, Finding
from .given import Given
from .reading import Layer, Reading

READERS = (
    *(transformers5.read, transformers4.read, vllm.read, vllm.read_before),
    *(sglang.read, llama_cpp.read, tensorrt_llm.read),
)
SAME = 1e-5  # relative: below it two tables differ by rounding only


@dataclass(frozen=True)
class Row:
    """One reader, held against the first.

    Attributes:
        reading: what it took.
        difference: largest relative difference of a frequency to the first reader's; None where either has none.
        same: whether frequencies, attention factor and longest length are the first one's.
    """

    reading: Reading
    difference: float | None
    same: bool


@dataclass(frozen=True)
class Judgement:
    """What --check says.

    Attributes:
        rows: one per reader, transformers 5 first; YaRN's own rule last, of yarn configs only.
        findings: faults, then notes.
    """

    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]

    @property
    def faults(self) -> list[Finding]:
        """Without the notes."""
        return [finding for finding in self.findings if finding.level == FAULT]


def judge(given: Given) -> Judgement:
    """Every reader's result and every finding."""
    readings = [read(given) for read in READERS]
    meant = rule.read(given)
    readings += [] if meant.refuses else [meant]
    rows = tuple(Row(found, difference(found, readings[0]), _same(found, readings[0])) for found in readings)
    return Judgement(rows, tuple(faults_of(given)))


def difference(found: Reading, first: Reading) -> float | None:
    """Largest |a - b| / b over all pairs of all kinds of layer that both have."""
    pairs = _pairs(found, first)
    if not pairs:
        return None
    if any(len(mine.inv_freq) != len(other.inv_freq) for mine, other in pairs):
        return float("inf")
    gaps = [_gap(mine, other) for mine, other in pairs]
    return max(gaps)


def _gap(mine: Layer, other: Layer) -> float:
    ours, theirs = mine.inv_freq.double(), other.inv_freq.double()
    return float(((ours - theirs).abs() / theirs.abs().clamp_min(1e-300)).max())


def _pairs(found: Reading, first: Reading) -> list[tuple[Layer, Layer]]:
    """The same kind of layer of both; one that has a single kind stands for every kind of the other."""
    if not found.layers or not first.layers:
        return []
    names = sorted(set(found.layers) | set(first.layers), key=lambda name: name == "all")
    names = [name for name in names if name != "all"] or ["all"]
    pick = [
        (found.layers.get(name, found.layers.get("all")), first.layers.get(name, first.layers.get("all")))
        for name in names
    ]
    return [(mine, other) for mine, other in pick if mine is not None and other is not None]


def _same(found: Reading, first: Reading) -> bool:
    gap = difference(found, first)
    if gap is None or gap > SAME or found.max_length != first.max_length:
        return False
    return all(abs(mine.attention_factor - other.attention_factor) < 1e-6 for mine, other in _pairs(found, first))


def as_data(judgement: Judgement) -> dict[str, Any]:
    """For --json: readers with frequencies (radians per token), faults and notes."""
    return {
        "readers": [_row(row) for row in judgement.rows],
        "faults": [vars(finding) for finding in judgement.faults],
        "notes": [vars(finding) for finding in judgement.findings if finding.level != FAULT],
    }


def _row(row: Row) -> dict[str, Any]:
    found, gap = row.reading, row.difference
    layers = {name: _layer(layer) for name, layer in found.layers.items()}
    told = None if gap is None or gap == float("inf") else gap  # JSON has no infinity
    return {
        "reader": found.reader,
        "refuses": found.refuses,
        "max_length": found.max_length,
        "largest_relative_difference": told,
        "same_as_first": row.same,
        "notes": list(found.notes),
        "layers": layers,
    }


def _layer(layer: Layer) -> dict[str, Any]:
    short = None if layer.short is None else layer.short.tolist()
    return {**vars(layer), "inv_freq": layer.inv_freq.tolist(), "short": short}
