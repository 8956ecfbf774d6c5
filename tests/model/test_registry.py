"""Which attention kernel a run gets, and what is said where it does not get the one that was asked for."""

from __future__ import annotations

import importlib.metadata

import pytest
import torch

from yarn_train.errors import ConfigError
from yarn_train.model import availability
from yarn_train.model.availability import NEEDS, WIDTHS, width_limits
from yarn_train.model.primitives import PRIMITIVES, primitive_for
from yarn_train.model.registry import (
    BY_SDPA,
    FACTS,
    IMPLEMENTATIONS,
    LEFT_OUT,
    ORDER,
    SDPA,
    cached_kernel,
    choose_kernel,
)
from yarn_train.options_training import ModelConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BF16, FP32 = torch.bfloat16, torch.float32
GPUS = {(7, 5): "Tesla T4", (8, 0): "A100", (8, 9): "L40S", (9, 0): "H100", (10, 0): "B200", (12, 0): "RTX 5090"}
ALL = {"flash-attn": "2.8.3", "flash-attn-3": "3.0.0b1", "flash-attn-4": "4.0.0b36"}


def machine(
    monkeypatch: pytest.MonkeyPatch, gpu: tuple[int, int], packages: dict[str, str], cudnn: int = 92_000
) -> None:
    """Pretend a CUDA machine with one kind of GPU and some packages."""

    def version(name: str) -> str:
        if name in packages:
            return packages[name]
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: GPUS[gpu])
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn or None)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: cudnn > 0)


def refused(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """The one problem of a kernel asked for by name."""
    with pytest.raises(ConfigError) as error:
        choose_kernel(name, device, dtype)
    (line,) = error.value.problems
    assert line.startswith(f"model.attention: got '{name}'")
    assert line.endswith("or model.attention=auto")
    return line


def test_every_name_is_an_option_has_an_implementation_and_needs() -> None:
    choices = ModelConfig.__dataclass_fields__["attention"].metadata["choices"]
    assert set(choices) == {"auto", *IMPLEMENTATIONS}
    assert set(NEEDS) == set(IMPLEMENTATIONS)
    assert set(WIDTHS) <= set(PRIMITIVES)
    reached = {primitive_for(k, d, t) for k in NEEDS for d in ("cpu", "cuda") for t in (BF16, FP32)}
    assert reached == set(PRIMITIVES)


def test_transformers_applies_no_rules_of_its_own_to_a_name_and_none_begins_another() -> None:
    for name in IMPLEMENTATIONS.values():
        assert "sdpa" not in name
        assert "flash" not in name
        assert [other for other in IMPLEMENTATIONS.values() if other.startswith(name)] == [name]


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_auto_on_the_cpu_is_sdpa(dtype: torch.dtype) -> None:
    kernel = choose_kernel("auto", CPU, dtype)
    assert (kernel.name, kernel.implementation, kernel.primitive) == ("sdpa", SDPA, "cpu")
    assert kernel.reason == f"torch {torch.__version__} SDPA, cpu kernel; auto for cpu"


BEST = {
    (7, 5): ["sdpa"],
    (8, 0): ["flash_attention_2", "sdpa"],
    (8, 9): ["flash_attention_2", "sdpa"],
    (9, 0): ["flash_attention_3", "flash_attention_2", "sdpa"],
    (10, 0): ["flash_attention_4", "flash_attention_2", "sdpa"],
    (12, 0): ["flash_attention_2", "sdpa"],
}


@pytest.mark.parametrize("gpu", BEST)
def test_auto_takes_the_best_that_is_installed_and_names_every_other(
    gpu: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    packages, passed = dict(ALL), list[str]()
    for name in BEST[gpu]:
        machine(monkeypatch, gpu, packages)
        kernel = choose_kernel("auto", CUDA, BF16)
        assert kernel.name == name
        for other in passed:
            assert (
                f"{other} not used: the package {NEEDS[other].package.distribution} is not installed" in kernel.reason
            )
        assert ("sdpa_cudnn left out" in kernel.reason) == (gpu[0] in (9, 10))
        if NEEDS[name].package is not None:
            assert kernel.reason.startswith(
                f"{NEEDS[name].package.distribution} {ALL[NEEDS[name].package.distribution]}"
            )
            del packages[NEEDS[name].package.distribution]
            passed.append(name)


@pytest.mark.parametrize("gpu", BEST)
def test_auto_in_float32_is_the_memory_efficient_kernel_and_says_why(
    gpu: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    machine(monkeypatch, gpu, ALL)
    kernel = choose_kernel("auto", CUDA, FP32)
    assert (kernel.name, kernel.primitive) == ("sdpa", "efficient")
    if others := BEST[gpu][:-1]:
        why = "it needs bfloat16 or float16 and the compute dtype is torch.float32"
        assert f"{', '.join(others)} not used: {why}" in kernel.reason
    assert "left out" not in kernel.reason


def test_auto_passes_a_kernel_by_whose_heads_are_narrower(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, (10, 0), ALL)
    assert choose_kernel("auto", CUDA, BF16, 128).name == "flash_attention_4"
    kernel = choose_kernel("auto", CUDA, BF16, 256)
    assert kernel.name == "flash_attention_2"
    assert (
        "flash_attention_4 not used: its heads are multiples of 8 up to 128 and the model's have 256" in kernel.reason
    )


def test_an_order_follows_the_published_figures_and_takes_groups_and_documents_in_one_call() -> None:
    for gpu, names in ORDER.items():
        speed = {fact.kernel: fact.forward for fact in FACTS if fact.gpu == gpu}
        known = [speed[name] for name in names if name in speed]
        assert known == sorted(known, reverse=True)
        assert set(speed) <= {*names, *LEFT_OUT.get(gpu, ())}
        assert names[-1] == "sdpa"
        if gpu != "cpu":
            assert all(PRIMITIVES[primitive_for(name, "cuda", BF16)].varlen for name in names)


@pytest.mark.parametrize("name", [name for name in NEEDS if not NEEDS[name].cpu])
@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_what_needs_a_gpu_is_refused_on_the_cpu(name: str, dtype: torch.dtype) -> None:
    line = refused(name, CPU, dtype)
    assert "no backward on the CPU" in line if name == "flex" else "needs a CUDA GPU" in line


@pytest.mark.parametrize("name", [name for name in NEEDS if NEEDS[name].half])
def test_what_needs_half_precision_names_the_dtype_and_the_option(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, (9, 0), ALL)
    assert "compute dtype is torch.float32; set model.dtype=bfloat16" in refused(name, CUDA, FP32)


HOW = {
    "flash_attention_2": "flash-attn is not installed; pip install 'yarn-train[flash]'",
    "flash_attention_3": "subdirectory=hopper",
    "flash_attention_4": "pip install --pre flash-attn-4",
}


@pytest.mark.parametrize("name", HOW)
def test_a_package_that_is_missing_or_too_old_comes_with_the_way_to_get_it(name: str, monkeypatch: pytest.MonkeyPatch):
    machine(monkeypatch, (9, 0), {})
    assert HOW[name] in refused(name, CUDA, BF16)
    package = NEEDS[name].package
    assert package is not None
    machine(monkeypatch, (9, 0), {package.distribution: "1.9.9"})
    assert f"{package.distribution} 1.9.9 is too old" in refused(name, CUDA, BF16)
    machine(monkeypatch, (9, 0), ALL)
    assert choose_kernel(name, CUDA, BF16).reason.endswith("asked for by name")


def test_flash_attention_4_alone_is_no_flash_attention_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both lie in the module flash_attn."""
    machine(monkeypatch, (8, 0), {"flash-attn-4": "4.0.0b36"})
    assert choose_kernel("auto", CUDA, BF16).name == "sdpa"


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        *(("flash_attention_2", (7, 5)), ("flash_attention_3", (8, 0)), ("flash_attention_3", (10, 0))),
        *(("flash_attention_4", (8, 9)), ("flash_attention_4", (12, 0)), ("sdpa_cudnn", (7, 5)), ("flex", (7, 5))),
    ],
)
def test_a_gpu_that_a_kernel_is_not_written_for_is_named(
    name: str, gpu: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    machine(monkeypatch, gpu, ALL)
    assert f"{GPUS[gpu]} has {gpu[0]}.{gpu[1]}" in refused(name, CUDA, BF16)


def test_cudnn_needs_a_torch_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, (9, 0), {}, cudnn=0)
    assert "torch's build has no cuDNN" in refused("sdpa_cudnn", CUDA, BF16)
    machine(monkeypatch, (9, 0), {}, cudnn=8_907)
    assert "has cuDNN 8.9.7, 9.0 is needed" in refused("sdpa_cudnn", CUDA, BF16)
    machine(monkeypatch, (9, 0), {}, cudnn=92_000)
    kernel = choose_kernel("sdpa_cudnn", CUDA, BF16)
    assert (kernel.primitive, "cuDNN 9.20.0" in kernel.reason) == ("cudnn", True)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_where_sdpa_generates_with_a_cache_the_reason_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, (9, 0), ALL)
    kernel = choose_kernel(name, CUDA, BF16)
    assert ("generation with a cache by sdpa" in kernel.reason) == (name in BY_SDPA)
    assert cached_kernel(name) == ("sdpa" if name in BY_SDPA else name)


@pytest.mark.parametrize(("dtype", "primitive"), [(BF16, "flash"), (torch.float16, "flash"), (FP32, "efficient")])
def test_sdpa_by_name_is_sdpa_wherever_it_runs_with_a_pinned_kernel(dtype: torch.dtype, primitive: str) -> None:
    kernel = choose_kernel("sdpa", CUDA, dtype)
    assert (kernel.name, kernel.implementation, kernel.primitive) == ("sdpa", SDPA, primitive)
    assert "asked for by name" in kernel.reason


def test_a_name_is_one_primitive_per_device_and_dtype() -> None:
    assert primitive_for("sdpa", "cpu", BF16) == primitive_for("sdpa_flash", "cpu", FP32) == "cpu"
    assert primitive_for("sdpa_flash", "cuda", BF16) == "flash"
    assert primitive_for("flash_attention_2", "cuda", BF16) == "flash_attention_2"
    assert primitive_for("eager", "cpu", FP32) == primitive_for("eager", "cuda", BF16) == "eager"


@pytest.mark.parametrize(("primitive", "width", "fine"), [("cudnn", 128, True), ("cudnn", 256, False)])
def test_limits_of_heads_have_words(primitive: str, width: int, fine: bool) -> None:
    assert (width_limits(primitive, width) is None) == fine
    assert width_limits("eager", 7) is None


def test_no_gpu_in_this_process_is_no_complaint_about_its_capability() -> None:
    assert availability.capability(CPU) is None
    if not torch.cuda.is_available():
        assert availability.capability(CUDA) is None
