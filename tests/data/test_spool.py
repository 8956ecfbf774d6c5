from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yarn_train.data.spool import PER_DOCUMENT, Spool, plan_units
from yarn_train.errors import DataError

UINT16 = np.dtype(np.uint16)


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 60))
def test_units_are_all_documents_in_order(sizes: list[int], unit_bytes: int):
    units = plan_units(np.array(sizes, dtype=np.int64), unit_bytes)
    assert [i for unit in units for i in unit] == list(range(len(sizes)))
    for unit in units:
        inside = [sizes[i] for i in unit]
        assert sum(inside[:-1]) < unit_bytes + max(inside)  # one document over at most, whatever its length
        assert len(unit) <= 1 + unit_bytes // PER_DOCUMENT + 1


def spool(folder: Path, documents: int = 4, job: str = "job") -> Spool:
    return Spool(folder, [range(i, i + 1) for i in range(documents)], UINT16, {"job": job})


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.uint16)


def test_what_is_written_is_read(tmp_path: Path):
    units = spool(tmp_path / "parts")
    assert not units.done(0)
    units.write(0, [ids(1, 2, 3), None, ids(), ids(4)])
    assert units.done(0)
    assert units.intact(0)
    assert units.reader()(0).tolist() == [1, 2, 3, 4]
    assert units.lengths(0).tolist() == [3, -1, 0, 1]
    units.write(1, [None])
    assert units.intact(1)
    assert units.reader()(1).tolist() == []
    assert units.lengths(1).tolist() == [-1]


def test_a_unit_without_its_description_is_not_there(tmp_path: Path):
    units = spool(tmp_path / "parts")
    units.write(0, [ids(1)])
    (tmp_path / "parts" / "unit_000000.json").unlink()
    assert not spool(tmp_path / "parts").done(0)


@pytest.mark.parametrize("damage", [b"", b"\x01", b"\x02\x00", b"\x01\x00\x00\x00"])
def test_a_unit_of_other_bytes_than_described_is_to_be_made_again(tmp_path: Path, damage: bytes):
    units = spool(tmp_path / "parts")
    units.write(0, [ids(1)])
    assert units.done(0)
    (tmp_path / "parts" / "unit_000000.ids").write_bytes(damage)
    assert not units.intact(0)
    assert not units.done(0)


def test_what_a_power_failure_left_is_not_there(tmp_path: Path):
    units = spool(tmp_path / "parts")
    units.write(0, [ids(1)])
    units.write(1, [ids(1)])
    (tmp_path / "parts" / "unit_000000.json").write_text("")
    (tmp_path / "parts" / "job.json").write_text("")
    again = spool(tmp_path / "parts")
    assert [again.done(0), again.done(1)] == [False, True]
    assert json.loads((tmp_path / "parts" / "job.json").read_text())["job"] == "job"


def test_a_unit_has_one_owner_at_a_time(tmp_path: Path):
    one, other = spool(tmp_path / "parts"), spool(tmp_path / "parts")
    lock = one.claim(0)
    assert lock is not None
    assert other.claim(0) is None
    free = other.claim(1)
    assert free is not None
    lock.release()
    again = other.claim(0)
    assert again is not None
    other.write(0, [ids(1)])
    again.release()
    assert one.claim(0) is None  # it is complete


def test_work_of_another_job_is_refused(tmp_path: Path):
    spool(tmp_path / "parts")
    spool(tmp_path / "parts")
    for different in ({"job": "other"}, {"documents": 5}):
        with pytest.raises(DataError, match="begun with other data or options"):
            spool(tmp_path / "parts", **different)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "parts" / "job.json").read_text())["job"] == "job"
