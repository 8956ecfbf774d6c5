"""Whether the GPUs are fit, from what nvidia-smi tells. Judging is pure."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Sequence

from ...dist import environment
from ...dist.nvidia_smi import FIELDS, IN_USE, Gpu, Process, answer, is_visible, query, read_gpus, read_processes
from ..finding import FAIL, OK, SKIP, WARN, Finding

REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # the newer name first
# Bits of the reasons that cost speed; the others are idleness, a power cap at work and clocks that somebody set.
SLOWED = {0x8: "hardware slowdown", 0x20: "heat (software)", 0x40: "heat (hardware)", 0x80: "power brake"}


def gpus(limit: float) -> list[Finding]:
    """One line per GPU and one about their links, in `limit` seconds: without persistence mode every answer of
    nvidia-smi starts the driver anew, which takes seconds per GPU.
    """
    try:
        return _gpus(time.monotonic() + limit)
    except subprocess.TimeoutExpired:
        means = "so does every start of a run, and the GPUs were not looked at"
        return [Finding(WARN, "GPUs", f"nvidia-smi took more than {limit:.0f} s", means, "sudo nvidia-smi -pm 1")]


def _gpus(end: float) -> list[Finding]:
    if shutil.which("nvidia-smi") is None:
        return [Finding(SKIP, "GPUs", "no nvidia-smi: no NVIDIA GPU, or a container without it", facts={"smi_gpus": 0})]
    done = query("gpu", FIELDS, end)
    if done.returncode:
        text = (done.stdout + done.stderr).strip().splitlines()
        fix = "nvidia-smi; dmesg | grep -i -E 'nvrm|xid'; a reboot is the usual end of it"
        return [
            Finding(FAIL, "GPUs", f"nvidia-smi fails: {text[0] if text else done.returncode}", "no run on GPUs", fix)
        ]
    reasons = next((r.stdout for field in REASONS if (r := query("gpu", ("index", field), end)).returncode == 0), "")
    found = read_gpus(done.stdout, reasons)
    running = read_processes(query("compute-apps", ("gpu_uuid", "pid", "process_name", "used_memory"), end).stdout)
    chosen = environment.visible_gpus()
    used = {gpu.index for gpu in found if is_visible(gpu, chosen)}
    lines = [
        judge_gpu(gpu, [p for p in running if p.uuid == gpu.uuid])
        if gpu.index in used
        else Finding(SKIP, f"GPU {gpu.index}", f"{gpu.name}: not in CUDA_VISIBLE_DEVICES")
        for gpu in found
    ]
    if len(used) > 1:
        links = read_topology(answer(["topo", "-m"], end).stdout)
        lines.append(judge_links({pair: link for pair, link in links.items() if used.issuperset(pair)}))
    return lines


def judge_gpu(gpu: Gpu, running: Sequence[Process]) -> Finding:
    """The worst of what is wrong with one GPU."""
    what, free = f"GPU {gpu.index}", gpu.total - gpu.used
    heat = "" if gpu.temperature is None else f", {gpu.temperature} C"
    figure = f"{gpu.name}, {free / 1024:.1f} of {gpu.total / 1024:.1f} GiB free{heat}"
    if gpu.ecc_errors:
        means = "results may be wrong, or a run dies in mid-step"
        fix = f"take it out (CUDA_VISIBLE_DEVICES without {gpu.index}), then nvidia-smi -r -i {gpu.index} or a repair"
        return Finding(FAIL, what, f"{figure}; {gpu.ecc_errors} uncorrected memory errors since boot", means, fix)
    slowed = [text for bit, text in SLOWED.items() if gpu.reasons & bit]
    if slowed:
        figure += f"; slowed now by {', '.join(slowed)}" + (f" ({gpu.clock} MHz)" if gpu.clock else "")
        means = "every rank waits for the slowest one"
        return Finding(WARN, what, figure, means, f"nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER -i {gpu.index}")
    if gpu.used > IN_USE:
        owners = ", ".join(f"{p.name} (pid {p.pid})" for p in running) or "processes that are not visible from here"
        fix = f"end them, or choose others with CUDA_VISIBLE_DEVICES; nvidia-smi -i {gpu.index}"
        return Finding(
            WARN, what, f"{figure}; in use by {owners}", "a run gets what is left, or runs out of memory", fix
        )
    if gpu.mig:
        means = "a rank sees a slice of the GPU only, and NCCL does not work between slices"
        return Finding(WARN, what, f"{figure}; MIG is on", means, f"sudo nvidia-smi -i {gpu.index} -mig 0")
    return Finding(OK, what, figure)


def read_topology(text: str) -> dict[tuple[int, int], str]:
    """The link of every pair of GPUs from ``nvidia-smi topo -m``: NV18, PIX, PHB, NODE, SYS and their kind."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)  # the header is underlined
    rows = [line.split() for line in text.splitlines()]
    count = sum(len(row) > 1 and re.fullmatch(r"GPU\d+", row[0]) is not None and "X" in row for row in rows)
    links: dict[tuple[int, int], str] = {}
    for row in rows:
        if len(row) > count and re.fullmatch(r"GPU\d+", row[0]) and "X" in row:
            one = int(row[0][3:])
            # network adapters' and affinity columns follow those of the GPUs
            links |= {(one, other): link for other, link in enumerate(row[1 : count + 1]) if other > one}
    return links


def judge_links(links: dict[tuple[int, int], str]) -> Finding:
    """Whether all pairs of GPUs are linked alike."""
    kinds = sorted(set(links.values()))
    facts = {"gpu_links": kinds}
    if not links:
        return Finding(SKIP, "GPU links", "nvidia-smi topo -m tells nothing here")
    if not any(kind.startswith("NV") for kind in kinds):
        return Finding(OK, "GPU links", f"no NVLink: {', '.join(kinds)}; collectives take PCIe", facts=facts)
    if len(kinds) > 1:
        most = max(kinds, key=list(links.values()).count)
        odd = ", ".join(f"{a}-{b}: {link}" for (a, b), link in links.items() if link != most)
        means = "NCCL takes the slowest path of the ring; NVLink may be down on some, or pairs are bridged two by two"
        return Finding(WARN, "GPU links", f"{most}, but {odd}", means, "nvidia-smi nvlink --status", facts)
    return Finding(OK, "GPU links", f"{kinds[0]} between all {len(links)} pairs", facts=facts)
