"""How many workers a machine gets, and whether that agrees with a launcher that started this process already."""

from __future__ import annotations

import torch

from ..config import LaunchConfig
from ..dist import environment
from ..errors import ConfigError, problem


def count_workers(launch: LaunchConfig) -> int:
    """Workers to start on this machine: one for each GPU, or on the CPU where the machine has none.

    Raises:
        ConfigError: `gpu` on a machine without one, or more workers than GPUs.
    """
    wanted, present = launch.nproc_per_node, torch.cuda.device_count()
    if wanted == "gpu":
        if not present:
            fix = "this machine has no CUDA GPU that torch can see; a number runs that many workers on the CPU"
            raise ConfigError(problem("launch.nproc_per_node", "gpu", "a number", fix))
        return present
    assert isinstance(wanted, int)
    if 0 < present < wanted:
        fix = "each worker needs a GPU of its own; gpu takes all there are"
        raise ConfigError(problem("launch.nproc_per_node", wanted, f"<= {present} (GPUs of this machine) | gpu", fix))
    return wanted


def check_launcher(launch: LaunchConfig) -> None:
    """Refuse launch options that say otherwise than the launcher of this process did.

    Raises:
        ConfigError: listing all of them; what a launcher was told cannot be changed by its workers.
    """
    if environment.launcher_pid() is not None:
        return  # started with these very options
    here = environment.local_world_size()
    nodes = environment.world_size() // here
    by_torchrun = environment.under_elastic_agent()
    if by_torchrun:
        fix = "leave it out: torchrun started these processes, and its own options say how many"
    else:
        fix = "leave it out: RANK and WORLD_SIZE are set, as by a launcher, which says how many; unset them if none did"
    found = []
    if launch.nproc_per_node != here and not (launch.nproc_per_node == "gpu" and torch.cuda.device_count() == here):
        found.append(problem("launch.nproc_per_node", launch.nproc_per_node, f"{here} | null", fix))
    if launch.nnodes not in (1, nodes):
        found.append(problem("launch.nnodes", launch.nnodes, str(nodes), fix))
    if launch.max_restarts not in (0, environment.max_restarts()):
        allowed, how = str(environment.max_restarts()), "give --max-restarts to torchrun" if by_torchrun else fix
        found.append(problem("launch.max_restarts", launch.max_restarts, allowed, how))
    if launch.rendezvous is not None:
        how = "give --rdzv-endpoint to torchrun" if by_torchrun else fix
        found.append(problem("launch.rendezvous", launch.rendezvous, "null", how))
    if found:
        raise ConfigError(found)
