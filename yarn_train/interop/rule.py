"""What the config means by YaRN's own rule, whoever reads it: the row that every program is held against."""

from __future__ import annotations

from . import tables, transformers5
from .given import Given
from .reading import Layer, Reading, Refused, number, reading

NAME = "YaRN's rule"


def read(given: Given) -> Reading:
    """yarn by pair index with the betas the right way round, original length = longest / factor where it is missing.

    The magnitude is 0.1 ln s + 1 whatever the config says. Any other type is no YaRN: refused.
    """
    return reading(NAME, given, _rule)


def _rule(given: Given) -> tuple[dict[str, Layer], int | None, list[str]]:
    kinds = transformers5.standard(given)
    name = transformers5.FULL if transformers5.FULL in kinds else next(iter(kinds))
    params, stated = kinds[name], given.scaling or given.parameters
    stated = stated.get(name, stated)
    if params["rope_type"] != "yarn":
        raise Refused("not a yarn config")
    factor = number(params, "factor")
    missing = stated.get("original_max_position_embeddings") is None
    missing = missing and given.config.get("original_max_position_embeddings") is None
    original = (given.max_length or 0) / factor if missing else number(params, "original_max_position_embeddings")
    betas = number(params, "beta_fast", 32.0), number(params, "beta_slow", 1.0)
    dim, theta = transformers5.rotated(params, given), number(params, "rope_theta")
    truncate = params.get("truncate") is not False
    table = tables.yarn(dim, theta, factor, original, max(betas), min(betas), truncate)
    layer = Layer("yarn", theta, factor, round(original), tables.mscale(factor), table)
    return {name: layer}, round(original * factor), []
