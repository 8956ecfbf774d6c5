"""Packed documents through the whole model: none sees another, whatever stands beside it and however it is computed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_train.data.batch import IGNORE_INDEX, Batch, make_batch
from yarn_train.model.causal_lm import CausalLM
from yarn_train.model.registry import SDPA
from yarn_train.model.spans import Documents
from yarn_train.parallel import activation

VOCAB, TOKENS = 50, 40
ROWS: dict[int, Documents] = {1: ((0, 9, 10, 31),), 2: ((0, 9, 10, 31), (0, 25))}
OTHERS = [(0, slice(0, 9)), (0, slice(9, 10)), (0, slice(31, 40))]  # row and tokens of the documents beside B
B = (0, slice(10, 31))


def model(implementation: str = SDPA) -> CausalLM:
    """Two blocks, grouped heads, YaRN: its attention factor must reach every document."""
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        max_position_embeddings=64,
        rope_parameters=yarn,
        use_cache=False,
    )
    torch.manual_seed(0)
    return CausalLM(LlamaForCausalLM._from_config(config, attn_implementation=implementation))


def segments(rows: int) -> Tensor:
    return torch.randint(0, VOCAB, (rows, TOKENS), generator=torch.Generator().manual_seed(1))


def batches(rows: int, masked: bool) -> tuple[Batch, Batch]:
    """A batch, and the same with every token changed that is not document B's."""
    ids, documents = segments(rows), ROWS[rows] if masked else None
    other = (ids + 1 + torch.arange(TOKENS) % 7) % VOCAB
    other[B] = ids[B]
    return make_batch(ids, documents), make_batch(other, documents)


def logits(module: CausalLM, batch: Batch) -> Tensor:
    return module(batch.input_ids, batch.position_ids, documents=batch.documents)


def terms(module: CausalLM, batch: Batch) -> Tensor:
    """The loss of every token [B, S], 0 where there is no target."""
    found = F.cross_entropy(logits(module, batch).flatten(0, 1), batch.labels.flatten(), reduction="none")
    return found.view(batch.labels.shape)


def gradients_of_b(batch: Batch) -> list[Tensor]:
    """What B's loss alone asks of every parameter, and B's own loss."""
    module = model()
    labels = torch.full_like(batch.labels, IGNORE_INDEX)
    labels[B] = batch.labels[B]
    if batch.documents is None:
        labels[0, 30] = IGNORE_INDEX  # that target is the next document's first token
    loss = module(batch.input_ids, batch.position_ids, labels, batch.documents)
    loss.backward()
    return [loss.detach(), *(p.grad for p in module.parameters() if p.grad is not None)]


@pytest.mark.parametrize("rows", ROWS)
def test_what_stands_in_other_documents_changes_no_bit_of_this_one(rows: int) -> None:
    module, (batch, other) = model(), batches(rows, masked=True)
    ours, theirs = logits(module, batch), logits(module, other)
    assert torch.equal(ours[B], theirs[B])
    assert torch.equal(terms(module, batch)[B], terms(module, other)[B])
    assert all(not torch.equal(ours[part], theirs[part]) for part in OTHERS)
    assert all(map(torch.equal, gradients_of_b(batch), gradients_of_b(other)))


@pytest.mark.parametrize("rows", ROWS)
def test_without_the_mask_it_does(rows: int) -> None:
    module, (batch, other) = model(), batches(rows, masked=False)
    assert (logits(module, batch)[B] - logits(module, other)[B]).abs().max() > 1e-3
    ours, theirs = gradients_of_b(batch), gradients_of_b(other)
    assert len(ours) == len(theirs) > 10
    assert not any(map(torch.equal, ours, theirs))


def explicit_mask(documents: Documents) -> Tensor:
    """[B, 1, S, S], 0 where a token may look, else the lowest number: what transformers' eager attention adds."""
    number = torch.zeros(len(documents), TOKENS, dtype=torch.long)
    for row, starts in zip(number, documents, strict=True):
        row[list(starts)] = 1
    number = number.cumsum(1)
    seen = (number[:, :, None] == number[:, None]) & torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min).unsqueeze(1)


@pytest.mark.parametrize("rows", ROWS)
def test_logits_and_gradients_are_those_of_transformers_with_an_explicit_mask(rows: int) -> None:
    ours, plain, (batch, _) = model(), model("eager").model, batches(rows, masked=True)
    mask = explicit_mask(ROWS[rows])
    right = plain(batch.input_ids, attention_mask=mask, position_ids=batch.position_ids).logits
    torch.testing.assert_close(logits(ours, batch), right, rtol=1e-5, atol=1e-5)
    F.cross_entropy(right.flatten(0, 1), batch.labels.flatten(), reduction="sum").backward()
    ours(batch.input_ids, batch.position_ids, batch.labels, batch.documents).backward()
    for mine, theirs in zip(ours.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", ROWS)
def test_packed_documents_are_each_document_alone(rows: int) -> None:
    module, (batch, _) = model(), batches(rows, masked=True)
    packed, losses = logits(module, batch), terms(module, batch)
    alone_sum = torch.zeros(())
    for row, starts in enumerate(ROWS[rows]):
        for start, end in pairwise((*starts, TOKENS)):
            alone = make_batch(batch.input_ids[row : row + 1, start:end])
            torch.testing.assert_close(packed[row, start:end], logits(module, alone)[0], rtol=1e-5, atol=1e-5)
            alone_sum += terms(module, alone).sum()
    torch.testing.assert_close(losses.sum(), alone_sum)


def loss_and_gradients(module: CausalLM, batch: Batch) -> list[Tensor]:
    module.zero_grad(set_to_none=True)
    loss = module(batch.input_ids, batch.position_ids, batch.labels, batch.documents)
    loss.backward()
    return [loss.detach(), *(p.grad for p in module.parameters() if p.grad is not None)]


@pytest.mark.parametrize("policy", ["full", "attention"])
def test_recomputed_blocks_have_the_same_documents(policy: str) -> None:
    """Two batches in flight: each one's backward recomputes with its own."""
    plain, module, (batch, _) = model(), model(), batches(2, masked=True)
    shifted = make_batch(batch.input_ids, ((0, 3), (0, 25, 26)))
    right = [loss_and_gradients(plain, one) for one in (batch, shifted)]
    activation.apply(list(module.blocks), policy)
    losses = [module(b.input_ids, b.position_ids, b.labels, b.documents) for b in (batch, shifted)]
    for loss, expected in zip(losses, right, strict=True):
        module.zero_grad(set_to_none=True)
        loss.backward()
        found = [loss.detach(), *(p.grad for p in module.parameters() if p.grad is not None)]
        assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(("rows", "policy", "most"), [(2, "none", 2), (2, "attention", 2), (1, "none", 3)])
def test_other_documents_at_every_step_compile_a_block_two_or_three_times(rows: int, policy: str, most: int) -> None:
    """Once for the first batch's number of documents, once for any number, once for a single one; never in pieces."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    plain, module, g = model(), model(), torch.Generator().manual_seed(2)
    for block in module.blocks:
        block.forward = torch.compile(block.forward, backend=backend, fullgraph=True)
    activation.apply(list(module.blocks), policy)
    for step in range(12):
        cuts = [sorted(set(torch.randint(1, TOKENS, (n,), generator=g).tolist())) for n in ((step + 1) % 7, 3)]
        batch = make_batch(segments(rows), tuple((0, *one) for one in cuts[:rows]))
        found, right = loss_and_gradients(module, batch), loss_and_gradients(plain, batch)
        assert all(map(torch.equal, found, right))
    torch._dynamo.reset()
    assert len(graphs) == most
