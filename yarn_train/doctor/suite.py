"""Which checks there are, in the order of the report. Never imports torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .run import Check

LOOK, DISK, KERNELS, COMPUTE, LINKS = range(5)  # phases: what is measured is alone on the machine
SPEED = {"compute", "all-reduce"}  # checks that are nothing but a measurement
CHECKS = f"{__package__}.checks"
CACHE = "data/cache"  # where prepared data goes by default, see data.store


def suite(options: Mapping[str, Any] | None, quick: bool = False, only: Collection[str] | None = None) -> list[Check]:
    """The checks to run.

    Args:
        options: an experiment's composed options, if one is given.
        quick: without measurements of speed.
        only: names; None is all.
    """
    left_out = not_with(options is not None, quick)
    chosen = [check for check in _all(options, not quick) if check.name not in left_out]
    return [check for check in chosen if only is None or check.name in only]


def not_with(experiment: bool, quick: bool) -> dict[str, str]:
    """Checks that such a command line leaves out, and what to change to have them."""
    fast = dict.fromkeys(SPEED, "leave --quick out") if quick else {}
    return fast | ({} if experiment else {"fit": "add --experiment <name>"})


def names() -> list[str]:
    """Of all checks."""
    return [check.name for check in _all(None, speed=True)]


def _all(options: Mapping[str, Any] | None, speed: bool) -> list[Check]:
    model, data = _section(options, "model"), _section(options, "data")
    attention = {key: model[name] for key, name in (("requested", "attention"), ("dtype", "dtype")) if name in model}
    hub_id = model.get("path") if model and not Path(model["path"]).is_dir() else None
    output = {"folder": _section(options, "run").get("dir", "outputs"), "speed": speed}
    cache = {"what": "data", "folder": data.get("cache") or CACHE, "speed": speed, "measured": output["folder"]}
    return [
        Check("packages", f"{CHECKS}.software:python_and_packages", 10, LOOK),
        Check("yarn-train", f"{CHECKS}.software:code_version", 15, LOOK),
        Check("driver", f"{CHECKS}.software:torch_build", 20, LOOK),
        Check("gpus", f"{CHECKS}.gpus:gpus", 20, LOOK, {"limit": 18.0}),
        Check("cores", f"{CHECKS}.host:cores", 5, LOOK),
        Check("memory", f"{CHECKS}.host:memory", 15, LOOK),
        Check("shared-memory", f"{CHECKS}.host:shared_memory", 5, LOOK),
        Check("limits", f"{CHECKS}.host:limits", 5, LOOK),
        Check("name", f"{CHECKS}.host:name", 8, LOOK),
        Check("hub", f"{CHECKS}.network:hub", 10, LOOK, {"model": hub_id}),
        Check("logging", f"{CHECKS}.network:wandb", 5, LOOK),
        Check("output", f"{CHECKS}.need:output_disk", 15, DISK, {"options": options, **output}),
        Check("fit", f"{CHECKS}.need:fit", 20, KERNELS, {"options": options}),
        Check("data", f"{CHECKS}.disk:disk", 10, DISK, cache),
        Check("hub-cache", f"{CHECKS}.disk:hub_cache", 10, DISK),
        Check("attention", f"{CHECKS}.kernels:attention", 15, KERNELS, attention),
        Check("compute", f"{CHECKS}.compute:compute", 15, COMPUTE),
        Check("all-reduce", f"{CHECKS}.links:all_reduce", 20, LINKS),
    ]


def _section(options: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    return options[name] if options else {}
