from __future__ import annotations

import numpy as np
import pytest

from yarn_train.data.progress import Counter, Progress, progress_bar


def test_what_is_done_already_counts_and_other_shards_do_not():
    seen: list[Progress] = []
    counter = Counter(seen.append)
    sizes = np.array([5, 7, 1, 2], dtype=np.int64)
    counter.begin(sizes, [range(1), range(2, 4)], [True, False])
    counter.add(2, 10)
    counter.add(3, 20)
    assert seen == [Progress(1, 3, 5, 8, 0), Progress(2, 3, 6, 8, 10), Progress(3, 3, 8, 8, 30)]


def test_the_bar_tells_rates_and_starts_again_for_the_next_source(capsys: pytest.CaptureFixture[str]):
    with progress_bar("prepare books") as update:
        update(Progress(1, 4, 1_000_000, 4_000_000, 0))
        update(Progress(4, 4, 4_000_000, 4_000_000, 900_000))
        update(Progress(0, 2, 0, 50_000, 0))
        update(Progress(2, 2, 50_000, 50_000, 10_000))
    shown = capsys.readouterr().err
    assert all(text in shown for text in ("prepare books", "4.00M/4.00M", "4/4 documents", "0.9M tokens", "B/s"))
    assert all(text in shown for text in ("50.0k/50.0k", "2/2 documents"))
