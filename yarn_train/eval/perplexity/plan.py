"""What a perplexity evaluation scores: documents (already cut), windows and where scoring begins."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from ...config import Config, DataConfig, EvalConfig
from ...errors import ConfigError, problem
from ...option_rules_eval import max_tokens_problems
from ..documents import held_out
from ..job import Say
from .scores import MODES, TRUNCATED_MODES
from .windows import default_windows, shared_targets


@dataclass(frozen=True)
class Plan:
    """What is scored.

    Attributes:
        documents: already cut, ``[tokens]`` int64 each.
        windows: ascending.
        stride: tokens that a window moves by; without use where `truncate` is set.
        score_from: index of the first scored token of a document; None: the reference protocol.
        bos_id: put in front of every window; None: nothing is.
        truncate: one pass over the beginning of each document per window, and no sliding.
        positions: also the loss at every position of the largest window.
        bootstrap: resamples of the documents.
        batch_tokens: positions per forward pass.
    """

    documents: list[torch.Tensor]
    names: list[str]
    windows: list[int]
    stride: int
    score_from: int | None
    bos_id: int | None
    truncate: bool = False
    positions: bool = False
    bootstrap: int = 0
    batch_tokens: int = 16384

    @property
    def modes(self) -> tuple[str, ...]:
        """The ways of averaging that rows are written for."""
        return TRUNCATED_MODES if self.truncate else MODES

    def wants_curve(self, window: int) -> bool:
        """Whether the loss at every position is wanted at this window: the largest, where a document fills it."""
        text = window - (self.bos_id is not None)
        return self.positions and window == max(self.windows) and any(len(d) >= text for d in self.documents)

    def settings(self) -> dict[str, Any]:
        """Everything beside the model that decides the numbers; rows of other settings are never mixed with these."""
        digest = hashlib.sha256(b"".join(d.numpy().tobytes() for d in self.documents)).hexdigest()
        return {
            "documents": self.names,
            "content_sha256": digest,
            "windows": self.windows,
            "stride": self.stride,
            "score_from": self.score_from,
            "bos": self.bos_id,
            "truncate": self.truncate,
            "bootstrap": self.bootstrap,
        }


def plan(
    cfg: Config,
    data: DataConfig,
    tokenizer: Any,
    original_length: int,
    largest_factor: float,
    say: Say = lambda line: None,
) -> Plan:
    """Choose windows and held-out documents.

    Args:
        data: where documents come from: :func:`evaluated`, its revision perhaps pinned.
        say: called with one line where eval.stride is too long for the smallest window.

    Raises:
        ConfigError: eval.min_tokens allows documents that end before what is to be scored, or eval.max_tokens cuts them
            before the end of the largest window.
        DataError: no held-out document is long enough.
    """
    options: EvalConfig = cfg.eval
    windows = sorted(options.windows) or default_windows(original_length, largest_factor)
    bos = tokenizer.bos_token_id if options.bos else None
    # A window that slides by its whole length would have no context; BOS takes one of its positions.
    stride = min(options.stride, windows[0] - (bos is not None and options.windows_per_document is None))
    if found := max_tokens_problems(options.max_tokens, windows[-1]):
        raise ConfigError(found)
    if stride < options.stride and not options.truncate:
        say(f"every window moves by {stride} tokens, not {options.stride}: the smallest, {windows[0]}, allows no more")
    score_from, num_tokens, shortest = None, options.max_tokens, options.max_tokens or windows[-1] + 1
    if options.truncate:
        shortest = windows[-1] - (bos is not None)
        num_tokens = min(shortest, options.max_tokens or shortest)
    elif options.windows_per_document is not None:
        score_from, num_tokens = shared_targets(windows[-1], stride, options.windows_per_document)
        shortest = num_tokens
        if options.min_tokens is not None and options.min_tokens < shortest:
            allowed = f">= {shortest}, where the largest window's {options.windows_per_document} blocks end"
            fix = "leave it out, or score whole documents: eval.windows_per_document=null"
            raise ConfigError(problem("eval.min_tokens", options.min_tokens, allowed, fix))
    chosen = held_out(options, data, tokenizer, options.min_tokens or shortest, num_tokens)
    return Plan(
        documents=[tokens for _, tokens in chosen],
        names=[name for name, _ in chosen],
        windows=windows,
        stride=stride,
        score_from=score_from,
        bos_id=bos,
        truncate=options.truncate,
        positions=options.positions,
        bootstrap=options.bootstrap,
        batch_tokens=options.batch_tokens,
    )
