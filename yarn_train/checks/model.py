"""Whether the model can be trained as asked: its architecture, tokenizer and weight files, before weights are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from ..config import Config
from ..data.tokenize import bracket_ids, load_tokenizer
from ..errors import ConfigError, problem
from ..model.adapters import targets
from ..model.load import is_language_model, unsupported
from ..model.local import window_problems, with_window
from ..model.loss import loss_missing
from ..model.matrices import matrix_problems
from ..model.probe import attention_problems, mask_problems, skeleton
from ..model.weights import WeightFiles, mismatches
from ..parallel.context import context_problems
from ..problem_list import ProblemList
from ..rope import hf as rope_hf

FLOATS = ("F32", "BF16", "F16", "F64")  # what weights can be trained from
KernelOf = Callable[[Config], str | None]


def architecture_problems(
    configs: Sequence[Config], base: PretrainedConfig, device: torch.device, kernel_of: KernelOf
) -> tuple[list[str], list[str]]:
    """(what no machine could run, losses that need a package).

    Args:
        base: the unscaled config of model.path.
        kernel_of: the primitive that runs attention for a configuration; None where none can.
    """
    problems, lacking = ProblemList(), ProblemList()
    problems.add(unsupported(base))
    problems.add(rope_hf.check_base(base, configs[0].rope))
    refused = bool(problems.lines)
    if not is_language_model(base):
        if not refused:
            problems.add([problem("model.path", base.model_type, "causal language models", "use one")])
        return problems.lines, []
    tried: set[str | None] = set()  # kernels that the architecture was tried with
    for cfg in configs:
        found = rope_hf.check_base(base, cfg.rope)
        found += window_problems(base, cfg.rope.sliding_window, rope_hf.reach(base, cfg.rope))
        problems.add(found)
        if not (refused or found):
            problems.add(mask_problems(cfg, base))
            primitive = kernel_of(cfg)
            problems.add([] if primitive in tried else attention_problems(base, primitive))
            tried.add(primitive)
            problems.add(matrix_problems(cfg, base, primitive))
            problems.add(adapter_problems(cfg, base))
        problems.add(context_problems(cfg.parallel, with_window(base, cfg.rope.sliding_window)))
        (lacking if cfg.memory.loss == "fused" else problems).add(loss_problems(cfg, base, device))
    return problems.lines, lacking.lines


def adapter_problems(cfg: Config, base: PretrainedConfig) -> list[str]:
    """Targets that the model does not have; nothing about one that cannot be built without memory."""
    if cfg.adapter.name == "none":
        return []
    try:
        model = skeleton(base).model
    except Exception:  # an architecture that cannot be built is a problem of its own, found elsewhere
        return []
    try:
        targets(model, cfg.adapter)
    except ConfigError as error:
        return error.problems
    return []


def loss_problems(cfg: Config, base: PretrainedConfig | None, device: torch.device) -> list[str]:
    """Problems of a loss that cannot run on this device or, where the model is known, at this size."""
    rows = cfg.train.micro_batch_size * cfg.data.seq_len // cfg.parallel.context
    missing = loss_missing(cfg.memory.loss, device, rows * base.vocab_size if base is not None else 0)
    return [problem("memory.loss", cfg.memory.loss, "losses that can run here", missing)] if missing else []


def open_tokenizer(path: str, base: PretrainedConfig | None) -> Any:
    """The tokenizer of model.path.

    Raises:
        DataError: there is none, or none that documents can be bracketed with.
        ConfigError: it has more tokens than the model.
    """
    tokenizer = load_tokenizer(path)
    bracket_ids(tokenizer)
    rows = getattr(base, "vocab_size", None)
    if rows is not None and len(tokenizer) > rows:
        got = f"a tokenizer of {len(tokenizer)} tokens"
        fix = "use the tokenizer that the model was trained with, or resize the model's embeddings"
        raise ConfigError(problem("model.path", got, f"no more than the model's vocab_size ({rows})", fix))
    return tokenizer


def _below(name: str) -> str:
    """A tensor's name without the first part, which files may lack."""
    return name.split(".", 1)[1] if name.count(".") > 1 else name


def weight_problems(path: str, base: PretrainedConfig, key: str = "model.path") -> list[str]:
    """What keeps the safetensors of a local folder from being the weights of `base`; reads their headers alone.

    Nothing about a hub id, nor about names that transformers may translate while it loads.

    Raises:
        ConfigError: no safetensors, or damaged ones.
    """
    if not Path(path).expanduser().is_dir():
        return []
    with WeightFiles(path) as files:
        try:
            module = skeleton(base).model
        except Exception:  # an architecture that cannot be built is a problem of its own, found elsewhere
            return []
        whole = sorted(name for name in files.names if name in module.state_dict() and files.dtype(name) not in FLOATS)
        if whole:
            got = f"{path}, whose {whole[0]} is {files.dtype(whole[0])}"
            return [problem(key, got, " | ".join(FLOATS), "use the base model that these were made from")]
        wrong = mismatches(module, files)
        ours, theirs = (set(map(_below, names)) for names in (module.state_dict(), files.names))
    if not wrong or (any(line.startswith("unexpected") for line in wrong) and ours & theirs):
        return []
    got = f"{path}, whose weights are not those of its config.json: {'; '.join(wrong[:3])}"
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return [problem(key, got + more, "one tensor for each of the model's parameters", "download the model again")]
