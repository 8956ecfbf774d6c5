"""One attention kernel, through the operator that training calls: TFLOP/s of forward, and of both."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.gpu.outcome import Missing, of_error
from bench.gpu.timing import Stopwatch, in_turns
from bench.gpu.worker import Save
from yarn_train.errors import ConfigError
from yarn_train.model.attention import attention
from yarn_train.model.availability import width_limits
from yarn_train.model.flops import hardware_work
from yarn_train.model.registry import Kernel, choose_kernel

REPEATS = 5
PASSES = ("forward", "both")


def measure(task: dict[str, Any], save: Save) -> dict[str, Any]:
    """Rows of length, forward and both, in TFLOP/s of causal attention."""
    device = torch.device(task["device"])
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    kernel = available(task["kernel"], device, dtype, task["head_dim"])
    works = {
        (length, what): work(kernel.primitive, task, length, what == "both", device, dtype)
        for length in sorted(task["lengths"])
        for what in PASSES
    }
    about = {"primitive": kernel.primitive, "reason": kernel.reason, "dtype": str(dtype).removeprefix("torch.")}

    def seen(seconds: dict[Any, list[float]], errors: dict[Any, Exception]) -> None:
        save({**about, "rows": _rows(task, seconds, errors)})

    seconds, errors = in_turns(works, device, REPEATS, task["deadline"], seen)
    if not seconds:
        raise next(iter(errors.values()))
    return {**about, "rows": _rows(task, seconds, errors)}


def _rows(task: dict[str, Any], seconds: dict[Any, list[float]], errors: dict[Any, Exception]) -> list[dict[str, Any]]:
    """A kernel that cannot do one length may do the others."""
    rows: dict[int, dict[str, Any]] = {length: {"tokens": length} for length in sorted(task["lengths"])}
    for (length, what), taken in seconds.items():
        rows[length][f"{what}_seconds"] = statistics.median(taken)
        rows[length][f"{what}_tflops"] = flops_of(task, length, what) / statistics.median(taken) / 1e12
    for (length, what), error in errors.items():
        rows[length].pop(f"{what}_tflops", None)
        rows[length][f"{what}_status"], rows[length][f"{what}_reason"] = of_error(error)
    return list(rows.values())


def available(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernel:
    """The kernel by its name of model.attention, which may be auto.

    Raises:
        Missing: it cannot run here; says why.
    """
    try:
        kernel = choose_kernel(name, device, dtype, head_dim)
    except ConfigError as error:
        raise Missing(" ".join(str(error).split())) from error
    if allowed := width_limits(kernel.primitive, head_dim):
        raise Missing(f"its heads are {allowed}, not {head_dim}")
    return kernel


def flops_of(task: dict[str, Any], length: int, what: str) -> float:
    """FLOPs of causal attention over one sequence; `both` is forward and backward."""
    work = hardware_work(0, 0, 1, task["heads"] * task["head_dim"], length, False)
    return length * (work.attention_forward + (work.attention_backward if what == "both" else 0.0))


def work(
    primitive: str, task: dict[str, Any], length: int, both: bool, device: torch.device, dtype: torch.dtype
) -> Callable[[Stopwatch], float]:
    """Makes its tensors when it runs, before the clock does: those of all lengths together need not fit."""
    scale = task["head_dim"] ** -0.5

    def tensor(heads: int) -> Tensor:
        made = torch.randn(1, length, heads, task["head_dim"], device=device, dtype=dtype)
        return made.transpose(1, 2).requires_grad_(both)

    def once(watch: Stopwatch) -> float:
        q, k, v = (tensor(heads) for heads in (task["heads"], task["kv_heads"], task["kv_heads"]))
        dout = torch.randn_like(q) if both else None
        with torch.set_grad_enabled(both):
            watch.start(ahead=True)
            out, _ = attention(q, k, v, primitive, scale, None)
            if dout is not None:
                out.backward(dout)
            return watch.stop()

    return once
