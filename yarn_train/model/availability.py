"""What stands in the way of each attention kernel, in words, with how to get it.

Kernels go by their names in our config, except in :func:`width_limits`, whose names are those of ``primitives``.
"""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass

import torch

HALF = (torch.bfloat16, torch.float16)
Capability = tuple[int, int]  # of a CUDA GPU
AMPERE, HOPPER, BLACKWELL = (8, 0), (9, 0), (10, 0)


@dataclass(frozen=True)
class Package:
    """A package that a kernel comes with.

    Attributes:
        least: the first two numbers of the oldest version that has what is called here.
    """

    distribution: str
    least: tuple[int, int]
    install: str


@dataclass(frozen=True)
class Needs:
    """What a kernel runs on.

    Attributes:
        cpu: whether it computes there, forward and backward.
        half: whether bfloat16 and float16 are its only dtypes on CUDA.
        least, below: compute capabilities that it is written for, the second not included.
    """

    cpu: bool = False
    half: bool = True
    least: Capability = AMPERE
    below: Capability = (99, 0)
    package: Package | None = None


HOPPER_FOLDER = (
    "pip install --no-build-isolation 'git+https://github.com/Dao-AILab/flash-attention#subdirectory=hopper' "
    "(CUDA 12.3 or later; the empty package flash-attn-interface of PyPI is another)"
)
NEEDS = {
    "sdpa": Needs(cpu=True, half=False, least=(0, 0)),  # bfloat16 on older GPUs is refused as a dtype
    "sdpa_flash": Needs(cpu=True),
    "sdpa_cudnn": Needs(),
    "flash_attention_2": Needs(package=Package("flash-attn", (2, 8), "pip install 'yarn-train[flash]'")),
    "flash_attention_3": Needs(least=HOPPER, below=BLACKWELL, package=Package("flash-attn-3", (3, 0), HOPPER_FOLDER)),
    "flash_attention_4": Needs(
        least=HOPPER,
        below=(11, 0),
        package=Package("flash-attn-4", (4, 0), "pip install --pre flash-attn-4 (with CUDA 13: 'flash-attn-4[cu13]')"),
    ),
    "flex": Needs(half=False),
    "eager": Needs(cpu=True, half=False, least=(0, 0)),
}
CUDNN = 90_000  # torch's own least version for attention, 9.0

# What the width of a head must be a multiple of, and its most. torch's own front doors pad heads, but hide the
# log-sum-exp that we need; the kernels behind them refuse. FlashAttention-4 takes 256 too, but its backward there was
# wrong on Blackwell (TransformerEngine issue 3216, release 4.0.0b11); cuDNN's 256 needs 9.22 and Hopper or Blackwell.
WIDTHS: dict[str, tuple[int, int | None]] = {
    "flash": (8, 256),
    "efficient": (4, None),
    "cudnn": (8, 128),
    "flash_attention_2": (8, 256),
    "flash_attention_3": (8, 256),
    "flash_attention_4": (8, 128),
    "flex": (16, 256),
}


def missing(kernel: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """What stands in the way of a kernel in this process, in words, or None when it can run."""
    return unfit(kernel, device.type, dtype) or _gpu(kernel, device) or _package(kernel)


def unfit(kernel: str, device_type: str, dtype: torch.dtype) -> str | None:
    """What no package and no other GPU would change, in words, or None."""
    needs = NEEDS[kernel]
    if device_type != "cuda":
        if kernel == "flex":
            return "torch's flex_attention has no backward on the CPU"
        return None if needs.cpu else "it needs a CUDA GPU and this process computes on the CPU"
    if needs.half and dtype not in HALF:
        return f"it needs bfloat16 or float16 and the compute dtype is {dtype}; set model.dtype=bfloat16"
    return None


def capability(device: torch.device) -> Capability | None:
    """Of a CUDA device; None where this process sees none."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" and torch.cuda.is_available() else None


def version(kernel: str) -> str | None:
    """Version of what a kernel comes with: its package, cuDNN, or torch; None if that is not there."""
    package = NEEDS[kernel].package
    if package is not None:
        return installed(package.distribution)
    if kernel == "sdpa_cudnn":
        number = _cudnn()
        ten = 10 if number < CUDNN else 100  # 8907 is 8.9.7, 92000 is 9.20.0
        return f"{number // (100 * ten)}.{number // 100 % ten}.{number % 100}" if number else None
    return torch.__version__


def installed(distribution: str) -> str | None:
    """Version of an installed package."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def width_limits(primitive: str, width: int) -> str | None:
    """What heads a primitive takes, in words, if not those of `width` dimensions."""
    multiple, most = WIDTHS.get(primitive, (1, None))
    if width % multiple == 0 and width <= (most or width):
        return None
    return f"multiples of {multiple}" + (f" up to {most}" if most else "")


def _cudnn() -> int:
    """cuDNN's version as it writes it itself; 0 without it."""
    return (torch.backends.cudnn.version() or 0) if torch.backends.cudnn.is_available() else 0


def _package(kernel: str) -> str | None:
    package, found = NEEDS[kernel].package, version(kernel)
    if kernel == "sdpa_cudnn" and _cudnn() < CUDNN:
        return f"torch's build has {f'cuDNN {found}' if found else 'no cuDNN'}, 9.0 is needed; pip install -U torch"
    if package is None:
        return None
    name = package.distribution
    if found is None:
        return f"the package {name} is not installed; {package.install}"
    if tuple(int(n) for n in re.findall(r"\d+", found)[:2]) < package.least:
        return f"{name} {found} is too old, {'.'.join(map(str, package.least))} is needed; {package.install}"
    return None


def _gpu(kernel: str, device: torch.device) -> str | None:
    found, needs = capability(device), NEEDS[kernel]
    if found is None or needs.least <= found < needs.below:
        return None
    wanted = ".".join(map(str, needs.least))
    if needs.below < (99, 0):
        wanted += f" or later, before {needs.below[0]}.{needs.below[1]},"
    name = torch.cuda.get_device_name(device)
    return f"it needs compute capability {wanted} and {name} has {found[0]}.{found[1]}"
