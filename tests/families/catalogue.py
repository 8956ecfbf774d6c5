"""Architectures as their own configs describe them, tiny and with random weights; what is expected of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, PretrainedConfig

LENGTH = 64  # tokens that every one of them was "pretrained" at
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": LENGTH,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
PAIRS = 8  # of a head of 16 dimensions


@dataclass(frozen=True)
class Family:
    """One line of the page.

    Attributes:
        title: the models a person knows it by.
        kind: transformers' name.
        changes: what its config has beside SIZES.
        options: of the run that extends it.
        how: what is special about extending it; markdown.
        refused: a part of the reason, for one that is not taken.
    """

    title: str
    kind: str
    changes: dict[str, Any]
    options: tuple[str, ...] = ()
    how: str = ""
    refused: str = ""

    def config(self, vocab_size: int) -> PretrainedConfig:
        """A tiny config of its own class."""
        return AutoConfig.for_model(self.kind, **{**SIZES, "vocab_size": vocab_size, **self.changes})


def rope(theta: float, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **more}}


EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
FINE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
HALF = {"full_attention": {"rope_type": "default", "rope_theta": 5e5}}
HALF |= {"sliding_attention": {"rope_type": "default", "rope_theta": 5e5}}
EXTENDED = {"max_position_embeddings": 4 * LENGTH}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": LENGTH, "rope_theta": 1e6}
STATED = (f"rope.original_max_position_embeddings={LENGTH}",)
UNDO = ("model.base_rope=undo",)
OFF = ("rope.sliding_window=off",)
GROWN = "all layers have a window, and the run must say what becomes of it"
GLOBAL = "layers of full attention are extended, those with a window keep their frequencies and their window"

TAKEN: dict[str, Family] = {
    "llama2": Family("Llama 2, CodeLlama, Yi, SmolLM, TinyLlama", "llama", rope(1e4)),
    "llama3": Family("Llama 3", "llama", rope(5e5)),
    "llama31": Family(
        "Llama 3.1, 3.2, 3.3",
        "llama",
        {"rope_parameters": {**LLAMA3, "rope_theta": 5e5, "original_max_position_embeddings": LENGTH}} | EXTENDED,
        UNDO,
        "its `llama3` scaling is dropped, back to L = 8192",
    ),
    "smollm2": Family("SmolLM 2 (tied embeddings)", "llama", rope(1e5) | {"tie_word_embeddings": True}),
    "mistral": Family("Mistral 7B v0.1", "mistral", rope(1e4) | {"sliding_window": 24}, OFF, GROWN),
    "mistral_window": Family(
        "Mistral 7B v0.1, its window grown",
        "mistral",
        rope(1e4) | {"sliding_window": 24},
        ("rope.sliding_window=40",),
        "as the reference's schedule did; another number for each stage",
    ),
    "mistral3": Family("Mistral 7B v0.3, Nemo", "mistral", rope(1e6) | {"sliding_window": None}),
    "mixtral": Family(
        "Mixtral",
        "mixtral",
        rope(1e6) | EXPERTS,
        (),
        "no router loss is added; transformers joins the experts while it loads them",
    ),
    "qwen2": Family("Qwen 2, 2.5", "qwen2", rope(1e6)),
    "qwen2_yarn": Family(
        "Qwen 2.5 with its YaRN config", "qwen2", {"rope_parameters": dict(YARN)} | EXTENDED, (), "goes on from L"
    ),
    "qwen2_card": Family(
        "Qwen 2.5, YaRN as its card says",
        "qwen2",
        {"rope_parameters": dict(YARN)},
        STATED,
        "its longest length is the original one, so it is asked which it is",
    ),
    "pi": Family(
        "LongAlpaca, Vicuna 16k (PI)",
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
        STATED,
        "`linear` names no original length",
    ),
    "qwen2_window": Family(
        "Qwen 2 with windows in its upper layers",
        "qwen2",
        rope(1e6) | {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
        (),
        "one RoPE for all layers, which is extended; windows stay, or `rope.sliding_window=off`",
    ),
    "qwen2_moe": Family(
        "Qwen 1.5 and 2 MoE", "qwen2_moe", rope(1e6) | FINE | {"shared_expert_intermediate_size": 32}, (), "as Mixtral"
    ),
    "qwen3": Family("Qwen 3", "qwen3", rope(1e6) | {"head_dim": 16}),
    "qwen3_moe": Family("Qwen 3 MoE", "qwen3_moe", rope(1e6) | FINE | {"head_dim": 16}, (), "as Mixtral"),
    "phi2": Family("Phi-1, 2 (partial rotary)", "phi", rope(1e4, partial_rotary_factor=0.5)),
    "phi3": Family(
        "Phi-3 4k, Phi-4",
        "phi3",
        rope(1e4) | {"sliding_window": LENGTH - 1, "original_max_position_embeddings": LENGTH},
        OFF,
        "its config turns `yarn` into `longrope` without a word, so it is written as `longrope`",
    ),
    "phi3_128k": Family(
        "Phi-3 128k (longrope)",
        "phi3",
        {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * PAIRS}}
        | {"sliding_window": 128 * LENGTH, "original_max_position_embeddings": LENGTH}
        | EXTENDED,
        UNDO,
        "its factors, which were searched for, are dropped; its window is longer than any of its texts",
    ),
    "gemma": Family("Gemma", "gemma", rope(1e4) | {"head_dim": 16}),
    "gemma3": Family(
        "Gemma 3 (text)",
        "gemma3_text",
        {"head_dim": 16, "sliding_window": 24, "sliding_window_pattern": 2},
        (),
        GLOBAL,
    ),
    "gpt_neox": Family(
        "GPT-NeoX, Pythia (partial rotary)",
        "gpt_neox",
        rope(1e4, partial_rotary_factor=0.25),
    ),
    "olmo2": Family("OLMo 2", "olmo2", rope(5e5)),
    "olmo3": Family(
        "OLMo 3",
        "olmo3",
        {"rope_parameters": HALF, "sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]},
        (),
        GLOBAL,
    ),
    "smollm3": Family(
        "SmolLM 3", "smollm3", rope(5e6) | {"no_rope_layers": [1, 0]}, (), "layers without positions stay without"
    ),
    "stablelm": Family("StableLM (partial rotary)", "stablelm", rope(1e4, partial_rotary_factor=0.5)),
    "starcoder2": Family("StarCoder 2", "starcoder2", rope(1e5) | {"sliding_window": None}),
    "granite": Family("Granite 3", "granite", rope(1e4)),
    "glm4": Family("GLM-4", "glm4", rope(1e4, partial_rotary_factor=0.5) | {"head_dim": 16}),
}
LLAMA3["original_max_position_embeddings"] = LENGTH
TAKEN["phi3_128k"].changes["rope_parameters"]["long_factor"] = [2.0] * PAIRS

REFUSED: dict[str, Family] = {
    "gemma2": Family("Gemma 2", "gemma2", {}, refused="attn_logit_softcapping"),
    "gemma3n": Family("Gemma 3n, Gemma 3 with pictures", "gemma3", {}, refused="a composite config"),
    "gpt_oss": Family("gpt-oss", "gpt_oss", {}, UNDO, refused="attention sinks"),
    "llama4": Family("Llama 4 (text)", "llama4_text", {}, refused="chunked_attention"),
    "cohere": Family("Command R", "cohere", {}, refused="logit_scale"),
    "exaone4": Family(
        "EXAONE 4 hybrids",
        "exaone4",
        {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]},
        refused="no RoPE in the layers that see the whole sequence",
    ),
    "deepseek": Family("DeepSeek V3", "deepseek_v3", {}, refused="queries, keys and values of one width"),
    "falcon": Family("Falcon (RoPE)", "falcon", {}, refused="attention that only its own code computes"),
    "mpt": Family("MPT", "mpt", {}, refused="ALiBi"),
    "bloom": Family("BLOOM", "bloom", {}, refused="ALiBi"),
    "t5": Family("T5", "t5", {}, refused="relative position buckets"),
    "gpt2": Family("GPT-2", "gpt2", {}, refused="learned or no positions"),
    "opt": Family("OPT", "opt", {}, refused="learned or no positions"),
    "jamba": Family("Jamba (NoPE)", "jamba", {}, refused="learned or no positions"),
    "mamba": Family("Mamba", "mamba", {}, refused="learned or no positions"),
    "gptj": Family("GPT-J, CodeGen", "gptj", {}, refused="hard-coded"),
    "qwen3_next": Family("Qwen 3-Next", "qwen3_next", {}, refused="attention that only its own code computes"),
}
