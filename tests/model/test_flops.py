"""The FLOP formula against hand-computed Llama 2 numbers and torch's own counter, and the peak table."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from yarn_train.model import flops
from yarn_train.model.causal_lm import CausalLM

LLAMA2_7B_MATMUL = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 32000 * 4096


def test_matmul_parameters_of_llama_2_7b_are_all_but_embeddings_and_norms() -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=32))  # its defaults are the 7B
    assert (model.config.hidden_size, model.config.intermediate_size, model.config.vocab_size) == (4096, 11008, 32000)
    assert flops.matmul_parameters(model) == LLAMA2_7B_MATMUL == 6_607_077_376
    assert flops.matmul_parameters(CausalLM(model)) == LLAMA2_7B_MATMUL


@pytest.mark.parametrize(("seq_len", "gflop"), [(4096, 42.9), (65536, 91.2), (131072, 142.7)])
def test_flops_per_token_of_llama_2_7b(seq_len: int, gflop: float) -> None:
    per_token = flops.flops_per_token(LLAMA2_7B_MATMUL, 32, 4096, seq_len)
    assert per_token / 1e9 == pytest.approx(gflop, abs=0.05)


def test_a_step_counted_by_hand() -> None:
    """A Llama of 2 layers, hidden 8, MLP 12, 4 query heads of 2 on 2 KV heads, vocabulary 10, tied embeddings.

    Weights that multiply tokens, of a layer: q and o 8 x 8 each = 128, k and v 8 x 4 each = 64, gate, up and down
    8 x 12 each = 288: 480 together. Two layers 960, the head 8 x 10 = 80 (tied or not, it is multiplied once): 1040.
    One sequence of 6 tokens: 6 * 1040 * 6 tokens = 37,440 for the products. Attention: 6 * 2 layers * (4 heads * 2) * 6
    tokens of length * 6 tokens = 3,456, the KV heads' number being no part of it. Together 40,896 FLOPs.
    In documents of 1, 2 and 3 tokens attention has 1 + 4 + 9 = 14 of 36 squares: 3,456 * 14 / 36 = 1,344.
    """
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "vocab_size": 10}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 2}
    module = CausalLM(LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=True)))
    matmul = flops.matmul_parameters(module)
    assert matmul == 1040
    assert 6 * flops.flops_per_token(matmul, 2, 4 * flops.head_dim(module.model.config), 6) == 40_896
    squares = flops.squared_lengths(((0, 1, 3),), 1, 6)
    assert squares == 14
    assert 6 * flops.flops_per_token(matmul, 2, 8, squares / 6) == pytest.approx(37_440 + 1_344, rel=1e-12)


def test_a_token_counts_the_experts_it_is_sent_to() -> None:
    """As above with 2 of 4 experts of the same MLP: (192 + 2 x 288) x 2 layers + 80."""
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "vocab_size": 10}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 2}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    module = CausalLM(MixtralForCausalLM(MixtralConfig(**sizes, **heads, **experts)))
    assert flops.matmul_parameters(module) == (192 + 2 * 288) * 2 + 80


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 4, 8), (4, 2, 8), (4, 2, 16)])
@pytest.mark.parametrize("tied", [False, True])
def test_the_formula_is_what_torch_counts_with_attention_at_half_of_the_square(
    heads: int, kv_heads: int, head_dim: int, tied: bool
) -> None:
    """torch counts the whole square of scores, we its causal half; linear layers agree exactly."""
    layers, batch, seq_len, width = 2, 2, 16, heads * head_dim
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=50,
        tie_word_embeddings=tied,
    )
    module = CausalLM(LlamaForCausalLM._from_config(config, attn_implementation="eager"), "full")
    ids = torch.zeros(batch, seq_len, dtype=torch.long)
    positions = torch.arange(seq_len).expand(batch, seq_len)
    with FlopCounterMode(display=False) as counter:
        module(ids, positions, ids).backward()
    counted = {str(op): number for op, number in counter.get_flop_counts()["Global"].items()}

    tokens, matmul = batch * seq_len, flops.matmul_parameters(module)
    scores = 12 * layers * width * seq_len * tokens
    angles = tokens * head_dim  # some versions of transformers multiply positions and frequencies as matrices
    assert counted["aten.mm"] == 6 * matmul * tokens
    assert counted["aten.bmm"] in (scores, scores + angles)
    ours = flops.flops_per_token(matmul, layers, width, seq_len) * tokens
    assert ours == counted["aten.mm"] + scores / 2


DOCUMENTS = ((0, 3, 4), (0, 10))


def test_attention_counts_each_documents_own_square() -> None:
    lengths = [3, 1, 12, 10, 6]
    assert flops.squared_lengths(DOCUMENTS, 2, 16) == sum(n**2 for n in lengths)
    assert flops.squared_lengths(None, 2, 16) == flops.squared_lengths(((0,), (0,)), 2, 16) == 2 * 16**2


def test_documents_have_the_flops_they_would_have_alone() -> None:
    together = 32 * flops.flops_per_token(1000, 3, 8, flops.squared_lengths(DOCUMENTS, 2, 16) / 32)
    alone = sum(n * flops.flops_per_token(1000, 3, 8, n) for n in (3, 1, 12, 10, 6))
    assert together == pytest.approx(alone, rel=1e-12)


def test_a_shards_padding_counts_for_nothing() -> None:
    """Context parallelism adds a document that starts where the sequence ends."""
    assert flops.squared_lengths(((0, 3, 16),), 1, 16) == flops.squared_lengths(((0, 3),), 1, 16)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA H800", 989e12),
        ("NVIDIA H20", None),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A40", 149.7e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", None),
        ("NVIDIA RTX A1000 Laptop GPU", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_peak_is_looked_up_by_whole_words_and_never_guessed(
    name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert flops.peak_flops(torch.device("cuda")) == peak


def test_a_cpu_has_no_peak() -> None:
    assert flops.peak_flops(torch.device("cpu")) is None
