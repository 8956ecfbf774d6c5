"""LoRA by peft: low-rank updates beside frozen weights, with embeddings and norms trained in full as LongLoRA does.

Hu et al., arXiv:2106.09685: a linear layer computes W x + (alpha / r) B A x, and only A and B are trained. Chen et al.
(LongLoRA, arXiv:2309.12307) found that a longer context also needs the embeddings and the norms, which are few.
peft replaces linear layers in place: weights keep their names but for ``base_layer``. The values that A begins with are
ours, by the tensor's name and the seed: the same for any number of ranks.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..config import AdapterConfig
from ..errors import ConfigError, problem
from .adapter_names import NAME, is_update, plain
from .weights import first_row

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "query_key_value", "dense")
FOLDER = "adapter"
PREFIX = "base_model.model."  # of every tensor in a file of peft's


def missing(cfg: AdapterConfig) -> list[str]:
    """The problem of a library that is not installed."""
    if cfg.name == "none" or importlib.util.find_spec("peft") is not None:
        return []
    return [problem("adapter.name", cfg.name, "none without the peft package", "pip install 'yarn-train[adapters]'")]


def targets(model: Any, cfg: AdapterConfig) -> list[str]:
    """Names of the linear layers that get an update, without the output head.

    Raises:
        ConfigError: there is none of them.
    """
    asked = cfg.targets
    head = model.get_output_embeddings()
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    found = [name for name in linear if asked == ["all"] or name.rpartition(".")[2] in (asked or ATTENTION)]
    if not found:
        kinds = sorted({name.rpartition(".")[2] for name in linear})
        raise ConfigError(problem("adapter.targets", asked, f"of {', '.join(kinds)}; or [all]", "name some of them"))
    return found


def inject(model: Any, cfg: AdapterConfig) -> str:
    """Put updates beside the targets, in place, and freeze what is not trained; a line that says so.

    Raises:
        ConfigError: no layer is called as asked.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds to import

    names = targets(model, cfg)
    meta = any(parameter.is_meta for parameter in model.parameters())
    settings = LoraConfig(**_settings(cfg, names))
    inject_adapter_in_model(settings, model, adapter_name=NAME, low_cpu_mem_usage=meta)
    whole = {id(parameter) for module in trained_whole(model, cfg).values() for parameter in module.parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_update(name) or id(parameter) in whole)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    share = trained / sum(p.numel() for p in model.parameters())
    return f"LoRA of rank {cfg.rank} on {len(names)} layers: {trained:,} parameters trained, {share:.2%} of all"


def trained_whole(model: Any, cfg: AdapterConfig) -> dict[str, nn.Module]:
    """The modules that are trained in full, by name: embeddings with the head, and everything that is a norm."""
    ends = {id(module) for module in (model.get_input_embeddings(), model.get_output_embeddings())}
    return {
        name: module
        for name, module in model.named_modules()
        if (cfg.embeddings and id(module) in ends) or (cfg.norms and type(module).__name__.endswith("Norm"))
    }


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """A as peft draws it, uniform in +-1 / sqrt(in) (Kaiming with a = sqrt 5), and B zero; of shards their rows."""
    for name, parameter in model.named_parameters():
        if not is_update(name):
            continue
        mine = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        if ".lora_B." in name:
            mine.zero_()
            continue
        bound = 1 / math.sqrt(parameter.shape[1])
        digest = hashlib.sha256(f"{seed} {name.partition('model.')[2] or name}".encode()).digest()
        drawn = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        whole = torch.empty(parameter.shape).uniform_(-bound, bound, generator=drawn)
        start = first_row(parameter) if isinstance(parameter, DTensor) else 0
        mine.copy_(whole[start : start + mine.shape[0]])


def merged(weights: dict[str, Tensor], cfg: AdapterConfig) -> dict[str, Tensor]:
    """W + (alpha / r) B A under the plain names, in float32; weights without an update are the same tensors."""
    found = {}
    for name, tensor in weights.items():
        if is_update(name):
            continue
        layer = name.removesuffix(".base_layer.weight")
        if layer != name:
            a, b = (weights[f"{layer}.lora_{which}.{NAME}.weight"].float() for which in "AB")
            tensor = tensor.float() + cfg.alpha / cfg.rank * (b @ a)
        found[plain(name)] = tensor
    return found


def write(folder: Path, model: Any, weights: dict[str, Tensor], cfg: AdapterConfig, base: str) -> None:
    """A folder that ``peft.PeftModel.from_pretrained`` puts on the base's weights, read with the extended config.

    Args:
        weights: complete, on the CPU, under the names of the model with adapters.
        base: what the weights were before, for a person.
    """
    from peft import LoraConfig

    modules = trained_whole(model, cfg).items()
    kept = {name: module for name, module in modules if next(module.parameters(), None) is not None}
    tensors = {f"{PREFIX}{name.replace(f'.{NAME}.', '.')}": t for name, t in weights.items() if is_update(name)}
    for name, module in kept.items():
        names_of = {f"{name}.{key}": f"{PREFIX}{name}.{key}" for key, _ in module.named_parameters(recurse=False)}
        tensors |= {theirs: weights[mine] for mine, theirs in names_of.items() if mine in weights}
    names = sorted({name.partition(".lora_A.")[0] for name in weights if ".lora_A." in name})
    about: dict[str, Any] = {"modules_to_save": sorted(kept) or None, "base_model_name_or_path": base}
    settings = LoraConfig(**_settings(cfg, names), **about, task_type="CAUSAL_LM", inference_mode=True)
    folder.mkdir(parents=True)
    own = {name: t.float().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}  # tied: copies
    save_file(own, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    told = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.to_dict().items()}
    (folder / "adapter_config.json").write_text(json.dumps(told, indent=2, default=str) + "\n")


def _settings(cfg: AdapterConfig, names: list[str]) -> dict[str, Any]:
    """Of peft's LoraConfig."""
    return {"r": cfg.rank, "lora_alpha": cfg.alpha, "target_modules": names, "lora_dropout": 0.0, "bias": "none"}
