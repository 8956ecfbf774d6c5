"""What nvidia-smi tells of this machine's GPUs. Reading is pure; never imports torch."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

FIELDS = (
    *("index", "uuid", "name", "memory.total", "memory.used", "temperature.gpu", "clocks.sm", "clocks.max.sm"),
    *("ecc.errors.uncorrected.volatile.total", "mig.mode.current"),
)
IN_USE = 1024  # MiB that others hold; a display or a monitoring agent takes less


@dataclass(frozen=True)
class Gpu:
    """One GPU; memory in MiB, temperature in degrees Celsius, clocks in MHz, None where nvidia-smi does not know."""

    index: int
    uuid: str
    name: str
    total: int
    used: int
    temperature: int | None
    clock: int | None
    max_clock: int | None
    ecc_errors: int | None
    mig: bool
    reasons: int = 0


@dataclass(frozen=True)
class Process:
    """A process that computes on a GPU; memory in MiB."""

    uuid: str
    pid: int
    name: str
    used: int | None


def query(what: str, fields: Sequence[str], end: float) -> subprocess.CompletedProcess[str]:
    """``nvidia-smi --query-<what>`` as :func:`answer`."""
    return answer([f"--query-{what}={','.join(fields)}", "--format=csv,noheader,nounits"], end)


def answer(words: Sequence[str], end: float) -> subprocess.CompletedProcess[str]:
    """``nvidia-smi`` with these words; TimeoutExpired at `end`, by ``time.monotonic()``."""
    left = max(0.0, end - time.monotonic())
    return subprocess.run(["nvidia-smi", *words], capture_output=True, text=True, timeout=left)


def is_visible(gpu: Gpu, chosen: Sequence[str] | None) -> bool:
    """Whether CUDA_VISIBLE_DEVICES lets a run see a GPU: by its number, the start of its id, or a slice of it.

    Numbers are taken as nvidia-smi's; CUDA numbers GPUs of different kinds otherwise, unless told
    CUDA_DEVICE_ORDER=PCI_BUS_ID.
    """
    if chosen is None:
        return True
    return any(
        word == str(gpu.index)
        or (word.startswith("GPU-") and gpu.uuid.startswith(word))
        or (word[:4] == "MIG-" and gpu.mig)
        for word in chosen
    )


def read_gpus(text: str, reasons: str = "") -> list[Gpu]:
    """GPUs from the answers to ``FIELDS`` and to index and reasons (hexadecimal bits)."""
    bits = {index: _number(value, 16) or 0 for index, value in _rows(reasons, 2)}
    found = []
    for row in _rows(text, len(FIELDS)):
        index, uuid, name, total, used, heat, clock, most, errors, mig = row
        numbers = (_number(heat), _number(clock), _number(most), _number(errors))
        size = _number(total) or 0, _number(used) or 0
        found.append(Gpu(int(index), uuid, name, *size, *numbers, mig == "Enabled", bits.get(index, 0)))
    return found


def read_processes(text: str) -> list[Process]:
    """Processes from the answer to gpu_uuid, pid, process_name, used_memory; a name may hold commas."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) >= 4 and cells[1].isdigit():
            found.append(Process(cells[0], int(cells[1]), ",".join(cells[2:-1]), _number(cells[-1])))
    return found


def _rows(text: str, width: int) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    return [row for row in rows if len(row) == width]


def _number(text: str, base: int = 10) -> int | None:
    """None for "[N/A]", "[Not Supported]" and their kind."""
    try:
        return int(text, base)
    except ValueError:
        return None
