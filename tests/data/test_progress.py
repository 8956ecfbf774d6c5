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
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("prepare books  25%  1/4 documents, 0.0/s, 0.0M tokens")
    assert others[0].startswith("prepare books  100%  4/4 documents, ")
    assert ", 0.9M tokens  " in others[0]
    assert others[0].endswith("B/s  0 s left")
    assert others[1].startswith("prepare books  0%  0/2 documents, ")
    assert others[2].startswith("prepare books  100%  2/2 documents, ")
    assert len(others) == 3
