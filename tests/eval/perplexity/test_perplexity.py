from __future__ import annotations

import json
import math
import re

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from perplexity_oracles import nll_of, one_at_a_time, reference
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from yarn_train.errors import ConfigError, DataError
from yarn_train.eval.perplexity.head import CHECKED
from yarn_train.eval.perplexity.prefixes import grows, prefixes
from yarn_train.eval.perplexity.score import score
from yarn_train.eval.perplexity.scores import Scores, rows
from yarn_train.eval.perplexity.windows import sliding_windows
from yarn_train.eval.rows import write_rows
from yarn_train.intervals import interval

VOCABULARY = 61
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,  # large enough that answers depend on the context
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)).eval()


@pytest.fixture(scope="module")
def exact():
    """The same in float64, so that what differs are algorithms."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)).double().eval()


@pytest.fixture(scope="module")
def documents():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCABULARY, (n,), generator=generator) for n in (40, 57, 48)]


@pytest.mark.parametrize(("window", "stride", "bos"), [(24, 8, None), (24, 8, 3), (16, 15, 3), (16, 16, None)])
def test_token_mean_is_the_mean_of_tokens_scored_one_at_a_time(llama, documents, window, stride, bos):
    losses = one_at_a_time(llama, documents, window, stride, bos)
    scores = score(llama, documents, window, stride, bos_id=bos)
    assert scores.tokens_per_window == list(map(len, losses))
    assert scores.nll_per_window == pytest.approx([sum(of_window) for of_window in losses], rel=1e-6)
    expected = math.exp(sum(map(sum, losses)) / sum(map(len, losses)))
    assert scores.perplexity("token_mean") == pytest.approx(expected, rel=1e-6)
    if bos is not None:
        assert scores.tokens == sum(map(len, documents))


@st.composite
def protocols(draw):
    """Documents of any length, a window, a stride that it allows, and whether BOS leads each window."""
    bos = draw(st.sampled_from([None, 3]))
    window = draw(st.integers(3, 40))
    stride = draw(st.integers(1, window - (bos is not None)))
    lengths = draw(st.lists(st.integers(2, 70), min_size=1, max_size=3))
    return lengths, window, stride, bos


@settings(max_examples=25, deadline=None)
@given(protocols())
@example(([40, 57, 48], 24, 8, None))
@example(([40, 57, 48], 25, 24, 3))
@example(([64, 32], 16, 16, None))
@example(([7], 3, 3, None))  # the last window is one token without context
def test_window_mean_and_truncate_are_the_references(exact, protocol):
    lengths, window, stride, bos = protocol
    generator = torch.Generator().manual_seed(sum(lengths))
    documents = [torch.randint(VOCABULARY, (n,), generator=generator) for n in lengths]
    scores = score(exact, documents, window, stride, bos_id=bos)
    assert scores.perplexity("window_mean") == pytest.approx(reference(exact, documents, window, stride, bos), rel=1e-6)
    text = window - (bos is not None)
    alone = score(exact, [tokens[:text] for tokens in documents], window, text, bos_id=bos)
    wanted = reference(exact, documents, window, stride, bos, truncate=True)
    assert alone.perplexity("truncate") == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("bos", [None, 3])
def test_truncated_windows_come_from_one_pass_over_the_largest(llama, documents, bos):
    windows, text = [8, 20, 31, 50], 50 - (bos is not None)
    whole = score(llama, [tokens[:text] for tokens in documents], 50, text, bos_id=bos, curves=True)
    for window, part in zip(windows, prefixes(whole, windows, bos is not None), strict=True):
        expected = reference(llama, documents, window, 1, bos, truncate=True)
        assert part.perplexity("truncate") == pytest.approx(expected, rel=1e-6)
        assert part.window == window
        assert part.tokens == sum(min(len(d), window - (bos is not None)) - (bos is None) for d in documents)


def test_ways_of_averaging_differ(llama, documents):
    scores = score(llama, documents, 24, 8)
    assert abs(scores.perplexity("window_mean") / scores.perplexity("token_mean") - 1) > 1e-4


@pytest.mark.parametrize("rope", [{"rope_type": "dynamic", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}])
def test_a_table_that_depends_on_the_length_has_no_shared_passes(rope):
    config = LlamaConfig(**SIZES, rope_parameters={**rope, "rope_theta": 1e4})
    assert grows(LlamaForCausalLM(config)) == (rope["rope_type"] == "dynamic")


def test_same_targets_have_the_context_their_window_allows(llama, documents):
    for window in (8, 16, 32):
        scores = score(llama, documents, window, 8, score_from=24)
        expected = []
        for tokens in documents:
            for begin in range(24, len(tokens), 8):
                end = min(begin + 8, len(tokens))
                start = max(0, min(end - window, begin - 1))
                expected.append(sum(nll_of(llama, tokens[start:i], tokens[i]) for i in range(begin, end)))
        assert scores.nll_per_window == pytest.approx(expected, rel=1e-5)
        assert scores.tokens == sum(len(d) - 24 for d in documents)
        assert (scores.documents, scores.score_from) == (3, 24)


@pytest.mark.parametrize("changed", [{"batch_tokens": 1}, {"batch_tokens": 64}, {"logits_at_once": 1}])
@pytest.mark.parametrize("score_from", [None, 16])
def test_batches_and_chunks_change_nothing(llama, documents, changed, score_from):
    whole = score(llama, documents, 24, 8, score_from, batch_tokens=10**6, logits_at_once=10**9)
    parts = score(llama, documents, 24, 8, score_from, **changed)
    assert parts.tokens_per_window == whole.tokens_per_window
    assert parts.nll_per_window == pytest.approx(whole.nll_per_window, rel=1e-6)


class LargestLogits(TorchDispatchMode):
    """The most bytes of a tensor that has the vocabulary as its last dimension; weights are not made under it."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.shape and tensor.shape[-1] == VOCABULARY:
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return out


@pytest.mark.parametrize("curves", [False, True])
def test_no_more_logits_exist_than_were_allowed(llama, documents, curves):
    allowed = CHECKED * VOCABULARY  # as many as the comparison of the heads needs
    with LargestLogits() as made:
        score(llama, documents, 40, 20, logits_at_once=allowed, curves=curves)
    assert made.bytes == 4 * allowed
    with LargestLogits() as naive:
        reference(llama, documents, 40, 20)
    assert naive.bytes > 2 * made.bytes


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity(documents):
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False))
    model.get_output_embeddings().weight.data.zero_()
    scores = score(model, documents, 24, 8)
    assert scores.perplexity("token_mean") == pytest.approx(VOCABULARY, rel=1e-6)
    assert scores.perplexity("window_mean") == pytest.approx(VOCABULARY, rel=1e-6)


def test_bfloat16_autocast_is_close_and_only_where_asked(llama, documents):
    exact = score(llama, documents, 24, 8).perplexity("token_mean")
    rounded = score(llama, documents, 24, 8, dtype=torch.bfloat16).perplexity("token_mean")
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)


def test_training_mode_is_put_back_and_every_pass_is_told(llama, documents):
    seen: list[bool] = []
    llama.train()
    score(llama, documents, 24, 8, batch_tokens=1, on_batch=lambda: seen.append(llama.training))
    assert llama.training
    assert seen == [False] * sum(len(sliding_windows(len(d), 24, 8)) for d in documents)
    llama.eval()


@pytest.mark.parametrize(
    ("config", "cls"),
    [
        (Gemma2Config(**SIZES, head_dim=16, final_logit_softcapping=2.0), Gemma2ForCausalLM),
        (GraniteConfig(**SIZES, logits_scaling=8.0), GraniteForCausalLM),
        (CohereConfig(**SIZES, logit_scale=0.0625), CohereForCausalLM),
    ],
)
def test_families_that_change_their_logits(config, cls, documents):
    torch.manual_seed(2)
    model = cls(config).eval()
    assert score(model, documents, 24, 8).perplexity("window_mean") == pytest.approx(
        reference(model, documents, 24, 8), rel=1e-5
    )


def test_a_family_that_changes_its_logits_in_an_unknown_way_is_refused(documents):
    class Surprise(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 1.5
            return out

    with pytest.raises(ConfigError, match="Surprise"):
        score(Surprise(LlamaConfig(**SIZES)), documents, 24, 8)


def test_nothing_to_score_is_an_error(llama):
    with pytest.raises(DataError, match="nothing to score"):
        score(llama, [torch.tensor([1])], 8, 4)


def test_rows_have_the_published_keys_and_survive_json(tmp_path, llama, documents):
    scores = score(llama, documents, 24, 8)
    made = rows("YaRN s=16", "yarn", "by_index", 16.0, None, scores)
    assert [r["mode"] for r in made] == ["token_mean", "window_mean"]
    published = ["label", "method", "ramp", "factor", "stage", "window", "stride", "mode", "perplexity", "low", "high"]
    assert all(list(r) == [*published, "tokens", "documents", "score_from"] for r in made)
    broken = rows("broken", "pi", None, 16.0, "01_s16", Scores(8, 8, [[math.nan, 1.0]], [[8, 8]]))
    huge = rows("huge", "pi", None, 16.0, "01_s16", Scores(8, 8, [[1e9]], [[8]]))
    assert broken[0]["perplexity"] is None
    assert huge[0]["perplexity"] is None
    write_rows(tmp_path / "eval" / "perplexity.json", [*made, *broken])
    assert json.loads((tmp_path / "eval" / "perplexity.json").read_text()) == [*made, *broken]
    assert [p.name for p in (tmp_path / "eval").iterdir()] == ["perplexity.json"]


@pytest.mark.parametrize("mode", ["window_mean", "truncate"])
def test_the_interval_of_a_mean_of_windows_is_of_their_means(mode):
    generator = torch.Generator().manual_seed(3)
    counts = [[24, 8, 8], [24, 8, 8, 8, 5], [24, 3]]
    nll = [[count * (1 + torch.rand(1, generator=generator).item()) for count in of] for of in counts]
    (token, window) = rows("a", "pi", None, 2.0, None, Scores(24, 8, nll, counts), ("token_mean", mode), 200)
    means = [sum(n / c for n, c in zip(*pair, strict=True)) for pair in zip(nll, counts, strict=True)]
    expected = interval(means, [3, 5, 2], 200)
    assert expected is not None
    assert (window["perplexity"], window["low"], window["high"]) == pytest.approx(expected.exp())
    assert window["low"] != token["low"]
    assert window["high"] != token["high"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "perplexity.json"
    write_rows(path, [{"perplexity": 1.0}])
    with pytest.raises(ValueError, match="JSON"):
        write_rows(path, [{"perplexity": math.nan}])
    assert json.loads(path.read_text()) == [{"perplexity": 1.0}]
    assert [p.name for p in tmp_path.iterdir()] == ["perplexity.json"]


def test_an_unknown_mode_names_the_known_ones():
    with pytest.raises(ConfigError, match=re.escape("token_mean | window_mean")):
        Scores(8, 8, [[1.0]], [[8]]).perplexity("mean")
