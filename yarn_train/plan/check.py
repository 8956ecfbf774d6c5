"""Before weights load: refuse a run that memory cannot hold. The alternative is a kill without a word."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig

from ..config import Config
from ..errors import ConfigError, problem
from .jobs import Tracer
from .machines import GIB, fixed_bytes, named, usable_bytes
from .memory import copied_state, kept_bytes, lower_bound, memory_of, offloaded_state
from .sizes import Sizes
from .time import step_time

EASY = 0.35  # a lower bound at this share of the memory or less cannot be so wrong that the run does not fit


@dataclass(frozen=True)
class Need:
    """Bytes that a stage needs of a memory, and how that is known."""

    cfg: Config
    needed: float
    usable: float
    place: str

    @property
    def share(self) -> float:
        """1 is full."""
        return self.needed / self.usable


def check_run_fits(
    configs: Sequence[Config],
    base: PretrainedConfig,
    device: torch.device,
    world_size: int,
    ranks_here: int,
    timed: list[float] | None = None,
) -> str:
    """A line about the memory of a run, or its refusal, as ``plan.check`` says.

    Arithmetic where that is enough; on a GPU that is not easily enough, a trace of some seconds. Never a trace on the
    CPU, where a run that does not quite fit is slow before it is dead.

    Args:
        configs: of all stages.
        ranks_here: ranks that share this host's memory.
        timed: gets the seconds of a step of each stage, where they were traced for a GPU whose rates are known.

    Raises:
        ConfigError: with plan.check=refuse, a stage needs more memory than there is.
    """
    mode = configs[0].plan.check
    if mode == "off":
        return "memory: not checked (plan.check=off)"
    if configs[0].adapter.name != "none":
        return "memory: not checked: the plan knows full fine-tuning only, which adapters need less than"
    bounds = list(_bounds(configs, base, device, world_size, ranks_here))
    worst, how = max(bounds, key=lambda need: need.share), "at least "
    if device.type == "cuda" and EASY < worst.share <= 1.0:
        needs = _traced(configs, base, device, world_size, ranks_here, timed)
        worst, how = max(needs, key=lambda need: need.share), ""
    line = f"{how}{worst.needed / GIB:.1f} GiB of {worst.usable / GIB:.1f} usable {worst.place}"
    if worst.share <= 1.0:
        return f"memory: {line}"
    copied = ranks_here * copied_state(worst.cfg, Sizes.of(base), world_size) if "host memory" in worst.place else 0.0
    fix = f"checkpoint.async_save=false needs {copied / GIB:.1f} GiB less; " if copied else ""
    fix += "python -m yarn_train.plan with the same options lists what makes it fit; plan.check=warn starts it anyway"
    refusal = problem("memory", line, "no more than there is", fix)
    if mode == "refuse":
        raise ConfigError(refusal)
    return f"WARNING: {refusal}"


def _bounds(
    configs: Sequence[Config], base: PretrainedConfig, device: torch.device, world_size: int, ranks_here: int
) -> list[Need]:
    sizes, needs = Sizes.of(base), []
    if device.type != "cuda":
        available = _capacity(configs[0], device)
        place = f"in host memory, by arithmetic for {ranks_here} rank(s)"
        bounds = [
            lower_bound(_with_state(cfg), sizes, world_size) + _kept_away(cfg, sizes, world_size) for cfg in configs
        ]
        return [Need(cfg, ranks_here * need, available, place) for cfg, need in zip(configs, bounds, strict=True)]
    usable = usable_bytes(_capacity(configs[0], device))
    for cfg in configs:
        bound = fixed_bytes(world_size) + lower_bound(cfg, sizes, world_size)
        needs.append(Need(cfg, bound, usable, "on the GPU, by arithmetic"))
        away = _kept_away(cfg, sizes, world_size) + offloaded_state(cfg, sizes, world_size)
        needs.append(_host_need(cfg, away, ranks_here))
    return needs


def _traced(
    configs: Sequence[Config],
    base: PretrainedConfig,
    device: torch.device,
    world_size: int,
    ranks_here: int,
    timed: list[float] | None,
) -> list[Need]:
    sizes, capacity, needs = Sizes.of(base), _capacity(configs[0], device), []
    machine = None if timed is None else named(torch.cuda.get_device_name(device))
    with Tracer(base) as tracer:
        for cfg, traced in zip(configs, tracer([(cfg, world_size) for cfg in configs]), strict=True):
            memory = memory_of(cfg, traced, sizes, world_size, capacity)
            needs.append(Need(cfg, memory.total, memory.usable, "on the GPU, by a trace of the step"))
            needs.append(_host_need(cfg, sum(memory.host.values()), ranks_here))
            if timed is not None and machine is not None:
                timed.append(step_time(cfg, traced, sizes, machine, world_size, ranks_here).seconds)
    return needs


def _kept_away(cfg: Config, sizes: Sizes, world_size: int) -> float:
    """Bytes per rank of activations that are kept in host memory, and of the checkpoint that is written from there."""
    return (kept_bytes(cfg, sizes) if cfg.memory.offloads else 0.0) + copied_state(cfg, sizes, world_size)


def _with_state(cfg: Config) -> Config:
    """`cfg` with its state on the device: where that is the CPU, offloaded state stays in the same memory."""
    return dataclasses.replace(cfg, engine=dataclasses.replace(cfg.engine, offload="none"))


def _host_need(cfg: Config, per_rank: float, ranks_here: int) -> Need:
    place = f"in host memory, for what {ranks_here} rank(s) keep there"
    return Need(cfg, per_rank * ranks_here, available_host_bytes(), place)


def _capacity(cfg: Config, device: torch.device) -> float:
    """Bytes of the GPU, or bytes that the host still has."""
    if cfg.plan.memory_gib is not None:
        return cfg.plan.memory_gib * GIB
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return available_host_bytes()


def available_host_bytes(root: Path = Path("/")) -> float:
    """Host memory this process may still take: the kernel's estimate or the container's limit; inf where unknown."""
    found = [float("inf")]
    meminfo = root / "proc/meminfo"
    if meminfo.is_file():
        values = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        if "MemAvailable" in values:
            found.append(float(values["MemAvailable"].split()[0]) * 1024)
    group = root / "sys/fs/cgroup"
    for most, now in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        if (group / most).is_file() and (group / now).is_file():
            limit = (group / most).read_text().strip()
            if limit != "max":
                found.append(float(limit) - float((group / now).read_text()))
    return max(0.0, min(found))
