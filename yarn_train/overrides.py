"""The words of a command line that are options: which of them cannot be meant, all at once and with what may have been.

Hydra stops at the first. Here the words that are wrong are left out, so that the rest can be composed and checked.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from . import config as schema
from . import hydra_options
from .errors import problem
from .problem_list import SUGGESTED, ProblemList

CONF = Path(__file__).resolve().parent.parent / "conf"


def examine(words: list[str]) -> tuple[ProblemList, list[str], bool]:
    """(the problems of what was typed; the words without those that have one; whether these make what was meant).

    A group's option that does not exist is replaced by the one that was probably meant.

    Args:
        words: a command line; its flags and their values are kept and not looked at.
    """
    problems, kept, meant = ProblemList(), [], True
    chosen = _chosen(words)
    for before, word in zip(["", *words], words, strict=False):
        if word.startswith("-") or (before.startswith("-") and "=" not in word):
            kept.append(word)
            continue
        found = _problems(word, chosen)
        problems.add_options(found)
        group = word.partition("=")[0].lstrip("+~/")
        if not found:
            kept.append(word)
        elif group in groups():
            near = SUGGESTED.search(found[0])
            kept += [f"{group}={near[1]}"] if near else []
            meant = meant and near is not None
    return problems, kept, meant


def typed_options(words: list[str]) -> dict[str, str]:
    """What the user typed, by option (config groups included)."""
    parsed = OverridesParser.create().parse_overrides(words)
    return {override.key_or_group.lstrip("+~"): word for override, word in zip(parsed, words, strict=True)}


def may_add(word: str) -> str:
    """Hydra refuses keys that no file has, unless told by ``++``; below a free-form option every key is new."""
    key = word.partition("=")[0]
    if key == "sweep":  # no sweep is chosen by default, so Hydra takes one for an addition
        return f"+{word}"
    free = any(key == option or key.startswith(f"{option}.") for option in schema.FREE_FORM)
    return f"++{word}" if free and "=" in word else word


def _chosen(words: list[str]) -> dict[str, str] | None:
    """The launcher and the sweeper, by group; None where files elsewhere may choose and add others."""
    if any(word.startswith(("--config", "-cp", "-cn", "-cd", "hydra.searchpath")) for word in words):
        return None
    pairs = (word.lstrip("+").partition("=") for word in words)
    return {key: value for key, _, value in pairs if key in hydra_options.GROUPS}


def _problems(word: str, chosen: dict[str, str] | None) -> list[str]:
    if "=" not in word and not word.startswith("~"):
        return [problem(word, "no value", "option=value", f"write {word}=...")]
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        key, _, value = word.partition("=")
        fix = f"put a value with special characters in two pairs of quotes: '{key}=\"...\"'"
        return [problem(key, value, "a value that Hydra can read, such as 3, text, [1,2] or null", fix)]
    key, options = override.key_or_group.lstrip("+~/"), schema.keys()
    if override.is_delete() and (key in groups() or key in schema.SECTIONS or key in options):
        fix = f"give {key} a value; null turns off what can be off"
        return [problem(f"~{key}", "an option that is taken away", "options with a value", fix)]
    if key in groups():
        return [line for value in _values(override) for line in _group_problems(key, value)]
    if key.split(".")[0].split("/")[0] == "hydra":
        return hydra_options.problems(override, chosen) if chosen is not None else []
    if key in options:
        return []
    if key in schema.SECTIONS:
        if isinstance(override.value(), dict):
            return []
        near = next(k for k in options if k.startswith(f"{key}."))
        allowed = "options one by one"
        return [problem(key, override.get_value_element_as_str(), allowed, f"write {near}=... and so on")]
    if any(key.startswith(f"{free}.") for free in schema.FREE_FORM):
        return []
    return [schema.unknown_key(key, [*options, *groups()])]


def groups() -> dict[str, list[str]]:
    """Config group, a folder of ``conf/`` -> the options in it."""
    folders = (folder for folder in CONF.iterdir() if folder.is_dir())
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def _values(override: Override) -> list[Any]:
    """The value, or all values of a sweep."""
    if not override.is_sweep_override():
        return [override.value()]
    return list(override.sweep_iterator()) if override.is_discrete_sweep() else []


def _group_problems(group: str, value: Any) -> list[str]:
    there = groups()[group]
    if isinstance(value, str) and value in there:
        return []
    if isinstance(value, str) and (CONF / group / value).with_suffix(".yaml").is_file():
        return []
    near = difflib.get_close_matches(str(value), there, n=1, cutoff=0.5)
    fix = f"did you mean {near[0]}?" if near else f"see conf/{group}"
    return [problem(group, value, " | ".join(there), fix)]
