"""python -m bench.gpu.worker TASK FILE: one variant of a cell; writes its outcome to FILE, as JSON."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.gpu.outcome import FAILED, OK, Outcome, of_error
from yarn_train.dist import nvidia_smi
from yarn_train.dist.orphans import die_with

# kind -> module with measure(task, save); imported in the process that needs it
KINDS = {
    "model": "bench.gpu.model",
    "kernel": "bench.gpu.kernel",
    "train": "bench.gpu.ours",
    "hf": "bench.gpu.hf",
    "alst": "bench.gpu.alst",
}
PACKAGES = ("transformers", "accelerate", "flash-attn", "flash-attn-3", "flash-attn-4", "liger-kernel", "deepspeed")
LOWBIT = ("torchao", "triton")
Save = Callable[[dict[str, Any]], None]


def execute(task: dict[str, Any], save: Save) -> Outcome:
    """Measure; whatever goes wrong is an outcome too.

    Args:
        save: keeps the numbers so far, for the case that the time is up.
    """
    told: dict[str, Any] = {}
    try:
        told = machine(task["device"])
        result = importlib.import_module(KINDS[task["kind"]]).measure(task, save)
        return Outcome(OK, "", result, told)
    except Exception as error:
        status, reason = of_error(error)
        if status == FAILED:
            traceback.print_exc()
        return Outcome(status, reason, {}, told)


def machine(device: str) -> dict[str, Any]:
    """What figures depend on: device, driver, versions."""
    import torch

    from bench.gpu import host

    found: dict[str, Any] = {
        "device": "CPU",
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "packages": {name: version for name in (*PACKAGES, *LOWBIT) if (version := _version(name))},
        "host_bytes": host.available(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _driver(),
        }
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    try:
        done = nvidia_smi.query("gpu", ["driver_version"], time.monotonic() + 5.0)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else None


def main() -> None:
    """Run the task of the command line."""
    task, file = json.loads(sys.argv[1]), Path(sys.argv[2])
    found: dict[str, Any] = {}
    if "parent" in task:
        die_with(task["parent"])

    def write(row: dict[str, Any]) -> None:
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(row))
        unfinished.rename(file)

    def save(result: dict[str, Any]) -> None:
        if not found:
            found["machine"] = machine(task["device"])  # once: it asks nvidia-smi
        write({"result": result, "machine": found["machine"]})

    write(asdict(execute(task, save)))


if __name__ == "__main__":
    main()
