"""The options of Hydra's launchers and sweepers, by the names that Hydra knows them by."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from omegaconf import ValueNode

from .errors import problem
from .option_values import unknown_key

GROUPS = ("hydra/launcher", "hydra/sweeper")
DEFAULT = "basic"


def names(group: str) -> list[str]:
    """What may be chosen of one of GROUPS."""
    Plugins.instance()  # they register themselves when Hydra looks for them
    return sorted(name.removesuffix(".yaml") for name in ConfigStore.instance().list(group))


def options(chosen: Mapping[str, str]) -> dict[str, type[int] | type[float] | None]:
    """Option, such as hydra.launcher.n_jobs -> int, or None where its type says nothing here.

    Args:
        chosen: group -> the name chosen; a group that is not there has its default.
    """
    found: dict[str, type[int] | type[float] | None] = {}
    for group in GROUPS:
        name = chosen.get(group, DEFAULT)
        if name not in names(group):
            continue
        section = group.replace("/", ".")
        node = ConfigStore.instance().load(f"{group}/{name}.yaml").node
        for key in map(str, node):
            held = node._get_node(key) if name != DEFAULT else None
            kind = held._metadata.ref_type if isinstance(held, ValueNode) else None
            found[f"{section}.{key}"] = kind if kind in (int, float) else None
    return found


def problems(override: Override, chosen: Mapping[str, str]) -> list[str]:
    """What is wrong with a word about a launcher or a sweeper; Hydra's advice would be to append what is misspelt.

    Args:
        override: the word.
        chosen: as of :func:`options`.
    """
    assert override.key_or_group is not None
    key, value = override.key_or_group.lstrip("+~/"), override.value()
    if override.is_sweep_override():
        got = str(override.input_line).partition("=")[2]
        fix = "start a sweep for each; a text with a comma takes quotes"
        return [problem(key, got, "one value, as Hydra's own options cannot be swept", fix)]
    if override.is_delete() or not key.startswith(("hydra/", "hydra.")):
        return []
    if key in GROUPS:
        return _name_problems(key, str(value))
    group = "/".join(key.split(".")[:2])
    name = chosen.get(group, DEFAULT)
    if group not in GROUPS or key.count(".") < 2 or name not in names(group):
        return []
    section, option, known = group.replace("/", "."), ".".join(key.split(".")[:3]), options(chosen)
    if option not in known:
        others = [other for other in names(group) if option in options({group: other})]
        if others and not any(k.endswith(option.rpartition(".")[2]) for k in known):
            return [problem(option, str(value), f"no such option of {group}={name}", f"choose {group}={others[0]}")]
        told = unknown_key(option, [k for k in known if not k.endswith("_")])
        mine = ", ".join(k.rpartition(".")[2] for k in known if k.startswith(f"{section}.") and not k.endswith("_"))
        return [told.replace("see the options in yarn_train/options.py", f"{group}={name} has {mine or 'none'}")]
    kind = known[option]
    try:
        _ = value is None or kind is None or kind(str(value))
    except ValueError:
        allowed = "a whole number" if kind is int else "a number"
        return [problem(option, str(value), allowed, f"write {option}=2, for example")]
    return []


def _name_problems(group: str, name: str) -> list[str]:
    there = names(group)
    if name in there:
        return []
    near = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
    fix = f"did you mean {near[0]}?" if near else "choose one; joblib and submitit are Hydra's plugins, to be installed"
    return [problem(group, name, " | ".join(there), fix)]
