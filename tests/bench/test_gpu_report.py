"""The report of bench.gpu from made-up rows: tables, reasons, picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from bench.gpu import report
from bench.gpu.cells import catalogue
from bench.gpu.outcome import MEMORY, MISSING, OK, TIME

MACHINE = {
    "device": "NVIDIA H0",
    "driver": "580.1",
    "cuda": "13.0",
    "torch": "2.11",
    "packages": {"liger-kernel": "0.8"},
}


def row(name: str, kind: str, status: str = OK, result: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    usual = {"spec": {}, "variant": "", "tried": [], "reason": "", "machine": MACHINE, "result": result or {}}
    return {"name": name, "kind": kind, "status": status, **usual, **more}


def speed(rate: float, mfu: float | None = 0.5, losses: tuple[float, ...] = (10.0, 8.0)) -> dict[str, Any]:
    return {"tokens_per_second": rate, "mfu": mfu, "peak_bytes": 3 * 2**30, "seconds": [1.0, 2.0], "losses": losses}


SHAPE = {"kernel": "sdpa", "heads": 16, "kv_heads": 4, "head_dim": 128}
KERNEL = [
    {"tokens": 8192, "forward_tflops": 321.4, "both_tflops": 300.0},
    {"tokens": 65536, "forward_tflops": 400.0, "both_status": MEMORY, "both_reason": "64 GiB"},
]
SEARCH = {"fits": 1_000, "fails": 2_000, "status": TIME, "reason": "60 s", "probes": [], "predicted": 5_000}
ROWS = [
    row("kernel/sdpa/128-gqa", "kernel", OK, {"primitive": "flash", "rows": KERNEL}, spec=SHAPE),
    row("kernel/flex/128-gqa", "kernel", MISSING, reason="no backward | here", spec={**SHAPE, "kernel": "flex"}),
    row("train/1b/65536", "train", OK, speed(20_000.0, 0.551), variant="attention", spec={"tokens": 65536}),
    row("train/1b/8192", "train", OK, speed(30_000.0, 0.4), spec={"tokens": 8192}),
    row("train/3b/8192", "train", TIME, speed(7.0), spec={"tokens": 8192}),
    row("train/1b/262144", "train", MEMORY, reason="80 GiB", spec={"tokens": 262144}),
    row("longest/1b-4layers", "longest", OK, SEARCH, spec={"row": "1b-4layers", "whole": "1b"}),
    row("side/1b/65536/ours", "train", OK, speed(20_000.0)),
    row("side/1b/65536/hf", "hf", OK, {**speed(8_000.0, 0.2, (10.0, 8.2)), "kernel": "sdpa (cudnn)"}, variant="full"),
    row("side/1b/65536/alst", "alst", MISSING, reason="the package deepspeed is not installed"),
]
LEAN = {"variant": "lean", "tried": [{"variant": "fast", "status": MEMORY, "reason": ""}]}


def test_tables_say_what_was_found() -> None:
    text = report.markdown(ROWS)
    assert "NVIDIA H0, driver 580.1, cuda 13.0, torch 2.11, liger-kernel 0.8" in text
    assert "| sdpa | flash | 16 heads of 128, 4 for keys | 321 / 300 | 400 / out of memory |" in text
    assert "| 1b | 65,536 | 20,000 | 55.1% | 3.0 | 2 | attention |" in text
    assert "| 3b | 8,192 | 7 (timed out) |" in text
    assert "| 1b | 262,144 | out of memory |" in text
    assert "| 1b-4layers | 1,000 | 2,000: timed out | 1b | 5,000 |" in text
    assert "| 1b | 65,536 | hf | 8,000 | 20.0% | 3.0 | 2 | 2.50 | 2.5e-02 | full | sdpa (cudnn) |" in text
    assert "| 1b | 65,536 | alst | not available |" in text


def test_a_lone_step_that_may_have_made_its_buffers_says_so() -> None:
    text = report.train_table([row("train/x/64", "train", OK, {**speed(5.0), "seconds": [2.0], "cold": True})])
    assert "| 3.0 | 1, its first |" in text


def test_why_the_trainer_has_no_figure_at_64k_is_said_beside_it() -> None:
    text = report.markdown(ROWS)
    for size, count in (("16.8", 2), ("33.6", 4)):
        assert float(size) == round(65536 * 128256 * count / 1e9, 1)
        assert text.index("| 1b | 65,536 | hf |") < text.index(f"{size} ")
    assert report.side_table([]) == ""


def test_reasons_are_listed() -> None:
    listed = report.missing_list([*ROWS, row("train/3b/65536", "train", OK, speed(1.0), **LEAN)]).splitlines()
    assert listed == [
        "- kernel/sdpa/128-gqa, 65,536 tokens, both: 64 GiB",
        "- kernel/flex/128-gqa: not available: no backward | here",
        "- train/3b/8192: timed out: ",
        "- train/1b/262144: out of memory: 80 GiB",
        "- side/1b/65536/alst: not available: the package deepspeed is not installed",
        "- train/3b/65536, fast: out of memory",
    ]


def test_without_a_known_peak_there_is_no_mfu() -> None:
    text = report.train_table([row("train/x/64", "train", OK, speed(5.0, None))])
    assert "| x | 64 | 5 |  | 3.0 |" in text


@pytest.mark.parametrize("rows", [ROWS, []])
def test_the_folder_gets_both_files(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    for one in rows:
        file = tmp_path / "cells" / f"{one['name']}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(one))
    text = report.write(tmp_path, catalogue(tiny=False))
    assert (tmp_path / "report.md").read_text() == text
    assert text.find("train/1b") == -1 or text.index("| 1b | 65,536") < text.index("| 1b | 8,192"), "catalogue's order"
    picture = matplotlib.image.imread(tmp_path / "report.png")
    assert picture.shape[:2] == (990, 1430)
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > (40 if rows else 1)
