"""What a GGUF says, read back with the registry's own reader."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_models import BASE, L3, config, save
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from yarn_train import export_gguf
from yarn_train.config import RopeConfig
from yarn_train.gguf.package import GGUFError
from yarn_train.gguf.source import permuted
from yarn_train.gguf.write import write_gguf

gguf = pytest.importorskip("gguf.gguf_reader")


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(keys without the architecture's name, tensors)."""
    reader = gguf.GGUFReader(path)
    keys = {re.sub(r"^(llama|qwen2|qwen3)\.", "", name): f.contents() for name, f in reader.fields.items()}
    return keys, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def written(folder: Path, dtype: str = "f32") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    out = folder.with_suffix(f".{dtype}.gguf")
    write_gguf(folder, out, dtype)
    return read(out)


def test_keys(tmp_path: Path) -> None:
    keys, _ = written(save(tmp_path / "m", rope=RopeConfig(method="yarn", factor=8.0)))
    expected = {
        "general.architecture": "llama",
        "general.name": "m",
        "general.file_type": 0,
        "context_length": 512,
        "embedding_length": 96,
        "block_count": 2,
        "feed_forward_length": 80,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 32,
        "attention.value_length": 32,
        "vocab_size": 4096,
        "rope.dimension_count": 32,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
    }
    assert {key: keys.get(key) for key in expected} == expected
    assert keys["attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    tokens = json.loads((BASE / "tokenizer.json").read_text())["model"]
    assert {token: n for n, token in enumerate(keys["tokenizer.ggml.tokens"])} == tokens["vocab"]
    assert keys["tokenizer.ggml.merges"] == [" ".join(merge) for merge in tokens["merges"]]


YARN = {"type": "yarn", "factor": 8.0, "original_context_length": 64, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0}
YARN |= {"finetuned": True}
RULE = 0.1 * math.log(8) + 1
METHODS = {
    "none": (RopeConfig(method="none", factor=1.0), {"type": "none"}),
    "pi": (RopeConfig(method="pi", factor=8.0), {"type": "linear", "factor": 8.0}),
    "yarn": (RopeConfig(method="yarn", factor=8.0), YARN),
    "betas": (
        RopeConfig(method="yarn", factor=8.0, alpha=0.125, beta=2.0),
        {"type": "none", "attn_factor": pytest.approx(RULE)},
    ),
    "temperature": (
        RopeConfig(method="yarn", factor=8.0, temperature=0.25),
        {**YARN, "attn_factor": pytest.approx(2 / RULE)},
    ),
    "ntk_by_parts": (
        RopeConfig(method="ntk_by_parts", factor=8.0),
        {**YARN, "attn_factor": pytest.approx(1 / RULE)},
    ),
    "ntk": (RopeConfig(method="ntk", factor=8.0), {"type": "none"}),
    "by_rotations": (
        RopeConfig(method="yarn", factor=8.0, ramp="by_rotations"),
        {"type": "none", "attn_factor": pytest.approx(RULE)},
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_rope_keys(method: str, tmp_path: Path) -> None:
    rope, expected = METHODS[method]
    keys, tensors = written(save(tmp_path / "m", rope=rope))
    found = {k.removeprefix("rope.scaling."): v for k, v in keys.items() if k.startswith("rope.scaling.")}
    assert found == expected
    theta = 10000 * 8 ** (32 / 30) if method == "ntk" else 10000
    assert keys["rope.freq_base"] == pytest.approx(theta, rel=1e-5)
    assert ("rope_freqs.weight" in tensors) == (method in ("betas", "by_rotations"))


@pytest.mark.parametrize("kind", ["by_rotations", "not truncated", "llama3"])
def test_divisors_give_the_frequencies(kind: str, tmp_path: Path) -> None:
    ramp = {"truncate": False} if kind == "not truncated" else {"ramp": "by_rotations"}
    folder = save(tmp_path / "m", rope=RopeConfig(method="yarn", factor=8.0, **ramp))
    if kind == "llama3":
        config("llama", rope_parameters=L3).save_pretrained(folder)
    divisors = written(folder)[1]["rope_freqs.weight"]
    plain = 10000.0 ** (-np.arange(0, 32, 2, dtype=np.float64) / 32)
    model = AutoModelForCausalLM.from_pretrained(folder)
    np.testing.assert_allclose(plain / divisors, model.model.rotary_emb.inv_freq.numpy(), rtol=1e-6)


def test_tensors(tmp_path: Path) -> None:
    """Untied; every tensor arrives, and only q and k of llama change."""
    folder = save(tmp_path / "m")
    theirs, ours = written(folder)[1], load_file(folder / "model.safetensors")
    names = {"model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm"}
    parts = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    parts |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    parts |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    names |= {f"model.layers.{n}.{a}": f"blk.{n}.{b}" for n in range(2) for a, b in parts.items()}
    assert set(theirs) == {f"{name}.weight" for name in names.values()}
    for mine, name in names.items():
        rows = np.arange(len(ours[f"{mine}.weight"]))
        if "attn_q" in name or "attn_k" in name:  # pair i of a head: its rows i and i + 16 become 2i and 2i + 1
            within = rows % 32
            rows = rows - within + within // 2 + 16 * (within % 2)
        np.testing.assert_array_equal(theirs[f"{name}.weight"], ours[f"{mine}.weight"].numpy()[rows], name)


def test_permutation_keeps_every_score() -> None:
    """Rotating neighbours of permuted rows gives the scores of rotating halves of the others (transformers' own)."""
    torch.manual_seed(1)
    q, k = (torch.randn(heads * 8, 16, dtype=torch.float64) for heads in (4, 2))
    x = torch.randn(5, 16, dtype=torch.float64)
    angles = torch.arange(5, dtype=torch.float64)[:, None] * 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)

    def heads(matrix: torch.Tensor) -> torch.Tensor:
        return (x @ matrix.T).reshape(5, -1, 8).transpose(0, 1)

    twice = torch.cat([angles, angles], -1)[None]
    halves = apply_rotary_pos_emb(heads(q)[None], heads(k)[None], twice.cos(), twice.sin())
    turn = torch.polar(torch.ones_like(angles), angles)
    pairs = [
        torch.view_as_real(torch.view_as_complex(heads(permuted(w, n)).reshape(n, 5, 4, 2).contiguous()) * turn)
        for w, n in ((q, 4), (k, 2))
    ]
    near_q, near_k = (pair.reshape(-1, 5, 8) for pair in pairs)
    expected = halves[0][0] @ halves[1][0].repeat_interleave(2, 0).transpose(1, 2)
    torch.testing.assert_close(near_q @ near_k.repeat_interleave(2, 0).transpose(1, 2), expected)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_qwen_is_not_permuted(family: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "m", family, RopeConfig(method="yarn", factor=8.0))
    keys, tensors = written(folder)
    ours = load_file(folder / "model.safetensors")
    assert keys["general.architecture"] == family
    for name, at in (("attn_q", "q_proj"), ("attn_k", "k_proj")):
        np.testing.assert_array_equal(tensors[f"blk.1.{name}.weight"], ours[f"model.layers.1.self_attn.{at}.weight"])
    extra = "attn_q.bias" if family == "qwen2" else "attn_q_norm.weight"
    assert f"blk.0.{extra}" in tensors


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_dtype(dtype: str, tmp_path: Path) -> None:
    """Matrices take it, rounded to nearest; norms stay float32. A tied output is left out."""
    folder = save(tmp_path / "m", tie_word_embeddings=True)
    stored = load_file(folder / "model.safetensors")
    save_file({**stored, "lm_head.weight": stored["model.embed_tokens.weight"].clone()}, folder / "model.safetensors")
    keys, tensors = written(folder, dtype)
    assert keys["general.file_type"] == {"f16": 1, "bf16": 32}[dtype]
    assert "output.weight" not in tensors
    assert tensors["output_norm.weight"].dtype == np.float32
    torch_dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    want = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].to(torch_dtype)
    got = np.ascontiguousarray(tensors["token_embd.weight"]).view(np.uint16).reshape(want.shape)
    np.testing.assert_array_equal(got, want.view(torch.uint16).numpy())


@pytest.mark.parametrize(
    ("family", "changed", "words"),
    [
        ("mistral", {"sliding_window": 32}, "sliding_window 32"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act gelu"),
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("qwen2", {"rope_parameters": L3}, "no keys of llama.cpp's qwen2"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic"),
    ],
)
def test_refused(family: str, changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "m", family)
    config(family, **changed).save_pretrained(folder)
    with pytest.raises(GGUFError, match=re.escape(words)):
        write_gguf(folder, tmp_path / "m.gguf")
    assert not list(tmp_path.glob("*.gguf*"))


def test_other_betas_are_refused_where_factors_per_pair_are_not_read(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", "qwen3", RopeConfig(method="yarn", factor=8.0, alpha=0.125, beta=2.0))
    with pytest.raises(GGUFError, match=re.escape("rope.beta=32 rope.alpha=1")):
        write_gguf(folder, tmp_path / "m.gguf")


def test_unknown_split_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "m")
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    data["pre_tokenizer"] = {"type": "Whitespace"}
    path.write_text(json.dumps(data))
    with pytest.raises(GGUFError, match="splits text"):
        write_gguf(folder, tmp_path / "m.gguf")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "base.gguf"
    assert export_gguf.main([str(save(tmp_path / "m")), str(out)]) == 0
    assert export_gguf.main([str(tmp_path / "m"), str(out)]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert export_gguf.main([str(tmp_path / "m"), str(tmp_path / "other.gguf")]) == 2
    assert "pip install gguf" in capsys.readouterr().err


def test_memory_is_bounded_by_one_tensor(tmp_path: Path) -> None:
    """100 MB of weights, 6 MB the largest tensor: the peak above what the process has grows by a few of these."""
    wide = {"hidden_size": 384, "intermediate_size": 4096, "num_hidden_layers": 5}
    folder = save(tmp_path / "m", **wide)
    total = (folder / "model.safetensors").stat().st_size
    written(folder)  # everything is imported
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():
        pytest.skip("no /proc/self/clear_refs to reset the peak with")
    clear.write_text("5")
    before = _kilobytes(status.read_text(), "VmHWM")
    write_gguf(folder, tmp_path / "again.gguf")
    grown = 1024 * (_kilobytes(status.read_text(), "VmHWM") - before)
    largest = 4096 * 384 * 4
    assert total > 14 * largest
    assert grown < 4 * largest


def _kilobytes(status: str, key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", status)
    assert found
    return int(found[1])
