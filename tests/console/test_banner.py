"""What a run is fits one screen, whatever the run; in a log each fact is one line that can be searched for."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, PretrainedConfig

from yarn_train.checkpoint.state import TrainState
from yarn_train.config import accumulation_steps
from yarn_train.console import ending, terminal
from yarn_train.console.banner import Row, render
from yarn_train.console.terminal import Style
from yarn_train.model.registry import choose_kernel
from yarn_train.stages import Stage, resolve
from yarn_train.train import overview
from yarn_train.train.introduction import Introduction

SCREEN = 24
LLAMA_7B = LlamaConfig(max_position_embeddings=4096, vocab_size=32000)
BASE = LlamaConfig(
    hidden_size=256, num_hidden_layers=4, num_attention_heads=4, vocab_size=4096, max_position_embeddings=256
)
ENGINE = "FSDP2: 32 blocks + root over 8 rank(s), fp32 master weights, bfloat16 compute, fp32 gradient sum"
HEAD = [
    Row("run folder", "outputs/yarn_llama2_7b_64k"),
    Row("memory", "61.5 GiB of 76.7 usable on the GPU, by a trace of the step"),
    Row("disk", "at most 238.4 GB more of 3.4 TB free at /checkpoints/outputs"),
    Row("tracking", "wandb: off, as nobody is logged in (wandb login, or tracking.wandb=offline)"),
]

Compose = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def a_good_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(terminal, "width", lambda stream: 200)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def facts(stage: Stage, base: PretrainedConfig, ranks: int) -> list[Row]:
    """What train.setup tells of a stage, on so many GPUs and without any."""
    cfg = stage.cfg
    state = TrainState(0, 0, 0, 0, ranks, (), accumulation_steps(cfg, ranks))
    kernel = choose_kernel("sdpa", torch.device("cpu"), torch.bfloat16)
    passes = cfg.train.steps * cfg.train.global_batch_size / 10000
    return [
        overview.model_row(cfg.model.path, base, 6_738_415_616, overview.original_length(cfg, base)),
        overview.start_row(cfg.model.path, None),
        overview.rope_row(stage, base),
        overview.data_row(cfg, 10000, [Path("data/cache/pg19-train-65536-0123456789ab")], passes),
        overview.batch_row(stage, state, 10000),
        overview.optimizer_row(cfg),
        overview.ranks_row(cfg, base, ranks, "cuda:0"),
        *overview.built_rows(["recomputation: full", ENGINE]),
        Row("attention", f"{kernel.name} ({kernel.reason})"),
        overview.checkpoints_row(stage),
        overview.time_row(cfg.train.steps, (31.5, "as planned from the GPU's known rates")),
    ]


def shown(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, stages: Sequence[Stage], base: Any, ranks: int
) -> list[str]:
    monkeypatch.setattr("sys.stdout", stream)
    told: list[str] = []
    introduction = Introduction(stages, HEAD, {}, told.append)
    for stage in stages:
        introduction.show(stage, facts(stage, base, ranks))
    return told


RUNS = [
    ("experiment=quickstart", BASE, 1, 2),
    ("experiment=smoke", BASE, 1, 1),
    ("experiment=yarn_llama2_7b_64k", LLAMA_7B, 8, 1),
    ("experiment=yarn_llama2_7b_chain", LLAMA_7B, 8, 2),
]


@pytest.mark.parametrize(("words", "base", "ranks", "count"), RUNS, ids=lambda value: str(value)[:40])
def test_it_fits_one_screen(
    words: str, base: Any, ranks: int, count: int, compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = resolve(compose(words), Path("outputs/run"))
    told = shown(monkeypatch, Screen(), stages, base, ranks)
    assert len(told) == len(stages) == count
    for text in told:
        lines = [plain(line) for line in text.splitlines()]
        assert len(lines) <= SCREEN
        assert max(map(len, lines)) <= 100
        assert "\x1b[" in text
    for later in told[1:]:  # what stays the same is not told again
        assert len(later.splitlines()) <= 10
        labels = {line.split()[0] for line in map(plain, later.splitlines()) if not line.startswith((" ", "─"))}
        assert {"rope"} <= labels <= {"start", "rope", "data", "batch", "checkpoints", "time"}


def plain(text: str) -> str:
    for code in terminal.CODES.values():
        text = text.replace(f"\x1b[{code}m", "")
    return text.replace("\x1b[1;32m", "").replace("\x1b[1;33m", "").replace("\x1b[0m", "")


def test_in_a_log_each_fact_is_a_line(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = resolve(compose("experiment=yarn_llama2_7b_64k"), Path("outputs/run"))
    (text,) = shown(monkeypatch, io.StringIO(), stages, LLAMA_7B, 8)
    lines = text.splitlines()
    assert lines[0] == "yarn-train yarn_llama2_7b_64k, stage 01_s16"
    assert lines[1:5] == [f"{row.label}: {row.text}" for row in HEAD]
    assert text.isascii()
    assert (
        "rope: yarn, factor 16 x original 4096 = 65536 tokens, alpha 1, beta 32 by_index, attention factor 1.277259; "
        "table verified in fp32 on every rank"
    ) in lines
    assert (
        "batch: 64 sequences x 65536 tokens = 4,194,304 per step = 1 x 8 accumulation x 8 rank(s); "
        "400 steps = 1,677,721,600 tokens of 655,360,000 prepared"
    ) in lines
    assert "time: about 3 h 30 min for 400 steps of 31.50 s, as planned from the GPU's known rates" in lines
    assert any(line.startswith("ranks: 8 on ") and "shard 8 x ring 1 x ulysses 1" in line for line in lines)


def test_what_is_not_known_yet_is_not_guessed() -> None:
    assert overview.time_row(40, None).text == "known after the first steps"


def test_colours_are_off_where_nobody_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row("model", "a b"), Row("empty", "")]
    assert "\x1b[" in render("title", rows, Style(Screen()))
    monkeypatch.setenv("NO_COLOR", "1")
    drawn = render("title", rows, Style(Screen()))
    assert "\x1b[" not in drawn
    assert drawn.startswith("── title ─")
    monkeypatch.setenv("CI", "true")
    assert render("title", rows, Style(Screen())) == "title\nmodel: a b"


def test_a_command_is_never_broken() -> None:
    command = "python train.py " + "x=1 " * 40
    text = render("t", [Row("go on", command, whole=True), Row("long", command)], Style(Screen()))
    assert command.strip() in text
    assert text.count(command.strip()) == 1


def run_of(folder: Path, done: bool) -> list[Path]:
    stages = [folder / "01_s4", folder / "02_s8"]
    for stage in stages:
        stage.mkdir(parents=True)
        rows = [
            {"step": step, "loss": loss, "seconds": 2.0, "step_tokens": 100, "peak_memory_bytes": 2**30}
            for step, loss in ((1, 3.0), (2, 9.0), (2, 1.5), (3, None), (4, 2.0))
        ]
        rows[0] |= {"step_tokens": 7, "untimed": "first step"}  # no part of the rate
        (stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 5, "lo')
    (stages[0] / "model").mkdir()
    (stages[0] / "model" / "config.json").write_text("{}")
    for step in (2, 4):
        (stages[1] / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
    (stages[1] / "checkpoints" / "step_00000002" / "COMPLETE").write_text("{}")
    return stages


def test_the_end_of_a_run(tmp_path: Path) -> None:
    stages = run_of(tmp_path, True)
    (tmp_path / "eval").mkdir()
    table = [("base", "none", None, 64, 900.0), ("base", "none", None, 32, 9.0), ("s4", "yarn", "01_s4", 64, 30.0)]
    table.append(("s8", "yarn", "02_s8", 64, 12.5))
    rows = [dict(zip(("label", "method", "stage", "window", "perplexity"), row, strict=True)) for row in table]
    (tmp_path / "eval" / "perplexity.json").write_text(json.dumps(rows))
    ended = ending.Ended(tmp_path, stages, ["python", "train.py"], ["experiment=extend", "rope.factor=16"])
    text = render(ending.title(ended), ending.rows(ended), Style(io.StringIO()))
    lines = text.splitlines()
    assert lines[0] == f"run complete; the model is {tmp_path}/02_s8/model"
    told = "4 steps in 8 s; loss 2.0000, best 1.5000 at step 2; 50 tok/s; peak memory 1.0 GiB"
    assert lines[1:3] == [f"01_s4: {told}", f"02_s8: {told}"]
    assert "perplexity: 900 base, 12.5 after 02_s8, at 64 tokens" in lines
    assert f"evaluate: python -m yarn_train.eval eval=perplexity model.path={tmp_path}/02_s8/model" in lines
    assert "next: python train.py experiment=extend rope.factor=16" in lines
    assert "go on" not in text


def test_the_end_of_a_run_that_stopped(tmp_path: Path) -> None:
    stages = run_of(tmp_path, False)
    command = ["python", "train.py", "run.dir=/with a space"]
    ended = ending.Ended(tmp_path, stages, command, reason="failed: RuntimeError: it broke\nand more")
    lines = render(ending.title(ended), ending.rows(ended), Style(io.StringIO())).splitlines()
    assert lines[0] == "run not complete: RuntimeError: it broke"
    assert lines[-2:] == [
        f"saved: finished 01_s4; checkpoint {stages[1]}/checkpoints/step_00000002",  # the newest that is complete
        "go on: python train.py 'run.dir=/with a space'",
    ]


@pytest.mark.parametrize("damage", ["", "[]", "{", '[{"window": "x"}]', "\xff"])
def test_damaged_files_leave_lines_out(tmp_path: Path, damage: str) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "01_s4").mkdir()
    (tmp_path / "eval" / "perplexity.json").write_bytes(damage.encode("latin-1"))
    (tmp_path / "01_s4" / "metrics.jsonl").write_bytes(damage.encode("latin-1") + b'\n[1]\n{"step": 1}\n')
    ended = ending.Ended(tmp_path, [tmp_path / "01_s4"], None, ["rope.factor=8"])
    assert [row.label for row in ending.rows(ended) if row.text] == ["evaluate", "serve", "next"]
