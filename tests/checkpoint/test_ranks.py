"""Two ranks succeed together or learn together why not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, child_env


@pytest.fixture(scope="module")
def met(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path, float]:
    """(what each of two ranks met, their folder, seconds that they needed to leave while a save was under way)."""
    out = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "tests/checkpoint_ranks.py"), str(out)]
    env = {**child_env(), "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=env)
    ended = time.time()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    found = [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]
    return found, out, ended - max(float((out / f"{rank}.left").read_text()) for rank in (0, 1))


@pytest.mark.parametrize("how", ["async", "sync"])
def test_storage_that_is_full_on_one_rank_is_the_same_error_on_both(met, how):
    (zero, one), out, _ = met
    assert zero[how] == one[how]
    message = zero[how]["full"]
    assert message.startswith("StorageError: checkpoint step_00000002 was not saved: rank 1 on ")
    assert "rank_00001.safetensors: No space left on device" in message
    assert f"newest good checkpoint is {out / how / 'step_00000001'}" in message
    assert zero[how]["after"] == ["step_00000001"]
    assert zero[how]["next"] == ["step_00000001", "step_00000002"]
    assert zero[how]["loaded"] == 3.0


def test_dtensors_come_back_and_what_both_hold_is_written_by_halves(met):
    (zero, one), _, _ = met
    sums = [sum(range(20)), 600_000 * 599_999 / 2]
    for found in (zero["cut"], one["cut"]):
        assert found["second"] == pytest.approx([2 * s for s in sums], rel=1e-4)
        assert found["first"] == pytest.approx(sums, rel=1e-4)
    small, large = sorted(zero["cut"]["sizes"])
    assert large > 1_200_000
    assert large - small < 200


def test_both_ranks_use_the_one_before_a_damaged_one(met):
    (zero, one), _, _ = met
    assert zero["cut"]["names"] == one["cut"]["names"] == ["step_00000001", "step_00000002.corrupt"]
    (line,) = [line for line in zero["said"] if "is damaged" in line]
    assert "rank_00001.safetensors: its sha256 differs" in line
    assert "step_00000001 is used instead" in line


def test_what_may_take_long_is_waited_for_over_one_patient_group(met):
    for found in met[0]:
        assert found["cut"]["impatient"] == []
        assert found["cut"]["groups"] == 1


def test_what_one_rank_cannot_load_no_rank_loads(met):
    (zero, one), _, _ = met
    assert zero["cut"]["refused"] == one["cut"]["refused"]
    assert "tensors only in it: weights.large, weights.rows" in zero["cut"]["refused"]


def test_machines_that_do_not_share_the_folder_are_told(met):
    (zero, one), _, _ = met
    assert zero["apart"]["save"] == one["apart"]["save"]
    for found in (zero, one):
        assert "1 of 2 ranks (the first is rank 1) do not see what rank 0 wrote" in found["apart"]["start"]
    assert "rank 1 on " in zero["apart"]["save"]
    for message in zero["apart"].values():
        assert "must be on storage that all machines share" in message


def test_ranks_that_leave_while_a_save_is_under_way_neither_wait_nor_publish(met):
    _, out, seconds = met
    assert seconds < 20
    assert [path.name for path in (out / "left").iterdir()] == [".step_00000001.incomplete"]
