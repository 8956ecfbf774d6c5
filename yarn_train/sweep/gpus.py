"""The GPUs of this machine that jobs can be given, and which of them somebody uses right now."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..dist import environment
from ..dist.nvidia_smi import FIELDS, IN_USE, Gpu, Process, query, read_gpus, read_processes

LIMIT = 60.0  # seconds; without persistence mode every answer of nvidia-smi starts the driver anew


@dataclass(frozen=True)
class Device:
    """A GPU, or a slice of one that CUDA_VISIBLE_DEVICES names.

    Attributes:
        name: its number by nvidia-smi, or the id of a slice.
        uuid: what CUDA finds it by whatever the order of its numbers is.
        used_by: processes that compute on it, in words; empty where there are none.
    """

    name: str
    uuid: str
    used_by: str = ""


def present() -> list[Device]:
    """The GPUs that CUDA_VISIBLE_DEVICES allows, in its order; none where nvidia-smi is missing or finds no driver.

    Raises:
        subprocess.TimeoutExpired: nvidia-smi does not answer.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    end = time.monotonic() + LIMIT
    told = query("gpu", FIELDS, end)
    if told.returncode:
        return []
    running = read_processes(query("compute-apps", ("gpu_uuid", "pid", "process_name", "used_memory"), end).stdout)
    whole = [Device(str(gpu.index), gpu.uuid, _used_by(gpu, running)) for gpu in read_gpus(told.stdout)]
    return allowed(whole, environment.visible_gpus())


def allowed(whole: Sequence[Device], chosen: Sequence[str] | None) -> list[Device]:
    """Those of a machine's GPUs that the words of CUDA_VISIBLE_DEVICES choose, up to the first that finds none.

    A slice counts as free of others: nvidia-smi tells what runs on its GPU, not on which slice. Numbers are
    nvidia-smi's, as in :func:`yarn_train.dist.nvidia_smi.is_visible`.
    """
    if chosen is None:
        return list(whole)
    found: dict[str, Device] = {}
    for word in chosen:
        match = next(
            (d for d in whole if d.name == word or (word.startswith("GPU-") and d.uuid.startswith(word))), None
        )
        if match is None and word.startswith("MIG-"):
            match = Device(word, word)
        if match is None:
            break
        found.setdefault(match.uuid, match)
    return list(found.values())


def _used_by(gpu: Gpu, running: Sequence[Process]) -> str:
    here = [f"{p.name} (pid {p.pid})" for p in running if p.uuid == gpu.uuid]
    if not here and gpu.used > max(IN_USE, gpu.total // 10):  # a desktop takes its share of a small card
        return f"processes that are not visible from here ({gpu.used / 1024:.1f} GiB)"
    return ", ".join(here)
