"""Our attention backward for CPUs against float64, in every form in which attention calls it; what runs without it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support import child_env
from torch import Tensor

from yarn_train.model import kernels
from yarn_train.model.attention import attention
from yarn_train.model.backends import cpu_backward
from yarn_train.model.documents import table
from yarn_train.model.primitives import PRIMITIVES

CPU = PRIMITIVES["cpu"]
SCALE = 0.3
needed = pytest.mark.skipif(cpu_backward.missing() is not None, reason=str(cpu_backward.missing()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it is compiled, once for all tests here."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def compiled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """It computes what it can."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    cpu_backward.unbuilt.cache_clear()
    assert cpu_backward.use(True) == "yarn_train's, compiled for this CPU"
    return folder


def made(heads: int, tokens: int, dim: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(1, tokens, heads, dim, generator=g).bfloat16().transpose(1, 2)


def exact(q: Tensor, k: Tensor, v: Tensor, dout: Tensor, causal: bool) -> list[Tensor]:
    """Gradients in float64, by torch alone."""
    inputs = [t.double().detach().requires_grad_() for t in (q, k, v)]
    shared = q.shape[1] // k.shape[1]
    keys, values = (t.repeat_interleave(shared, 1) for t in inputs[1:])
    scores = inputs[0] @ keys.mT * SCALE
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    (scores.softmax(-1) @ values).backward(dout.double())
    return [t.grad for t in inputs if t.grad is not None]


def error(got: Tensor, right: Tensor) -> float:
    return float((got.double() - right).norm() / right.norm())


@needed
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dim", [16, 64, 128])
@pytest.mark.parametrize(
    ("queries", "keys", "causal"),
    [
        (1, 1, True),
        (31, 31, True),
        (256, 256, True),
        (301, 301, True),
        (770, 770, True),
        (5, 300, False),
        (300, 33, False),
    ],
)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_gradients_are_float64s_and_nearer_than_torchs(
    dim: int, queries: int, keys: int, causal: bool, kv_heads: int
) -> None:
    q, dout = made(4, queries, dim, 0), made(4, queries, dim, 3)
    k, v = made(kv_heads, keys, dim, 1), made(kv_heads, keys, dim, 2)
    out, lse = CPU.forward(q, k, v, causal, SCALE)
    assert cpu_backward.suits(q, k, v)
    ours = CPU.backward(dout, q, k, v, out, lse, causal, SCALE)
    theirs = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        dout, q, k, v, out, lse, 0.0, causal, scale=SCALE
    )
    for mine, other, right in zip(ours, theirs, exact(q, k, v, dout, causal), strict=True):
        assert mine.dtype == torch.bfloat16
        assert mine.shape == other.shape
        if right.norm() < 1e-9:  # one key: nothing to choose from
            assert mine.norm() < 1e-2
            continue
        assert error(mine, right) < 6e-3
        assert error(mine, right) <= 1.1 * error(other, right)


@needed
@pytest.mark.usefixtures("compiled")
def test_a_rectangle_uses_the_log_sum_exp_of_all_keys() -> None:
    """As one step of ring attention: the sums over two halves of the keys are the gradients of the whole."""
    q, dout, k, v = (made(2, 300, 32, seed) for seed in range(4))
    out, lse = CPU.forward(q, k, v, False, SCALE)
    halves = [slice(0, 130), slice(130, 300)]
    parts = [CPU.backward(dout, q, k[:, :, at], v[:, :, at], out, lse, False, SCALE) for at in halves]
    dq = parts[0][0].float() + parts[1][0].float()
    dk, dv = (torch.cat([part[n] for part in parts], dim=2) for n in (1, 2))
    for mine, right in zip((dq, dk, dv), exact(q, k, v, dout, False), strict=True):
        assert error(mine, right) < 6e-3


@needed
@pytest.mark.usefixtures("compiled")
def test_documents_of_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the operator that training calls, cut into documents, as with torch's own kernel."""
    documents = table(((0, 17, 300, 301),))
    results = []
    for wanted in (True, False):
        monkeypatch.setattr(cpu_backward, "_wanted", wanted)
        q, k, v = (made(heads, 600, 32, heads).requires_grad_() for heads in (4, 2, 2))
        out, _ = attention(q, k, v, "cpu", SCALE, documents)
        out.backward(made(4, 600, 32, 9))
        results.append([t.grad for t in (q, k, v)])
    for mine, other in zip(*results, strict=True):
        assert not torch.equal(mine, other)  # another kernel did run
        assert error(mine, other.double()) < 1e-2


@needed
def test_another_cache_folder_in_the_same_process_loads_no_second_copy(folder: Path, tmp_path: Path) -> None:
    """In a process of its own: torch ends one that registers an operator twice."""
    program = f"""
import os, shutil
from yarn_train.model.backends import cpu_backward
for cache in ({str(folder)!r}, {str(tmp_path / "other")!r}):
    os.environ["XDG_CACHE_HOME"] = cache
    cpu_backward.unbuilt.cache_clear()
    print(cpu_backward.use(True))
    shutil.copytree({str(folder)!r}, {str(tmp_path / "other")!r}, dirs_exist_ok=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=child_env())
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["yarn_train's, compiled for this CPU"] * 2


@needed
@pytest.mark.usefixtures("compiled")
def test_a_second_process_finds_what_the_first_one_compiled(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(list((compiled / "yarn_train").iterdir())) == 1
    monkeypatch.setattr(cpu_backward, "_compile", lambda library: pytest.fail("compiled again"))
    cpu_backward.unbuilt.cache_clear()
    assert cpu_backward.unbuilt() is None


@needed
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_it_does_not_compute_is_torchs(dtype: torch.dtype) -> None:
    q = made(2, 40, 31 if dtype == torch.bfloat16 else 32, 0).to(dtype)
    assert not cpu_backward.suits(q, q, q)
    spans = [kernels.Rectangle(0, 40, 0, 40, True)]
    out, lse = kernels.attend("cpu", q, q, q, SCALE, spans)
    assert all(t.isfinite().all() for t in kernels.attend_backward("cpu", q, q, q, q, out, lse, SCALE, spans))


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """As if nothing had been compiled yet."""
    monkeypatch.setattr(cpu_backward, "_wanted", False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    cpu_backward.unbuilt.cache_clear()
    yield tmp_path
    cpu_backward.unbuilt.cache_clear()


def test_without_a_compiler_torchs_runs_and_the_reason_is_told(alone: Path) -> None:
    assert cpu_backward.use(True) == "torch's (no C++ compiler on PATH)"
    assert not cpu_backward.suits(*[made(2, 4, 16, 0)] * 3)


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(alone: Path) -> None:
    script = alone / "g++"
    script.write_text("#!/bin/sh\necho 'x.cpp:1: error: unknown flag' >&2\nexit 1\n")
    script.chmod(0o755)
    assert cpu_backward.use(True) == f"torch's ({script} failed: x.cpp:1: error: unknown flag)"
    assert not list((alone / "cache" / "yarn_train").iterdir())


def test_a_cache_that_cannot_be_written_costs_the_kernel_only(alone: Path) -> None:
    (alone / "g++").write_text("#!/bin/sh\n")
    (alone / "g++").chmod(0o755)
    (alone / "cache").write_text("a file")
    assert "it was not built: " in cpu_backward.use(True)


def test_cpus_without_bfloat16_products_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert cpu_backward.use(True) == "torch's (this CPU multiplies no bfloat16 matrices)"
