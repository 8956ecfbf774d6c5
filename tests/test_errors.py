"""Errors keep what they say on their way between processes."""

from __future__ import annotations

import pickle

from yarn_train.errors import ConfigError


def test_a_pickled_config_error_says_the_same():
    error = ConfigError(["a: wrong", "b: wrong too"])
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert again.problems == error.problems
