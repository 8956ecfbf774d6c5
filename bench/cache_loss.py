"""What each kind of cache costs in loss when the scale follows the sequence: python -m bench.cache_loss FILE ...

Text is read token by token at s = max(1, l'/L), from a prompt of L/2 tokens to 4L, and the loss of the next token is
taken at every 16th position beyond L. ``recomputed`` runs everything so far at the current scale for each of them, as
generation without a cache does. ``unrotated`` caches keys before rotation; upper layers keep what they answered at
earlier scales. ``rotated`` caches each key as it was rotated at its own time.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from bench.measure import table
from yarn_train.config import RopeConfig
from yarn_train.model.cached import cached
from yarn_train.model.tables import set_table
from yarn_train.model.unrotated import Tables, dynamic, unrotated

CACHES = ("recomputed", "unrotated", "rotated")
EVERY = 16


def loss(logits: Tensor, ids: Tensor, position: int) -> float:
    """Of the token after `position`."""
    return F.cross_entropy(logits[0, -1:], ids[0, position + 1 : position + 2]).item()


def through_cache(model: Any, ids: Tensor, begin: int, places: set[int], before: Callable[[int], None]) -> list[float]:
    """Losses at `places`, one token at a time after the first `begin`; `before` is told the length of each step."""
    cache, found, start = DynamicCache(), [], 0
    for end in range(begin, ids.shape[1]):
        before(end)
        positions = torch.arange(start, end).unsqueeze(0)
        given = {"position_ids": positions, "past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        logits = model(input_ids=ids[:, start:end], **given).logits
        start = end
        if end - 1 in places:
            found.append(loss(logits, ids, end - 1))
    return found


def losses(model: Any, ids: Tensor, tables: Tables, places: list[int], begin: int) -> dict[str, list[float]]:
    """Of each cache, at `places`."""
    found: dict[str, list[float]] = {"recomputed": []}
    with unrotated(model, tables):
        found["unrotated"] = through_cache(model, ids, begin, set(places), lambda length: None)
    with cached(model):
        found["rotated"] = through_cache(
            model, ids, begin, set(places), lambda length: set_table(model, tables(length))
        )
    for place in places:
        set_table(model, tables(place + 1))
        logits = model(ids[:, : place + 1], use_cache=False, logits_to_keep=1).logits
        found["recomputed"].append(loss(logits, ids, place))
    set_table(model, tables(1))
    return found


@torch.inference_mode()
def main() -> None:
    """Every method, every cache: the mean loss, and the paired difference from recomputing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="texts; 20,000 characters at their beginning are left out")
    parser.add_argument("--model", default="data/base")
    parser.add_argument("--methods", nargs="+", default=["pi", "ntk", "yarn"])
    given = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    length = model.config.max_position_embeddings
    places = list(range(length + EVERY // 2, 4 * length, EVERY))
    texts = []
    for file in given.files:
        text = file.read_text(encoding="utf-8")[20_000:][: 40 * length]
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False, verbose=False).input_ids]
        texts.append(torch.tensor([ids[: 4 * length + 1]]))
    rows = []
    for method in given.methods:
        tables = dynamic(model.config, RopeConfig(method=method))
        parts = [losses(model, ids, tables, places, length // 2) for ids in texts]
        of = {cache: [value for part in parts for value in part[cache]] for cache in CACHES}
        for cache in CACHES:
            more = [a - b for a, b in zip(of[cache], of["recomputed"], strict=True)]
            error = statistics.stdev(more) / len(more) ** 0.5
            rows.append(
                [method, cache, f"{statistics.mean(of[cache]):.4f}", f"{statistics.mean(more):+.4f}", f"{error:.4f}"]
            )
    print(f"{len(texts)} texts, L = {length}, {len(texts) * len(places)} positions from L to 4L, nats per token")
    print(table(["method", "cache", "loss", "more", "standard error"], rows))


if __name__ == "__main__":
    main()
