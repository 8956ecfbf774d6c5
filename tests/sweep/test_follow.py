"""What a sweep reads of a job's metrics while it runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

from yarn_train.sweep.follow import Follower


def row(step: int) -> str:
    return json.dumps({"step": step, "loss": float(step)}) + "\n"


def test_every_step_once_counted_over_stages_and_resumes(tmp_path: Path) -> None:
    first, second = tmp_path / "01_a" / "metrics.jsonl", tmp_path / "02_b" / "metrics.jsonl"
    follower = Follower(tmp_path, "job", live=False)
    assert follower.new_rows() == []
    first.parent.mkdir()
    first.write_text(row(1) + row(2) + '{"step": 3, "lo')
    assert follower.new_rows() == [(1, 1.0), (2, 2.0)]
    assert follower.new_rows() == []
    with first.open("a") as file:
        file.write('ss": 3.0}\n')
    assert follower.new_rows() == [(3, 3.0)]
    aside = first.with_suffix(".new")  # resumed after step 2: the file is replaced by a shorter one
    aside.write_text(row(1) + row(2) + row(3) + row(4))
    os.replace(aside, first)
    assert follower.new_rows() == [(4, 4.0)]
    second.parent.mkdir()
    second.write_text(row(1))
    assert follower.new_rows() == [(5, 1.0)]


def test_damage_is_not_the_sweeps_business(tmp_path: Path) -> None:
    (tmp_path / "01_a").mkdir()
    (tmp_path / "01_a" / "metrics.jsonl").write_text("no json\n" + row(1))
    assert Follower(tmp_path, "job", live=False).new_rows() == []
