"""The exported folder is what plain transformers loads, and a wrong one is never published."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from yarn_train.checkpoint import hf_export, reload
from yarn_train.config import RopeConfig
from yarn_train.errors import CheckpointError, YarnTrainError
from yarn_train.model.load import build_model, load_config
from yarn_train.model.registry import SDPA, Kernel
from yarn_train.rope import hf as rope_hf

ROPE = RopeConfig(factor=4.0)


@pytest.fixture
def trained(tiny_model):
    """A YaRN model, its weights and its logits on the probe."""
    base = load_config(str(tiny_model))
    model = build_model(str(tiny_model), base, ROPE, Kernel("sdpa", SDPA, "", "cpu")).eval()
    ids, positions = hf_export.probe(model.config.vocab_size, model.config.max_position_embeddings)
    with torch.no_grad():
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return model, weights, logits, rope_hf.table_for(base, ROPE)


def write(folder, trained, tokenizer, dtype=torch.float32, fresh=False):
    model, weights, logits, table = trained
    hf_export.write_model(
        folder,
        model,
        weights,
        tokenizer,
        dtype=dtype,
        table=table,
        probe_logits=logits,
        compute_dtype=torch.float32 if dtype == torch.float32 else torch.bfloat16,
        fresh=fresh,
    )


def test_plain_transformers_gives_the_same_logits_over_the_extended_window(trained, tiny_tokenizer, tmp_path):
    write(tmp_path / "model", trained, tiny_tokenizer)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert loaded.config.max_position_embeddings == 128
    ids = torch.randint(0, loaded.config.vocab_size, (1, 128))
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, trained[0](ids).logits, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").model_max_length == 128


def test_config_says_rope_in_both_spellings_and_nothing_superfluous(trained, tiny_tokenizer, tmp_path):
    write(tmp_path / "model", trained, tiny_tokenizer)
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    assert config["rope_scaling"]["type"] == config["rope_scaling"]["rope_type"] == "yarn"
    assert config["rope_scaling"]["original_max_position_embeddings"] == 32
    assert "attention_factor" not in config["rope_parameters"]
    assert json.loads((tmp_path / "model/tokenizer_config.json").read_text())["tokenizer_class"].endswith("Fast")


def test_tied_weights_are_saved_once(trained, tiny_tokenizer, tmp_path):
    write(tmp_path / "model", trained, tiny_tokenizer)
    assert "lm_head.weight" not in load_file(tmp_path / "model/model.safetensors")


def test_bfloat16_export(trained, tiny_tokenizer, tmp_path):
    write(tmp_path / "model", trained, tiny_tokenizer, torch.bfloat16)
    tensors = load_file(tmp_path / "model/model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "model/config.json").read_text())["dtype"] == "bfloat16"


def test_other_logits_are_not_published(trained, tiny_tokenizer, tmp_path):
    model, weights, logits, table = trained
    with pytest.raises(CheckpointError, match="relative logit difference"):
        write(tmp_path / "model", (model, weights, logits + 0.1 * logits.std(), table), tiny_tokenizer)
    assert not (tmp_path / "model").exists()


def test_each_part_of_the_window_counts_by_itself(trained, tiny_tokenizer, tmp_path):
    """Wrong in the last third alone, by less than the tolerance over all positions together."""
    model, weights, logits, table = trained
    wrong, last = logits.clone(), slice(2 * logits.shape[1] // 3, None)
    wrong[:, last] += 1.2e-4 * logits[:, last]
    assert (wrong - logits).norm() < 1e-4 * logits.norm()
    with pytest.raises(CheckpointError, match="in the last part of the window"):
        write(tmp_path / "model", (model, weights, wrong, table), tiny_tokenizer)


def test_a_fresh_process_computes_the_same_or_nothing_is_published(trained, tiny_tokenizer, tmp_path, monkeypatch):
    write(tmp_path / "model", trained, tiny_tokenizer, fresh=True)
    found = reload.differences(trained[2], reload.fresh_logits(tmp_path / "model"))
    assert set(found) == {"first", "middle", "last"}
    assert max(found.values()) < 1e-5
    monkeypatch.setattr(hf_export, "fresh_logits", lambda folder, trust: trained[2] * 1.01)
    with pytest.raises(CheckpointError, match="relative logit difference"):
        write(tmp_path / "other", trained, tiny_tokenizer, fresh=True)
    assert not (tmp_path / "other").exists()
    with pytest.raises(CheckpointError, match="cannot be loaded by a fresh process"):
        reload.fresh_logits(tmp_path / "nowhere")


def test_another_rope_table_is_not_published(trained, tiny_tokenizer, tmp_path):
    model, weights, logits, table = trained
    model.config.rope_parameters = {**model.config.rope_parameters, "factor": 8.0}
    with pytest.raises(YarnTrainError, match="rotary_emb"):
        write(tmp_path / "model", (model, weights, logits, table), tiny_tokenizer)
    assert not (tmp_path / "model").exists()


def test_weights_changed_on_the_way_are_not_published(trained, tiny_tokenizer, tmp_path, monkeypatch):
    original = hf_export._save

    def corrupting(folder, model, weights, tokenizer, dtype):
        name = next(iter(weights))
        original(folder, model, {**weights, name: weights[name] + 1}, tokenizer, dtype)

    monkeypatch.setattr(hf_export, "_save", corrupting)
    with pytest.raises(CheckpointError, match="differs from the trained one in"):
        write(tmp_path / "model", trained, tiny_tokenizer)
