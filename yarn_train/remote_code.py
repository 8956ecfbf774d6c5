"""Python code that comes with a model: run only where ``model.trust_remote_code`` allows it.

The one place that decides about transformers' flag of that name. It is never left to transformers, which would ask on
the terminal and wait for an answer; and code is never run for an architecture that transformers has itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .errors import ConfigError, problem

DYNAMIC = "transformers_modules."  # the package that transformers imports such code into
_allowed = False


@contextmanager
def allowed(yes: bool) -> Iterator[None]:
    """Inside, code of models may be run if `yes`; for the whole process."""
    global _allowed
    before, _allowed = _allowed, yes
    try:
        yield
    finally:
        _allowed = before


def may_run() -> bool:
    """Whether this process may run code that comes with a model."""
    return _allowed


def files_of(described: Mapping[str, Any]) -> list[str]:
    """Python files that a config.json or tokenizer_config.json names, with their repository if it is another one."""
    auto_map = described.get("auto_map")
    named = auto_map.values() if isinstance(auto_map, Mapping) else [auto_map]
    references = [part for value in named for part in (value if isinstance(value, list | tuple) else [value])]
    found = set()
    for reference in (r for r in references if isinstance(r, str)):
        repository, _, name = reference.rpartition("--")
        found.add(f"{repository}: " * bool(repository) + f"{name.rpartition('.')[0]}.py")
    return sorted(found)


def needed(described: Mapping[str, Any]) -> list[str]:
    """The files without which a config.json means nothing; none for an architecture that transformers has."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return [] if described.get("model_type") in CONFIG_MAPPING_NAMES else files_of(described)


def refuse(key: str, path: str, files: list[str]) -> None:
    """Refuse code that is not allowed to run.

    Raises:
        ConfigError: with the files, and the option that allows them.
    """
    if files and not _allowed:
        got = f"{path}, which needs its own code in {', '.join(files)}"
        fix = "read that code; if you trust it, set model.trust_remote_code=true"
        raise ConfigError(problem(key, got, "models that transformers has itself", fix))


def flag(config: Any) -> bool:
    """What transformers is told when it builds a model of `config`: whether to run the code that came with it."""
    return _allowed and not type(config).__module__.startswith("transformers.")


def notes(*loaded: Any) -> list[str]:
    """Lines that say which code of others runs, by the objects that came of it."""
    kinds = dict.fromkeys(type(one) for one in loaded)
    return [
        f"model.trust_remote_code: {kind.__name__} is code of the model's own, {sys.modules[kind.__module__].__file__}"
        for kind in kinds
        if kind.__module__.startswith(DYNAMIC)
    ]
