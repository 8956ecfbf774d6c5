"""Sliding-window perplexity of any causal language model, without ever holding all logits of a window.

The sums are kept per window, so that both ways of averaging found in the literature come from one evaluation:
``token_mean`` weighs every token the same; ``window_mean`` is what the YaRN reference (jquesnelle/yarn,
eval/perplexity.py) prints, where a first window of 32k tokens weighs as much as one step of 256.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from ..data.batch import unlabelled
from ..errors import ConfigError, DataError, problem
from ..parallel.context import ContextParallel
from .windows import Window, sliding_windows

log = logging.getLogger(__name__)

MODES = ("token_mean", "window_mean")
LOGITS_AT_ONCE = 2**24  # 64 MiB in float32: small enough for any device, large enough to keep a matmul busy


@dataclass(frozen=True)
class Scores:
    """Negative log-likelihoods of one model at one window size, in nats, summed per window in document order."""

    window: int
    stride: int
    nll_per_window: list[float]
    tokens_per_window: list[int]
    documents: int
    score_from: int | None = None

    @property
    def tokens(self) -> int:
        """Number of scored tokens."""
        return sum(self.tokens_per_window)

    def perplexity(self, mode: str) -> float:
        """``token_mean``: exp(sum nll / sum tokens); ``window_mean``: exp(mean over windows of their mean nll).

        Returns infinity where the exponential overflows, and NaN where the model answered NaN.
        """
        if mode == "token_mean":
            mean = math.fsum(self.nll_per_window) / self.tokens
        elif mode == "window_mean":
            pairs = zip(self.nll_per_window, self.tokens_per_window, strict=True)
            mean = math.fsum(nll / tokens for nll, tokens in pairs) / len(self.nll_per_window)
        else:
            raise ConfigError(problem("mode", mode, " | ".join(MODES), "token_mean compares models"))
        try:
            return math.exp(mean)
        except OverflowError:
            return math.inf


class _Job(NamedTuple):
    """One window of one document, and where its sum belongs in the result."""

    slot: int
    tokens: torch.Tensor
    window: Window


def score(
    model: Any,
    documents: Sequence[torch.Tensor],
    window: int,
    stride: int,
    score_from: int | None = None,
    *,
    batch_tokens: int = 16384,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    bos_id: int | None = None,
    logits_at_once: int = LOGITS_AT_ONCE,
    on_tokens: Callable[[int], None] | None = None,
    context: ContextParallel | None = None,
) -> Scores:
    """Score documents in windows; see :func:`sliding_windows` for which tokens are scored with which context.

    Positions always run from 0 in every window, nothing is cached between windows, and the output head is applied to
    scored positions only, `logits_at_once` logits at a time.

    Args:
        model: a Hugging Face causal LM (or anything with its accessors); its train/eval mode is put back afterwards.
        documents: token ids, one ``[tokens]`` integer tensor per document.
        window: positions the model sees at once.
        stride: tokens that a window moves by.
        score_from: None for the reference protocol, else index of the first scored token of every document.
        batch_tokens: positions per forward pass; windows longer than this run one at a time.
        dtype: bfloat16 (or float16) runs the model under autocast; float32 runs it as it is. Log-softmax is always
            float32, sums are float64.
        device: where the model is; None asks the model.
        bos_id: put this token in front of every window, as the reference does for models that have one.
        on_tokens: called with the number of tokens just scored after every forward pass.
        context: the ranks that share each window (all of them call this with the same documents); None is this one.

    Raises:
        ConfigError: window sizes that make no sense, or a model whose logits this cannot reproduce.
        DataError: nothing to score.
    """
    jobs = _jobs(documents, window, stride, score_from, bos_id is not None)
    place = torch.device(device if device is not None else next(model.parameters()).device)
    sums = [0.0] * len(jobs)
    with _evaluating(model, place, dtype):
        _check_head(model, _inputs(jobs[:1], bos_id, place)[:, :16])
        for batch in _batches(jobs, batch_tokens):
            hidden = _hidden(model, _inputs(batch, bos_id, place), context)
            scored = batch[0].window.scored
            targets = torch.stack([j.tokens[j.window.score_begin : j.window.end] for j in batch]).to(place).long()
            # Only the last token of a window is no input, so the scored positions are always the last ones.
            nll = _nll(model, hidden[:, -scored:].flatten(0, 1), targets.flatten(), logits_at_once)
            for job, total in zip(batch, nll.cpu().double().view(len(batch), scored).sum(1).tolist(), strict=True):
                sums[job.slot] = total
            if on_tokens:
                on_tokens(len(batch) * scored)
    if not all(map(math.isfinite, sums)):
        log.warning("window %d: the model's answers are not finite; its perplexity is reported as null", window)
    return Scores(window, stride, sums, [j.window.scored for j in jobs], len(documents), score_from)


def rows(
    label: str, method: str, ramp: str | None, factor: float, stage: str | None, scores: Scores
) -> list[dict[str, Any]]:
    """Entries of ``eval/perplexity.json`` for one model at one window size: one per mode.

    Args:
        label: name of the curve in tables and plots.
        method, ramp, factor: the RoPE scaling the model was evaluated with.
        stage: folder name of the stage that trained it, or None when it was not trained with this scaling.
        scores: what :func:`score` returned.

    Returns:
        Rows ready for JSON; ``perplexity`` is None where it is infinite or NaN, which JSON cannot hold.
    """
    same: dict[str, Any] = {"label": label, "method": method, "ramp": ramp, "factor": factor, "stage": stage}
    same |= {"window": scores.window, "stride": scores.stride}
    counts = {"tokens": scores.tokens, "documents": scores.documents, "score_from": scores.score_from}
    values = {mode: scores.perplexity(mode) for mode in MODES}
    return [
        {**same, "mode": mode, "perplexity": value if math.isfinite(value) else None, **counts}
        for mode, value in values.items()
    ]


def write_rows(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as a JSON list; a reader sees the old file or the whole new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(json.dumps(list(rows), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def choose_documents(encoded: Iterable[tuple[str, Any]], count: int, min_tokens: int) -> list[tuple[str, torch.Tensor]]:
    """The same `count` documents everywhere: those of at least `min_tokens` tokens, in order of sha256 of their name.

    The order depends on names alone, so neither the order of files on a disk nor adding workers changes the choice;
    documents are read one at a time and only the chosen ones are kept.

    Args:
        encoded: ``(name, token ids [tokens])`` of all candidates; names are unique.
        count: documents wanted; fewer are returned (and a warning logged) where fewer are long enough.
        min_tokens: shortest document that can be scored.

    Raises:
        DataError: when not one document is long enough.
    """
    lengths: list[int] = []

    def long_enough() -> Iterable[tuple[str, Any]]:
        for name, tokens in encoded:
            lengths.append(len(tokens))
            if len(tokens) >= min_tokens:
                yield name, tokens

    chosen = heapq.nsmallest(count, long_enough(), key=lambda item: hashlib.sha256(item[0].encode()).digest())
    if not chosen:
        seen = f"{len(lengths)} documents" + (f", the longest of {max(lengths)} tokens" if lengths else "")
        raise DataError(
            f"no held-out document can be scored: got {seen}; allowed: at least {min_tokens} tokens; "
            "fix: evaluate smaller windows (eval.windows), fewer blocks (eval.windows_per_document), "
            "or other documents (eval.source, eval.split, data.held_out)"
        )
    if len(chosen) < count:
        log.warning("eval.documents=%d, but only %d documents have %d tokens", count, len(chosen), min_tokens)
    return [(name, torch.as_tensor(tokens).long()) for name, tokens in chosen]


def _jobs(documents: Sequence[torch.Tensor], window: int, stride: int, score_from: int | None, bos: bool) -> list[_Job]:
    jobs: list[_Job] = []
    for tokens in documents:
        for span in sliding_windows(len(tokens), window, stride, score_from, bos):
            jobs.append(_Job(len(jobs), tokens, span))
    if not jobs:
        raise DataError(
            f"nothing to score: got {len(documents)} documents of {[len(d) for d in documents[:8]]} tokens; "
            "allowed: one document of two tokens or more; fix: check eval.source and eval.split"
        )
    return jobs


def _batches(jobs: Sequence[_Job], batch_tokens: int) -> Iterable[list[_Job]]:
    """Windows of equal shape together, so that nothing is padded and no padding mask is needed."""
    groups: dict[tuple[int, int], list[_Job]] = {}
    for job in jobs:
        groups.setdefault((job.window.end - job.window.begin, job.window.scored), []).append(job)
    for (length, _), group in groups.items():
        size = max(1, batch_tokens // length)
        for first in range(0, len(group), size):
            yield group[first : first + size]


def _inputs(batch: Sequence[_Job], bos_id: int | None, device: torch.device) -> torch.Tensor:
    """Token ids ``[batch, positions]``: each window without its last token, which only ever is a target."""
    ids = torch.stack([job.tokens[job.window.begin : job.window.end - 1] for job in batch]).long()
    if bos_id is not None:
        ids = torch.cat([torch.full((len(batch), 1), bos_id), ids], dim=1)
    return ids.to(device)


def _hidden(model: Any, ids: torch.Tensor, context: ContextParallel | None) -> torch.Tensor:
    """Last hidden states ``[batch, positions, hidden]``: what the output head would be applied to."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    if context is None:
        return decoder(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    part = context.shard(unlabelled(ids, positions))
    local = decoder(input_ids=part.input_ids, position_ids=part.position_ids, use_cache=False).last_hidden_state
    return context.gather(local, ids.shape[1])


def _logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
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


def _nll(model: Any, hidden: torch.Tensor, targets: torch.Tensor, logits_at_once: int) -> torch.Tensor:
    """Negative log-likelihood ``[tokens]`` in float32 of `targets` ``[tokens]`` given `hidden` ``[tokens, hidden]``."""
    vocabulary = model.get_output_embeddings().weight.shape[0]
    rows_at_once = max(1, logits_at_once // vocabulary)
    pieces = zip(hidden.split(rows_at_once), targets.split(rows_at_once), strict=True)
    return torch.cat([F.cross_entropy(_logits(model, h).float(), t, reduction="none") for h, t in pieces])


def _check_head(model: Any, ids: torch.Tensor) -> None:
    """Compare our logits of a few tokens with the model's own, so that an unknown last step cannot go unnoticed."""
    if model.get_output_embeddings() is None:
        raise ConfigError(problem("model.path", type(model).__name__, "a causal LM with an output head", "use one"))
    positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    own = model(input_ids=ids, position_ids=positions, use_cache=False).logits.float()
    ours = _logits(model, _hidden(model, ids, None))
    tolerance = (1e-3 if ours.dtype.itemsize >= 4 else 3e-2) * max(1.0, own.abs().max().item())
    ours = ours.float()
    if own.isfinite().all() and not torch.allclose(own, ours, rtol=0, atol=tolerance):
        raise ConfigError(
            problem(
                "model.path",
                f"{type(model).__name__}, which changes its logits after the output head (difference "
                f"{(own - ours).abs().max().item():.3g})",
                "plain heads, final_logit_softcapping, logits_scaling, logit_scale",
                "teach yarn_train/eval/perplexity.py:_logits what this model does",
            )
        )


@contextmanager
def _evaluating(model: Any, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Eval mode, no autograd, and autocast where a 16-bit dtype is asked for; the training mode is put back."""
    training = model.training
    autocast = torch.autocast(device.type, dtype=dtype) if dtype.itemsize < 4 else nullcontext()
    model.eval()
    try:
        with torch.inference_mode(), autocast:
            yield
    finally:
        model.train(training)
