"""A run folder as two stages of training write it, with the values of a real small run."""

from __future__ import annotations

import json
import math
import random

import pytest
import yaml

from yarn_train.report import style

LENGTH, THETA, HEAD_DIM, ALPHA, BETA = 256, 10_000.0, 64, 1.0, 32.0
WINDOWS = (256, 512, 1024, 2048, 4096, 8192)
PERPLEXITY = [  # label, method, ramp, factor, stage, values at WINDOWS
    ("base, no scaling", "none", None, 1.0, None, (8.14, 17.1, 56.6, 87.3, 106, 126)),
    ("PI s=16, untrained", "pi", None, 16.0, None, (90.5, 97.1, 97.3, 98.3, 100, 130)),
    ("NTK-aware s=16, untrained", "ntk", None, 16.0, None, (9.04, 6.86, 6.71, 41.5, 80.5, 118)),
    ("NTK-by-parts s=16, untrained", "ntk_by_parts", "by_index", 16.0, None, (10.1, 9.01, 10.1, 10.9, 12.7, 90.6)),
    ("YaRN s=16, untrained", "yarn", "by_index", 16.0, None, (9.48, 7.26, 7.20, 7.12, 7.39, 71.6)),
    ("YaRN s=16, Eq. 18, untrained", "yarn", "by_rotations", 16.0, None, (11.2, 9.1, 8.27, 8.2, 8.39, 75.3)),
    ("YaRN s=16, 40 steps", "yarn", "by_index", 16.0, "01_s16", (8.49, 5.90, 5.46, 5.29, 5.26, 58.7)),
    ("YaRN s=32, 40 + 20 steps", "yarn", "by_index", 32.0, "02_s32", (8.67, 5.99, 5.63, 5.45, 5.46, 5.49)),
]


def inv_freq(method, ramp, factor):
    """Scaled inverse frequencies, so that the picture of the tests looks like the real one."""
    base = [THETA ** (-2 * i / HEAD_DIM) for i in range(HEAD_DIM // 2)]
    if method == "ntk":
        theta = THETA * factor ** (HEAD_DIM / (HEAD_DIM - 2))
        return [theta ** (-2 * i / HEAD_DIM) for i in range(HEAD_DIM // 2)]
    if method in ("none", "pi"):
        return [f / (factor if method == "pi" else 1.0) for f in base]

    def pair(rotations):
        return HEAD_DIM * math.log(LENGTH / (rotations * 2 * math.pi)) / (2 * math.log(THETA))

    low, high = max(math.floor(pair(BETA)), 0), min(math.ceil(pair(ALPHA)), HEAD_DIM - 1)
    result = []
    for i, f in enumerate(base):
        interpolated = (i - low) / (high - low)
        if ramp == "by_rotations":
            interpolated = 1 - (LENGTH * f / (2 * math.pi) - ALPHA) / (BETA - ALPHA)
        keep = 1 - min(max(interpolated, 0.0), 1.0)
        result.append(f / factor * (1 - keep) + f * keep)
    return result


def write_stage(folder, factor, steps, first, last, seed):
    noise = random.Random(seed)
    folder.mkdir(parents=True)
    config = {
        "model": {"path": "data/base", "dtype": "bfloat16"},
        "rope": {
            "method": "yarn",
            "factor": factor,
            "original_max_position_embeddings": None,
            "alpha": 1.0,
            "beta": 32.0,
        },
        "data": {"source": "stdlib", "seq_len": 4096},
        "train": {"steps": steps, "global_batch_size": 4},
        "optim": {"lr": 3e-4},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with (folder / "metrics.jsonl").open("w") as out:
        for step in range(1, steps + 1):
            progress = step / steps
            record = {
                "step": step,
                "tokens": step * 4 * 4096,
                "loss": last + (first - last) * math.exp(-5 * progress) + noise.gauss(0, 0.06),
                "lr": 3e-4 * min(step / 5, 1 - max(0.0, (step - 5) / (steps - 4))),
                "grad_norm": 0.5 + 1.2 * math.exp(-8 * progress) + abs(noise.gauss(0, 0.08)),
                "tokens_per_second": 4100 + noise.gauss(0, 60),
                "mfu": None,
                "peak_memory_bytes": 1_361_000_000,
                "data_wait_seconds": 0.002,
                "segments": "f00d",
            }
            out.write(json.dumps(record) + "\n")


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch):
    """A quarter of the resolution: drawing is nearly all of the time these tests take."""
    monkeypatch.setitem(style.STYLE, "figure.dpi", 40)


@pytest.fixture
def run_folder(tmp_path):
    """A finished run: two stages, every method evaluated, tables written."""
    folder = tmp_path / "quickstart"
    write_stage(folder / "01_s16", 16.0, 40, 2.05, 1.70, seed=1)
    write_stage(folder / "02_s32", 32.0, 20, 1.76, 1.69, seed=2)
    (folder / "config.yaml").write_text((folder / "01_s16" / "config.yaml").read_text())
    info = {
        "command": "python train.py experiment=quickstart",
        "versions": {"yarn_train": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "git": "0123456789abcdef",
        "seed": 0,
        "world_size": 1,
        "exit_reason": "complete",
        "starts": [{"host": "a", "world_size": 1}, {"host": "b", "world_size": 1}],
    }
    (folder / "run.json").write_text(json.dumps(info))
    rows = [
        {"label": label, "method": method, "ramp": ramp, "factor": factor, "stage": stage, "window": window,
         "stride": 256, "mode": mode, "perplexity": value * scale, "tokens": 6144, "documents": 12, "score_from": 7936}
        for label, method, ramp, factor, stage, values in PERPLEXITY
        for window, value in zip(WINDOWS, values, strict=True)
        for mode, scale in (("token_mean", 1.0), ("window_mean", 0.97))
    ]  # fmt: skip
    (folder / "eval").mkdir()
    (folder / "eval" / "perplexity.json").write_text(json.dumps(rows))
    tables = [
        {"label": label, "method": method, "ramp": ramp,
         "factor": factor, "inv_freq": inv_freq(method, ramp, factor), "attention_factor": 1.0}
        for label, method, ramp, factor, _, _ in PERPLEXITY
    ]  # fmt: skip
    frequencies = {"head_dim": HEAD_DIM, "theta": THETA, "original_length": LENGTH, "tables": tables}
    (folder / "frequencies.json").write_text(json.dumps(frequencies))
    return folder
