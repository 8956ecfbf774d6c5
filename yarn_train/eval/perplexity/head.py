"""From a causal language model's hidden states to the loss of tokens, a piece of the logits at a time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ...data.batch import unlabelled
from ...errors import ConfigError, problem
from ...parallel.context import ContextParallel

LOGITS_AT_ONCE = 2**24  # 64 MiB in float32: small enough for any device, large enough to keep a matmul busy
CHECKED = 16  # tokens of the pass that compares our head with the model's own


def hidden_states(model: Any, ids: torch.Tensor, context: ContextParallel | None) -> torch.Tensor:
    """Last hidden states ``[batch, positions, hidden]``: what the output head would be applied to.

    Args:
        ids: token ids ``[batch, positions]``, without padding; positions run from 0.
        context: the ranks that share each sequence; None is this one.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    if context is None:
        return decoder(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    part = context.shard(unlabelled(ids, positions))
    local = decoder(input_ids=part.input_ids, position_ids=part.position_ids, use_cache=False).last_hidden_state
    return context.gather(local, ids.shape[1])


def logits_of(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Output head and what some families do to its result: Cohere and Granite scale logits, Gemma caps them."""
    config = getattr(model.config, "get_text_config", lambda: model.config)()
    logits = model.get_output_embeddings()(hidden)
    divisor = getattr(config, "logits_scaling", None)
    if divisor is not None:
        # Granite divides by it; HyperCLOVA X gave the same name to a multiplier.
        logits = logits * divisor if config.model_type.startswith("hyperclovax") else logits / divisor
    scale = getattr(config, "logit_scale", None)
    if scale is not None:
        logits = logits * scale
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def token_losses(
    model: Any, hidden: torch.Tensor, targets: torch.Tensor, logits_at_once: int = LOGITS_AT_ONCE
) -> torch.Tensor:
    """Negative log-likelihood ``[tokens]`` in float32 of `targets` ``[tokens]`` given `hidden` ``[tokens, hidden]``."""
    rows_at_once = max(1, logits_at_once // _vocabulary(model))
    pieces = zip(hidden.split(rows_at_once), targets.split(rows_at_once), strict=True)
    return torch.cat([F.cross_entropy(logits_of(model, h).float(), t, reduction="none") for h, t in pieces])


def check_head(model: Any, device: torch.device) -> None:
    """Compare our logits of a few tokens with the model's own, so that an unknown last step cannot go unnoticed.

    Raises:
        ConfigError: they differ, or there is no output head.
    """
    if model.get_output_embeddings() is None:
        raise ConfigError(problem("model.path", type(model).__name__, "a causal LM with an output head", "use one"))
    ids = (torch.arange(CHECKED, device=device) % _vocabulary(model)).unsqueeze(0)
    own = model(input_ids=ids, position_ids=torch.arange(CHECKED, device=device)[None], use_cache=False).logits.float()
    ours = logits_of(model, hidden_states(model, ids, None))
    tolerance = (1e-3 if ours.dtype.itemsize >= 4 else 3e-2) * max(1.0, own.abs().max().item())
    ours = ours.float()
    if own.isfinite().all() and not torch.allclose(own, ours, rtol=0, atol=tolerance):
        raise ConfigError(
            problem(
                "model.path",
                f"{type(model).__name__}, which changes its logits after the output head (difference "
                f"{(own - ours).abs().max().item():.3g})",
                "plain heads, final_logit_softcapping, logits_scaling, logit_scale",
                "teach yarn_train/eval/perplexity/head.py:logits_of what this model does",
            )
        )


def _vocabulary(model: Any) -> int:
    return int(model.get_output_embeddings().weight.shape[0])
