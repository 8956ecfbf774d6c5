"""A sweep that is asked to stop passes it on, once, and forgets what an earlier start was asked."""

from __future__ import annotations

import time
from pathlib import Path

from yarn_train.sweep.asked import FILE, asked, passed_on


def test_a_request_reaches_whoever_looks(tmp_path: Path) -> None:
    noted = [0]
    (tmp_path / FILE).write_text("15")
    with passed_on(tmp_path, lambda: noted[0]):
        assert asked(tmp_path) == 0
        noted[0] = 2
        deadline = time.monotonic() + 10
        while not asked(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert asked(tmp_path) == 2
    assert asked(tmp_path) == 0
