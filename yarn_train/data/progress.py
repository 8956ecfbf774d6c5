"""The progress bar of data preparation: documents/s, tokens and time left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

Update = Callable[[int, int, int], None]


@contextmanager
def progress_bar(label: str) -> Iterator[Update]:
    """Yields ``update(documents done, documents in all, tokens so far)``; nothing is drawn until it is called."""
    bar: tqdm | None = None

    def update(done: int, total: int, tokens: int) -> None:
        nonlocal bar
        if bar is None:
            interval = 0.1 if sys.stderr.isatty() else 10.0  # a log file gets a line every 10 s
            bar = tqdm(total=total, desc=label, unit="doc", dynamic_ncols=True, mininterval=interval)
        bar.set_postfix_str(f"{tokens / 1e6:.1f}M tokens", refresh=False)
        bar.update(done - bar.n)

    try:
        yield update
    finally:
        if bar is not None:
            bar.close()
