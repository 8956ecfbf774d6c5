"""Speed of matrix products and memory, measured for a moment. Shared by the single machine and the comparison."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from ...dist.runtime import device as own_device
from ...model.flops import peak_flops
from ..data_sheets import machine
from ..finding import OK, WARN, Finding, worst

GIB, TERA, GIGA = 2**30, 1e12, 1e9
SECONDS = 0.4  # of measuring, after one repetition to warm up
GPU_SIZE, CPU_SIZE = 8192, 1024  # rows and columns of the matrices
GPU_BYTES, CPU_BYTES = GIB, 2**27  # copied at a time: far above any cache
EXPECTED, EXPECTED_MEMORY = 0.5, 0.5  # shares of the data sheets' figures; healthy GPUs reach 0.6 to 0.9 of both
BEHIND = 0.9  # of the median of the GPUs of one machine


def compute() -> list[Finding]:
    """bf16, matrix products and memory of every device of this machine, one after another."""
    if not torch.cuda.is_available():
        rates = [matmul(own_device(), dtype) for dtype in (torch.float32, torch.bfloat16)]
        return judge_cpu(_flags(), torch.get_num_threads(), rates[0], rates[1], copy(own_device()))
    places = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    names = [torch.cuda.get_device_name(place) for place in places]
    found = [judge_bf16({name: torch.cuda.get_device_capability(p) for name, p in zip(names, places, strict=True)})]
    rates = [matmul(place, torch.bfloat16) for place in places]
    found.append(judge_rates("matmul bf16", rates, [peak_flops(place) for place in places], TERA, "TFLOP/s", EXPECTED))
    copies = [copy(place) for place in places]
    found.append(judge_rates("GPU memory", copies, [hbm(name) for name in names], GIGA, "GB/s", EXPECTED_MEMORY))
    return found


def matmul(place: torch.device, dtype: torch.dtype, seconds: float = SECONDS) -> float:
    """FLOP/s of square matrix products."""
    size = GPU_SIZE if place.type == "cuda" else CPU_SIZE
    left, right = (torch.randn(size, size, device=place).to(dtype) for _ in range(2))
    out = torch.empty(size, size, device=place, dtype=dtype)
    return 2.0 * size**3 * rate(place, lambda: torch.mm(left, right, out=out), seconds)


def copy(place: torch.device, seconds: float = SECONDS) -> float:
    """Bytes/s that a copy within the device's memory reads and writes together."""
    size = CPU_BYTES
    if place.type == "cuda":
        size = min(GPU_BYTES, torch.cuda.mem_get_info(place)[0] // 4)
    source = torch.ones(size, dtype=torch.uint8, device=place)
    target = torch.empty_like(source)
    return 2.0 * size * rate(place, lambda: target.copy_(source), seconds)


def rate(place: torch.device, work: Callable[[], object], seconds: float) -> float:
    """Repetitions per second, after one that warms up."""

    def timed(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            work()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        return time.perf_counter() - begin

    timed(1)
    once = max(timed(1), 1e-6)
    count = max(1, min(1000, int(seconds / once)))
    return count / timed(count)


def hbm(name: str) -> float | None:
    """Bytes/s of the data sheet; None for a GPU that the planner does not know."""
    known = machine(name)
    return known.hbm if known else None


def judge_bf16(capability: Mapping[str, tuple[int, int]]) -> Finding:
    """Whether the GPUs' matrix units know bfloat16: compute capability 8.0 and later."""
    kinds = ", ".join(f"{name} has capability {a}.{b}" for name, (a, b) in capability.items())
    facts = {"bf16": min(capability.values()) >= (8, 0)}
    if facts["bf16"]:
        return Finding(OK, "bfloat16", kinds, facts=facts)
    means = "bfloat16 is emulated: slower than float32; flash attention does not run"
    return Finding(WARN, "bfloat16", f"{kinds}, 8.0 is needed", means, "model.dtype=float32", facts)


def judge_rates(
    what: str, rates: Sequence[float], known: Sequence[float | None], unit: float, name: str, expected: float
) -> Finding:
    """Rates of GPUs against their data sheets and against each other."""
    median = statistics.median(rates)
    slow, statuses = [], [OK]
    for number, (seen, peak) in enumerate(zip(rates, known, strict=True)):
        if peak and seen < expected * peak:
            slow.append(f"GPU {number} reaches {seen / peak:.0%} of {peak / unit:,.0f}")
            statuses.append(WARN)
        elif seen < BEHIND * median:
            slow.append(f"GPU {number} reaches {seen / median:.0%} of the others' median")
            statuses.append(WARN)
    shares = [seen / peak for seen, peak in zip(rates, known, strict=True) if peak]
    share = f", {min(shares):.0%} of the data sheet" if shares else ", no data sheet known here"
    spread = f"{min(rates) / unit:,.0f}" + (f" to {max(rates) / unit:,.0f}" if len(rates) > 1 else "")
    figure = f"{spread} {name}{share}" + (f"; {'; '.join(slow)}" if slow else "")
    means = "a step takes that much longer on every rank" if slow else ""
    fix = "nvidia-smi -q -d PERFORMANCE,CLOCK,POWER; look for other processes, power caps and heat" if slow else ""
    return Finding(worst(statuses), what, figure, means, fix, {what: list(rates)})


def _flags() -> str | None:
    """The instruction set for bfloat16, or None."""
    here = torch.cpu
    if getattr(here, "_is_amx_tile_supported", bool)():
        return "amx"
    return "avx512_bf16" if getattr(here, "_is_avx512_bf16_supported", bool)() else None


def judge_cpu(flags: str | None, threads: int, float32: float, bfloat16: float, memory: float) -> list[Finding]:
    """A machine without GPU: what its cores do, FLOP/s and bytes/s."""
    figure = f"{bfloat16 / GIGA:,.0f} GFLOP/s in bfloat16, {float32 / GIGA:,.0f} in float32, {threads} threads"
    how = flags or "emulated: the CPU has neither avx512_bf16 nor amx"
    facts = {"matmul_float32": float32, "matmul_bfloat16": bfloat16, "memory_copy": memory}
    speed = Finding(OK, "matmul", f"{figure} ({how})", facts=facts)
    if bfloat16 < 0.8 * float32:
        means = f"bfloat16, the default, is {float32 / bfloat16:.1f} times slower than float32 here"
        speed = Finding(WARN, "matmul", f"{figure} ({how})", means, "model.dtype=float32", facts)
    return [speed, Finding(OK, "memory", f"copies at {memory / GIGA:.1f} GB/s, read and written")]
