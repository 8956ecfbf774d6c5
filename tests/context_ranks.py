"""What the ranks of the context-parallel tests do: one world of four processes, many cases, one report of errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

from yarn_train.data.batch import IGNORE_INDEX, Batch
from yarn_train.dist.mesh import DIMENSIONS, Mesh
from yarn_train.model.causal_lm import CausalLM
from yarn_train.model.registry import choose_kernel
from yarn_train.parallel import activation
from yarn_train.parallel.context import ContextParallel
from yarn_train.parallel.ring import Ring

WORLD = 4
LENGTH = 37  # divides by nothing
# name: (ring, ulysses, query heads, key/value heads)
LAYOUTS = {
    "ulysses 2": (1, 2, 4, 2),
    "ulysses 4 with 2 kv heads": (1, 4, 8, 2),
    "ulysses 2 with 3 kv heads": (1, 2, 6, 3),
    "ring 2": (2, 1, 4, 2),
    "ring 3": (3, 1, 4, 4),
    "ring 2 x ulysses 2": (2, 2, 4, 2),
}
DOCUMENTS = {"one document": None, "same documents": ((0, 3, 19, 20),) * 2, "other documents": ((0, 30), (0, 5, 11))}


def context(ring: int, ulysses: int) -> ContextParallel | None:
    """Collective; None on ranks that are left over."""
    groups = WORLD // (ring * ulysses)
    ranks = torch.arange(groups * ring * ulysses).view(1, groups, ring, ulysses)
    mesh = DeviceMesh("cpu", ranks, mesh_dim_names=DIMENSIONS)
    return ContextParallel(Mesh(mesh, mesh)) if dist.get_rank() < ranks.numel() else None


def attend(name: str, documents: Any, window: int | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[B, S, H, D] through the function registered with transformers."""
    function = AttentionInterface._global_mapping[name]
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return function(nn.Module(), q, k, v, None, scaling=0.4, documents=documents, sliding_window=window)[0]


def dense(documents: Any, window: int | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The explicit softmax in float64, [B, S, H, D]."""
    groups, tokens = q.shape[2] // k.shape[2], q.shape[1]
    k, v = (t.repeat_interleave(groups, dim=2) for t in (k, v))
    number = torch.zeros(q.shape[0], tokens, dtype=torch.long)
    for row, starts in zip(number, documents or (), strict=False):
        row[list(starts)] = 1
    number = number.cumsum(1)
    hidden = torch.ones(tokens, tokens, dtype=torch.bool).triu(1) | (number[:, None, :, None] != number[:, None, None])
    hidden = hidden | torch.ones(tokens, tokens, dtype=torch.bool).tril(-(window or tokens))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * 0.4
    return torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


def relative(got: Tensor, right: Tensor) -> float:
    return ((got.double() - right).abs().max() / right.abs().max()).item()


def attention_errors(
    part: ContextParallel,
    heads: int,
    kv_heads: int,
    documents: Any,
    dtype: torch.dtype = torch.float32,
    window: int | None = None,
) -> list[float]:
    """Relative errors of the output and of the gradients of q, k and v."""
    g = torch.Generator().manual_seed(0)
    padded = part.layout.padded(LENGTH)
    whole = [torch.randn(2, padded, n, 8, generator=g).to(dtype) for n in (heads, kv_heads, kv_heads)]
    upstream = torch.randn(2, padded, heads, 8, generator=g).to(dtype)
    upstream[:, LENGTH:] = 0
    leaves = [t[:, :LENGTH].double().requires_grad_() for t in whole]
    right = dense(documents, window, *leaves)
    rights = [right, *torch.autograd.grad(right, leaves, upstream[:, :LENGTH].double())]

    held = part.layout.positions(padded, part.mesh.context_rank)
    kernel = part.attention(choose_kernel("sdpa", torch.device("cpu"), torch.float32))
    if documents is not None and padded > LENGTH:
        documents = tuple((*starts, LENGTH) for starts in documents)
    mine = [t[:, held].clone().requires_grad_() for t in whole]
    out = attend(kernel.implementation, documents, window, *mine)
    got = [out, *torch.autograd.grad(out, mine, upstream[:, held])]
    return [relative(part.gather(x, LENGTH), y) for x, y in zip(got, rights, strict=True)]


def llama(implementation: str, heads: int, kv_heads: int) -> CausalLM:
    config = LlamaConfig(
        hidden_size=8 * heads,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=8,
        vocab_size=50,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    return CausalLM(LlamaForCausalLM._from_config(config, attn_implementation=implementation))


def batch(documents: Any, ignored: int = 0) -> Batch:
    """Two rows; the first `ignored` labels do not count."""
    ids = torch.randint(1, 50, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    labels = ids.roll(-1, 1)
    labels[:, -1] = labels[:, :ignored] = IGNORE_INDEX
    positions = torch.arange(LENGTH).expand(2, LENGTH)
    return Batch(ids, labels, positions, int((labels != IGNORE_INDEX).sum()), documents)


def loss_and_gradients(module: CausalLM, given: Batch) -> list[Tensor]:
    loss = module(given.input_ids, given.position_ids, given.labels, given.documents)
    loss.backward()
    return [loss.detach(), *(p.grad for p in module.parameters() if p.grad is not None)]


def model_errors(
    part: ContextParallel, heads: int, kv_heads: int, documents: Any, ignored: int, policies: tuple[str, ...]
) -> dict[str, float]:
    """One process against the sum over ranks: loss, worst parameter gradient, logits, number of valid labels."""
    given = batch(documents, ignored)
    plain = choose_kernel("sdpa", torch.device("cpu"), torch.float32)
    kernel = part.attention(plain).implementation
    rights = loss_and_gradients(llama(plain.implementation, heads, kv_heads), given)
    mine = part.shard(given)
    errors = {}
    for policy in policies:
        module = llama(kernel, heads, kv_heads)
        activation.apply(list(module.blocks), policy)
        found = _over_context(part, loss_and_gradients(module, mine))
        errors[f"loss, {policy} recomputed"] = relative(found[0], rights[0])
        errors[f"gradients, {policy} recomputed"] = worst(found, rights)
    count = _over_context(part, [torch.tensor(float(mine.num_valid))])[0]
    errors["valid labels"] = abs(count.item() - given.num_valid)
    with torch.no_grad():
        right = llama(plain.implementation, heads, kv_heads)(given.input_ids, given.position_ids, None, documents)
        logits = llama(kernel, heads, kv_heads)(mine.input_ids, mine.position_ids, None, mine.documents)
    errors["logits"] = relative(part.gather(logits, LENGTH), right)
    return errors


def worst(found: list[Tensor], rights: list[Tensor]) -> float:
    return max(relative(x, y) for x, y in zip(found, rights, strict=True))


def fsdp_error(part: ContextParallel, heads: int, kv_heads: int) -> float:
    """Worst parameter gradient with parameters sharded over all ranks and blocks recomputed."""
    given, plain = batch(None), choose_kernel("sdpa", torch.device("cpu"), torch.float32)
    rights = loss_and_gradients(llama(plain.implementation, heads, kv_heads), given)
    module = llama(part.attention(plain).implementation, heads, kv_heads)
    activation.apply(list(module.blocks), "full")
    for unit in (*module.blocks, module):
        fully_shard(unit).set_force_sum_reduction_for_comms(True)
    for unit in (*module.blocks, module):
        unit.set_gradient_divide_factor(1.0)
    _, *sharded = loss_and_gradients(module, part.shard(given))
    return worst([g.full_tensor() for g in sharded], rights[1:])


def ring_rounds(part: ContextParallel, policy: str) -> int:
    """How often keys and values go around in one step of a model of two layers."""
    rounds = 0

    def counted(self: Ring, *args: Any) -> Any:
        nonlocal rounds
        rounds += 1
        return shards(self, *args)

    kernel = part.attention(choose_kernel("sdpa", torch.device("cpu"), torch.float32))
    module = llama(kernel.implementation, 4, 2)
    activation.apply(list(module.blocks), policy)
    shards, Ring.shards = Ring.shards, counted
    loss_and_gradients(module, part.shard(batch(None)))
    Ring.shards = shards
    return rounds


def _over_context(part: ContextParallel, tensors: list[Tensor]) -> list[Tensor]:
    total = [t.clone() for t in tensors]
    for mesh in (part.mesh.ring, part.mesh.ulysses):
        for t in total:
            dist.all_reduce(t, group=mesh.get_group())
    return total


def cases() -> Iterator[tuple[str, float]]:
    """Every case and its error; all must be below 1e-5, those of bfloat16 below 1e-2."""
    for name, (ring, ulysses, heads, kv_heads) in LAYOUTS.items():
        part = context(ring, ulysses)
        if part is None:
            continue
        for title, documents in DOCUMENTS.items():
            found = attention_errors(part, heads, kv_heads, documents)
            for what, error in zip(("output", "dq", "dk", "dv"), found, strict=True):
                yield f"attention: {name}, {title}: {what}", error
            narrow = attention_errors(part, heads, kv_heads, documents, window=7) if ring == 1 else []
            for what, error in zip(("output", "dq", "dk", "dv"), narrow, strict=ring == 1):
                yield f"window: {name}, {title}: {what}", error
        # half of the labels ignored leaves the first Ulysses rank without any
        runs = (
            ("one document", None, 20, ("attention",)),
            ("documents", DOCUMENTS["other documents"], 0, ("none", "full")),
        )
        for title, documents, ignored, policies in runs:
            for what, error in model_errors(part, heads, kv_heads, documents, ignored, policies).items():
                yield f"model: {name}, {title}: {what}", error
    part = context(2, 2)
    assert part is not None
    yield "fsdp: gradients", fsdp_error(part, 4, 2)
    for what, error in zip(
        ("output", "dq", "dk", "dv"), attention_errors(part, 4, 2, None, torch.bfloat16), strict=True
    ):
        yield f"bfloat16 attention: {what}", error
    # forward, recomputation and backward of two layers; a kept output spares the recomputation
    yield "rounds: all recomputed", abs(ring_rounds(part, "full") - 6)
    yield "rounds: attention kept", abs(ring_rounds(part, "attention") - 4)


def main(rank: int, folder: str) -> None:
    """Rank `rank` of the world; leaves its errors in folder/<rank>.json."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    found = dict(cases())
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
