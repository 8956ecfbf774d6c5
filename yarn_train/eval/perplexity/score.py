"""Sliding-window perplexity of any causal language model, without ever holding all logits of a window."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch

from ...errors import DataError
from ...parallel.context import ContextParallel
from ..loading import Ranks
from .head import LOGITS_AT_ONCE, check_head, hidden_states, token_losses
from .scores import Scores
from .windows import Window, sliding_windows

log = logging.getLogger(__name__)


class _Job(NamedTuple):
    """One window of one document.

    Attributes:
        place: which document, and which of its windows.
        whole: the loss at every position is wanted, not of the scored tokens alone.
    """

    place: tuple[int, int]
    tokens: torch.Tensor
    window: Window
    whole: bool


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
    on_batch: Callable[[], None] | None = None,
    ranks: Ranks | None = None,
    curves: bool = False,
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
        on_batch: called after every forward pass.
        ranks: those that share each window (they call this with the same documents) and, where weights are sharded,
            make equally many passes (a rank may have no documents there); None is this one alone.
        curves: also the loss at every position of each document's first window. It costs the output head on the
            positions that are not scored anyway, and no pass: the largest window's first one begins where the document
            does.

    Raises:
        ConfigError: window sizes that make no sense, or a model whose logits this cannot reproduce.
        DataError: nothing to score.
    """
    found = [sliding_windows(len(tokens), window, stride, score_from, bos_id is not None) for tokens in documents]
    jobs = [
        _Job((number, place), documents[number], span, curves and place == 0)
        for number, spans in enumerate(found)
        for place, span in enumerate(spans)
    ]
    if not jobs and not (ranks and ranks.lockstep):
        raise DataError(
            f"nothing to score: got {len(documents)} documents of {[len(d) for d in documents[:8]]} tokens; "
            "allowed: one document of two tokens or more; fix: check eval.source and eval.split"
        )
    target = torch.device(device if device is not None else next(model.parameters()).device)
    sums = [[0.0] * len(spans) for spans in found]
    kept = [np.zeros(0, dtype=np.float32)] * (len(documents) if curves else 0)
    batches, context = _batches(jobs, batch_tokens), ranks.context if ranks and ranks.mesh.context > 1 else None
    with _evaluating(model, target, dtype):
        check_head(model, target)
        for batch in ranks.in_step(batches) if ranks else batches:
            if batch is None:
                assert ranks
                ranks.join(model)
                continue
            losses = _losses(model, batch, bos_id, target, context, logits_at_once)
            for job, of_job in zip(batch, losses, strict=True):
                document, place = job.place
                sums[document][place] = of_job[-job.window.scored :].sum(dtype=np.float64).item()
                if job.whole:
                    kept[document] = of_job
            if on_batch:
                on_batch()
    if not all(math.isfinite(value) for document in sums for value in document):
        log.warning("window %d: the model's answers are not finite; its perplexity is reported as null", window)
    return Scores(window, stride, sums, [[span.scored for span in spans] for spans in found], score_from, kept)


def _losses(
    model: Any,
    batch: Sequence[_Job],
    bos_id: int | None,
    device: torch.device,
    context: ContextParallel | None,
    logits_at_once: int,
) -> np.ndarray:
    """Losses of the last tokens of each window: those that are scored, or all with a context. float32 [batch, n]."""
    ids = torch.stack([job.tokens[job.window.begin : job.window.end - 1] for job in batch]).long()
    if bos_id is not None:
        ids = torch.cat([torch.full((len(batch), 1), bos_id), ids], dim=1)
    wanted = ids.shape[1] if batch[0].whole else batch[0].window.scored
    # Only the last token of a window is no input, so the scored positions are always the last ones.
    targets = torch.stack([job.tokens[job.window.end - wanted : job.window.end] for job in batch])
    hidden = hidden_states(model, ids.to(device), context)[:, -wanted:].flatten(0, 1)
    losses = token_losses(model, hidden, targets.flatten().to(device).long(), logits_at_once)
    return losses.view(len(batch), wanted).cpu().numpy()


def _batches(jobs: Sequence[_Job], batch_tokens: int) -> Iterator[list[_Job]]:
    """Windows of equal shape together, so that nothing is padded and no padding mask is needed."""
    groups: dict[tuple[int, int, bool], list[_Job]] = {}
    for job in jobs:
        groups.setdefault((job.window.end - job.window.begin, job.window.scored, job.whole), []).append(job)
    for (length, _, _), group in groups.items():
        size = max(1, batch_tokens // length)
        for first in range(0, len(group), size):
            yield group[first : first + size]


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
