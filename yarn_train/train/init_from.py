"""Where a stage's first weights come from, and whether they fit the run."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from ..data.tokenize import load_tokenizer, tokenizer_sha256
from ..errors import ConfigError, problem
from ..model.load import load_config
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


def check_weights(source: str, base: PretrainedConfig, tokenizer: Any, original_length: int) -> None:
    """Refuse weights of another architecture, tokenizer or original length than the run's base.

    Raises:
        ConfigError: listing every mismatch with both values.
    """
    theirs = load_config(source, "run.init_from")
    problems = []
    for key in ARCHITECTURE:
        ours, got = getattr(base, key, None), getattr(theirs, key, None)
        if ours != got:
            problems.append(problem(f"run.init_from {key}", got, repr(ours), "name a model of the same architecture"))
    lengths = rope_hf.possible_lengths(theirs)
    if original_length not in lengths:
        got = lengths[0] if len(lengths) == 1 else " or ".join(map(str, lengths)) or None
        problems.append(problem("run.init_from original length", got, str(original_length), "factors are absolute"))
    if tokenizer_sha256(load_tokenizer(source)) != tokenizer_sha256(tokenizer):
        problems.append(problem("run.init_from tokenizer", source, "the tokenizer of model.path", "use its own base"))
    if problems:
        raise ConfigError(problems)
