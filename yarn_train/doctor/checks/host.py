"""The machine around the GPUs: cores, memory, shared memory, limits, its name. Never imports torch at the top."""

from __future__ import annotations

import math
import os
import resource
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from ...dist.environment import usable_cores
from ..finding import OK, SKIP, WARN, Finding

GIB, MIB = 2**30, 2**20
SHARED_MEMORY = GIB  # NCCL takes tens of MiB per rank; container engines give 64 MiB
OPEN_FILES = 4096  # sockets of NCCL and gloo to every rank, shards of a checkpoint, data files
LOW_MEMORY = 4 * GIB


def cores() -> list[Finding]:
    """CPU cores, and a container's share of them."""
    return [judge_cores(usable_cores(), os.cpu_count() or 1, cpu_quota())]


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of time that a container may use; None without a limit."""
    new = root / "sys/fs/cgroup/cpu.max"
    if new.is_file():
        quota, period = new.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    old = root / "sys/fs/cgroup/cpu"
    if (old / "cpu.cfs_quota_us").is_file():
        microseconds = int((old / "cpu.cfs_quota_us").read_text())
        return None if microseconds <= 0 else microseconds / int((old / "cpu.cfs_period_us").read_text())
    return None


def judge_cores(usable: int, present: int, quota: float | None) -> Finding:
    """`quota` below the cores that are seen means that threads wait for each other."""
    facts = {"cores": usable, "cpu_quota": quota}
    figure = f"{usable} of {present} usable" if usable != present else f"{usable}"
    if quota is not None and quota < usable:
        means = "torch and tokenisation start a thread per core seen, which then wait for the container's share"
        count = max(1, int(quota))
        fix = f"export OMP_NUM_THREADS={count}, and data.workers={count}; or raise the container's limit"
        return Finding(WARN, "CPU cores", f"{figure}, but the container may use {quota:g}", means, fix, facts)
    return Finding(OK, "CPU cores", figure, facts=facts)


def memory() -> list[Finding]:
    """Host memory that a run may take."""
    from ...plan.check import available_host_bytes  # imports torch

    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return [judge_memory(available_host_bytes(), float(total))]


def judge_memory(available: float, total: float) -> Finding:
    """Bytes."""
    facts = {"host_memory_available": None if math.isinf(available) else available, "host_memory": total}
    figure = f"{available / GIB:.1f} GiB available of {total / GIB:.1f}, the container's limit counted"
    if available < LOW_MEMORY:
        means = "loading a model or tokenising may be killed without a word"
        return Finding(WARN, "host memory", figure, means, "end other processes, or raise the container's limit", facts)
    return Finding(OK, "host memory", figure, facts=facts)


def shared_memory() -> list[Finding]:
    """/dev/shm."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return [Finding(SKIP, "shared memory", "no /dev/shm on this system")]
    usage = shutil.disk_usage(folder)
    return [judge_shared_memory(usage.total, usage.free)]


def judge_shared_memory(total: float, free: float) -> Finding:
    """Bytes of /dev/shm."""
    figure = f"/dev/shm {_size(total)}, {_size(free)} free"
    if free < SHARED_MEMORY:
        means = "NCCL between GPUs of this machine fails or hangs with several ranks"
        fix = "docker run --shm-size=16g (or --ipc=host); Kubernetes: an emptyDir with medium: Memory at /dev/shm"
        return Finding(WARN, "shared memory", figure, means, fix, {"shm_free": free})
    return Finding(OK, "shared memory", figure, facts={"shm_free": free})


def _size(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"


def limits() -> list[Finding]:
    """What the shell allows this process."""
    adapters = Path("/sys/class/infiniband")
    has_rdma = adapters.is_dir() and any(adapters.iterdir())
    return judge_limits(
        resource.getrlimit(resource.RLIMIT_NOFILE)[0], resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], has_rdma
    )


def judge_limits(files: int, locked: int, has_rdma: bool) -> list[Finding]:
    """Open files, and locked memory where network adapters read it themselves; RLIM_INFINITY is no limit."""
    endless = resource.RLIM_INFINITY
    figure = "unlimited" if files == endless else f"{files:,}"
    found = [Finding(OK, "open files", figure, facts={"nofile": files})]
    if files != endless and files < OPEN_FILES:
        means = f"runs of many ranks or shards need {OPEN_FILES:,}: 'too many open files'"
        found = [
            Finding(
                WARN,
                "open files",
                figure,
                means,
                "ulimit -n 65536; docker run --ulimit nofile=65536",
                {"nofile": files},
            )
        ]
    if has_rdma and locked != endless:
        means = "NCCL over InfiniBand or RoCE cannot register its buffers: 'ibv_reg_mr failed', or slow sockets"
        fix = "ulimit -l unlimited; docker run --ulimit memlock=-1; Slurm: PropagateResourceLimitsExcept=MEMLOCK"
        found.append(Finding(WARN, "locked memory", f"{locked / MIB:.0f} MiB", means, fix, {"memlock": locked}))
    return found


def name() -> list[Finding]:
    """Whether this machine can find itself: torch's launcher and gloo look their own host name up."""
    own = socket.gethostname()
    try:
        addresses = sorted({str(info[4][0]) for info in socket.getaddrinfo(own, None, type=socket.SOCK_STREAM)})
    except OSError as error:
        return [judge_name(own, [], str(error))]
    return [judge_name(own, addresses, "")]


def judge_name(own: str, addresses: Sequence[str], error: str) -> Finding:
    """`addresses` that `own` resolves to, or the `error`."""
    facts = {"host": own, "addresses": list(addresses)}
    if not addresses:
        means = "torchrun and gloo cannot find this machine: several ranks do not start"
        fix = f"echo '127.0.0.1 {own}' >> /etc/hosts (for several machines: this machine's address)"
        return Finding(WARN, "host name", f"{own} does not resolve: {error}", means, fix, facts)
    figure = f"{own} -> {', '.join(addresses)}"
    if all(a.startswith("127.") or a == "::1" for a in addresses):
        figure += " (one machine only: several need its network address here, or GLOO_SOCKET_IFNAME=<interface>)"
    return Finding(OK, "host name", figure, facts=facts)
