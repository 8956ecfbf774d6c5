"""What must hold when a stage is wired together, before its first step."""

from __future__ import annotations

import pytest

from yarn_train.rope.hf import RopeTableError
from yarn_train.train import setup


def test_a_table_corrupted_while_the_model_is_wrapped_aborts_the_run(train, tiny_args, tmp_path, monkeypatch):
    original = setup.parallelize

    def corrupting(module, cfg, mesh):
        lines = original(module, cfg, mesh)
        module.model.model.rotary_emb.inv_freq[1] *= 1.001
        return lines

    monkeypatch.setattr(setup, "parallelize", corrupting)
    with pytest.raises(RopeTableError, match="rotary_emb"):
        train(tmp_path / "run", *tiny_args)
    assert not (tmp_path / "run/01_s4/metrics.jsonl").exists()
