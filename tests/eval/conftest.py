"""What the tests of several evaluations share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaForCausalLM


@pytest.fixture(scope="module")
def base(tiny_model: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with weights so large that its answers depend on positions."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    LlamaForCausalLM(AutoConfig.from_pretrained(tiny_model, initializer_range=0.3)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder
