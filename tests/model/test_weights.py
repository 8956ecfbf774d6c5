"""Weights streamed from safetensors into a model, or a rank's rows of it."""

from __future__ import annotations

import json
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_train.config import RopeConfig
from yarn_train.dist import runtime as dist_runtime
from yarn_train.errors import ConfigError
from yarn_train.model.load import build_model, build_skeleton, load_config, streamable
from yarn_train.model.registry import choose_kernel
from yarn_train.model.weights import WeightFiles, fill, first_row, materialize, mismatches
from yarn_train.rope import hf as rope_hf

ROPE = RopeConfig(factor=4.0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def kernel():
    return choose_kernel("auto", CPU, torch.float32)


@pytest.fixture(params=["tied", "untied", "many files", "bfloat16"])
def folder(request, tmp_path, tiny_model):
    """A model folder of every layout that occurs."""
    model = LlamaForCausalLM.from_pretrained(tiny_model)
    if request.param == "untied":
        config = LlamaConfig.from_pretrained(tiny_model, tie_word_embeddings=False)
        torch.manual_seed(1)
        model = LlamaForCausalLM(config)
    if request.param == "bfloat16":
        model = model.to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="20KB" if request.param == "many files" else "5GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == (request.param == "many files")
    return tmp_path


def test_a_streamed_model_equals_the_one_transformers_loads(folder, kernel):
    base = load_config(str(folder))
    skeleton = build_skeleton(base, ROPE, kernel)
    assert all(p.is_meta for p in skeleton.parameters())
    assert streamable(skeleton, str(folder))
    materialize(skeleton, CPU)
    with WeightFiles(str(folder)) as files:
        fill(skeleton, files)
    loaded = build_model(str(folder), base, ROPE, kernel)
    assert skeleton.state_dict().keys() == loaded.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        assert skeleton.state_dict()[name].dtype == torch.float32
        assert torch.equal(skeleton.state_dict()[name], tensor), name
    rope_hf.verify_tables(skeleton, rope_hf.table_for(base, ROPE))
    tied = base.tie_word_embeddings
    assert (skeleton.get_output_embeddings().weight is skeleton.get_input_embeddings().weight) == tied


def test_a_tied_weight_may_lie_in_the_files_under_its_other_name(tiny_model, kernel, tmp_path):
    weights = load_file(tiny_model / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((tiny_model / "config.json").read_text())
    skeleton = build_skeleton(load_config(str(tmp_path)), ROPE, kernel)
    materialize(skeleton, CPU)
    with WeightFiles(str(tmp_path)) as files:
        assert mismatches(skeleton, files) == []
        fill(skeleton, files)
    assert torch.equal(skeleton.get_input_embeddings().weight, weights["lm_head.weight"])


def test_every_mismatch_is_named(tiny_model, kernel, tmp_path):
    weights = load_file(tiny_model / "model.safetensors")
    weights["model.norm.weight"] = torch.zeros(3)
    weights["extra"] = torch.zeros(1)
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    skeleton = build_skeleton(load_config(str(tiny_model)), ROPE, kernel)
    with WeightFiles(str(tmp_path)) as files:
        found = mismatches(skeleton, files)
    assert found == [
        "missing model.layers.0.mlp.up_proj.weight",
        "unexpected extra",
        "model.norm.weight is [3], not [32]",
    ]
    assert not streamable(skeleton, str(tmp_path))


def test_rotary_tables_of_old_checkpoints_are_left_alone(tiny_model, kernel, tmp_path):
    weights = load_file(tiny_model / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    save_file(weights, tmp_path / "model.safetensors")
    skeleton = build_skeleton(load_config(str(tiny_model)), ROPE, kernel)
    assert streamable(skeleton, str(tmp_path))
    materialize(skeleton, CPU)
    with WeightFiles(str(tmp_path)) as files:
        fill(skeleton, files)
    rope_hf.verify_tables(skeleton, rope_hf.table_for(load_config(str(tiny_model)), ROPE))


@pytest.mark.parametrize("index", ["{", "{}"])
def test_an_unreadable_index_is_one_clear_error(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ConfigError, match=r"index\.json.*copy or download"):
        WeightFiles(str(tmp_path))


@pytest.mark.parametrize("span", [(0, 7), (3, 29), (31, 32), (0, 0), (8, 96)])
def test_elements_are_those_of_the_flattened_tensor(tmp_path, span):
    tensor = torch.arange(96.0).view(12, 8)
    save_file({"a": tensor, "v": torch.arange(96.0)}, tmp_path / "model.safetensors")
    with WeightFiles(str(tmp_path)) as files:
        assert torch.equal(files.elements("a", *span), tensor.flatten()[slice(*span)])
        assert torch.equal(files.elements("v", *span), tensor.flatten()[slice(*span)])


@pytest.mark.parametrize("content", [None, b"not safetensors"])
def test_unreadable_weights_are_one_clear_error(tmp_path, content):
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=r"weights: got .*; allowed:"), WeightFiles(str(tmp_path)):
        pass


@pytest.mark.parametrize("files", [{"model.safetensors": None}, {"a.safetensors": 0, "b.safetensors": 1}])
def test_a_hub_id_is_read_from_the_cache_of_a_machine_that_is_offline(tmp_path, monkeypatch, files):
    snapshot = tmp_path / "models--some--model/snapshots/0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--some--model/refs").mkdir()
    (tmp_path / "models--some--model/refs/main").write_text(snapshot.name)
    for number, name in enumerate(files):
        save_file({f"tensor{number}": torch.full((2,), float(number))}, snapshot / name)
    if len(files) > 1:
        names = {f"tensor{number}": name for number, name in enumerate(files)}
        (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with WeightFiles("some/model") as weights:
        assert {name: weights.whole(name)[0].item() for name in weights.names} == {
            f"tensor{number}": number for number in range(len(files))
        }
    with pytest.raises(ConfigError, match=r"weights: got 'other/model'"):
        WeightFiles("other/model")


def test_a_file_that_the_index_names_and_nobody_has(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with WeightFiles(str(tmp_path)) as files, pytest.raises(ConfigError, match=r"gone\.safetensors"):
        files.shape("a")


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7, 8, 9, 320])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_first_row_follows_torchs_own_chunks(rows, ranks):
    """DTensor's local shape and offset are those of torch.chunk; ours must agree for every rank."""
    chunks = torch.arange(rows).chunk(ranks)
    for rank in range(ranks):
        fake = _fake_dtensor(rows, ranks, rank)
        expected = chunks[rank][0].item() if rank < len(chunks) else None
        if expected is not None:
            assert first_row(fake) == expected


def _fake_dtensor(rows: int, ranks: int, rank: int) -> object:
    class Mesh:
        def size(self, dimension: int) -> int:
            return ranks

        def get_local_rank(self, dimension: int) -> int:
            return rank

    class Fake:
        placements = (Shard(0),)
        shape = (rows, 4)
        device_mesh = Mesh()

    return Fake()


def test_a_replicated_tensor_starts_at_its_first_row():
    dist_runtime.start()
    mesh = init_device_mesh("cpu", (1,))
    assert first_row(DTensor.from_local(torch.zeros(4), mesh, [Replicate()])) == 0


def test_streaming_holds_one_tensor_at_a_time(tiny_model, kernel, monkeypatch):
    skeleton = build_skeleton(load_config(str(tiny_model)), ROPE, kernel)
    materialize(skeleton, CPU)
    read: list[weakref.ref] = []
    original = WeightFiles.whole

    def whole(self, name):
        assert [r for r in read if r() is not None] == []
        tensor = original(self, name)
        read.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(WeightFiles, "whole", whole)
    with WeightFiles(str(tiny_model)) as files:
        fill(skeleton, files)
    assert len(read) == len(list(skeleton.parameters()))
