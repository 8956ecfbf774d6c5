"""What is asked of the model: inputs, the tokens whose probability counts, and how they go into batches. Pure numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Question:
    """One input and every continuation that is scored on it.

    Attributes:
        tokens: ``[positions]`` int32 that the model sees.
        targets: per continuation its tokens; the last of them is predicted at the last position.
        slots: per continuation its place in the list of answers.
    """

    tokens: np.ndarray
    targets: tuple[np.ndarray, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """Log-probability of a continuation in nats, and whether each of its tokens is the most likely one."""

    log_probability: float
    greedy: bool


def questions(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], max_length: int) -> tuple[list[Question], int]:
    """Pairs of (context, continuation) as questions; continuations of the same input share one pass of the model.

    Inputs are context and continuation without its last token, of which the last `max_length` tokens are kept.

    Args:
        pairs: token ids; neither part is empty and a continuation has at most `max_length` tokens.

    Returns:
        The questions, longest first, and how many pairs lost their beginning.
    """
    together: dict[bytes, tuple[np.ndarray, list[np.ndarray], list[int]]] = {}
    cut = 0
    for slot, (context, continuation) in enumerate(pairs):
        whole = np.asarray([*context, *continuation], dtype=np.int32)
        cut += len(whole) > max_length + 1
        tokens, target = whole[-(max_length + 1) :][:-1], np.asarray(continuation, dtype=np.int32)
        entry = together.setdefault(tokens.tobytes(), (tokens, [], []))
        entry[1].append(target)
        entry[2].append(slot)
    found = [Question(tokens, tuple(targets), tuple(slots)) for tokens, targets, slots in together.values()]
    return sorted(found, key=lambda question: -len(question.tokens)), cut


def batches(asked: Sequence[Question], batch_tokens: int) -> list[list[Question]]:
    """Neighbours together, at most `batch_tokens` positions with the padding, or one question that is longer.

    Args:
        asked: longest first.
    """
    found: list[list[Question]] = []
    for question in asked:
        full = not found or (len(found[-1]) + 1) * len(found[-1][0].tokens) > batch_tokens
        if full:
            found.append([question])
        else:
            found[-1].append(question)
    return found


def padded(batch: Sequence[Question]) -> np.ndarray:
    """``[batch, positions]`` int64, zeros behind shorter inputs.

    Nothing needs a mask: a causal position never attends to what comes after it, and positions are counted from the
    beginning.
    """
    ids = np.zeros((len(batch), max(len(question.tokens) for question in batch)), dtype=np.int64)
    for row, question in zip(ids, batch, strict=True):
        row[: len(question.tokens)] = question.tokens
    return ids
