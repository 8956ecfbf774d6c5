"""Generation with a cache against generation without one, written with transformers' own models and explicit sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from yarn_train.config import RopeConfig
from yarn_train.eval.generate import greedy
from yarn_train.model.unrotated import dynamic, unrotated
from yarn_train.rope.frequencies import rope_table
from yarn_train.rope.hf import scaled_config

FAMILIES = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
L, PROMPT, NEW = 16, 9, 30  # from below L to beyond 2L
LENGTHS = range(PROMPT, PROMPT + NEW)


def config_of(family: str, layers: int = 3) -> Any:
    config = FAMILIES[family](
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=101,
        max_position_embeddings=L,
        initializer_range=0.3,  # decisive: attention and logits far from uniform
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        bos_token_id=None,
        eos_token_id=None,
    )
    config.sliding_window = None
    return config


def built(config: Any, attention: str = "eager") -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def prompts(rows: int = 2, length: int = PROMPT) -> Tensor:
    return torch.randint(0, 101, (rows, length), generator=torch.Generator().manual_seed(3))


@contextmanager
def answers(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Logits [B, vocabulary] of the last position of every forward pass."""
    seen: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda m, i, out: seen.append(out[:, -1]))
    try:
        yield seen
    finally:
        hook.remove()


def cached_run(model: PreTrainedModel, rope: RopeConfig, **options: Any) -> tuple[Tensor, Tensor]:
    """Tokens [B, NEW] and logits [NEW, B, vocabulary]."""
    with unrotated(model, dynamic(model.config, rope)), answers(model) as seen:
        tokens = greedy(model, prompts(), NEW, **options)
    return tokens, torch.stack(seen)


@torch.no_grad()
def without_cache(forward: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The same by running the whole sequence for each token; `forward`: ids -> logits of the last position."""
    ids, seen = prompts(), []
    for _ in range(NEW):
        seen.append(forward(ids))
        top = seen[-1].topk(2).values
        assert (top[:, 0] - top[:, 1]).min() > 1e-4, "the choice of a token must not hang on rounding"
        ids = torch.cat([ids, seen[-1].argmax(-1, keepdim=True)], dim=1)
    return ids[:, PROMPT:], torch.stack(seen)


def factor(length: int) -> float:
    return max(1.0, length / L)


def at_current_scale(model: PreTrainedModel, method: str) -> Callable[[Tensor], Tensor]:
    """The model as transformers runs it, its rotary buffers those of the current length."""

    def forward(ids: Tensor) -> Tensor:
        s = factor(ids.shape[1])
        table = rope_table(method, dim=8, theta=100.0, original_length=L, factor=s)
        rotary: Any = model.model.rotary_emb
        rotary.inv_freq.copy_(table.inv_freq)
        rotary.attention_scaling = table.attention_factor
        return model(input_ids=ids, use_cache=False).logits[:, -1]

    return forward


@torch.no_grad()
def at_own_scales(model: PreTrainedModel, method: str, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Row by row: position j sees all keys rotated at the scale of the length at which it was first read.

    No row depends on later ones, so one pass over prompt and `tokens` answers what each of them should have been.
    """

    def turned(x: Tensor, s: float, first: int) -> Tensor:
        table = rope_table(method, dim=8, theta=100.0, original_length=L, factor=s)
        angle = torch.arange(first, first + x.shape[1]).float()[:, None] * table.inv_freq
        pairs = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([pairs.real, pairs.imag], dim=-1) * table.attention_factor

    def attend(
        module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        out = torch.zeros(q.shape[0], q.shape[2], q.shape[1], q.shape[3])
        for row in range(q.shape[2]):
            s = factor(max(PROMPT, row + 1))
            for head in range(q.shape[1]):
                query, keys = turned(q[:, head, row : row + 1], s, row), turned(k[:, head // 2, : row + 1], s, 0)
                weights = (query @ keys.transpose(1, 2) * scaling).softmax(-1)
                out[:, row, head] = (weights @ v[:, head // 2, : row + 1])[:, 0]
        return out, None

    ids = torch.cat([prompts(), tokens[:, :-1]], dim=1)
    one = torch.ones(1, ids.shape[1], 8)
    model.model.rotary_emb.forward = lambda x, position_ids: (one, 0 * one)
    AttentionInterface.register("test_own_scales", attend)
    model.set_attn_implementation("test_own_scales")
    logits = model(input_ids=ids, use_cache=False).logits[:, PROMPT - 1 :]
    return logits.argmax(-1), logits.transpose(0, 1)


def same(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> bool:
    close = torch.allclose(ours[1], theirs[1], rtol=0, atol=1e-5 * max(1.0, float(theirs[1].abs().max())))
    return torch.equal(ours[0], theirs[0]) and close


CASES = [("llama", "yarn"), ("llama", "ntk"), ("llama", "pi"), ("mistral", "yarn"), ("qwen2", "yarn"), ("qwen3", "ntk")]


@pytest.mark.parametrize(("family", "method"), CASES)
def test_refilled_it_equals_running_everything_at_the_current_scale(family: str, method: str):
    model = built(config_of(family))
    rope = RopeConfig(method=method)
    ours = cached_run(model, rope, refill=True)
    assert same(ours, without_cache(at_current_scale(model, method)))


@pytest.mark.parametrize(("family", "method"), CASES)
def test_with_one_layer_nothing_needs_to_be_refilled(family: str, method: str):
    """The keys of the first layer know nothing of any scale: what the cache holds is right for ever."""
    model = built(config_of(family, layers=1))
    ours = cached_run(model, RopeConfig(method=method))
    assert same(ours, without_cache(at_current_scale(model, method)))


@pytest.mark.parametrize("family", FAMILIES)
def test_with_more_layers_every_position_keeps_the_scale_it_was_read_at(family: str):
    model = built(config_of(family))
    ours = cached_run(model, RopeConfig(method="yarn"))
    exact = without_cache(at_current_scale(built(config_of(family)), "yarn"))
    assert same(ours, at_own_scales(model, "yarn", ours[0]))
    assert not same(ours, exact)


def test_rotated_keys_in_the_cache_are_wrong():
    """One layer, so that nothing else can differ: transformers' own dynamic ntk caches each key at its own scale."""
    config = config_of("llama", layers=1)
    right = without_cache(at_current_scale(built(config), "ntk"))
    config.rope_parameters = {"rope_type": "dynamic", "factor": 1.0, "rope_theta": 100.0}
    theirs = built(config)
    with answers(theirs) as seen:
        tokens = theirs.generate(prompts(), max_new_tokens=NEW, do_sample=False, pad_token_id=0)[:, PROMPT:]
    cached_logits = torch.stack(seen)
    equal = (cached_logits - right[1]).abs().amax((1, 2)) < 1e-3
    below = [length <= L for length in LENGTHS]
    assert equal.tolist()[: sum(below)] == [True] * sum(below), "up to L they agree"
    assert not equal[sum(below)], "and not with the first token beyond"
    assert not torch.equal(tokens, right[0])
    # the same model without a cache is right, so the cache is what is wrong
    with torch.no_grad():
        whole = torch.cat([prompts(), right[0]], dim=1)[:, :-1]
        assert torch.allclose(theirs(whole, use_cache=False).logits[:, -1], right[1][-1], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fixed_scale_equals_transformers_own_generation(family: str):
    config = scaled_config(config_of(family), RopeConfig(method="yarn", factor=4.0))
    model = built(config)
    with answers(model) as seen:
        theirs = model.generate(prompts(), max_new_tokens=NEW, do_sample=False, pad_token_id=0)[:, PROMPT:]
    logits = torch.stack(seen)
    with answers(model) as seen:
        assert torch.equal(greedy(model, prompts(), NEW), theirs)
    assert torch.allclose(torch.stack(seen), logits, atol=1e-5 * float(logits.abs().max()))
    with unrotated(model), answers(model) as seen:
        assert torch.equal(greedy(model, prompts(), NEW), theirs)
    assert torch.allclose(torch.stack(seen), logits, atol=1e-5 * float(logits.abs().max()))


@pytest.mark.parametrize("chunk", [1, 4, 39, 100])
def test_a_prompt_in_pieces_is_the_same_prompt(chunk: int):
    model, long = built(config_of("llama")), prompts(2, 40)
    with unrotated(model, dynamic(model.config, RopeConfig(method="yarn"))):
        with answers(model) as whole:
            expected = greedy(model, long, 4)
        with answers(model) as pieces:
            assert torch.equal(greedy(model, long, 4, chunk=chunk), expected)
    assert torch.allclose(torch.stack(whole), torch.stack(pieces[-4:]), atol=1e-5)
    assert len(pieces) == -(-40 // chunk) + 3
    assert torch.equal(greedy(model, long, 4, chunk=chunk), greedy(model, long, 4))


def test_transformers_own_generation_takes_the_cache_too_and_padding_is_refused():
    model, ones = built(config_of("llama")), torch.ones(2, PROMPT, dtype=torch.int64)
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    with unrotated(model, dynamic(model.config, RopeConfig(method="yarn"))):
        theirs = model.generate(prompts(), attention_mask=ones, **options)[:, PROMPT:]
        assert torch.equal(greedy(model, prompts(), NEW), theirs)
        ones[1, 0] = 0
        with pytest.raises(ValueError, match="without padding"):
            model.generate(prompts(), attention_mask=ones, **options)


def test_a_second_sequence_knows_nothing_of_the_first():
    model = built(config_of("llama"))
    with unrotated(model, dynamic(model.config, RopeConfig(method="ntk"))):
        alone = greedy(model, prompts(1, 5), 20)
        greedy(model, prompts(2, 60), 5)
        assert torch.equal(greedy(model, prompts(1, 5), 20), alone)


def _until(row: Sequence[int], stop: int) -> list[int]:
    return list(row[: row.index(stop) + 1]) if stop in row else list(row)


def test_rows_stop_at_their_own_stop_tokens_and_all_end_together():
    model, given = built(config_of("llama")), prompts(3)
    free = greedy(model, given, NEW).tolist()
    stop = free[0][3]
    ends = [len(_until(row, stop)) for row in free]
    assert len(set(ends)) > 1, "rows must end at different places for this to test anything"
    found = greedy(model, given, NEW, stop=[stop, 1000]).tolist()
    for row, whole in zip(found, free, strict=True):
        assert _until(row, stop) == _until(whole, stop)
        assert set(row[len(_until(row, stop)) :]) <= {stop}
    assert len(found[0]) == max(ends)
    assert greedy(model, given[:1], NEW, stop=[stop]).tolist() == [_until(free[0], stop)]


@pytest.mark.parametrize(("length", "new"), [(0, 3), (4, 0)])
def test_nothing_to_continue_or_to_generate_is_refused(length: int, new: int):
    with pytest.raises(ValueError, match="nothing to continue"):
        greedy(built(config_of("llama")), prompts(2, length), new)


def test_the_model_is_as_before():
    model = built(config_of("llama"))
    rotary = model.model.rotary_emb
    with pytest.raises(RuntimeError), unrotated(model):
        raise RuntimeError
    assert model.model.rotary_emb is rotary
    greedy(model, prompts(), 1)
    assert model.config._attn_implementation == "eager"
