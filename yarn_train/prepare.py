"""Tokenise and pack training documents once, before any accelerator is rented; a second run finds the result.

    python data/prepare.py data=pg19 data.path=<folder or hub id> model.path=<tokenizer or model>
    python data/prepare.py ... shard=0/4      one of four machines; i/n tokenises every n-th piece of the work
    python data/prepare.py ... --verify       prepares nothing: reads what is prepared and compares all hashes
    python data/prepare.py ... --show 3       also prints text around 3 document boundaries, and statistics

Takes the options of ``train.py`` and prepares what a run with them would train on, all stages included. Training
prepares the same folders itself if they are missing. Interrupted in any way, the same command goes on.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from . import cli, model_revision, remote_code
from .checks.data import data_problems
from .config import Config, refuse_dry_run
from .console import help
from .data import inspect
from .data.progress import progress_bar
from .data.segments import check, open_segments
from .data.store import ALREADY, Shard, find_parts, prepare_parts
from .data.tokenize import load_tokenizer
from .errors import ConfigError, YarnTrainError, problem
from .model.folder import place_problems
from .report.documents import length_histogram
from .stages import Stage, examine

SHOWN = ("source", "documents", "skipped", "tokens_in", "segments", "seq_len", "remainder", "dtype", "content_sha256")
HISTOGRAM = "tokens_per_document.png"


@dataclass(frozen=True)
class Arguments:
    """What this command takes besides the options of ``train.py``."""

    verify: bool = False
    show: int = 0
    shard: Shard | None = None


def own_arguments(words: list[str]) -> tuple[Arguments, list[str]]:
    """This command's own arguments, and the words that are Hydra's.

    Raises:
        ConfigError: if one of them has no usable value.
    """
    verify, show, shard, rest = False, 0, None, []
    left = list(words)
    while left:
        word = left.pop(0)
        name, _, value = word.partition("=")
        if word == "--verify":
            verify = True
        elif name == "--show":
            show = _count(value if "=" in word else (left.pop(0) if left else ""))
        elif name.lstrip("-") == "shard":
            shard = _shard(value if "=" in word else (left.pop(0) if left else ""))
        else:
            rest.append(word)
    if verify and shard is not None:
        fix = "verify what is whole, or prepare a shard"
        raise ConfigError(problem("shard", f"{shard[0]}/{shard[1]}", "none with --verify", fix))
    return Arguments(verify, show, shard), rest


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", text):
        raise ConfigError(problem("--show", text, "a number of windows, 1 or more", "write --show 3"))
    return int(text)


def _shard(text: str) -> Shard:
    """``i/n``; i counts modulo n, so that both 0/4 .. 3/4 and 1/4 .. 4/4 are four shards."""
    match = re.fullmatch(r"(\d+)/([1-9]\d*)", text)
    if not match or int(match[1]) > int(match[2]):
        fix = "write shard=0/4 .. shard=3/4 on four machines"
        raise ConfigError(problem("shard", text, "i/n with 0 <= i <= n, where 0 and n are the same", fix))
    return int(match[1]), int(match[2])


def prepare_stages(raw: dict[str, Any], typed: Collection[str], run_folder: Path, arguments: Arguments) -> None:
    """Prepare (or verify) the training data of every stage of a composed configuration."""
    _remove_if_empty(run_folder)  # Hydra made it, and nothing runs here
    stages = check_prepare(raw, typed, run_folder)
    model = stages[0].cfg.model
    pinned = model_revision.pinned(model.path, model.revision)
    with remote_code.allowed(model.trust_remote_code), pinned:
        _prepare(stages, arguments)


def check_prepare(raw: dict[str, Any], typed: Collection[str], run_folder: Path) -> list[Stage]:
    """Look for everything that is wrong before anything is read.

    Raises:
        ConfigError: listing all problems.
    """
    stages, problems = examine(raw, run_folder, typed)
    with problems.collecting():
        refuse_dry_run(stages[0].cfg)
    problems.add(place_problems(stages[0].cfg.model.path))
    problems.add(model_revision.problems(stages[0].cfg.model.path, stages[0].cfg.model.revision))
    problems.run(lambda: data_problems([stage.cfg for stage in stages]))
    problems.refuse()
    return stages


def _prepare(stages: list[Stage], arguments: Arguments) -> None:
    done: list[Config] = []
    for stage in stages:
        if all((stage.cfg.data, stage.cfg.model.path) != (cfg.data, cfg.model.path) for cfg in done):
            (verify_one if arguments.verify else prepare_one)(stage.cfg, arguments)
            done.append(stage.cfg)


def verify_one(cfg: Config, arguments: Arguments) -> None:
    """Compare every hash of the prepared folders of ``cfg.data`` with their files."""
    for part in find_parts(cfg.data, cfg.model.path):
        started = time.perf_counter()
        segments = check(part.folder)
        seconds = time.perf_counter() - started
        print(f"verified in {seconds:.1f} s: {part.folder}")
        print(f"  {len(segments)} segments of {segments.seq_len} tokens, {len(segments.starts)} documents")
        print(f"  content_sha256   {segments.content_sha256}")
        show_one(part.folder, cfg, arguments)


def prepare_one(cfg: Config, arguments: Arguments) -> None:
    """Prepare the train split of ``cfg.data``; print what the folders hold and how long it took."""
    notes: list[str] = []

    def say(note: str) -> None:
        notes.append(note)
        tqdm.write(note)  # at once, above the bar

    started = time.perf_counter()
    with progress_bar(f"prepare {cfg.data.source}") as update:
        parts = prepare_parts(
            cfg.data,
            cfg.model.path,
            workers=cfg.data.workers,
            shard=arguments.shard,
            progress=update,
            say=say,
        )
    seconds = time.perf_counter() - started
    made = not any(note.startswith(ALREADY) for note in notes)
    if made and parts:
        print(f"prepared in {seconds:.1f} s: {', '.join(str(part.folder) for part in parts)}")
    for part in parts:
        described = open_segments(part.folder).described
        if len(parts) > 1:
            print(f"{part.name}: {float(part.weight):.2%} of the segments a run reads")
        for key in SHOWN:
            print(f"  {key:<16} {described[key]}")
        if described["bytes_in"] is not None:
            print(f"  {'bytes_per_token':<16} {described['bytes_in'] / described['tokens_in']:.3f}")
            if made and len(parts) == 1:
                print(f"  {'MB/s':<16} {described['bytes_in'] / 1e6 / seconds:.1f}")
        show_one(part.folder, cfg, arguments)


def show_one(folder: Path, cfg: Config, arguments: Arguments) -> None:
    """Print statistics of a prepared folder and text around document boundaries, and draw the histogram."""
    if not arguments.show:
        return
    segments, tokenizer = open_segments(folder), load_tokenizer(cfg.model.path)
    described = segments.described
    lengths = inspect.tokens_per_document(segments)
    try:
        drawn = f"histogram: {length_histogram(lengths, segments.seq_len, described['source'], folder / HISTOGRAM)}"
    except OSError as error:  # a folder that may only be read
        drawn = f"no histogram: {error}"
    per_document = ", ".join(f"{key} {value:,}" for key, value in described["tokens_per_document"].items())
    print(f"  tokens per document: {per_document}")
    print(f"  documents that begin inside a segment: {inspect.boundaries_per_segment(segments):.2f} per segment")
    print(f"  lost to the remainder: {inspect.share_lost(segments):.4%} ({described['remainder']} tokens)")
    print(f"  {drawn}")
    for window in inspect.windows(segments, arguments.show):
        print(inspect.render(window, tokenizer))


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def main() -> None:
    """Split off this command's own arguments; the rest is Hydra's."""
    try:
        if help.show(sys.argv[1:], "data/prepare.py", __doc__ or ""):
            return
        arguments, sys.argv[1:] = own_arguments(sys.argv[1:])
    except YarnTrainError as error:
        cli.fail(error)
    cli.run(lambda raw, typed, folder: prepare_stages(raw, typed, folder, arguments), check=check_prepare)
