"""Where a stage's first weights come from, and whether they fit the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from ..data.tokenize import load_tokenizer, tokenizer_sha256
from ..errors import CheckpointError, ConfigError, problem
from ..rope import hf as rope_hf

# What must agree for weights of one config to be the weights of another, beside the RoPE table.
ARCHITECTURE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
)


def find_model(path: str) -> str:
    """The Hugging Face folder that a run folder, a stage folder, a model folder or a hub id stands for.

    Raises:
        CheckpointError: a run or stage folder without a finished model.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if path.startswith((".", "/", "~")) or path.count("/") > 1 or folder.parts[:1] == ("outputs",):
            raise CheckpointError(f"run.init_from={path}: no such folder; give a run, stage or model folder, or hub id")
        return path
    if (folder / "config.json").is_file():
        return str(folder)
    stages = [folder] if (folder / "model").is_dir() else sorted(p for p in folder.glob("[0-9][0-9]_*") if p.is_dir())
    finished = [stage / "model" for stage in stages if (stage / "model" / "config.json").is_file()]
    if not finished or finished[-1].parent != stages[-1]:
        raise CheckpointError(
            f"run.init_from={path}: its last stage has no finished model/; "
            "finish that run first (start it again, it resumes), or name the stage folder you mean"
        )
    return str(finished[-1])


def check_weights(source: str, base: PretrainedConfig, tokenizer: Any, original_length: int) -> None:
    """Refuse weights of another architecture, tokenizer or original length than the run's base.

    Raises:
        ConfigError: listing every mismatch with both values.
    """
    theirs = AutoConfig.from_pretrained(source)
    problems = []
    for key in ARCHITECTURE:
        ours, got = getattr(base, key, None), getattr(theirs, key, None)
        if ours != got:
            problems.append(problem(f"run.init_from {key}", got, repr(ours), "name a model of the same architecture"))
    length = rope_hf.pretrained_length(theirs)
    if length != original_length:
        problems.append(problem("run.init_from original length", length, str(original_length), "factors are absolute"))
    if tokenizer_sha256(load_tokenizer(source)) != tokenizer_sha256(tokenizer):
        problems.append(problem("run.init_from tokenizer", source, "the tokenizer of model.path", "use its own base"))
    if problems:
        raise ConfigError(problems)
