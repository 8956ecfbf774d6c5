"""What a checkpoint costs while training, and a resume after a long run: python -m bench.checkpoint

Saves: one process trains a Llama of 60 M parameters (12 bytes of state each) and saves it in turn inline and in the
background; between them come steps without a save, and steps are taken while the background write goes on. The stall
is what save() takes. Seconds are of the wall clock, so every figure is a ratio of medians from the same run.

Resume: the same checkpoint, as if 10, 10,000 and 1,000,000 samples had been consumed: verify, load, and read the first
batch there.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import torch
from transformers import LlamaConfig

from bench.measure import table
from yarn_train import config as schema
from yarn_train.checkpoint.manager import CheckpointManager
from yarn_train.checkpoint.state import TrainState
from yarn_train.config import CheckpointConfig, Config
from yarn_train.data.stream import Source, Stream
from yarn_train.dist import runtime as dist_runtime
from yarn_train.dry_run.ranks import Addresses
from yarn_train.engine.base import Engine
from yarn_train.model.registry import choose_kernel
from yarn_train.train.setup import build_engine, make_loader, make_mesh

CONSUMED = (10, 10_000, 1_000_000)
SEGMENTS = 50_000


def configured(tokens: int) -> Config:
    """One sequence of `tokens` per step."""
    return schema.build(
        {
            "model": {"path": "random", "dtype": "float32", "init": "random"},
            "rope": {"factor": 2.0},
            "data": {"seq_len": tokens},
            "train": {"global_batch_size": 1, "micro_batch_size": 1, "steps": 10**7},
        }
    )


def build(cfg: Config, given: argparse.Namespace) -> Engine:
    """The engine that trains, with its optimizer's state."""
    base = LlamaConfig(
        hidden_size=given.hidden,
        intermediate_size=4 * given.hidden,
        num_hidden_layers=given.layers,
        num_attention_heads=given.hidden // 64,
        num_key_value_heads=given.hidden // 64,
        vocab_size=8192,
        max_position_embeddings=given.tokens // 2,
    )
    runtime = dist_runtime.start()
    kernel = choose_kernel("sdpa", runtime.device, torch.float32)
    return build_engine(cfg, base, None, kernel, make_mesh(cfg, base, runtime), runtime.device)[0]


def silent(line: str) -> None:
    """The tables say it all."""


def step(engine: Engine, tokens: int) -> float:
    """Seconds of a training step."""
    started = time.perf_counter()
    ids = torch.randint(0, 8192, (1, tokens))
    engine.backward(engine.module(ids, torch.arange(tokens).unsqueeze(0), ids), torch.tensor(float(tokens)))
    engine.step(1e-5)
    return time.perf_counter() - started


def saves(engine: Engine, folder: Path, given: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Rows of the first table."""
    runtime = dist_runtime.start()
    managers = {
        kind: CheckpointManager(folder / kind, CheckpointConfig(keep=1, async_save=kind == "async"), runtime, silent)
        for kind in ("sync", "async")
    }
    stalls: dict[str, list[float]] = {"sync": [], "async": []}
    alone: list[float] = []
    beside: list[float] = []
    for number in range(given.rounds + 1):
        for kind, manager in managers.items():
            alone += [step(engine, given.tokens) for _ in range(given.steps)]
            state = TrainState(number + 1, 0, 0, 0, 1)
            stalls[kind].append(manager.save(engine, state))
            if kind == "async":
                while manager.writing:
                    beside.append(step(engine, given.tokens))
                manager.finish()
    for kind in stalls:
        seconds = statistics.median(stalls[kind][1:])  # the first save makes the host copy's memory
        yield kind, f"{seconds:.3f}", f"{seconds / statistics.median(stalls['sync'][1:]):.3f}", ""
    slower = statistics.median(beside) / statistics.median(alone)
    yield "a step beside a write", f"{statistics.median(beside):.3f}", "", f"{slower:.3f}"
    yield "a step", f"{statistics.median(alone):.3f}", "", "1.000"


def resumes(engine: Engine, folder: Path, cfg: Config, given: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Rows of the second table."""
    runtime = dist_runtime.start()
    source = Source("made up", Fraction(1), Addresses(SEGMENTS, cfg.data.seq_len, 0))  # type: ignore[arg-type]
    mesh = make_mesh(cfg, engine.module.model.config, runtime)
    manager = CheckpointManager(folder / "sync", CheckpointConfig(), runtime, silent)
    whole: dict[int, list[float]] = {consumed: [] for consumed in CONSUMED}
    batch: dict[int, list[float]] = {consumed: [] for consumed in CONSUMED}
    for _ in range(given.rounds + 1):
        for consumed in CONSUMED:
            started = time.perf_counter()
            newest = manager.newest()
            assert newest is not None
            manager.load(engine, newest)
            loaded = time.perf_counter()
            next(iter(make_loader(cfg, Stream([source], seed=0), mesh).steps(consumed, 1, lambda batch: batch)))
            batch[consumed].append(1000 * (time.perf_counter() - loaded))
            whole[consumed].append(time.perf_counter() - started)
    medians = {consumed: statistics.median(seconds[1:]) for consumed, seconds in whole.items()}  # the first reads cold
    for consumed, seconds in medians.items():
        ratio = seconds / medians[CONSUMED[0]]
        yield f"{consumed:,}", f"{seconds:.3f}", f"{ratio:.3f}", f"{statistics.median(batch[consumed][1:]):.1f}"


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.checkpoint", description=__doc__)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3, help="steps before every save")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    given = parser.parse_args()
    cfg = configured(given.tokens)
    engine = build(cfg, given)
    step(engine, given.tokens)
    count = sum(parameter.numel() for parameter in engine.module.parameters())
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        rows = list(saves(engine, folder, given))
        print(f"\n{count / 1e6:.0f} M parameters, {12 * count / 1e6:.0f} MB, {given.rounds} saves of each kind")
        print(table(["", "seconds", "x sync", "x a step"], rows))
        print("\nresume after so many samples")
        print(table(["consumed", "seconds", "x first", "first batch ms"], list(resumes(engine, folder, cfg, given))))


if __name__ == "__main__":
    main()
