"""Composition outside of a Hydra application gives what a job would get."""

from __future__ import annotations

import pytest
from hydra.core.hydra_config import HydraConfig

from yarn_train import cli
from yarn_train.composition import composed
from yarn_train.errors import ConfigError


def test_what_hydra_alone_knows_is_there(tmp_path) -> None:
    """As launch/slurm.sbatch names the runs of an array."""
    options = composed(["experiment=smoke", "run.name=${hydra:runtime.choices.experiment}_1", f"run.dir={tmp_path}"])
    assert options["run"] == {**options["run"], "name": "smoke_1", "dir": str(tmp_path)}
    assert "hydra" not in options
    assert not HydraConfig.initialized()


def test_the_words_of_a_start_may_use_it(tmp_path) -> None:
    cli.check_words(["run.name=${hydra:runtime.choices.experiment}_1", f"run.dir={tmp_path}/${{run.name}}"])


def test_what_nobody_knows_is_an_error_of_the_command_line() -> None:
    with pytest.raises(ConfigError, match=r"command line: got .*nothing\.there"):
        composed(["run.name=${nothing.there}"])
    assert not HydraConfig.initialized()
