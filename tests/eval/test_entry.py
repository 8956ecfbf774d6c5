"""``python -m yarn_train.eval``: what it refuses before anything loads."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import ViTConfig

from yarn_train import app
from yarn_train.errors import ConfigError
from yarn_train.eval.__main__ import evaluate_model
from yarn_train.stages import resolve


def test_ranks_that_share_a_window_must_divide_the_ranks(compose, tiny_model, tmp_path):
    raw = compose(f"model.path={tiny_model}", "eval=perplexity", "parallel.context=2")
    with pytest.raises(ConfigError, match=r"parallel.context: got 2; allowed: a divisor of the number of ranks \(1\)"):
        evaluate_model(raw, (), tmp_path)


def test_a_model_that_is_no_language_model_is_one_clear_error(compose, tmp_path):
    ViTConfig().save_pretrained(tmp_path)
    raw = compose("experiment=smoke", f"model.path={tmp_path}")
    with pytest.raises(ConfigError, match=r"model|RoPE|rope"):
        evaluate_model({**raw, "eval": {**raw["eval"], "enabled": True}}, (), tmp_path)
    with pytest.raises(ConfigError):
        app.check_run(resolve(raw, Path(tmp_path)))
