"""Exports of this project that other programs are asked about: each method, and families written unlike Llama."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from families.catalogue import TAKEN
from transformers import AutoModelForCausalLM, PretrainedConfig

from yarn_train.config import ModelConfig, RopeConfig
from yarn_train.model.load import run_config
from yarn_train.rope import hf
from yarn_train.rope.undo import unscaled

FACTOR, VOCAB = 4.0, 64
EXPORTS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> (family, options)
    "none": ("llama3", {"method": "none", "factor": 1.0}),
    "pi": ("llama3", {"method": "pi"}),
    "yarn": ("llama2", {}),
    "yarn s=16": ("llama3", {"factor": 16.0}),
    "yarn s=32, other ends": ("llama3", {"factor": 32.0, "alpha": 2.0, "beta": 24.0}),
    "yarn, other temperature": ("llama3", {"temperature": 0.8}),
    "yarn, not truncated": ("llama3", {"truncate": False}),
    "yarn, ramp by rotations": ("llama3", {"ramp": "by_rotations"}),
    "ntk_by_parts": ("llama3", {"method": "ntk_by_parts"}),
    "ntk": ("llama3", {"method": "ntk"}),
    "mistral": ("mistral", {"sliding_window": "off"}),
    "mistral with a window": ("mistral_window", {"sliding_window": 40}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "mixtral": ("mixtral", {}),
    "phi3": ("phi3", {}),
    "gpt_neox": ("gpt_neox", {}),
    "gemma3": ("gemma3", {}),
    "olmo3": ("olmo3", {}),
}


def extended(name: str) -> PretrainedConfig:
    """The config of an export."""
    kind, options = EXPORTS[name]
    rope = RopeConfig(**{"factor": FACTOR, **options})
    base, _ = unscaled(TAKEN[kind].config(VOCAB), ModelConfig(), rope)
    return run_config(base, rope)


def export(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(extended(name)).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(hf.write_both_spellings(json.loads(path.read_text()))))
    return folder
