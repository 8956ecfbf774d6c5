"""Peak memory of one training step, all logits against one chunk of them: python -m bench.loss_memory

A 2-layer Llama in fp32 with a large vocabulary, every block recomputed, AdamW; each cell is a process of its own with
identical settings. Two numbers, both above the model's own state (weights, gradients and moments, in memory before):

- traced: the step runs under fake tensors and every storage is followed, so it is exact, and 16k tokens of Llama 3's
  vocabulary (24 GiB with all logits) can be asked of any machine;
- resident: the step runs, and the kernel's high-water mark (``ru_maxrss``) is read: that the trace tells the truth.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import nullcontext

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig, LlamaForCausalLM

from bench.measure import KeptBytes, in_process, peak_bytes, resident_bytes, table
from yarn_train.model.causal_lm import CausalLM
from yarn_train.model.registry import SDPA
from yarn_train.parallel.activation import apply

GIB = 2**30
LOSSES = ("full", "chunked")


def build(loss: str, vocab: int, hidden: int) -> tuple[CausalLM, torch.optim.Optimizer]:
    """The model with all of its state: weights, gradients and both moments."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=2,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        vocab_size=vocab,
        tie_word_embeddings=True,
        use_cache=False,
    )
    module = CausalLM(LlamaForCausalLM._from_config(config, attn_implementation=SDPA), loss)
    apply(module.blocks, "full")
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return module, optimizer


def measure(loss: str, tokens: int, vocab: int, hidden: int, traced: bool) -> dict[str, float]:
    """Bytes that one step of `tokens` needs above the state; and its loss per token, where it really ran."""
    with FakeTensorMode() if traced else nullcontext():
        module, optimizer = build(loss, vocab, hidden)
        ids = torch.randint(0, vocab, (1, tokens))
        positions = torch.arange(tokens).unsqueeze(0)
        before = resident_bytes()
        with KeptBytes() if traced else nullcontext() as kept:
            value = module(ids, positions, ids.roll(-1, 1)) / tokens
            value.backward()
            optimizer.step()
    if kept is not None:
        return {"above": kept.peak}
    return {"above": peak_bytes() - before, "loss": value.item()}


def main() -> None:
    """Trace at one size, trace and run at a smaller one, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16_384, help="tokens of the traced step")
    parser.add_argument("--run-tokens", type=int, default=4096, help="tokens of the step that really runs")
    parser.add_argument("--vocab", type=int, default=128_256)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--cell", nargs=3, metavar=("LOSS", "TOKENS", "HOW"), help="one number, as JSON")
    given = parser.parse_args()
    if given.cell:
        loss, tokens, how = given.cell
        print(json.dumps(measure(loss, int(tokens), given.vocab, given.hidden, how == "traced")))
        return
    rows = []
    for tokens, how in ((given.tokens, "traced"), (given.run_tokens, "traced"), (given.run_tokens, "resident")):
        found = {n: in_process("bench.loss_memory", *sys.argv[1:], "--cell", n, str(tokens), how) for n in LOSSES}
        for name, row in found.items():
            ratio, value = row["above"] / found["full"]["above"], row.get("loss")
            sizes = [f"{tokens:,}", how, f"{row['above'] / GIB:.2f}", f"{ratio:.3f}", f"1/{1 / ratio:.1f}"]
            rows.append([name, *sizes, "" if value is None else f"{value:.6f}"])
    print(f"vocabulary {given.vocab:,}, hidden size {given.hidden}, fp32, one training step")
    print(table(["loss", "tokens", "how", "peak above state GiB", "of full", "", "loss/token"], rows))


if __name__ == "__main__":
    main()
