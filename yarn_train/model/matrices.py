"""Whether attention by plain matrices fits: they are quadratic in the length; absurd ones are refused beforehand."""

from __future__ import annotations

from transformers import PretrainedConfig

from ..config import Config
from ..dist.mesh import ulysses_size
from ..errors import problem
from .backends.eager import matrix_bytes

GIB = 2**30
MOST = 16 * GIB  # of one layer: 32 heads at 8,192 tokens


def matrix_problems(cfg: Config, base: PretrainedConfig, primitive: str | None) -> list[str]:
    """Problems of a training whose attention would be computed by larger matrices than :data:`MOST`."""
    if primitive != "eager":
        return []
    ulysses = ulysses_size(cfg.parallel, base.num_attention_heads)
    tokens = cfg.data.seq_len * ulysses // cfg.parallel.context  # of the longest rectangle that a rank computes
    return length_problems("data.seq_len", tokens, cfg.train.micro_batch_size, base.num_attention_heads // ulysses)


def length_problems(option: str, tokens: int, sequences: int, heads: int) -> list[str]:
    """A problem of `option` where eager attention over so many tokens takes more than :data:`MOST`."""
    size = matrix_bytes(sequences, heads, tokens, tokens)
    if size <= MOST:
        return []
    got = f"eager, and {option} with {sequences} x {heads} heads x {tokens:,} x {tokens:,} scores"
    allowed = f"at most {MOST // GIB} GiB of matrices per layer; these take {size / GIB:,.0f} GiB"
    return [problem("model.attention", got, allowed, f"set model.attention=auto, or a smaller {option}")]
