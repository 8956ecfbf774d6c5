"""The options that Hydra composes of words, for whoever is no Hydra application, such as checks before the start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from . import config as schema
from .errors import ConfigError, problem
from .overrides import CONF, may_add


def composed(words: list[str]) -> dict[str, Any]:
    """The options, with what a job of Hydra's would find for ``${hydra:...}``.

    Raises:
        ConfigError: what Hydra finds wrong.
    """
    with _hydras_errors():
        whole = _compose(words)
        with _as_job(whole):
            options = OmegaConf.to_container(OmegaConf.masked_copy(whole, _sections(whole)), resolve=True)
    assert isinstance(options, dict)
    return {str(key): value for key, value in options.items()}


def composed_with_hydra(words: list[str]) -> DictConfig:
    """The options with Hydra's own, nothing resolved.

    Raises:
        ConfigError: what Hydra finds wrong.
    """
    with _hydras_errors():
        return _compose([may_add(word) for word in words])


def register_schema() -> None:
    """Make the dataclasses' defaults the bottom of every composition, so that YAML can only override what exists."""
    ConfigStore.instance().store(name="schema", node=schema.defaults())


def _sections(whole: DictConfig) -> list[str]:
    return [str(key) for key in whole if key != "hydra"]


@contextmanager
def _as_job(whole: DictConfig) -> Iterator[None]:
    """Inside, ``${hydra:...}`` reads from `whole`, as in a job of Hydra's."""
    instance = HydraConfig.instance()
    before = instance.cfg
    instance.set_config(whole)
    try:
        yield
    finally:
        instance.cfg = before


def _compose(words: list[str]) -> DictConfig:
    register_schema()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", words, return_hydra_config=True)


@contextmanager
def _hydras_errors() -> Iterator[None]:
    """Inside, what Hydra finds wrong is a ConfigError."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        told = (line.strip() for line in str(error).splitlines() if "hydra.cc/docs" not in line)
        text = " ".join(line for line in told if line and not line.startswith(("object_type", "full_key")))
        allowed = "options that make one configuration"
        raise ConfigError(problem("command line", text, allowed, "correct it, or leave it out")) from error
