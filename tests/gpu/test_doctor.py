"""The doctor on a machine with GPUs: its figures against torch's own, and what a healthy machine must reach.

python -m pytest -m gpu tests/gpu/test_doctor.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from support import ROOT, child_env

from yarn_train.model.flops import peak_flops
from yarn_train.model.registry import IMPLEMENTATIONS

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    words = [sys.executable, "-m", "yarn_train.doctor", "--json", "-"]
    done = subprocess.run(words, cwd=ROOT, env=child_env(), capture_output=True, text=True, timeout=100)
    print(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def line(report: dict[str, Any], what: str) -> dict[str, Any]:
    found: dict[str, Any] = next(f for f in report["findings"] if f["what"] == what)
    return found


def test_it_ends_in_half_a_minute_and_is_ready(report):
    assert report["seconds"] < 30
    assert not report["broken"], report["verdict"]
    assert torch.cuda.get_device_name(0) in report["verdict"]


def test_the_driver_and_every_gpu_are_seen(report):
    assert report["facts"]["cuda"] is True
    assert report["facts"]["torch_cuda"] == torch.version.cuda
    assert report["facts"]["gpu_names"] == [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    total = torch.cuda.get_device_properties(0).total_memory
    shown = float(line(report, "GPU 0")["figure"].split(" of ")[1].split(" GiB")[0])
    assert shown == pytest.approx(total / 2**30, rel=0.05)


def test_speeds_are_below_the_data_sheet_and_above_half_of_it(report):
    peak = peak_flops(torch.device("cuda", 0))
    if peak is None:
        pytest.skip("no data sheet known for this GPU")
    for rate in report["facts"]["matmul bf16"]:
        assert 0.5 < rate / peak < 1.0


def test_the_kernel_was_tried(report):
    assert line(report, "attention")["status"] == "ok"
    assert report["facts"]["attention"] in IMPLEMENTATIONS


def test_all_gpus_reduce_together(report):
    found = line(report, "all-reduce")
    if torch.cuda.device_count() == 1:
        assert found["status"] == "skip"
        return
    assert found["facts"]["all_reduce_ranks"] == torch.cuda.device_count()
    assert found["facts"]["all_reduce_bus"] > 1e9
