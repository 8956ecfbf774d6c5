"""What --check says of this project's own exports: no fault, and both versions of transformers read them alike."""

from __future__ import annotations

import pytest
from interop.exports import EXPORTS, extended

from yarn_train.interop.given import from_config
from yarn_train.interop.judge import judge
from yarn_train.rope import hf


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_has_no_fault_and_is_read_alike(name: str) -> None:
    found = judge(from_config(hf.write_both_spellings(extended(name).to_dict())))
    assert found.faults == []
    rows = {row.reading.reader: row for row in found.rows}
    four, rule = rows["transformers 4"], rows.get("YaRN's rule")
    if name == "phi3":
        assert "three keys" in str(four.reading.refuses)  # as tests/interop/test_exports.py sees it do
    else:
        assert four.same
    if rule is not None and EXPORTS[name][1].get("method", "yarn") == "yarn":
        assert rule.difference == 0.0
