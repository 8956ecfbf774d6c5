"""Model folders that are empty, damaged or not what they say."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import torch
from bad_inputs.bad_input import Bad, Place
from safetensors.torch import load_file, save_file
from transformers import BertConfig, GPT2Config, LlamaConfig, LlamaForCausalLM, ViTConfig

MODEL = "Model folder"
FROM = "run.init_from"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1e4}
LLAMA3 |= {"original_max_position_embeddings": 8}


def bad(title: str, spoil: Callable[[Place], object], *words: str) -> Bad:
    return Bad(MODEL, title, words, lambda place: (spoil(place), None)[1])


def config(**changes: Any) -> Callable[[Place], None]:
    """Change config.json; None removes a key."""

    def spoil(place: Place) -> None:
        file = place.model / "config.json"
        described = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({key: value for key, value in described.items() if value is not None}))

    return spoil


def write(name: str, text: str) -> Callable[[Place], object]:
    return lambda place: (place.model / name).write_text(text)


def remove(*names: str) -> Callable[[Place], None]:
    return lambda place: [(place.model / name).unlink() for name in names] and None


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        file = place.model / "model.safetensors"
        held = {name: tensor.clone() for name, tensor in load_file(file).items()}
        change(held)
        save_file(held, file, {"format": "pt"})

    return spoil


def empty(place: Place) -> None:
    for file in place.model.iterdir():
        file.unlink()


def truncate(place: Place) -> None:
    file = place.model / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)


def pipe(place: Place) -> None:
    (place.model / "config.json").unlink()
    os.mkfifo(place.model / "config.json")


def as_bin(place: Place) -> None:
    (place.model / "model.safetensors").rename(place.model / "pytorch_model.bin")


def cut_tokenizer(place: Place) -> None:
    os.truncate(place.model / "tokenizer.json", 1000)


def no_eos(place: Place) -> None:
    file = place.model / "tokenizer_config.json"
    described = json.loads(file.read_text())
    described.pop("eos_token", None)
    file.write_text(json.dumps(described))


def other(kind: type, **sizes: Any) -> Callable[[Place], None]:
    return lambda place: kind(**sizes).save_pretrained(place.model)


def sharded(place: Place) -> None:
    """An index that names a file which is not there."""
    (place.model / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (place.model / "model.safetensors.index.json").write_text(json.dumps(index))


def own_code(place: Place) -> None:
    config(model_type="mine", auto_map={"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"})(place)
    (place.model / "mine.py").write_text("raise SystemExit('this code was run')\n")


def narrow(place: Place) -> None:
    """Another model that has been trained before."""
    folder = place.folder / "other"
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    described = LlamaConfig(**sizes, vocab_size=320, max_position_embeddings=32)
    LlamaForCausalLM(described).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((place.model / name).read_bytes())


NORM = "model.norm.weight"
CASES = [
    Bad(MODEL, "no such folder", ("model.path={w}/nothing",)),
    Bad(MODEL, "a file in the place of a folder", ("model.path={w}/model/config.json",)),
    Bad(MODEL, "an empty name", ("model.path=''",)),
    Bad(MODEL, "a hub id that is neither cached nor reachable", ("model.path=nobody/nothing",)),
    Bad(MODEL, "a hub id that cannot be one", ("model.path=what is this",)),
    bad("an empty folder", empty),
    bad("config.json: cut off", lambda place: os.truncate(place.model / "config.json", 40)),
    bad("config.json: a list", write("config.json", "[]")),
    bad("config.json: no model_type", config(model_type=None)),
    bad("config.json: an architecture that nobody knows", config(model_type="lama")),
    bad("config.json: hidden_size is a text", config(hidden_size="wide")),
    bad("config.json: hidden_size is NaN", config(hidden_size=float("nan"))),
    bad("config.json: no hidden_size, so transformers' default of 4096", config(hidden_size=None)),
    bad("config.json: a billion layers", config(num_hidden_layers=10**9)),
    bad("config.json: no layers", config(num_hidden_layers=0)),
    bad("config.json: no key-value heads", config(num_key_value_heads=0)),
    bad("config.json: no positions", config(max_position_embeddings=0)),
    bad("config.json: a pipe", pipe),
    bad("quantised weights", config(quantization_config={"quant_method": "gptq", "bits": 4})),
    bad("config.json: more key-value heads than divide the heads", config(num_key_value_heads=3)),
    bad("config.json: an odd width of heads", config(head_dim=7)),
    bad("config.json: RoPE that is scaled in another way already", config(rope_parameters=LLAMA3)),
    bad("config.json: YaRN without its original length", config(rope_parameters={"rope_type": "yarn", "factor": 2.0})),
    bad("config.json: layers that attend in chunks", config(layer_types=["chunked_attention"] * 2)),
    bad("config.json: a sliding window", config(model_type="mistral", sliding_window=16)),
    bad("no language model", other(ViTConfig)),
    bad("a model that reads both ways", other(BertConfig)),
    bad("a model without RoPE", other(GPT2Config)),
    bad("code of its own, which is not allowed", own_code),
    bad("no tokenizer", remove("tokenizer.json", "tokenizer_config.json")),
    bad("tokenizer.json: cut off", cut_tokenizer),
    bad("a tokenizer without an end of text", no_eos),
    bad("more tokens than the model has rows", config(vocab_size=300)),
    bad("no weights", remove("model.safetensors")),
    bad("weights as pytorch_model.bin only", as_bin),
    bad("weights: a file that the index names is missing", sharded),
    bad("weights: cut off", truncate),
    bad("weights: not safetensors", write("model.safetensors", "version https://git-lfs.github.com/spec/v1\n")),
    bad("weights: integers", tensors(lambda held: held.update({NORM: held[NORM].to(torch.int8)}))),
    bad("weights: a tensor is missing", tensors(lambda held: held.pop(NORM))),
    bad("weights: a tensor of another shape", tensors(lambda held: held.update({NORM: torch.zeros(5)}))),
    bad("weights: of another model", tensors(lambda held: [held.clear(), held.update({"wte.weight": torch.zeros(9)})])),
    Bad(FROM, "no such folder", ("run.init_from={w}/nothing",)),
    Bad(FROM, "a folder without a model", ("run.init_from={w}/books",)),
    Bad(FROM, "a model of another architecture", ("run.init_from={w}/other",), narrow),
]
