"""Which attention kernel GPUs elsewhere run, told without them."""

from __future__ import annotations

import pytest
import torch

from yarn_train.config import build
from yarn_train.dry_run.kernels import gpu_primitive, kernel_line
from yarn_train.errors import ConfigError


def line(attention: str, dtype: str = "bfloat16") -> str:
    return kernel_line(build({"model": {"attention": attention, "dtype": dtype}}))


def test_auto_names_what_each_gpu_takes_and_what_is_left_without_packages() -> None:
    text = line("auto")
    assert "flash_attention_3 or flash_attention_2 on hopper" in text
    assert "flash_attention_4 or flash_attention_2 on blackwell" in text
    assert text.endswith("else torch's SDPA, flash kernel")
    assert line("auto", "float32") == "auto: torch's SDPA, efficient kernel, whatever else is installed"


@pytest.mark.parametrize(
    ("kernel", "told"),
    [
        ("flash_attention_3", "flash-attn-3 3.0 or later must be installed on every node"),
        ("flash_attention_4", "flash-attn-4 4.0 or later must be installed on every node"),
        ("sdpa_cudnn", "comes with torch"),
        ("sdpa_flash", "torch's SDPA, flash kernel"),
        ("eager", "comes with torch"),
    ],
)
def test_a_kernel_by_name_says_what_nodes_need(kernel: str, told: str) -> None:
    assert line(kernel).startswith(f"{kernel}: {told}")


def test_this_machines_packages_do_not_matter() -> None:
    assert gpu_primitive("flash_attention_3", torch.bfloat16) == "flash_attention_3"
    assert gpu_primitive("auto", torch.bfloat16) == "flash"


@pytest.mark.parametrize("kernel", ["flash_attention_2", "flash_attention_4", "sdpa_cudnn", "sdpa_flash"])
def test_a_dtype_that_no_gpu_has_for_a_kernel_is_refused(kernel: str) -> None:
    with pytest.raises(ConfigError, match=rf"got '{kernel}'.*set model\.dtype=bfloat16"):
        gpu_primitive(kernel, torch.float32)
