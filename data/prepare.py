"""Tokenise and pack training documents once, before any accelerator is rented; a second run finds the result.

    python data/prepare.py data.source=pg19 data.path=<folder> model.path=<tokenizer or model>

Takes the options of ``train.py`` and prepares what a run with them would train on, all stages included. Training
prepares the same folder itself if it is missing.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

# A script finds the modules beside it; the package is one folder up and need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from yarn_train import cli
from yarn_train.config import Config
from yarn_train.data.progress import progress_bar
from yarn_train.data.store import manifest, prepare
from yarn_train.stages import resolve

SHOWN = ("source", "documents", "skipped", "tokens_in", "segments", "seq_len", "remainder", "dtype", "content_sha256")


def prepare_stages(raw: dict[str, Any], typed: set[str], run_folder: Path) -> None:
    """Prepare the training data of every stage of a composed configuration."""
    _remove_if_empty(run_folder)  # Hydra made it, and nothing runs here
    done: list[Config] = []
    for stage in resolve(raw, run_folder, typed):
        if all((stage.cfg.data, stage.cfg.model.path) != (cfg.data, cfg.model.path) for cfg in done):
            prepare_one(stage.cfg)
            done.append(stage.cfg)


def prepare_one(cfg: Config) -> Path:
    """Prepare the train split of ``cfg.data``; print what the folder holds and how long it took."""
    data = cfg.data
    notes: list[str] = []
    started = time.perf_counter()
    with progress_bar(f"prepare {data.source}") as update:
        folder = prepare(
            data.source,
            data.path,
            "train",
            data.held_out,
            data.seq_len,
            cfg.model.path,
            data.workers,
            data.cache,
            update,
            say=notes.append,
        )
    seconds = time.perf_counter() - started
    described = manifest(folder)
    print("\n".join(notes) if notes else f"prepared in {seconds:.1f} s: {folder}")
    for key in SHOWN:
        print(f"  {key:<16} {described[key]}")
    print(f"  {'bytes_per_token':<16} {described['bytes_in'] / described['tokens_in']:.3f}")
    if not notes:
        print(f"  {'MB/s':<16} {described['bytes_in'] / 1e6 / seconds:.1f}")
    return folder


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


if __name__ == "__main__":
    cli.run(prepare_stages)
