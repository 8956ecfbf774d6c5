from __future__ import annotations

import hashlib
import json
import math
import re

import numpy as np
import pytest
import torch
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
from yarn_train.eval.perplexity import Scores, choose_documents, rows, score, write_rows

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
def documents():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCABULARY, (n,), generator=generator) for n in (40, 57, 48)]


@torch.no_grad()
def nll_of(model, context, target) -> float:
    """Plain definition: -log p(target | context), all logits, float64 softmax."""
    return -model(torch.stack([context])).logits[0, -1].double().log_softmax(-1)[target].item()


def brute_force(model, documents, window, stride):
    """Every token scored once, with the context the protocol gives it: one forward pass per token."""
    sums = []
    for tokens in documents:
        scored = 1
        for begin in range(0, len(tokens), stride):
            end = min(begin + window, len(tokens))
            sums.append([nll_of(model, tokens[begin:i], tokens[i]) for i in range(scored, end)])
            scored = end
            if end == len(tokens):
                break
    return sums


@torch.no_grad()
def reference(model, documents, max_length, stride, bos):
    """The reference's algorithm, from its description: labels of -100, model's own mean loss, mean of means."""
    means = []
    for tokens in documents:
        labels, previous = tokens[None], 0
        for begin in range(0, labels.shape[1], stride):
            end = min(begin + max_length - (bos is not None), labels.shape[1])
            ids = labels[:, begin:end]
            if bos is not None:
                ids = torch.cat([torch.tensor([[bos]]), ids], dim=1)
            targets = ids.clone()
            targets[:, : -(end - previous)] = -100
            means.append(model(ids, labels=targets).loss.double())
            previous = end
            if end == labels.shape[1]:
                break
    return math.exp(torch.stack(means).mean().item())


def test_token_mean_is_the_brute_force_mean(llama, documents):
    sums = brute_force(llama, documents, 24, 8)
    scores = score(llama, documents, 24, 8)
    assert scores.tokens == sum(map(len, sums)) == sum(len(d) - 1 for d in documents)
    assert scores.nll_per_window == pytest.approx([sum(s) for s in sums], rel=1e-6)
    expected = math.exp(sum(map(sum, sums)) / sum(map(len, sums)))
    assert scores.perplexity("token_mean") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("window", "stride", "bos"), [(24, 8, None), (24, 8, 3), (25, 24, 3), (16, 16, None)])
def test_window_mean_is_the_reference(llama, documents, window, stride, bos):
    scores = score(llama, documents, window, stride, bos_id=bos)
    assert scores.perplexity("window_mean") == pytest.approx(reference(llama, documents, window, stride, bos), rel=1e-5)
    assert abs(scores.perplexity("window_mean") / scores.perplexity("token_mean") - 1) > 1e-4  # they do differ


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


def test_full_logits_are_never_built(llama, documents, monkeypatch):
    most, head = [], llama.get_output_embeddings()
    forward = head.forward
    monkeypatch.setattr(head, "forward", lambda h: most.append(h.numel() // h.shape[-1]) or forward(h))
    score(llama, documents, 32, 4, score_from=30, logits_at_once=5 * VOCABULARY)
    assert max(most[2:]) <= 5  # the first two calls compare the head with the model's own on 16 tokens
    assert max(most) <= 16


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


def test_training_mode_is_put_back_and_progress_counts_tokens(llama, documents):
    seen: list[int] = []
    llama.train()
    scores = score(llama, documents, 24, 8, on_tokens=seen.append)
    assert llama.training
    assert sum(seen) == scores.tokens
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
        reference(model, documents, 24, 8, None), rel=1e-5
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
    published = ["label", "method", "ramp", "factor", "stage", "window", "stride", "mode", "perplexity", "tokens"]
    assert all(list(r)[: len(published) + 1] == [*published, "documents"] for r in made)
    broken = rows("broken", "pi", None, 16.0, "01_s16", Scores(8, 8, [math.nan, 1.0], [8, 8], 1))
    huge = rows("huge", "pi", None, 16.0, "01_s16", Scores(8, 8, [1e9], [8], 1))
    assert broken[0]["perplexity"] is None
    assert huge[0]["perplexity"] is None
    write_rows(tmp_path / "eval" / "perplexity.json", [*made, *broken])
    assert json.loads((tmp_path / "eval" / "perplexity.json").read_text()) == [*made, *broken]
    assert [p.name for p in (tmp_path / "eval").iterdir()] == ["perplexity.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "perplexity.json"
    write_rows(path, [{"perplexity": 1.0}])
    with pytest.raises(ValueError, match="JSON"):
        write_rows(path, [{"perplexity": math.nan}])
    assert json.loads(path.read_text()) == [{"perplexity": 1.0}]
    assert [p.name for p in tmp_path.iterdir()] == ["perplexity.json"]


def test_documents_are_chosen_by_name_and_length_alone(caplog):
    encoded = [(f"doc{i}", np.arange(10 * i, dtype=np.uint16)) for i in range(20)]
    chosen = choose_documents(iter(encoded), 4, 100)
    by_hash = sorted((f"doc{i}" for i in range(10, 20)), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert [n for n, _ in chosen] == by_hash[:4]
    assert [n for n, _ in choose_documents(reversed(encoded), 4, 100)] == [n for n, _ in chosen]
    assert [n for n, _ in choose_documents(encoded, 2, 100)] == [n for n, _ in chosen[:2]]
    assert all(len(t) >= 100 and t.dtype == torch.int64 for _, t in chosen)
    assert not caplog.records
    assert len(choose_documents(encoded, 99, 100)) == 10
    assert "only 10 documents have 100 tokens" in caplog.text


def test_no_document_long_enough_says_what_there_was():
    with pytest.raises(DataError, match=r"2 documents, the longest of 7 tokens.*at least 8 tokens.*fix: "):
        choose_documents([("a", [1] * 7), ("b", [1] * 3)], 4, 8)
    with pytest.raises(DataError, match="0 documents"):
        choose_documents([], 4, 8)


def test_an_unknown_mode_names_the_known_ones():
    with pytest.raises(ConfigError, match=re.escape("token_mean | window_mean")):
        Scores(8, 8, [1.0], [8], 1).perplexity("mean")
