"""From plain values to the typed sections of :mod:`options`: all unknown keys, wrong types and values are named."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import problem
from .options import SECTIONS, keys


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The problem line of a key that does not exist, with the nearest one that does."""
    names = list(known)
    elsewhere = [k for k in names if k.rpartition(".")[2] == key.rpartition(".")[2]]  # the right name, another section
    near = elsewhere or difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else "see the options in yarn_train/options.py"
    return f"{key}: unknown option; {hint}"


def build_section(section: str, values: Mapping[str, Any], problems: list[str]) -> Any:
    cls = SECTIONS[section]
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    kept = {}
    for name, value in values.items():
        key = f"{section}.{name}"
        if name not in fields:
            problems.append(unknown_key(key, keys()))
            continue
        converted, ok = _convert(value, hints[name])
        if not ok:
            alone = typing.get_origin(hints[name]) is list and _convert([value], hints[name])[1]
            fix = f"write a list, {key}=[{value}]; the option is: {fields[name].metadata['doc']}"
            fix = fix if alone else _meaning(fields[name].metadata)
            problems.append(problem(key, value, _type_name(hints[name]), fix))
            continue
        wrong = _bounds(key, converted, fields[name].metadata)
        problems += wrong
        if not wrong:
            kept[name] = converted
    return cls(**kept)


def _convert(value: Any, hint: Any) -> tuple[Any, bool]:
    """Value as `hint` says (an int is accepted where a float is asked for), and whether it could be."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        for choice in typing.get_args(hint):
            converted, ok = _convert(value, choice)
            if ok:
                return converted, True
        return value, False
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value), True
    if hint in (int, float) and isinstance(value, bool):
        return value, False
    if origin is list:
        (item,) = typing.get_args(hint)
        if not isinstance(value, list | tuple):
            return value, False
        pairs = [_convert(v, item) for v in value]
        return [v for v, _ in pairs], all(ok for _, ok in pairs)
    if origin is dict:
        return (dict(value), True) if isinstance(value, Mapping) else (value, False)
    return value, isinstance(value, hint)


def _type_name(hint: Any) -> str:
    return str(hint).replace("<class '", "").replace("'>", "").replace("typing.Any", "any")


def _meaning(metadata: Mapping[str, Any]) -> str:
    return f"give such a value; the option is: {metadata['doc']}"


def _bounds(key: str, value: Any, metadata: Mapping[str, Any]) -> list[str]:
    """What is wrong with a value, or with the first wrong item of a list."""
    if isinstance(value, list):
        return next(filter(None, (_bounds(key, item, metadata) for item in value)), [])
    if metadata["choices"] and value is not None and value not in metadata["choices"]:
        near = difflib.get_close_matches(str(value), metadata["choices"], n=1)
        fix = f"did you mean {near[0]}?" if near else "choose one of these"
        return [problem(key, value, " | ".join(metadata["choices"]), fix)]
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            return [problem(key, value, "a finite number", _meaning(metadata))]
        if metadata["minimum"] is not None and not value >= metadata["minimum"]:
            return [problem(key, value, f">= {metadata['minimum']:g}", _meaning(metadata))]
        if metadata["above"] is not None and not value > metadata["above"]:
            return [problem(key, value, f"> {metadata['above']:g}", _meaning(metadata))]
    return []
