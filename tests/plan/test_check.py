"""What is refused before weights load, and how little it costs to let the others through."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from yarn_train import config as schema
from yarn_train.config import Config, ModelConfig
from yarn_train.errors import ConfigError
from yarn_train.plan import check
from yarn_train.plan.architectures import architecture
from yarn_train.plan.check import available_host_bytes, check_run_fits
from yarn_train.plan.machines import GIB, named

CPU, GPU = torch.device("cpu"), torch.device("cuda")
TINY = LlamaConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=320, head_dim=8
)


def config(
    seq_len: int = 65536,
    activation: str = "full",
    engine: str = "fsdp2",
    offload: str = "none",
    state: str = "float32",
    async_save: bool = False,
    **plan: Any,
) -> Config:
    return schema.build(
        {
            "rope": {"factor": 16.0, "original_max_position_embeddings": 4096},
            "data": {"seq_len": seq_len},
            "engine": {"name": engine, "offload": offload},
            "optim": {"state": state},
            "checkpoint": {"async_save": async_save},
            "memory": {"activation": activation},
            "plan": plan,
        }
    )


@pytest.fixture(scope="module")
def llama() -> LlamaConfig:
    base, _ = architecture(Config(model=ModelConfig(path="meta-llama/Llama-2-7b-hf")))
    assert isinstance(base, LlamaConfig)
    return base


@pytest.fixture
def no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("traced")

    monkeypatch.setattr(check, "_traced", refuse)


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(total_memory=79.1 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    monkeypatch.setattr(check, "available_host_bytes", lambda: 1000 * GIB)


@pytest.mark.usefixtures("no_trace", "h100")
@pytest.mark.parametrize("device", [CPU, GPU])
def test_a_small_run_is_let_through_by_arithmetic(device: torch.device) -> None:
    line = check_run_fits([config(seq_len=1024)], TINY, device, world_size=2, ranks_here=2)
    assert line.startswith("memory: at least ")


@pytest.mark.usefixtures("no_trace", "h100")
def test_a_hopeless_run_is_refused_by_arithmetic_and_says_what_to_do(llama: LlamaConfig) -> None:
    with pytest.raises(ConfigError, match=r"76\.7 usable on the GPU.*python -m yarn_train\.plan.*plan\.check=warn"):
        check_run_fits([config(activation="none")], llama, GPU, world_size=8, ranks_here=8)


@pytest.mark.usefixtures("no_trace", "h100")
@pytest.mark.parametrize(
    ("mode", "start"), [("warn", "WARNING: memory: got 'at least "), ("off", "memory: not checked")]
)
def test_a_refusal_can_be_a_warning_or_switched_off(mode: str, start: str, llama: LlamaConfig) -> None:
    cfg = config(activation="none", check=mode)
    assert check_run_fits([cfg], llama, GPU, world_size=8, ranks_here=8).startswith(start)


@pytest.mark.long
@pytest.mark.usefixtures("h100")
def test_a_run_in_between_is_traced(llama: LlamaConfig) -> None:
    """The second of two stages is the larger one; 45 GiB are enough for neither."""
    stages = [config(), config(activation="attention")]
    line = check_run_fits(stages, llama, GPU, world_size=8, ranks_here=8)
    assert line == "memory: 63.5 GiB of 76.7 usable on the GPU, by a trace of the step"
    with pytest.raises(ConfigError, match=r"48\.0 GiB of 43\.6 usable on the GPU, by a trace"):
        check_run_fits([config(memory_gib=45.0)], llama, GPU, world_size=8, ranks_here=8)


@pytest.mark.usefixtures("no_trace", "h100")
def test_what_is_offloaded_must_fit_the_host(llama: LlamaConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 GiB of block inputs for each of 8 ranks."""
    monkeypatch.setattr(check, "available_host_bytes", lambda: 100 * GIB)
    with pytest.raises(ConfigError, match=r"at least 128\.0 GiB of 100\.0 usable in host memory"):
        check_run_fits([config(activation="offload")], llama, GPU, world_size=8, ranks_here=8)


@pytest.mark.usefixtures("no_trace", "h100")
@pytest.mark.parametrize(
    ("engine", "offload", "state", "width"),
    [
        ("fsdp2", "optimizer", "float32", 8),
        ("fsdp2", "all", "float32", 16),
        ("fsdp2", "all", "8bit", 4 + 4 + 2.03125),
        ("fsdp2", "all", "bfloat16", 8),
        ("deepspeed", "optimizer", "float32", 16),
        ("deepspeed", "all", "float32", 18),
    ],
)
def test_offloaded_state_must_fit_the_host_however_empty_the_gpu_is(
    engine: str, offload: str, state: str, width: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes per parameter of Llama 2 70B, whose 8 shards are all on one host."""
    monkeypatch.setattr(check, "available_host_bytes", lambda: 512 * GIB)
    base, _ = architecture(Config(model=ModelConfig(path="meta-llama/Llama-2-70b-hf")))
    cfg = config(seq_len=2048, engine=engine, offload=offload, state=state)
    need = rf"at least {width * 68_976_648_192 / GIB:.1f} GiB of 512\.0 usable in host memory, for what 8 rank"
    with pytest.raises(ConfigError, match=need):
        check_run_fits([cfg], base, GPU, world_size=8, ranks_here=8)


@pytest.mark.usefixtures("no_trace")
@pytest.mark.parametrize("engine", ["fsdp2", "deepspeed"])
def test_on_the_cpu_offloaded_state_stays_in_the_same_memory(
    engine: str, llama: LlamaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "available_host_bytes", lambda: 300 * GIB)
    lines = {
        check_run_fits([config(2048, engine=engine, offload=offload)], llama, CPU, world_size=2, ranks_here=2)
        for offload in ("none", "optimizer", "all")
    }
    (line,) = lines
    needed = float(line.removeprefix("memory: at least ").partition(" ")[0])
    assert needed >= 16 * 6_738_415_616 / GIB


@pytest.mark.usefixtures("no_trace")
def test_on_the_cpu_all_ranks_of_the_host_share_its_memory(llama: LlamaConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "available_host_bytes", lambda: 120 * GIB)
    cfg = config(seq_len=2048)
    assert check_run_fits([cfg], llama, CPU, world_size=1, ranks_here=1).startswith(
        "memory: at least 101.8 GiB of 120.0"
    )
    with pytest.raises(ConfigError, match="for 2 rank"):
        check_run_fits([config(seq_len=65536)], llama, CPU, world_size=2, ranks_here=2)


@pytest.mark.usefixtures("no_trace", "h100")
def test_the_copy_of_a_checkpoint_must_fit_the_host(llama: LlamaConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "available_host_bytes", lambda: 60 * GIB)
    assert check_run_fits([config(2048)], llama, GPU, world_size=8, ranks_here=8)
    need = r"at least 75\.3 GiB of 60\.0 usable in host memory.*checkpoint\.async_save=false needs 75\.3 GiB less"
    with pytest.raises(ConfigError, match=need):
        check_run_fits([config(2048, async_save=True)], llama, GPU, world_size=8, ranks_here=8)


def test_available_memory_is_the_least_of_the_kernel_and_the_container(tmp_path: Path) -> None:
    assert available_host_bytes(tmp_path) == float("inf")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 5000 kB\n")
    assert available_host_bytes(tmp_path) == 5000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("7\n")
    assert available_host_bytes(tmp_path) == 5000 * 1024
    (group / "memory.max").write_text("1000\n")
    assert available_host_bytes(tmp_path) == 993


def test_this_machine_has_some() -> None:
    assert 0 < available_host_bytes() < 2**50


@pytest.mark.usefixtures("h100")
def test_a_trace_tells_how_long_a_step_takes_where_the_gpu_is_known(
    llama: LlamaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    timed: list[float] = []
    check_run_fits([config()], llama, GPU, 8, 8, timed)
    (seconds,) = timed
    assert 100.0 < seconds < 200.0  # 47,806 TFLOPs of each GPU, and as much as 989 a second


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM 80 GB"),
        ("NVIDIA H200", "H200 SXM 141 GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80 GB"),
        ("NVIDIA A100-SXM4-40GB", "A100 SXM 40 GB"),
        ("NVIDIA B200", "B200 SXM 180 GB"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_gpu_is_known_by_its_drivers_name(device: str, name: str | None) -> None:
    machine = named(device)
    assert (machine.name if machine else None) == name
