"""Our model as lm-evaluation-harness sees one. Runs on the main rank only.

Token for token it asks what the harness's own transformers model asks (lm_eval/models/huggingface.py): the tokenizer's
own special tokens, BOS (else EOS) in front of nothing, prompts cut on the left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ...errors import DataError, problem
from .sharing import Prompts, Sharing

NEW_TOKENS = 256  # where a task does not say how many, as in the harness
GREEDY = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "num_beams"}


class LanguageModel(TemplateLM):
    """Answers of a model that is loaded already.

    Attributes:
        cut: prompts of all requests so far that were longer than `max_length`.
    """

    def __init__(self, tokenizer: Any, sharing: Sharing, max_length: int):
        """
        Args:
            max_length: positions the model sees at most.

        Raises:
            DataError: the tokenizer has neither BOS nor EOS.
        """
        super().__init__()
        self.tokenizer, self.sharing, self.max_length, self.cut = tokenizer, sharing, max_length, 0
        if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            allowed = "BOS or EOS, to stand in front of a text that has nothing in front of it"
            raise DataError(problem("model.path", "a tokenizer with neither", allowed, "give it one of them"))
        self._encoded = lru_cache(maxsize=64)(_encoder(tokenizer, self.prefix_token_id))  # contexts come several times

    @property
    def eot_token_id(self) -> int:
        """End of a text, as far as the tokenizer has one."""
        eos = self.tokenizer.eos_token_id
        return int(self.tokenizer.bos_token_id if eos is None else eos)

    @property
    def prefix_token_id(self) -> int:
        """What stands in front of a text without context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; None adds what the tokenizer adds by itself, unless the text begins with BOS already."""
        return list(self._encoded(string, add_special_tokens))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-probability in nats of each continuation, and whether it is the greedy one."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        return self._answers([(context, continuation) for _, context, continuation in requests])

    def _answers(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        longest = max((len(continuation) for _, continuation in pairs), default=0)
        if longest > self.max_length:
            fix = f"harness.max_length={longest} or more, or other tasks"
            raise DataError(
                problem("harness.max_length", self.max_length, f"at least an answer's {longest} tokens", fix)
            )
        answers, cut = self.sharing.log_probabilities(pairs, self.max_length)
        self.cut += cut
        return [(answer.log_probability, answer.greedy) for answer in answers]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-probability in nats of each whole text, in windows of `max_length` that do not overlap."""
        pairs: list[tuple[list[int], list[int]]] = []
        ends = [0]
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            pairs += map(make_disjoint_window, windows)
            ends.append(len(pairs))
        nats = [log_probability for log_probability, _ in self._answers(pairs)]
        return [sum(nats[begin:end]) for begin, end in pairwise(ends)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Greedy continuations, cut in front of the first stop string."""
        alike: dict[tuple[int, int, tuple[str, ...]], list[tuple[int, list[int]]]] = {}
        for slot, request in enumerate(requests):
            context, asked = request.args
            new_tokens, until = self._generation(request.task_name, asked)
            room = self.max_length - new_tokens
            prompt = self.tok_encode(context)
            self.cut += len(prompt) > room
            kept = prompt[-room:]
            alike.setdefault((len(kept), new_tokens, until), []).append((slot, kept))
        found = self.sharing.continuations([batch for key in sorted(alike) for batch in self._batches(key, alike[key])])
        untils = {slot: list(key[2]) for key, members in alike.items() for slot, _ in members}
        texts = {slot: self._text(tokens) for slot, tokens in found.items()}
        return [postprocess_generated_text(texts[slot], untils[slot], None) for slot in range(len(requests))]

    def _text(self, tokens: list[int]) -> str:
        end = tokens.index(self.eot_token_id) if self.eot_token_id in tokens else len(tokens)
        return str(self.tokenizer.decode(tokens[:end], skip_special_tokens=True))

    def _generation(self, task: str | None, asked: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
        """New tokens and stop strings of a request.

        Raises:
            DataError: it samples, searches or leaves no room for a prompt.
        """
        wanted = dict(normalize_gen_kwargs(asked, NEW_TOKENS))
        odd = sorted(set(wanted) - GREEDY)
        if wanted["do_sample"] or wanted.get("num_beams", 1) != 1 or odd:
            allowed = "tasks that generate greedily: no sampling, no beams, no other options"
            raise DataError(problem("harness.tasks", f"{task} with {asked}", allowed, "leave it out"))
        new_tokens: int = wanted["max_gen_toks"]
        if new_tokens >= self.max_length:
            allowed = f"more than the {new_tokens} tokens that {task} generates"
            fix = f"harness.max_length={2 * new_tokens}, a larger model, or other tasks"
            raise DataError(problem("harness.max_length", self.max_length, allowed, fix))
        return new_tokens, tuple(handle_stop_sequences(wanted["until"], self.tokenizer.eos_token))

    def _batches(
        self, key: tuple[int, int, tuple[str, ...]], members: Sequence[tuple[int, list[int]]]
    ) -> list[Prompts]:
        length, new_tokens, until = key
        size = max(1, self.sharing.batch_tokens // (length + new_tokens))
        parts = [members[first : first + size] for first in range(0, len(members), size)]
        stop = self._stops(until)
        return [
            Prompts(np.array([ids for _, ids in part]), tuple(slot for slot, _ in part), new_tokens, stop)
            for part in parts
        ]

    def _stops(self, until: Sequence[str]) -> frozenset[int]:
        """Ids whose text holds a stop string: what comes after one of them is cut off anyway."""
        return frozenset(i for i, text in enumerate(self._texts) if any(stop in text for stop in until if stop))

    @cached_property
    def _texts(self) -> list[str]:
        return [self.tokenizer.decode([i]) for i in range(len(self.tokenizer))]


def _encoder(tokenizer: Any, prefix: int) -> Callable[[str, bool | None], tuple[int, ...]]:
    bos = tokenizer.decode(prefix)

    def encode(string: str, add_special_tokens: bool | None) -> tuple[int, ...]:
        special = not string.startswith(bos) if add_special_tokens is None else add_special_tokens
        return tuple(tokenizer.encode(string, add_special_tokens=special, verbose=False))  # prompts are cut later

    return encode
