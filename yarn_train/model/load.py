"""Build the model of a run: Hugging Face config + RoPE table + kernel, then weights (or random ones)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from .. import model_revision, remote_code
from ..config import Config, RopeConfig
from ..errors import ConfigError, problem
from ..rope import hf as rope_hf
from ..rope.base import FULL
from ..rope.undo import own_scaling, unscaled
from . import attention  # noqa: F401  makes the kernels' names known to transformers
from .folder import folder_problems
from .local import LOCAL, with_window
from .registry import Kernel
from .weights import WeightFiles, mismatches, parameters_on_meta

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
# The largest of each that is taken for real.
SIZES = {
    "num_hidden_layers": 1_000,
    "num_attention_heads": 10_000,
    "num_key_value_heads": 10_000,
    "hidden_size": 1_000_000,
    "intermediate_size": 10_000_000,
    "vocab_size": 100_000_000,
    "max_position_embeddings": 10**9,
}


def load_config(path: str, key: str = "model.path") -> PretrainedConfig:
    """Config of a Hugging Face folder or hub id; no weights are touched.

    Args:
        key: the option that `path` comes from.

    Raises:
        ConfigError: nothing readable at `path`, or code of its own that model.trust_remote_code does not allow.
    """
    if refused := folder_problems(path, key):
        raise ConfigError(refused)
    allowed = "a folder with config.json, or a hub id this machine can reach"
    revision = model_revision.of(path)
    try:
        files = remote_code.needed(PretrainedConfig.get_config_dict(path, revision=revision)[0])
        remote_code.refuse(key, path, files)
        return AutoConfig.from_pretrained(path, trust_remote_code=bool(files), revision=revision)
    except ConfigError:
        raise
    except OSError as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(problem(key, path, allowed, first)) from error
    except Exception as error:  # of a config's values, or of code that comes with it: anything
        first = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
        got = f"{path}, whose config.json says: {type(error).__name__}: {first[:300]}"
        fix = "mend its config.json, or download the model again"
        raise ConfigError(problem(key, got, "a config.json that transformers can read", fix)) from error


def load_base(cfg: Config) -> PretrainedConfig:
    """The config of model.path as a run takes it: with no RoPE scaling, see :mod:`rope.undo`.

    Raises:
        ConfigError: as :func:`load_config`, or a scaling that cannot be undone without being told more.
    """
    return unscaled(load_config(cfg.model.path), cfg.model, cfg.rope)[0]


def base_notes(cfg: Config) -> list[str]:
    """What :func:`load_base` undid, in words; nothing for a plain base."""
    told = unscaled(load_config(cfg.model.path), cfg.model, cfg.rope)[1]
    return [f"base rope: {told}"] if told else []


def base_scaling(cfg: Config) -> RopeConfig | None:
    """The scaling that model.path came with and that was undone, where our options can say it."""
    config = load_config(cfg.model.path)
    return own_scaling(config, cfg.rope) if unscaled(config, cfg.model, cfg.rope)[1] else None


def is_language_model(config: PretrainedConfig) -> bool:
    """Whether the config has the numbers that every check of a decoder needs; vision and multi-tower ones lack some."""
    return all(
        hasattr(config, key) for key in ("vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers")
    )


def unsupported(config: PretrainedConfig) -> list[str]:
    """Problems of an architecture whose head does more than a matrix product, which the losses would not see."""
    found = _number_problems(config)
    if getattr(config, "quantization_config", None):
        fix = "use the base model that it was quantised from"
        found.append(problem("model.path", "quantised weights (quantization_config)", "weights to train", fix))
    kinds = {kind for kind in getattr(config, "layer_types", None) or [] if kind.endswith("_attention")}
    if odd := sorted(kinds - {FULL, LOCAL, "linear_attention"}):
        allowed = "attention to all earlier tokens, or through a sliding window"
        found.append(problem("model.path", f"layers of {', '.join(odd)}", allowed, "use another base model"))
    for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, key, None) not in (None, 1.0):
            found.append(
                problem("model.path", f"{key}={getattr(config, key)}", "a plain output head", "use another base model")
            )
    for key, rest in (("attn_logit_softcapping", "no cap"), ("attention_dropout", "0")):
        value = getattr(config, key, None)
        if value:
            fix = f"set {key} to {'null' if rest == 'no cap' else rest} in its config.json"
            found.append(problem("model.path", f"{key}={value}", f"attention with {rest}", fix))
    return found


def _number_problems(config: PretrainedConfig) -> list[str]:
    """Sizes that no model has: building one of them would fail without a word, or never end."""
    return [
        problem("model.path", f"{key}={value!r} in its config.json", f"1 to {most:,}", "download the model again")
        for key, most in SIZES.items()
        if (value := getattr(config, key, 1)) is not None and not (type(value) is int and 1 <= value <= most)
    ]


def build_model(
    weights: str | None, base: PretrainedConfig, rope: RopeConfig | None, kernel: Kernel
) -> PreTrainedModel:
    """The model in fp32 (master weights) on the CPU, with the run's RoPE table in its own rotary module, verified.

    Args:
        weights: Hugging Face folder or hub id to read weights from; None initialises them at random.
        base: the config that ``model.path`` came with, RoPE unscaled.
        rope: how to scale it; None keeps the config's own RoPE, scaled or not (evaluation only).

    Raises:
        ConfigError: RoPE cannot be applied to this config, or tensors are missing from `weights`.
    """
    config = _run_config(base, rope)
    if weights is None:
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=kernel.implementation, trust_remote_code=remote_code.flag(config)
        )
    else:
        model = _load_weights(weights, config, kernel)
    if rope is not None:
        rope_hf.verify_tables(model, rope_hf.table_for(base, rope))
    return model


def build_skeleton(base: PretrainedConfig, rope: RopeConfig | None, kernel: Kernel) -> PreTrainedModel:
    """The same model with its parameters on the meta device and its buffers real; see :mod:`model.weights`."""
    with parameters_on_meta():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            _run_config(base, rope),
            attn_implementation=kernel.implementation,
            trust_remote_code=remote_code.flag(base),
        )
    if rope is not None:
        rope_hf.verify_tables(model, rope_hf.table_for(base, rope))
    return model


def build_streaming(
    weights: str, base: PretrainedConfig, rope: RopeConfig | None, kernel: Kernel
) -> tuple[PreTrainedModel, bool]:
    """(the model, whether it still is a skeleton): to shard and then fill from the files, where they allow it.

    Where transformers renames or merges tensors it is loaded whole, on the CPU.
    """
    skeleton = build_skeleton(base, rope, kernel)
    streams = streamable(skeleton, weights)
    return (skeleton if streams else build_model(weights, base, rope, kernel)), streams


def streamable(skeleton: PreTrainedModel, weights: str) -> bool:
    """Whether the files hold exactly the model's tensors, so that each rank can read just its rows of them.

    False for architectures whose tensors transformers renames or merges while loading, and for files that do not fit
    the config; :func:`build_model` loads the first and reports the second.
    """
    with WeightFiles(weights) as files:
        return not mismatches(skeleton, files)


def run_config(base: PretrainedConfig, rope: RopeConfig) -> PretrainedConfig:
    """The unscaled base as a stage trains it: its RoPE scaled, its window as asked for."""
    return with_window(rope_hf.scaled_config(base, rope), rope.sliding_window)


def _run_config(base: PretrainedConfig, rope: RopeConfig | None) -> PretrainedConfig:
    transformers_logging.disable_progress_bar()  # one bar per tensor count says nothing and hides our own
    config = copy.deepcopy(base) if rope is None else run_config(base, rope)
    config.use_cache = False
    config.dtype = torch.float32
    return config


def _load_weights(path: str, config: PretrainedConfig, kernel: Kernel) -> PreTrainedModel:
    WeightFiles(path)  # its index names files of its own only; a model of nothing but pickles is refused
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            attn_implementation=kernel.implementation,
            trust_remote_code=remote_code.flag(config),
            output_loading_info=True,
            use_safetensors=True,
            revision=model_revision.of(path) or "main",
            ignore_mismatched_sizes=True,  # reported below, with everything else that is wrong
        )
    except OSError as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(problem("model.path", path, "a folder or hub id with safetensors weights", first)) from error
    model: PreTrainedModel = loaded[0]
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    wrong = {kind: sorted(map(str, loaded[1][kind]))[:3] for kind in kinds if loaded[1][kind]}
    if wrong:
        raise ConfigError(
            problem("model.path", path, "weights that match config.json exactly", f"wrong tensors: {wrong}")
        )
    return model
