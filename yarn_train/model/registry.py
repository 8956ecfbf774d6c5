"""The attention kernels by name, and which of them a run gets: ``model.attention``.

``auto`` takes the first of a fixed order that can run here. The order is made of published figures, :data:`FACTS`, and
of what is known to be wrong, :data:`LEFT_OUT`; nothing is timed at the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch

from ..errors import ConfigError, problem
from .availability import HALF, NEEDS, capability, missing, version, width_limits
from .primitives import primitive_for

# The names that transformers gets. It looks for "sdpa" and "flash" in a name, and for whole names of its own, and then
# applies rules of its own implementations. None is the beginning of another one.
SDPA = "yarn_train_torch"
IMPLEMENTATIONS = {
    "sdpa": SDPA,
    "sdpa_flash": "yarn_train_fa_torch",
    "sdpa_cudnn": "yarn_train_cudnn",
    "flash_attention_2": "yarn_train_fa2",
    "flash_attention_3": "yarn_train_fa3",
    "flash_attention_4": "yarn_train_fa4",
    "flex": "yarn_train_flex",
    "eager": "yarn_train_matrices",
}
# Generation with a cache meets another number of keys at every token. These kernels prepare themselves for each shape
# (cuDNN plans, flex is compiled), so sdpa's computes it instead.
BY_SDPA = {"sdpa_cudnn": "cuDNN plans once per shape", "flex": "flex is compiled per shape"}


@dataclass(frozen=True)
class Fact:
    """Published speed of one kernel, causal unless said otherwise, in TFLOP/s of bfloat16 or float16 at head_dim 128.

    Attributes:
        backward: of the backward alone; None where no figure of it was found.
    """

    gpu: str
    kernel: str
    forward: float
    backward: float | None
    source: str


FA3_PAPER = "FlashAttention-3, arXiv 2407.08608, and assets/flash3_fp16_fwd.png of its repository; backward not causal"
FACTS = (
    Fact("hopper", "flash_attention_3", 616, 561, FA3_PAPER),
    Fact("hopper", "sdpa_cudnn", 539, 516, FA3_PAPER),
    Fact("hopper", "flash_attention_2", 335, 322, FA3_PAPER),
    Fact("blackwell", "flash_attention_4", 1605, None, "FlashAttention-4, arXiv 2603.05451: B200, 1.3 x cuDNN 9.13"),
    Fact("ampere", "flash_attention_2", 189, 189, "assets/flash2_a100_fwd_bwd_benchmark.png: both together"),
)
# torch's flash kernel is FlashAttention-2, of an older release than the package: so the package goes before it. The
# last of a line runs wherever the device and the dtype do. All take grouped keys and, on GPUs, packed documents in one.
ORDER = {
    "cpu": ("sdpa",),
    "ampere": ("flash_attention_2", "sdpa"),  # and every GPU that no line is about
    "hopper": ("flash_attention_3", "flash_attention_2", "sdpa"),
    "blackwell": ("flash_attention_4", "flash_attention_2", "sdpa"),
}
# Kernels that may be faster than what an order takes, and are not in it. With cuDNN losses exploded in torch 2.5 (issue
# pytorch 139298), and gradients were NaN with cuDNN 9.12 (cudnn-frontend 160), with torch 2.11 to 2.13 (pytorch 196678,
# masks as tensors) and with 9.26 (cudnn-frontend 1072, one query); generation on B200 with fewer than 8 key heads is
# wrong in torch 2.11 and 2.13 (pytorch 193893).
ON_RECORD = "wrong results on record up to cuDNN 9.26 and torch 2.13, see docs/performance.md"
LEFT_OUT = {
    "hopper": {"sdpa_cudnn": ON_RECORD, "flash_attention_4": "no figure for this GPU is published"},
    "blackwell": {"sdpa_cudnn": ON_RECORD},
}


@dataclass(frozen=True)
class Kernel:
    """A chosen kernel: its name in our config and inside transformers, why it was taken, and what computes it."""

    name: str
    implementation: str
    reason: str
    primitive: str


def choose_kernel(requested: str, device: torch.device, dtype: torch.dtype, head_dim: int | None = None) -> Kernel:
    """The kernel to run.

    Args:
        head_dim: of the model; None where it is not known yet, and auto then passes no kernel by for it.

    Raises:
        ConfigError: a kernel asked for by name cannot run here; says what is missing and how to get it.
    """
    if requested != "auto":
        if why := missing(requested, device, dtype):
            allowed = "kernels that can run here"
            raise ConfigError(problem("model.attention", requested, allowed, f"{why}; or model.attention=auto"))
        return _kernel(requested, device, dtype, "asked for by name")
    family = gpu_family(device)
    passed: dict[str, str] = {}
    left_out = _lines(LEFT_OUT.get(family, {}) if dtype in HALF else {}, "left out")
    *fast, name = ORDER[family]
    for kernel in fast:
        why = missing(kernel, device, dtype) or _too_wide(kernel, device, dtype, head_dim)
        if why is None:
            name = kernel
            break
        passed[kernel] = why
    return _kernel(name, device, dtype, "; ".join([f"auto for {family}", *_lines(passed, "not used"), *left_out]))


def gpu_family(device: torch.device) -> str:
    """The line of :data:`ORDER` that is about a device."""
    if device.type != "cuda":
        return "cpu"
    found = capability(device)
    return {9: "hopper", 10: "blackwell"}.get(found[0] if found else 0, "ampere")


def cached_kernel(kernel: str) -> str:
    """The kernel that computes generation with a cache for one of training."""
    return "sdpa" if kernel in BY_SDPA else kernel


def _kernel(name: str, device: torch.device, dtype: torch.dtype, why: str) -> Kernel:
    primitive, package = primitive_for(name, device.type, dtype), NEEDS[name].package
    what = {
        "sdpa_cudnn": f"torch {torch.__version__}, cuDNN {version(name)}",
        "flex": f"torch {torch.__version__} flex_attention",
        "eager": f"torch {torch.__version__}, plain matrices",
    }.get(name, f"torch {torch.__version__} SDPA, {primitive} kernel")
    if package is not None:
        what = f"{package.distribution} {version(name)}"
    place = "" if device.type == "cpu" else f" on {device.type}, {dtype}"
    cached = f"; generation with a cache by sdpa: {BY_SDPA[name]}" if name in BY_SDPA else ""
    return Kernel(name, IMPLEMENTATIONS[name], f"{what}{place}; {why}{cached}", primitive)


def _too_wide(name: str, device: torch.device, dtype: torch.dtype, head_dim: int | None) -> str | None:
    allowed = width_limits(primitive_for(name, device.type, dtype), head_dim) if head_dim else None
    return f"its heads are {allowed} and the model's have {head_dim}" if allowed else None


def _lines(passed: dict[str, str], verb: str) -> list[str]:
    """Kernels with the same reason are named together."""
    return [f"{', '.join(names)} {verb}: {why}" for why, names in groupby(passed, key=passed.__getitem__)]
