"""The loss at every position: bins, and that it is a by-product of the largest window's pass."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from perplexity_oracles import nll_of
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_train.eval.perplexity.positions import binned, edges, position_rows
from yarn_train.eval.perplexity.score import score
from yarn_train.eval.perplexity.scores import Scores
from yarn_train.intervals import interval

BOS = 3


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, initializer_range=0.4)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def documents():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(61, (n,), generator=generator) for n in (40, 57, 48)]


def test_bins_by_hand():
    assert edges(2) == [1, 2]
    assert edges(3) == [1, 2, 3]
    assert edges(8) == [1, 2, 3, 4, 6, 8]
    assert edges(32) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    assert edges(25) == [1, 2, 3, 4, 6, 8, 12, 16, 25]  # one position past 24 is no bin of its own
    assert edges(29) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 29]


@given(st.integers(2, 200_000))
def test_bins_cover_every_position_once_and_grow(window):
    bounds = edges(window)
    sizes = np.diff(bounds)
    assert (bounds[0], bounds[-1]) == (1, window)
    assert (sizes > 0).all()
    assert (sizes[1:-1] >= sizes[:-2]).all()
    assert len(bounds) < 2 * math.log2(window) + 3
    assert len(sizes) < 3 or sizes[-1] >= sizes[-2] / 2


@pytest.mark.parametrize("bos", [None, BOS])
@pytest.mark.parametrize("score_from", [None, 24])
def test_a_curve_is_the_loss_after_so_many_tokens(model, documents, bos, score_from):
    scores = score(model, documents, 32, 8, score_from, bos_id=bos, curves=True)
    plain = score(model, documents, 32, 8, score_from, bos_id=bos)
    assert scores.nll_per_window == pytest.approx(plain.nll_per_window, rel=1e-6)
    assert scores.counts == plain.counts
    assert plain.curves == []
    for tokens, curve in zip(documents, scores.curves, strict=True):
        assert len(curve) == 31
        begin = 0 if bos is None or score_from is None else 1  # BOS takes a place of the window that ends at 32
        seen = torch.cat([torch.tensor([BOS] if bos is not None else [], dtype=torch.long), tokens[begin:]])
        expected = [nll_of(model, seen[:position], seen[position]) for position in range(1, 32)]
        assert curve.tolist() == pytest.approx(expected, rel=1e-5)


def test_curves_cost_no_pass_of_the_decoder(model, documents, monkeypatch):
    passes: list[int] = []
    decoder = model.get_decoder()
    forward = decoder.forward
    monkeypatch.setattr(
        decoder, "forward", lambda **given: passes.append(given["input_ids"].shape[1]) or forward(**given)
    )
    counted = []
    for curves in (False, True):
        passes.clear()
        score(model, documents, 32, 8, 24, batch_tokens=1, curves=curves)
        counted.append(sorted(passes))
    assert counted[0] == counted[1]


def test_rows_are_means_of_tokens_over_documents_that_fill_the_window():
    curves = [np.arange(1.0, 8.0, dtype=np.float32), np.full(7, 3.0, dtype=np.float32), np.ones(4, dtype=np.float32)]
    made = position_rows(Scores(8, 8, [], [], None, curves), 200)
    assert [(row["begin"], row["end"], row["loss"], row["tokens"]) for row in made] == [
        (1, 2, 2.0, 2),
        (2, 3, 2.5, 2),
        (3, 4, 3.0, 2),
        (4, 6, 3.75, 4),
        (6, 8, 4.75, 4),
    ]
    assert (made[-1]["low"], made[-1]["high"]) == interval([13.0, 6.0], [2, 2], 200)[1:]
    assert position_rows(Scores(8, 8, [], [], None, curves[2:]), 200) == []
    assert binned([np.full(7, np.nan)] * 2, 8, 10)[0] == {
        "window": 8,
        "begin": 1,
        "end": 2,
        "loss": None,
        "tokens": 2,
        "low": None,
        "high": None,
    }


def test_a_window_as_long_as_its_stride_reaches_one_token_further(model, documents):
    scores = score(model, documents, 16, 16, 16, curves=True)
    assert {len(curve) for curve in scores.curves} == {16}
    assert position_rows(scores, 0)[-1]["end"] == 16
