"""What to type on the cluster, made of what was typed here."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from ..config import LaunchConfig

PORT = 29500  # torchrun's own default
WARNING = 300  # seconds before the time limit that launch/slurm.sbatch is warned, unless told otherwise


def commands(launch: LaunchConfig, words: Sequence[str], step: float) -> list[str]:
    """The commands that start the run.

    Args:
        words: the options that were typed.
        step: seconds of the longest optimizer step, which must end between Slurm's warning and its time limit.
    """
    options = [word for word in words if not _says_where(word)]
    own = shlex.join(["train.py", *(word.removeprefix("++") for word in options)])
    # to torchrun this is an option of its own, which the scripts take from a variable
    kept = (word.removeprefix("++") for word in options if not word.startswith("launch.max_restarts"))
    restarts = f"MAX_RESTARTS={launch.max_restarts}" if launch.max_restarts else ""
    workers = f"launch.nproc_per_node={launch.nproc_per_node}"
    if launch.nnodes == 1:
        variables = f"NPROC_PER_NODE={launch.nproc_per_node} {restarts}".strip()
        return [
            f"python {own} {workers}",
            f"{variables} {shlex.join(['launch/torchrun.sh', *kept])}  # the same through torchrun",
        ]
    asked = [f"--nodes={launch.nnodes}", f"--gpus-per-node={launch.nproc_per_node}", "--exclusive"]
    asked += [f"--export=ALL,{restarts}"] if restarts else []
    asked += [f"--signal=B:USR1@{round(3 * step)}"] if 3 * step > WARNING else []  # a plan's step is its ceiling
    meeting = launch.rendezvous or f"FIRST_NODE:{PORT}"
    return [
        f"sbatch {' '.join(asked)} {shlex.join(['launch/slurm.sbatch', *kept])}",
        f"python {own} launch.nnodes={launch.nnodes} {workers} launch.rendezvous={meeting}"
        "  # on each node, without Slurm",
    ]


def _says_where(word: str) -> bool:
    """Options that the commands say themselves, or that keep a run from starting."""
    keys = ("dry_run", "nnodes", "nproc_per_node", "rendezvous")
    return word.lstrip("+").partition("=")[0] in {f"launch.{key}" for key in keys}
