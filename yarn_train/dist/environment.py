"""What a launcher says through environment variables; the only reader of them in the package. Never imports torch."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigError, problem

ENV_SH = Path(__file__).resolve().parents[2] / "launch" / "env.sh"


def world_size() -> int:
    """Number of processes the launcher started (1 without one); known before any process group exists."""
    return _number("WORLD_SIZE", 1)


def local_world_size() -> int:
    """Number of processes the launcher started on this machine (1 without one)."""
    return _number("LOCAL_WORLD_SIZE", 1)


def rank() -> int:
    """This process's global rank (0 without a launcher); known before any process group exists."""
    return _number("RANK", 0)


def local_rank() -> int:
    """This process's rank on its machine (0 without a launcher)."""
    return _number("LOCAL_RANK", 0)


def _number(name: str, default: int) -> int:
    """A variable that counts.

    Raises:
        ConfigError: it is set to something else.
    """
    value = os.environ.get(name)
    if value is None:
        return default
    if not (value.isascii() and value.isdigit()):
        raise ConfigError(_wrong(name, value, "a whole number"))
    return int(value)


def _wrong(name: str, value: str | None, allowed: str) -> str:
    return problem(f"environment {name}", value, allowed, "start with torchrun, or unset it if nothing else set it")


def launcher_problems() -> list[str]:
    """What is wrong with the variables by which a launcher tells a process its place."""
    found = []
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        try:
            _number(name, 0)
        except ConfigError as error:
            found += error.problems
    if found:
        return found
    given = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    if (given["RANK"] is None) != (given["WORLD_SIZE"] is None):
        name, other = ("RANK", "WORLD_SIZE") if given["RANK"] is None else ("WORLD_SIZE", "RANK")
        return [_wrong(name, None, f"set, as {other}={given[other]} is")]
    if given["RANK"] is None:
        return []
    for name, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        most = _number(size, 1 if name == "RANK" else world_size())
        if _number(name, 0) >= most:
            found.append(_wrong(name, os.environ.get(name), f"less than {size} ({most})"))
    if not 1 <= local_world_size() <= world_size():
        allowed = f"1 to WORLD_SIZE ({world_size()})"
        found.append(_wrong("LOCAL_WORLD_SIZE", str(local_world_size()), allowed))
    for name, allowed in (("MASTER_ADDR", "the name of rank 0's machine"), ("MASTER_PORT", "a port of it")):
        if not given[name]:
            found.append(_wrong(name, given[name], allowed))
    port = given["MASTER_PORT"]
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        found.append(_wrong("MASTER_PORT", port, "a number from 1 to 65535"))
    return found


def under_launcher() -> bool:
    """Whether a launcher such as torchrun started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def under_elastic_agent() -> bool:
    """Whether that launcher is torch's elastic agent (torchrun, or ``launch.nproc_per_node``)."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def exit_file() -> Path | None:
    """Where a launcher of ours reads the exit code of a run that stopped on request, see :mod:`dist.stop`."""
    path = os.environ.get("YARN_TRAIN_EXIT_FILE")
    return Path(path) if path else None


def launcher_pid() -> int | None:
    """Process id of the launcher of ours that started this worker; None under any other launcher."""
    pid = os.environ.get("YARN_TRAIN_LAUNCHER")
    return int(pid) if pid else None


def stop_file() -> Path | None:
    """A file that a launcher of ours makes when it is asked to stop, for workers that cannot hear signals yet."""
    path = os.environ.get("YARN_TRAIN_STOP_FILE")
    return Path(path) if path else None


def error_file() -> Path | None:
    """Where torch's elastic agent looks for this worker's error."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    return Path(path) if path else None


def max_restarts() -> int:
    """How often the elastic agent starts the workers again (0 without one)."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))


@contextmanager
def for_workers(workers: int, exit_file: Path, restarts: int, recorder: Path) -> Iterator[None]:
    """What the workers that are started inside find in their environment: that of ``launch/env.sh``, and our own.

    Args:
        workers: their number on this machine.
        exit_file: see :func:`exit_file`.
        restarts: how often they may be started again.
        recorder: what the names of the flight recorder's files begin with; see :func:`flight_recorder`.
    """
    added = _recommended(workers, restarts)
    if flight_recorder() is None:
        added["TORCH_FR_DUMP_TEMP_FILE"] = str(recorder)
    added |= {"YARN_TRAIN_EXIT_FILE": str(exit_file), "YARN_TRAIN_LAUNCHER": str(os.getpid())}
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def reproducible() -> Iterator[None]:
    """Inside, cuBLAS has the workspaces that its results need to be repeatable, and NCCL sums in software.

    Both read these once per process, so this comes before the first kernel and the first process group. The switches of
    NVLS add in an order that varies (NVIDIA/nccl issue 1497). What somebody chose stays.
    """
    wanted = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "^NVLS"}
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _recommended(workers: int, restarts: int) -> dict[str, str]:
    """What ``launch/env.sh`` changes in this environment; nothing where there is no bash to ask."""
    if shutil.which("bash") is None:
        return {}
    given = {**os.environ, "NPROC_PER_NODE": str(workers), "MAX_RESTARTS": str(int(restarts))}
    command = ["bash", "-c", '. "$1" && exec env -0', "bash", str(ENV_SH)]
    said = subprocess.run(command, env=given, capture_output=True, text=True, check=True).stdout
    pairs = (line.partition("=")[::2] for line in said.split("\0") if line)
    return {name: value for name, value in pairs if given.get(name) != value and name not in ("_", "SHLVL", "PWD")}


def single_thread_by_torchrun() -> bool:
    """torchrun sets OMP_NUM_THREADS=1 for several workers when nobody chose a value: on CPU the other cores idle then.

    The launchers of ours choose one themselves.
    """
    several = under_launcher() and local_world_size() > 1
    return several and exit_file() is None and os.environ.get("OMP_NUM_THREADS") == "1"


def announce(device_type: str) -> None:
    """Set what DeepSpeed reads where no launcher did: the local rank, the processes of this host, the device's type.

    Without them it asserts, counts NUMA nodes with a subprocess per reduction, or warns while it guesses the device.
    """
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
    os.environ.setdefault("DS_ACCELERATOR", device_type)


def usable_cores() -> int:
    """CPU cores this process may run on (respects affinity masks and most containers)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_chosen() -> bool:
    """Whether somebody said how many threads a process computes with."""
    return bool(os.environ.get("OMP_NUM_THREADS"))


def group_rank() -> int:
    """This machine's number among those of the run (0 without a launcher)."""
    return int(os.environ.get("GROUP_RANK", rank() // local_world_size()))


def meeting_point() -> tuple[str, int, bool]:
    """Host and port of the launcher's store, and whether the launcher serves it (else rank 0 has to).

    Raises:
        KeyError: no launcher started this process.
    """
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), store_of_agent()


def store_of_agent() -> bool:
    """Whether ranks meet in a store that torch's elastic agent serves."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def as_rank(rank: int, world_size: int, local: tuple[int, int], node: int, meeting: tuple[str, int]) -> dict[str, str]:
    """The environment of a worker as torch's agent would set it, on top of this process's own.

    Args:
        local: local rank and local world size.
        meeting: host and port of a store that somebody serves already.
    """
    told = {
        "RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_RANK": local[0],
        "LOCAL_WORLD_SIZE": local[1],
        "GROUP_RANK": node,
        "MASTER_ADDR": meeting[0],
        "MASTER_PORT": meeting[1],
        "TORCHELASTIC_USE_AGENT_STORE": True,
    }
    return {**os.environ, **{key: str(value) for key, value in told.items()}}


def communication() -> dict[str, str]:
    """Variables that steer NCCL, gloo and the network below them: all machines of a run should agree on them."""
    prefixes = ("NCCL_", "TORCH_NCCL_", "GLOO_", "UCX_", "FI_")
    return {key: value for key, value in sorted(os.environ.items()) if key.startswith(prefixes)}


def flight_recorder() -> str | None:
    """What the names of the flight recorder's files begin with, which NCCL writes when a collective times out."""
    return os.environ.get("TORCH_FR_DUMP_TEMP_FILE") or os.environ.get("TORCH_NCCL_DEBUG_INFO_TEMP_FILE")


def launch_id() -> str | None:
    """What tells this start by torch's elastic agent from others; None without one."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def restart() -> int:
    """How often torch's elastic agent has started the workers again so far (0 without one)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def revision() -> str | None:
    """Commit of code that was packed without its history, as its packer says (the image, ``launch/sky.yaml``)."""
    return os.environ.get("YARN_TRAIN_REVISION") or None


def visible_gpus() -> list[str] | None:
    """What CUDA_VISIBLE_DEVICES chooses, numbers or ids, up to the first invalid one as CUDA reads it; None for all."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return None
    words = [word.strip() for word in value.split(",")]
    return list(itertools.takewhile(lambda word: word not in ("", "-1"), words))


def secrets() -> list[str]:
    """Values that must not be printed or written: of variables that are named like keys, tokens and passwords."""
    named = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_KEY|ACCESS_KEY|ACCESS_KEY_ID|SECRET_KEY)$", re.IGNORECASE)
    return [value for name, value in os.environ.items() if named.search(name) and not value.startswith(("/", "~"))]


def wandb_key_given() -> bool:
    """Whether a key for Weights & Biases is set; the key itself is nobody's business."""
    return bool(os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"))


def wandb_mode() -> str | None:
    """What WANDB_MODE asks for (or WANDB_DISABLED, its predecessor), in lower case; None where nobody asks."""
    if (os.environ.get("WANDB_DISABLED") or "").lower() in ("true", "1", "yes"):
        return "disabled"
    return (os.environ.get("WANDB_MODE") or "").lower() or None


def wandb_server() -> str | None:
    """Address of a wandb server of one's own; None where no variable names one."""
    return os.environ.get("WANDB_BASE_URL") or None


def wandb_settings_folder() -> Path:
    """Where wandb's commands keep what they were told for this user."""
    return Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()


def netrc_file() -> Path:
    """The file with this user's logins to machines."""
    return Path(os.environ.get("NETRC") or "~/.netrc").expanduser()


def wants_colours() -> bool | None:
    """What NO_COLOR, FORCE_COLOR and CLICOLOR_FORCE ask for, in this order; None where nobody asks."""
    if os.environ.get("NO_COLOR"):
        return False
    forced = os.environ.get("FORCE_COLOR"), os.environ.get("CLICOLOR_FORCE")
    return True if any(value not in (None, "", "0") for value in forced) else None


def dumb_terminal() -> bool:
    """Whether the terminal only takes lines, as those inside of editors do."""
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown")


def continuous_integration() -> bool:
    """Whether this is a CI job: those of all services set CI."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def full_errors() -> bool:
    """Whether somebody asks for tracebacks, by Hydra's own variable."""
    return os.environ.get("HYDRA_FULL_ERROR") not in (None, "", "0")


def cache_folder() -> Path:
    """Where what is compiled stays for the next run (XDG); a RuntimeError where this user has no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "yarn_train"


def default(name: str, value: str) -> str:
    """Set a variable that nobody set; returns what it says now."""
    return os.environ.setdefault(name, value)


def become(variables: dict[str, str]) -> None:
    """Take these variables over; for a process that was just forked and has read none of them."""
    os.environ.update(variables)
