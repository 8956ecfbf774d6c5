"""How many ranks a run has, and whether its sizes divide them."""

from __future__ import annotations

from .. import config as schema
from ..config import Config, LaunchConfig
from ..dist import environment
from ..errors import ConfigError
from ..launch.counts import count_workers


def rank_problems(cfg: Config, world_size: int) -> list[str]:
    """Sizes that do not divide the ranks, or the batch."""
    try:
        schema.validate(cfg, world_size)
    except ConfigError as error:
        return error.problems
    return []


def ranks(whole: Config) -> int:
    """Ranks of the run: those that a launcher has started, or that this process is to start."""
    launch = whole.launch
    try:
        if launch.nproc_per_node is None or (environment.under_launcher() and not launch.dry_run):
            return environment.world_size()
        return launch.nnodes * workers(launch)
    except ConfigError:  # told with the other problems of the machine
        return 1


def workers(launch: LaunchConfig) -> int:
    """Workers to start on this machine, 1 where the option is none of its values.

    Raises:
        ConfigError: more than this machine has GPUs.
    """
    wanted = launch.nproc_per_node
    if launch.dry_run and isinstance(wanted, int):
        return max(1, wanted)
    return count_workers(launch) if wanted == "gpu" or (isinstance(wanted, int) and wanted > 0) else 1
