"""The GPUs' lines with an nvidia-smi of our own: which GPUs are judged, and one that is slow."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from yarn_train.doctor.checks import gpus
from yarn_train.doctor.finding import OK, SKIP, WARN

ANSWERS = """#!/bin/sh
case "$*" in
*query-gpu=index,uuid*)
    echo "0, GPU-aa, NVIDIA H100 80GB HBM3, 81559, 4, 31, 1980, 1980, 0, Disabled"
    echo "1, GPU-bb, NVIDIA H100 80GB HBM3, 81559, 70000, 31, 1980, 1980, 0, Disabled"
    echo "2, GPU-cc, NVIDIA H100 80GB HBM3, 81559, 4, 31, 1980, 1980, 7, Disabled" ;;
*topo*)
    printf '\\tGPU0\\tGPU1\\tGPU2\\n'
    printf 'GPU0\\tX\\tNV18\\tNV18\\nGPU1\\tNV18\\tX\\tSYS\\nGPU2\\tNV18\\tSYS\\tX\\n' ;;
*compute-apps*) echo "GPU-bb, 4242, python, 69996" ;;
*) printf '0, 0x0\\n1, 0x0\\n2, 0x0\\n' ;;
esac
"""


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An nvidia-smi that comes first on the path."""
    file = tmp_path / "nvidia-smi"
    file.write_text(ANSWERS)
    file.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return file


@pytest.mark.parametrize(
    ("chosen", "statuses"),
    [
        (None, [OK, WARN, "FAIL", WARN]),
        ("0,1", [OK, WARN, SKIP, OK]),
        ("GPU-aa", [OK, SKIP, SKIP]),
        ("0,-1,2", [OK, SKIP, SKIP]),
        ("", [SKIP, SKIP, SKIP]),
    ],
)
@pytest.mark.usefixtures("smi")
def test_only_gpus_that_a_run_may_use_are_judged(chosen, statuses, monkeypatch):
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    found = gpus.gpus(limit=100.0)
    assert [finding.status for finding in found] == statuses
    assert all("CUDA_VISIBLE_DEVICES" in finding.figure for finding in found if finding.status == SKIP)


def test_a_slice_makes_its_gpu_visible():
    gpu = gpus.read_gpus("0, GPU-aa, NVIDIA H100 80GB HBM3, 81559, 4, 31, 1980, 1980, 0, Enabled")[0]
    assert gpus.is_visible(gpu, ["MIG-1234"])
    assert not gpus.is_visible(gpu, ["GPU-bb", "1"])


def test_a_slow_nvidia_smi_is_a_warning(smi):
    smi.write_text("#!/bin/sh\nexec sleep 100\n")
    began = time.monotonic()
    (found,) = gpus.gpus(limit=0.3)
    assert time.monotonic() - began < 30
    assert (found.status, found.fix) == (WARN, "sudo nvidia-smi -pm 1")
    assert "took more than" in found.figure
