"""Shared by the entries: compose with Hydra, turn user errors into one message without a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from . import config as schema
from .errors import ConfigError, YarnTrainError

CONF = Path(__file__).resolve().parent.parent / "conf"
USAGE_ERROR = 2  # exit code of everything a user can fix
INTERRUPTED = 130  # of Ctrl-C, as shells have it

ON_INTERRUPT = (
    "interrupted; the same command goes on: preparation from the units that are complete, training from its newest "
    "checkpoint (with run.resume=auto)"
)

Task = Callable[[dict[str, Any], set[str], Path], None]


def run(task: Task) -> None:
    """Compose the command line's configuration and call ``task(options, typed keys, run folder)``.

    A user error is printed as one message on stderr and exits with code 2; other exceptions keep their traceback.
    """
    try:
        check_overrides(sys.argv[1:])
    except YarnTrainError as error:
        fail(error)
    sys.argv[1:] = [_may_add(word) for word in sys.argv[1:]]
    register_schema()

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def entry(cfg: DictConfig) -> None:
        options = OmegaConf.to_container(cfg, resolve=True)
        assert isinstance(options, dict)
        folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            task({str(k): v for k, v in options.items()}, typed_keys(), folder)
        except YarnTrainError as error:
            fail(error)
        except KeyboardInterrupt:
            print(ON_INTERRUPT, file=sys.stderr, flush=True)
            raise SystemExit(INTERRUPTED) from None
        finally:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()  # Hydra makes it before anything is checked

    entry()


def fail(error: YarnTrainError) -> None:
    """Print a user error and leave."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    raise SystemExit(USAGE_ERROR)


def register_schema() -> None:
    """Make the dataclasses' defaults the bottom of every composition, so that YAML can only override what exists."""
    ConfigStore.instance().store(name="schema", node=schema.defaults())


def check_overrides(arguments: list[str]) -> None:
    """Report every misspelt option on the command line at once, before Hydra stops at the first.

    Raises:
        ConfigError: unknown options, each with the nearest one that exists.
    """
    texts = [a for a in arguments if "=" in a and not a.startswith("-")]
    known = schema.keys()
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    problems = []
    for text in texts:
        try:
            key = OverridesParser.create().parse_override(text).key_or_group.lstrip("+~/")
        except HydraException as error:
            problems.append(f"{text}: not an override Hydra understands ({str(error).splitlines()[0]})")
            continue
        free = key.startswith(("hydra", *(f"{k}." for k in schema.FREE_FORM)))
        if not free and key not in known and key not in groups and key not in schema.SECTIONS:
            problems.append(schema.unknown_key(key, [*known, *groups]))
    if problems:
        raise ConfigError(problems)


def _may_add(word: str) -> str:
    """Hydra refuses keys that no file has, unless told by ``++``; below a free-form option every key is new."""
    key = word.partition("=")[0]
    free = any(key == option or key.startswith(f"{option}.") for option in schema.FREE_FORM)
    return f"++{word}" if free and "=" in word else word


def typed_keys() -> set[str]:
    """Options the user gave on the command line of this job (config groups included)."""
    overrides = OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))
    return {override.key_or_group.lstrip("+~") for override in overrides}
