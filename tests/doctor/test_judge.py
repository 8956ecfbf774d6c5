"""What is said about recorded and constructed machines; the formats of nvidia-smi are read as it writes them."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from yarn_train.doctor.checks import compute, disk, gpus, host, kernels, links, network, software
from yarn_train.doctor.finding import FAIL, OK, SKIP, WARN, Finding, verdict, worst

# gpus.FIELDS as --format=csv,noheader,nounits has them
SMI = """0, GPU-aa, NVIDIA H100 80GB HBM3, 81559, 4, 31, 1980, 1980, 0, Disabled
1, GPU-bb, NVIDIA H100 80GB HBM3, 81559, 30519, 88, 345, 1980, 0, Disabled
2, GPU-cc, NVIDIA H100 80GB HBM3, 81559, 4, 33, 1980, 1980, 3, Disabled
3, GPU-dd, NVIDIA GeForce RTX 3090, 24576, 4, 40, 210, 2100, [N/A], [N/A]
4, GPU-ee, NVIDIA H100 80GB HBM3, 81559, 4, 33, 1980, 1980, 0, Enabled
5, GPU-ff, NVIDIA H100 80GB HBM3, 81559, 9000, 33, 1980, 1980, 0, Disabled
"""
REASONS = """0, 0x0000000000000001
1, 0x0000000000000068
2, 0x0000000000000000
3, 0x0000000000000004
4, 0x0000000000000000
5, 0x0000000000000000
"""
APPS = "GPU-ff, 4242, python train.py, a=1, 8996\nGPU-aa, 7, [Not Found], [N/A]\n"
TOPOLOGY = """\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\tNV18\tPIX\t0-47\t0\t\tN/A
GPU1\tNV18\t X \tSYS\tSYS\t0-47\t0\t\tN/A
GPU2\tNV18\tSYS\t X \tSYS\t48-95\t1\t\tN/A
NIC0\tPIX\tSYS\tSYS\t X \t\t\t\t

Legend:
  X    = Self
"""


def test_nvidia_smi_is_read_and_each_gpu_judged_by_its_worst_trouble():
    found, running = gpus.read_gpus(SMI, REASONS), gpus.read_processes(APPS)
    assert [gpu.index for gpu in found] == list(range(6))
    assert (found[3].ecc_errors, found[3].mig, found[1].reasons) == (None, False, 0x68)
    assert running[0] == gpus.Process("GPU-ff", 4242, "python train.py,a=1", 8996)
    assert running[1].used is None
    lines = [gpus.judge_gpu(gpu, [p for p in running if p.uuid == gpu.uuid]) for gpu in found]
    assert [line.status for line in lines] == [OK, WARN, FAIL, OK, WARN, WARN]
    assert "hardware slowdown, heat (software), heat (hardware) (345 MHz)" in lines[1].figure
    assert "3 uncorrected memory errors" in lines[2].figure
    assert "MIG is on" in lines[4].figure
    assert "in use by python train.py,a=1 (pid 4242)" in lines[5].figure
    assert lines[0].figure == "NVIDIA H100 80GB HBM3, 79.6 of 79.6 GiB free, 31 C"


def test_topology_names_the_pairs_that_are_not_like_the_others():
    found = gpus.read_topology(TOPOLOGY)
    assert found == {(0, 1): "NV18", (0, 2): "NV18", (1, 2): "SYS"}
    assert gpus.judge_links(found).status == WARN
    assert gpus.judge_links(found).figure == "NV18, but 1-2: SYS"
    assert gpus.judge_links(dict.fromkeys(found, "NV18")).status == OK
    assert gpus.judge_links(dict.fromkeys(found, "PHB")).figure == "no NVLink: PHB; collectives take PCIe"
    assert gpus.judge_links({}).status == SKIP


@pytest.mark.parametrize(
    ("cuda", "driver", "names", "status", "said"),
    [
        (None, None, [], OK, "CPU build"),
        (None, "580.65.06", [], FAIL, "CPU build, but there is an NVIDIA driver"),
        ("13.0", "580.65.06", ["H100"], OK, "driver 580.65.06"),
        ("13.0", "570.124.06", [], FAIL, "too old, 580.65.06"),
        ("12.8", "525.60.13", [], FAIL, "does not start: no fabric"),
        ("12.8", None, [], WARN, "no driver"),
    ],
)
def test_build_and_driver(cuda, driver, names, status, said):
    found = software.judge_build("2.13.0", cuda, driver, names, "no fabric")
    assert (found.facts["gpu_names"], found.facts["cuda"]) == (names, bool(names))
    assert found.status == status
    assert said in found.figure


def test_an_old_driver_is_told_which_build_it_runs():
    assert "a torch built for CUDA 12" in software.judge_build("2.13.0", "13.0", "570.124.06", [], "").fix


def test_packages_are_held_against_what_the_project_asks():
    wanted = [Requirement("torch>=2.11"), Requirement("numpy>=1.26"), Requirement("hydra-core>=1.3.2,<1.4")]
    good = {"torch": "2.13.0+cpu", "numpy": "2.4.6", "hydra-core": "1.3.8"}
    assert software.judge_packages(wanted, good).status == OK
    bad = software.judge_packages(wanted, {"torch": "2.10.1", "numpy": None, "hydra-core": "1.4.0"})
    assert bad.status == FAIL
    assert bad.figure.count(";") == 2
    assert "numpy is missing" in bad.figure
    extras = {"flash": [Requirement("flash-attn>=2.8")], "fused": [Requirement("liger-kernel>=0.8.5")]}
    assert software.judge_extras(extras, {"flash-attn": "2.7.4", "liger-kernel": None}).status == WARN
    assert software.judge_extras(extras, {"flash-attn": "2.8.3", "liger-kernel": None}).status == OK
    assert software.judge_python("3.10.4", ">=3.11").status == FAIL


def test_the_projects_own_requirements_are_found():
    project = software._project()
    assert "torch" in [r.name for r in project["dependencies"]]
    assert set(software.EXTRAS) <= set(project["extras"])


def test_host_limits(tmp_path: Path):
    assert host.judge_cores(8, 8, None).status == OK
    assert host.judge_cores(64, 64, 4.0).fix.startswith("export OMP_NUM_THREADS=4")
    assert host.judge_shared_memory(64 * 2**20, 64 * 2**20).status == WARN
    assert host.judge_shared_memory(2**34, 2**34).status == OK
    assert host.judge_memory(2**30, 2**35).status == WARN
    assert [f.status for f in host.judge_limits(1024, 2**23, False)] == [WARN]
    assert [f.status for f in host.judge_limits(2**20, 2**23, True)] == [OK, WARN]
    assert [f.status for f in host.judge_limits(resource.RLIM_INFINITY, resource.RLIM_INFINITY, True)] == [OK]
    assert host.judge_name("n1", [], "unknown").status == WARN
    assert "one machine only" in host.judge_name("n1", ["127.0.1.1"], "").figure
    assert "one machine only" not in host.judge_name("n1", ["10.0.0.1", "127.0.1.1"], "").figure
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("150000 100000\n")
    assert host.cpu_quota(tmp_path) == 1.5
    (group / "cpu.max").write_text("max 100000\n")
    assert host.cpu_quota(tmp_path) is None


def test_rates_are_held_against_data_sheets_and_each_other():
    peak = 989e12
    good = compute.judge_rates("matmul", [700e12] * 8, [peak] * 8, 1e12, "TFLOP/s", 0.5)
    assert (good.status, good.figure) == (OK, "700 to 700 TFLOP/s, 71% of the data sheet")
    one = compute.judge_rates("matmul", [700e12] * 7 + [560e12], [peak] * 8, 1e12, "TFLOP/s", 0.5)
    assert one.status == WARN
    assert "GPU 7 reaches 80% of the others' median" in one.figure
    assert "GPU 0 reaches 30% of 989" in compute.judge_rates("matmul", [300e12], [peak], 1e12, "TFLOP/s", 0.5).figure
    assert compute.judge_rates("matmul", [1e12], [None], 1e12, "TFLOP/s", 0.5).status == OK
    assert compute.judge_bf16({"Tesla V100": (7, 0)}).fix == "model.dtype=float32"
    slow, _ = compute.judge_cpu(None, 8, 200e9, 20e9, 10e9)
    assert (slow.status, slow.fix) == (WARN, "model.dtype=float32")
    assert compute.judge_cpu("amx", 8, 200e9, 900e9, 10e9)[0].status == OK
    assert compute.hbm("NVIDIA A100-SXM4-40GB") == 1.56e12
    assert compute.hbm("NVIDIA H100 PCIe") is None


def test_all_reduce_is_held_against_the_link():
    assert links.judge(8, "NVIDIA H100 80GB HBM3", 360e9, 2e-5).status == OK
    assert links.judge(8, "NVIDIA H100 80GB HBM3", 20e9, 2e-5).status == WARN
    assert links.judge(2, "NVIDIA L40S", 10e9, 2e-5).status == OK
    assert links.judge(2, None, 1e8, 2e-4).status == OK


def test_disks():
    def judged(needed: float = 0.0, free: float = 2**40, what: str = "output", **changes: object) -> Finding:
        return disk.judge_disk(what, "outputs", free, 2**41, needed, disk.Trial(1e9, 2e9, **changes))  # type: ignore[arg-type]

    assert judged().status == OK
    assert judged(needed=2**41).status == FAIL
    assert judged(free=2**30).status == WARN
    assert judged(free=2**30, needed=2**20).status == OK
    assert judged(locks=False).status == WARN
    assert judged(locks=False, what="data").status == FAIL
    assert judged(renames=False).status == FAIL
    assert judged(error="Permission denied").status == FAIL
    assert judged(skew=-30.0).status == WARN
    slow = disk.judge_disk("output", "outputs", 2**40, 2**41, 0.0, disk.Trial(20e6, None))
    assert slow.means == "a 7B checkpoint (75 GiB) takes 67 minutes"


def test_the_hub():
    def judged(answer, offline=False, model=None, cached=False):
        return network.judge_hub(answer, "https://hub", offline, False, model, [] if cached else ["tokenizer"])

    assert judged(network.Answer(200, skew=0.4)).status == OK
    assert judged(network.Answer(200, skew=900.0)).status == WARN
    assert judged(network.Answer(None, "timed out")).status == WARN
    assert judged(network.Answer(None, "timed out"), model="a/b").status == FAIL
    assert judged(network.Answer(None, "timed out"), model="a/b", cached=True).status == WARN
    gated = judged(network.Answer(403), model="a/b")
    assert (gated.status, gated.fix) == (FAIL, "accept its licence at https://hub/a/b, then: hf auth login")
    assert judged(network.Answer(404), model="a/b").status == FAIL
    for code in (429, 500, 503):
        assert judged(network.Answer(code), model="a/b").status == judged(network.Answer(code)).status == WARN
    assert judged(None, offline=True).status == OK
    assert judged(None, offline=True, model="a/b").status == FAIL
    assert "the cache lacks a/b's tokenizer" in judged(None, offline=True, model="a/b").figure
    off = "runs are not tracked by themselves (tracking.wandb)"
    assert network.judge_wandb("0.25", False, None).figure == f"0.25, not logged in; {off}"
    assert network.judge_wandb(None, False, None).figure == f"not installed; {off}"
    online = network.judge_wandb("0.25", True, "online")
    assert (online.status, online.figure) == (OK, "0.25, logged in; runs are tracked online")


def test_a_model_is_in_the_cache_with_its_tokenizer_and_all_of_its_weights(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    folder.mkdir(parents=True)
    (tmp_path / "models--a--b" / "refs").mkdir()
    (tmp_path / "models--a--b" / "refs" / "main").write_text("c0ffee")
    assert network.not_cached("a/b") == ["config.json", "tokenizer", "weights"]
    (folder / "config.json").write_text("{}")
    assert network.not_cached("a/b") == ["tokenizer", "weights"]
    (folder / "tokenizer.model").write_text("")
    names = ["model-1.safetensors", "model-2.safetensors"]
    index = {"weight_map": {"x": names[0], "y": names[0], "z": names[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / names[0]).write_text("")
    assert network.not_cached("a/b") == ["1 of 2 files of weights"]
    (folder / names[1]).write_text("")
    assert network.not_cached("a/b") == []


def test_a_name_server_that_never_answers_is_no_answer(monkeypatch: pytest.MonkeyPatch):
    def asleep(*_: object, **__: object) -> None:
        time.sleep(3)
        raise OSError("far too late")

    monkeypatch.setattr(network.urllib.request, "urlopen", asleep)
    began = time.monotonic()
    assert network.ask("https://hub", None, limit=0.2) == network.Answer(None, "no answer within 0 s")
    assert time.monotonic() - began < 2


def test_attention_that_is_wrong_is_a_failure():
    assert kernels.judge_attention("sdpa", "because", 0.01, {}).status == OK
    assert kernels.judge_attention("sdpa", "because", 0.5, {}).status == FAIL
    assert kernels.judge_attention("sdpa", "because", float("nan"), {}).status == FAIL


def test_the_verdict_says_what_the_machine_can_run():
    fine = Finding(OK, "torch and driver", "", facts={"gpu_names": ["H100"] * 8})
    kernel = Finding(OK, "attention", "", facts={"attention": "flash_attention_2"})
    assert verdict([fine, kernel]) == "ready: 8 x H100, flash_attention_2"
    assert verdict([kernel]) == "ready: 1 check passed"  # nobody looked for GPUs
    assert verdict([kernel, kernel, Finding(WARN, "driver", "")]) == "ready: 2 checks passed (1 warning above)"
    cpu = Finding(OK, "torch and driver", "", facts={"gpu_names": []})
    assert (
        verdict([cpu, Finding(WARN, "hub", "")])
        == "ready: CPU only; experiments smoke and quickstart (1 warning above)"
    )
    assert verdict([cpu, Finding(FAIL, "output folder", "")]) == "NOT READY: 1 broken: output folder"
    assert worst([OK, SKIP, FAIL, WARN]) == FAIL
