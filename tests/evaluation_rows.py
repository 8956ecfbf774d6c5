"""Rows of every evaluation as the programs write them, with numbers that look like those of the small base."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

L = 256
WINDOWS = (256, 512, 1024, 2048, 4096, 8192)
DOCUMENTS = ("stdlib/argparse.py", "stdlib/typing.py", "stdlib/turtle.py", "stdlib/inspect.py", "stdlib/pydoc.py",
             "stdlib/tarfile.py")  # fmt: skip
OUTLIER = "stdlib/typing.py"
Name = dict[str, Any]


def name(label: str, method: str, factor: float, stage: str | None = None, ramp: str | None = None) -> Name:
    return {"label": label, "method": method, "ramp": ramp, "factor": factor, "stage": stage}


BASE = name("base", "none", 1.0)
UNTRAINED = name("YaRN s=16, untrained", "yarn", 16.0, ramp="by_index")
FIRST = name("YaRN s=16, after 01_s16", "yarn", 16.0, "01_s16", "by_index")
SECOND = name("YaRN s=32, after 02_s32", "yarn", 32.0, "02_s32", "by_index")
MODELS = (BASE, UNTRAINED, FIRST, SECOND)


def loss_at(model: Name, length: int) -> float:
    """Nats per token at a window: falls with the length, rises beyond s * L; untrained rows are worse."""
    start = {"base": 2.81}.get(model["label"], 3.05 if model["stage"] is None else 2.9)
    reach = model["factor"] * L
    far = max(0.0, math.log2(length / reach)) if length > reach else 0.0
    return start - 0.08 * math.log2(min(length, reach) / L + 1) + 1.3 * far**0.6 * (far > 0)


def document_rows(models: Sequence[Name] = MODELS, tokens: int = 512) -> list[dict[str, Any]]:
    """perplexity_documents.json; one document is far harder than the others."""
    noise = random.Random(1)
    hard = {d: (1.1 if d == OUTLIER else 0.05 * i) + noise.gauss(0, 0.02) for i, d in enumerate(DOCUMENTS)}
    return [
        {**model, "window": window, "document": document, "tokens": tokens,
         "nll": tokens * (loss_at(model, window) + hard[document] + 0.01 * math.sin(7 * i + window))}
        for model in models for window in WINDOWS for i, document in enumerate(DOCUMENTS)
    ]  # fmt: skip


def perplexity_rows(models: Sequence[Name] = MODELS) -> list[dict[str, Any]]:
    """perplexity.json of the same documents, both ways of averaging."""
    rows = []
    documents = document_rows(models)
    for model in models:
        for window in WINDOWS:
            here = [d for d in documents if d["label"] == model["label"] and d["window"] == window]
            value = math.exp(sum(d["nll"] for d in here) / sum(d["tokens"] for d in here))
            common = {**model, "window": window, "stride": 256, "documents": 6, "tokens": 3072, "score_from": 7936}
            ends = {"low": value * 0.8, "high": value * 1.3}
            rows.append({**common, "mode": "token_mean", "perplexity": value, **ends})
            rows.append({**common, "mode": "window_mean", "perplexity": value * 1.01, "low": None, "high": None})
    return rows


def bins(last: int) -> list[tuple[int, int]]:
    """Log-spaced positions: [1, 2), [2, 4), [4, 8) ... up to last."""
    edges = [1, 2]
    while edges[-1] < last:
        edges.append(min(last, 2 * edges[-1]))
    return list(itertools.pairwise(edges))


def position_rows(models: Sequence[Name] = MODELS, window: int = 8192) -> list[dict[str, Any]]:
    """positions.json: hard at the beginning, then easier and easier, up to s * L."""
    rows = []
    for model in models:
        for begin, end in bins(window):
            loss = 5.2 * (begin + 1) ** -0.28 + loss_at(model, max(L, end)) - 1.4
            ends = {"low": loss - 0.08, "high": loss + 0.09}
            rows.append({**model, "window": window, "begin": begin, "end": end, "loss": loss, "tokens": 12, **ends})
    return rows


def passkey_rows(models: Sequence[Name] = (BASE, FIRST, SECOND), total: int = 10) -> list[dict[str, Any]]:
    """passkey.json: all variants; reference puts the key at random places."""
    noise, rows = random.Random(2), []
    for variant, share in (("plain", 1.0), ("many_keys", 0.7), ("book", 0.5), ("reference", 0.9)):
        for model in models:
            for length in (128, *WINDOWS):
                for i in range(5):
                    depth = noise.random() if variant == "reference" else i / 4
                    found = share if length <= model["factor"] * L else 0.1
                    correct = min(
                        total, max(0, round(total * found - 4 * found * (0.2 < depth < 0.8) * (length > 1024)))
                    )
                    rows.append({**model, "variant": variant, "length": length, "depth": depth, "correct": correct,
                                 "total": total})  # fmt: skip
    return rows


def harness_rows() -> list[dict[str, Any]]:
    """harness.json: one result worse than chance allows, one without a standard error."""
    results = [
        ("arc_challenge", "acc_norm", 25, 0.531, 0.523, 0.498, 0.0146),
        ("hellaswag", "acc_norm", 10, 0.778, 0.7884, 0.7843, 0.0041),
        ("mmlu", "acc", 5, 0.438, 0.4252, 0.3978, 0.0041),
        ("truthfulqa_mc2", "acc", 0, 0.39, 0.3823, 0.3738, None),
    ]
    return [
        {**model, "task": task, "group": None, "metric": metric, "shots": shots, "value": values[i], "stderr": error,
         "samples": 1172}
        for i, model in enumerate((BASE, FIRST, SECOND)) for task, metric, shots, *values, error in results
    ]  # fmt: skip


def dynamic_rows() -> list[dict[str, Any]]:
    """dynamic.json: no scaling, fixed factors and dynamic scaling of three methods."""
    rows = []
    for method, title, worse in (("pi", "PI", 0.5), ("ntk", "NTK-aware", 0.25), ("yarn", "YaRN", 0.1)):
        for factor in (2.0, 4.0, 8.0, 16.0):
            model = name(f"{title} s={factor:g}", method, factor, ramp="by_index" if method == "yarn" else None)
            rows += [{**model, "window": w, "perplexity": math.exp(loss_at(model, w) + worse)} for w in (128, *WINDOWS)]
        model = name(f"Dynamic {title}", f"dynamic {method}", 32.0)
        for w in (128, *WINDOWS):
            value = math.exp(2.8 + worse * math.log2(max(1, w / L)))
            rows.append({**model, "window": w, "perplexity": value, "low": value * 0.9, "high": value * 1.1})
    rows += [{**BASE, "window": w, "perplexity": math.exp(loss_at(BASE, w))} for w in (128, *WINDOWS)]
    shared = {"mode": "token_mean", "stride": 256, "tokens": 3072, "documents": 6, "score_from": 7936}
    return [{**shared, "low": None, "high": None, **row} for row in rows]


def rule(factor: float) -> float:
    return (0.1 * math.log(factor) + 1) ** -2


def temperature_files() -> dict[str, Any]:
    """The three files of the temperature study: the best t is a little above the paper's."""
    rows, best, gains = [], [], []
    for factor in (2.0, 4.0, 8.0, 16.0):
        lowest = (0.08 * math.log(factor) + 1.0) ** -2
        label = f"YaRN s={factor:g}, untrained"
        for t in sorted({1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, rule(factor), lowest}):
            value = math.exp(2.8 + 0.05 * math.log(factor) + 0.9 * (t - lowest) ** 2)
            rows.append({**name(label, "yarn", factor, ramp="by_index"), "temperature": t, "window": int(factor * L),
                         "perplexity": value, "low": 0.9 * value, "high": 1.12 * value, "tokens": 3072,
                         "documents": 6})  # fmt: skip
        best.append({"factor": factor, "temperature": lowest, "low": lowest - 0.03, "high": lowest + 0.04,
                     "rule": rule(factor), "at_edge": factor == 16})  # fmt: skip
        gains += [{"factor": factor, "temperature": t, "begin": b, "end": e,
                   "improvement": (0.06 - abs(t - lowest) / 3) * math.log2(b + 2) / 8}
                  for t in (lowest, rule(factor)) for b, e in bins(int(factor * L))]  # fmt: skip
    fit = {"a": 0.08, "b": 1.0, "a_low": 0.06, "a_high": 0.1, "b_low": 0.97, "b_high": 1.03}
    return {"temperature": rows, "temperature_fit": {"best": best, "fit": fit}, "temperature_positions": gains}


def ramp_rows() -> list[dict[str, Any]]:
    """ramp.json: a bowl; the default is not the lowest cell."""
    return [
        {**name(f"YaRN s={s:g}, untrained", "yarn", s, ramp=ramp), "alpha": alpha, "beta": beta,
         "window": int(s * L), "perplexity": value, "low": 0.9 * value, "high": 1.1 * value, "tokens": 3072,
         "documents": 6}
        for s in (4.0, 16.0) for ramp in ("by_index", "by_rotations") for alpha in (0.5, 1.0, 2.0)
        for beta in (8.0, 16.0, 32.0)
        for value in [17 + s / 4 + math.log2(alpha) ** 2 + 0.7 * (math.log2(beta) - 4) ** 2 - (ramp == "by_rotations")]
    ]  # fmt: skip


def best_ramp_rows() -> list[dict[str, Any]]:
    """ramp_best.json: better than the default beyond the noise of the documents at both factors."""
    return [{"factor": s, "alpha": 1.0, "beta": 16.0, "ramp": "by_rotations", "window": int(s * L), "perplexity": value,
             "ratio": 0.922, "low": 0.90, "high": 0.95} for s, value in ((4.0, 17.0), (16.0, 20.0))]  # fmt: skip


def files() -> dict[str, Any]:
    """Every file of a finished evaluation by its name, without the ending."""
    return {
        "perplexity": perplexity_rows(),
        "perplexity_documents": document_rows(),
        "positions": position_rows(),
        "passkey": passkey_rows(),
        "harness": harness_rows(),
        "dynamic": dynamic_rows(),
        **temperature_files(),
        "ramp": ramp_rows(),
        "ramp_best": best_ramp_rows(),
    }


def write_evaluation(folder: Path, found: dict[str, Any] | None = None) -> Path:
    """``folder/eval/*.json`` and nothing else, as python -m yarn_train.eval leaves it."""
    (folder / "eval").mkdir(parents=True, exist_ok=True)
    for key, content in (files() if found is None else found).items():
        (folder / "eval" / f"{key}.json").write_text(json.dumps(content))
    return folder
