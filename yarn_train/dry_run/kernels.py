"""Which attention kernel a GPU elsewhere would run: this machine's packages and devices do not answer that."""

from __future__ import annotations

import torch

from ..config import Config
from ..errors import ConfigError, problem
from ..model.availability import HALF, NEEDS, unfit
from ..model.load import DTYPES
from ..model.primitives import primitive_for
from ..model.registry import ORDER

GPU = "cuda"


def gpu_primitive(requested: str, dtype: torch.dtype) -> str:
    """The kernel of ``primitives.PRIMITIVES`` that ``model.attention`` means on a GPU; for auto the one it ends with.

    auto takes a faster one where that is installed and takes the model's heads, so only the last can be a problem.

    Raises:
        ConfigError: a kernel asked for by name computes in another dtype.
    """
    name = "sdpa" if requested == "auto" else requested
    if why := unfit(name, GPU, dtype):
        allowed = "kernels that can run on a GPU"
        raise ConfigError(problem("model.attention", requested, allowed, f"{why}; or model.attention=auto"))
    return primitive_for(name, GPU, dtype)


def kernel_line(cfg: Config) -> str:
    """Which kernel `cfg` runs on a GPU, and what must be installed there for it."""
    requested, dtype = cfg.model.attention, DTYPES[cfg.model.dtype]
    last = gpu_primitive(requested, dtype)
    if requested == "auto" and dtype in HALF:
        ways = [f"{' or '.join(names[:-1])} on {gpu}" for gpu, names in ORDER.items() if gpu != "cpu"]
        return f"auto: {', '.join(ways)}, where its package is installed, else torch's SDPA, {last} kernel"
    package = NEEDS[requested].package if requested != "auto" else None
    if package is not None:
        version = ".".join(map(str, package.least))
        return f"{requested}: {package.distribution} {version} or later must be installed on every node"
    if requested in ("flex", "eager", "sdpa_cudnn"):
        return f"{requested}: comes with torch"
    return f"{requested}: torch's SDPA, {last} kernel, whatever else is installed"
