"""Our attention backward for CPUs with bfloat16 matrix products, compiled on the machine it runs on.

torch's is half of a 4096-token step there. ``use(True)`` compiles ``cpu_backward.cpp`` once per machine, source and
torch (about ten seconds) into ``$XDG_CACHE_HOME/yarn_train``; without it, and for what it does not compute, torch's
kernel runs. Which of them does is said once, by whoever calls :func:`use`.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.cpp_extension import include_paths, library_paths

from ...dist import environment
from ..merge import Gradients, seq_major, sum_heads

SOURCE = Path(__file__).with_name("cpu_backward.cpp")
FLAGS = ("-std=c++20", "-O3", "-march=native", "-fPIC", "-shared", "-Wl,--no-as-needed")
MAX_HEAD_DIM = 256
PATIENCE = 300  # seconds that the compiler gets

_wanted = False


def use(wanted: bool) -> str:
    """Decide for this process from now on; returns what runs attention's backward on the CPU, in words."""
    global _wanted
    reason = missing() or unbuilt() if wanted else "compile.enabled=false"
    _wanted = reason is None
    return f"torch's ({reason})" if reason else "yarn_train's, compiled for this CPU"


def suits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether it runs for these tensors: bfloat16, an even head_dim, heads that lie in one piece."""
    if not _wanted or q.dtype != torch.bfloat16 or q.shape[3] % 2 or q.shape[3] > MAX_HEAD_DIM:
        return False
    return all(t.stride(3) == 1 for t in (q, k, v))


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> Gradients:
    """See :class:`..primitives.Primitive`; gradients of keys and values are summed over heads in float32."""
    dense = [t if t.stride(3) == 1 else t.contiguous() for t in (dout, out)]
    dq, *sums = torch.ops.yarn_train_cpu.attention_backward(dense[0], q, k, v, dense[1], lse, causal, scale)
    dk, dv = (seq_major(t).copy_(sum_heads(total, t.shape[1])) for t, total in zip((k, v), sums, strict=True))
    return dq, dk, dv


def missing() -> str | None:
    """What this machine lacks for it, in words."""
    if not (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        return "this CPU multiplies no bfloat16 matrices"
    return None if compiler() else "no C++ compiler on PATH"


def compiler() -> str | None:
    """The C++ compiler's path."""
    return shutil.which("g++") or shutil.which("clang++")


@cache
def unbuilt() -> str | None:
    """Compile and load the kernel; returns why that failed, in words."""
    try:
        library = environment.cache_folder() / f"cpu_backward_{_fingerprint()}.so"
        if not library.is_file():
            library.parent.mkdir(parents=True, exist_ok=True)
            _compile(library)
        if not hasattr(torch.ops.yarn_train_cpu, "attention_backward"):  # a second file of it aborts the process
            torch.ops.load_library(library)
    except subprocess.CalledProcessError as error:
        return f"{compiler()} failed: {_first_error(error.stderr)}"
    except (OSError, subprocess.TimeoutExpired, RuntimeError) as error:
        return f"it was not built: {str(error).splitlines()[0]}"
    return None


def _compile(library: Path) -> None:
    """Made aside and renamed, so that ranks which start together and one that is killed leave a whole file or none."""
    include = [f"-I{path}" for path in include_paths()]
    links = [f"-L{path}" for path in library_paths()]
    with tempfile.TemporaryDirectory(dir=library.parent) as aside:
        made = Path(aside) / library.name
        command = [str(compiler()), *FLAGS, *include, str(SOURCE), "-o", str(made), *links, "-ltorch_cpu", "-lc10"]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE)
        made.replace(library)


def _fingerprint() -> str:
    """Changes with the source, the compiler's name and flags, torch, and the instructions that this CPU knows."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    known = next((line for line in lines if line.startswith("flags")), "")
    parts = (SOURCE.read_text(), torch.__version__, str(compiler()), *FLAGS, known)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _first_error(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if "error:" in line), "no message")
