"""Which tokens of a document are scored, and with which context: pure functions, no tensors.

A causal model gives token ``i`` a probability from the tokens before it, so of a window ``[begin, end)`` the model is
fed ``tokens[begin : end - 1]`` (after a BOS token where one is used) and answers for ``tokens[score_begin:end]``.
"""

from __future__ import annotations

from typing import NamedTuple

from ...errors import ConfigError, problem


class Window(NamedTuple):
    """Token indices of one forward pass over a document: context from `begin`, scored from `score_begin` to `end`."""

    begin: int
    end: int
    score_begin: int

    @property
    def scored(self) -> int:
        """Number of tokens this window scores."""
        return self.end - self.score_begin


def sliding_windows(
    num_tokens: int, window: int, stride: int, score_from: int | None = None, bos: bool = False
) -> list[Window]:
    """Windows that together score each wanted token of a document exactly once.

    With ``score_from=None`` this is the protocol of the Hugging Face perplexity guide and of the YaRN reference
    (jquesnelle/yarn, eval/perplexity.py): windows begin at 0, stride, 2 * stride, ... and each scores what the one
    before it did not reach, so the first window scores all of its tokens and later ones `stride` tokens each. A token
    without any context (the first of the document; with ``stride == window`` the first of every window) is not scored.

    With ``score_from=k`` every window size scores the SAME tokens ``[k, num_tokens)`` in blocks of `stride`, each with
    up to `window` tokens of context and block together: perplexities at different window sizes then differ by the
    context alone, not by which part of a document was easy. Where ``stride == window`` the span reaches one token
    further back, so that the first scored token has a context too; the model still sees `window` positions.

    Args:
        num_tokens: tokens of the document (its own BOS included, if it was encoded with one).
        window: most positions the model sees at once.
        stride: tokens that a window moves by.
        score_from: index of the first scored token, or None for the reference protocol.
        bos: the caller puts a BOS token in front of every window; it takes one of the window's positions, and gives the
            first token of a window a context.

    Returns:
        Windows in document order; empty where there is nothing to score.

    Raises:
        ConfigError: sizes that would skip tokens or leave nothing to score with.
    """
    _check(num_tokens, window, stride, score_from, bos)
    if score_from is None:
        return _reference_windows(num_tokens, window - bos, stride, bos)
    return _same_target_windows(num_tokens, window - bos, stride, score_from, bos)


def default_windows(original_length: int, largest_factor: float) -> list[int]:
    """Context windows to evaluate: L, 2L, 4L, ... and last, exactly, ``largest_factor * L``.

    Raises:
        ConfigError: when the length or the factor is below 1.
    """
    if original_length < 1 or largest_factor < 1:
        raise ConfigError(
            problem(
                "eval.windows",
                f"L={original_length}, factor={largest_factor:g}",
                "L >= 1 and factor >= 1",
                "state rope.original_max_position_embeddings, or list eval.windows",
            )
        )
    largest = round(original_length * largest_factor)
    windows = []
    while original_length < largest:
        windows.append(original_length)
        original_length *= 2
    return [*windows, largest]


def shared_targets(largest_window: int, stride: int, windows_per_document: int) -> tuple[int, int]:
    """Where to start scoring, and how many tokens of a document to use, so that all windows share their targets.

    The earliest block is the first one that the largest window can give a full context.

    Returns:
        ``(score_from, num_tokens)``: score ``[score_from, num_tokens)`` of each document's first `num_tokens` tokens.
    """
    score_from = max(largest_window - stride, 1)
    return score_from, score_from + windows_per_document * stride


def _reference_windows(num_tokens: int, text: int, stride: int, bos: bool) -> list[Window]:
    """The reference's windows, but for those without a token to score.

    Without BOS and with ``stride == window`` the last window may be one token, which has no context. The reference
    takes the mean over no tokens there, which is NaN and with it the whole result; here there is no such window.
    """
    windows = []
    previous_end = 0
    for begin in range(0, num_tokens, stride):
        end = min(begin + text, num_tokens)
        window = Window(begin, end, max(previous_end, begin + (not bos)))
        if window.scored > 0:
            windows.append(window)
        previous_end = end
        if end == num_tokens:
            break
    return windows


def _same_target_windows(num_tokens: int, text: int, stride: int, score_from: int, bos: bool) -> list[Window]:
    windows = []
    for score_begin in range(score_from, num_tokens, stride):
        end = min(score_begin + stride, num_tokens)
        begin = max(0, min(end - text, score_begin - (not bos)))
        windows.append(Window(begin, end, score_begin))
    return windows


def _check(num_tokens: int, window: int, stride: int, score_from: int | None, bos: bool) -> None:
    found = []
    if window < 2:
        found.append(problem("eval.windows", window, ">= 2 tokens", "one token has no context to be scored with"))
    if stride < 1:
        found.append(problem("eval.stride", stride, ">= 1", "use the stride of the paper, 256"))
    # In the reference protocol a stride beyond the text in a window would leave tokens between windows unscored.
    most = window - bos if score_from is None else window
    if stride > most:
        allowed = f"<= {most}, or tokens between windows of {window} would not be scored"
        found.append(problem("eval.stride", stride, allowed, "lower eval.stride or evaluate larger windows"))
    first = 0 if bos else 1
    if score_from is not None and not first <= score_from < num_tokens:
        found.append(
            problem(
                "score_from", score_from, f"{first} to {num_tokens - 1}, inside the document", "use longer documents"
            )
        )
    if found:
        raise ConfigError(found)
