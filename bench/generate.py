"""What a cache of unrotated keys costs per new token: python -m bench.generate

Greedy generation after prompts of several lengths, with four caches in turn, in one process. ``rotated``: keys as
transformers caches them, right for a scale that never changes. ``unrotated, fixed``: all keys rotated at each token by
one table. ``unrotated, dynamic``: the same by the table of the current length, which is new at every token beyond L.
``refilled``: everything read again at every token beyond L, which is what generation without a cache costs.

Times are CPU seconds of one thread between two forward passes, medians over tokens and rounds; each is divided by that
of ``rotated`` in the same round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from bench.measure import table
from yarn_train.config import RopeConfig
from yarn_train.eval.generate import greedy
from yarn_train.model.unrotated import dynamic, unrotated

CACHES = ("rotated", "unrotated, fixed", "unrotated, dynamic", "refilled")
Cell = tuple[int, str]


def build(given: argparse.Namespace) -> PreTrainedModel:
    """The shipped base, or a random Llama of the shape asked for."""
    torch.manual_seed(0)
    if not given.heads:
        return AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    config = LlamaConfig(
        hidden_size=given.head_dim * given.heads,
        intermediate_size=11 * given.head_dim * given.heads // 4,  # 2.7 h, Llama 2's ratio
        num_hidden_layers=given.layers,
        num_attention_heads=given.heads,
        num_key_value_heads=given.kv_heads or given.heads,
        vocab_size=4096,
        max_position_embeddings=256,
    )
    return AutoModelForCausalLM.from_config(config).eval()


@contextmanager
def moments(model: PreTrainedModel) -> Iterator[list[float]]:
    """When each forward pass ended, in CPU seconds."""
    found: list[float] = []
    head = model.get_output_embeddings()
    hook = head.register_forward_hook(lambda *_: found.append(time.process_time()))
    try:
        yield found
    finally:
        hook.remove()


def per_token(model: PreTrainedModel, cache: str, context: int, tokens: int) -> list[float]:
    """Seconds from one token to the next, after a prompt of `context` tokens."""
    prompt = torch.randint(0, model.config.vocab_size, (1, context), generator=torch.Generator().manual_seed(context))
    tables = None if cache == "unrotated, fixed" else dynamic(model.config, RopeConfig(method="yarn"))
    with nullcontext() if cache == "rotated" else unrotated(model, tables), moments(model) as ends:
        greedy(model, prompt, tokens + 1, refill=cache == "refilled")
    return [after - before for before, after in pairwise(ends)]


def measure(model: PreTrainedModel, given: argparse.Namespace) -> dict[Cell, dict[str, float]]:
    """Milliseconds per token and the ratio to ``rotated``, by context and cache."""
    seconds: dict[Cell, list[float]] = defaultdict(list)
    for repeat in range(given.repeats):
        for context in given.contexts:
            for cache in given.caches if repeat % 2 else reversed(given.caches):
                tokens = given.tokens if cache != "refilled" else 2
                seconds[context, cache].append(statistics.median(per_token(model, cache, context, tokens)))
    return {
        (context, cache): {
            "ms_per_token": 1000 * statistics.median(values),
            "x_rotated": statistics.median(a / b for a, b in zip(values, seconds[context, "rotated"], strict=True)),
        }
        for (context, cache), values in sorted(seconds.items(), key=lambda item: (item[0][0], CACHES.index(item[0][1])))
    }


def main() -> None:
    """Measure every cache at every context; a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="data/base")
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 4096, 8192])
    parser.add_argument("--tokens", type=int, default=16, help="new tokens per round")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--caches", nargs="+", choices=CACHES, default=list(CACHES[:3]))
    parser.add_argument("--heads", type=int, default=0, help="a random Llama with so many query heads; 0: --model")
    parser.add_argument("--kv-heads", type=int, default=0)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if "rotated" not in given.caches:
        parser.error("--caches needs rotated, which the others are compared with")
    torch.set_num_threads(1)
    model = build(given)
    found = measure(model, given)
    config = model.config
    shape = {
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "hidden_size": config.hidden_size,
        "original_length": config.max_position_embeddings,
    }
    if given.json:
        print(json.dumps({**shape, "rows": [{"context": c, "cache": name, **v} for (c, name), v in found.items()]}))
        return
    print(", ".join(f"{key} {value}" for key, value in shape.items()) + ", float32, one thread")
    rows = [[name, f"{c:,}", f"{v['ms_per_token']:.2f}", f"{v['x_rotated']:.2f}"] for (c, name), v in found.items()]
    print(table(["cache", "context", "ms/token", "x rotated"], rows))


if __name__ == "__main__":
    main()
