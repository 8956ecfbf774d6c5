"""Tokenise and pack training documents once, before any accelerator is rented; a second run finds the result.

    python data/prepare.py data.source=pg19 data.path=<folder> model.path=<tokenizer or model>

Takes the same options as ``train.py`` and reads the ``data`` and ``model.path`` ones. Training would prepare the same
folder itself if it were missing.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script's own folder is on the path, the package's is only once it is installed

import hydra  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402
from tqdm import tqdm  # noqa: E402

from yarn_train.config import Config, build  # noqa: E402
from yarn_train.data.store import manifest, prepare  # noqa: E402
from yarn_train.errors import YarnTrainError  # noqa: E402

SHOWN = ("source", "documents", "skipped", "tokens_in", "segments", "seq_len", "remainder", "dtype", "content_sha256")


def run(config: Config) -> Path:
    """Prepare the train split of ``config.data`` and print what it holds and how long that took."""
    data = config.data
    notes: list[str] = []
    started = time.perf_counter()
    with tqdm(unit="doc", desc="tokenise", smoothing=0.05, disable=None) as bar:

        def progress(done: int, total: int, tokens: int) -> None:
            bar.total = total
            bar.set_postfix(tokens=f"{tokens:,}", refresh=False)
            bar.update(done - bar.n)

        folder = prepare(
            data.source,
            data.path,
            "train",
            data.held_out,
            data.seq_len,
            config.model.path,
            data.workers,
            data.cache,
            progress,
            say=notes.append,
        )
    seconds = time.perf_counter() - started
    _summary(folder, notes, seconds)
    return folder


def _summary(folder: Path, notes: list[str], seconds: float) -> None:
    described = manifest(folder)
    print("\n".join(notes) if notes else f"prepared: {folder}")
    for key in SHOWN:
        print(f"  {key:<16} {described[key]}")
    print(f"  {'bytes_per_token':<16} {described['bytes_in'] / described['tokens_in']:.3f}")
    if not notes:
        print(f"  {'seconds':<16} {seconds:.1f} ({described['bytes_in'] / 1e6 / seconds:.1f} MB/s)")


@hydra.main(version_base=None, config_path="../conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """Compose the configuration and prepare; a mistake of the user's is one message and exit code 2."""
    try:
        run(build(OmegaConf.to_container(cfg, resolve=True)))  # type: ignore[arg-type]
    except YarnTrainError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
