"""Hub data sets move on; a run does not: the commit it began with is in its stages' configuration and is read again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import yaml

from ..config import DataConfig
from ..data.sources import pinned
from ..stages import Stage


def pin_data(stage: Stage) -> Stage:
    """The stage with the commit of every hub data set in ``data.revision``.

    That is the one the stage was started with, if it was; else the one a given revision names, or the newest. Data that
    ``data.cache`` names is used as it is, and a finished stage reads none, so neither asks the hub.

    Raises:
        DataError: if a data set is not there, or there is neither a connection nor a cache.
    """
    if stage.cfg.data.cache is not None:
        return stage
    data = pin(stage.cfg.data, _started_with(stage), ask=not stage.finished)
    return dataclasses.replace(stage, cfg=dataclasses.replace(stage.cfg, data=data))


def pin(data: DataConfig, before: Mapping[str, Any], ask: bool = True) -> DataConfig:
    """``data`` pinned.

    Args:
        before: the same options when they were pinned last, empty if they never were.
        ask: whether the hub may be asked for a commit that ``before`` does not have.
    """
    if data.source != "mixture":
        return dataclasses.replace(data, revision=_revision(data, before, ask))
    earlier = before.get("mixture") or {}
    mixture = dict(data.mixture)
    for part in data.parts:
        revision = _revision(part.data, earlier.get(part.name) or {}, ask)
        if revision is not None:
            mixture[part.name] = {**mixture[part.name], "revision": revision}
    return dataclasses.replace(data, mixture=mixture)


def _revision(data: DataConfig, before: Mapping[str, Any], ask: bool) -> str | None:
    """The commit of one source; None where it is not of the hub."""
    if data.revision is None and before.get("revision") and before.get("path") == data.path:
        return str(before["revision"])
    return pinned(data).revision if ask else data.revision


def _started_with(stage: Stage) -> Mapping[str, Any]:
    file = stage.folder / "config.yaml"
    if not file.is_file():
        return {}
    return (yaml.safe_load(file.read_text()) or {}).get("data") or {}
