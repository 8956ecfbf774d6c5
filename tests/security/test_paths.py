"""Names that are read from files, or typed as names, never lead out of their folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from yarn_train import config as schema
from yarn_train import export
from yarn_train.compare import tensors
from yarn_train.data.inside import escapes
from yarn_train.data.spool import JOB
from yarn_train.errors import ConfigError, DataError, StorageError, YarnTrainError
from yarn_train.model.weights import INDEX, SINGLE, WeightFiles
from yarn_train.plan.output import write_plan
from yarn_train.stages import resolve

Train = Callable[..., Path]
Compose = Callable[..., dict[str, Any]]
OUTSIDE = ["../secret.safetensors", "/etc/secret.safetensors", "a/../../x.safetensors", "..", "a\\..\\x.safetensors", 7]


@pytest.mark.parametrize("name", ["", "a/b", "..", "../x", "/tmp/x", "~", "~/x", ".hidden", "a\\b", "a\nb", "-rf"])
def test_a_run_name_is_no_path(compose: Compose, name: str):
    options = compose()
    options["run"]["name"] = name
    with pytest.raises(ConfigError, match=r"run\.name: got .* for a folder elsewhere set run\.dir"):
        schema.build(options)


@pytest.mark.parametrize("name", ["llama-7b_64k", "v1.2", "a=1,b=2", "grün", "3"])
def test_a_name_is_one(compose: Compose, name: str):
    options = compose()
    options["run"]["name"] = name
    assert schema.build(options).run.name == name


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", ""])
def test_a_stage_name_is_no_path(compose: Compose, tmp_path: Path, name: str):
    options = compose("experiment=quickstart")
    options["curriculum"] = {"stages": {name: {"rope": {"factor": 4.0}}}}
    with pytest.raises(ConfigError, match=r"curriculum\.stages"):
        resolve(options, tmp_path)


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_of_weights_names_files_beside_it_only(
    train: Train, tiny_args: list[str], tiny_model: Path, tmp_path: Path, name: object
):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    shutil.move(model / SINGLE, tmp_path / "secret.safetensors")
    (model / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(ConfigError, match="its index points out of its folder"):
        train(tmp_path / "run", *tiny_args, f"model.path={model}")


def test_a_linked_file_is_read_as_the_hubs_cache_has_them(tiny_model: Path, tmp_path: Path):
    (tmp_path / SINGLE).symlink_to(tiny_model / SINGLE)
    with WeightFiles(str(tmp_path)) as files:
        assert "model.norm.weight" in files


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": 3}', '{"weight_map": ["a"]}', "[" * 100_000, "\ud800"])
def test_an_index_that_is_none_is_one_clear_error(tmp_path: Path, index: str):
    (tmp_path / INDEX).write_bytes(index.encode(errors="surrogatepass"))
    with pytest.raises(ConfigError, match="a readable index"):
        WeightFiles(str(tmp_path))


def test_a_data_set_that_was_saved_names_files_of_its_own_only(tmp_path: Path):
    Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    assert escapes(tmp_path / "saved") == []
    state = json.loads((tmp_path / "saved/state.json").read_text())
    for name in ["../x.arrow", "/x.arrow", "..", "", None]:
        (tmp_path / "saved/state.json").write_text(json.dumps({**state, "_data_files": [{"filename": name}]}))
        assert escapes(tmp_path / "saved") == [str(name)]
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["saved", "../up"]}))
    assert escapes(tmp_path) == ["../up", "saved/None"]


def test_prepared_data_that_points_elsewhere_is_refused(train: Train, tiny_args: list[str], tmp_path: Path):
    train(tmp_path / "run", *tiny_args, "train.stop_after=1")
    state = json.loads((tmp_path / "cache/state.json").read_text())
    [file] = state["_data_files"]
    shutil.move(tmp_path / "cache" / file["filename"], tmp_path / "elsewhere.arrow")
    (tmp_path / "cache/state.json").write_text(
        json.dumps({**state, "_data_files": [{"filename": "../elsewhere.arrow"}]})
    )
    with pytest.raises(DataError, match=r"names '\.\./elsewhere\.arrow', which is no file of this folder"):
        train(tmp_path / "again", *tiny_args)


@pytest.mark.parametrize("file", ["index.json", "COMPLETE"])
def test_a_checkpoint_names_files_of_its_own_only(train: Train, tiny_args: list[str], tmp_path: Path, file: str):
    run = train(tmp_path / "run", *tiny_args, "train.stop_after=2")
    checkpoint = run / "01_s4/checkpoints/step_00000002"
    [data] = checkpoint.glob("rank_*")
    shutil.copy(data, checkpoint.parent / "stolen.safetensors")
    text = (checkpoint / file).read_text().replace(data.name, "../stolen.safetensors")
    (checkpoint / file).write_text(text)
    with pytest.raises(YarnTrainError, match="step_00000002"):
        export.export_checkpoint(export.find_checkpoint(checkpoint), tmp_path / "out")
    if file == "index.json":
        with pytest.raises(DataError, match="no file of this folder"):
            tensors.of_checkpoint(checkpoint)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_somebody_else_beside_the_cache_is_not_removed(train: Train, tiny_args: list[str], tmp_path: Path):
    """The units of a preparation lie in <data.cache>.parts, which is removed in the end."""
    (tmp_path / "cache.parts").mkdir()
    (tmp_path / "cache.parts/thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"which holds thesis\.tex"):
        train(tmp_path / "run", *tiny_args)
    assert (tmp_path / "cache.parts/thesis.tex").exists()
    (tmp_path / "cache.parts/thesis.tex").rename(tmp_path / "cache.parts" / JOB)


def test_a_cache_that_is_somebody_elses_folder_is_left_alone(train: Train, tiny_args: list[str], tmp_path: Path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/notes.txt").write_text("mine")
    with pytest.raises(DataError, match="name another folder"):
        train(tmp_path / "run", *tiny_args)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["notes.txt"]


def test_a_plan_overwrites_nothing_but_a_plan(tmp_path: Path):
    file = tmp_path / "plan.json"
    for number in range(2):
        write_plan(str(file), {"gpu": "h100", "stages": [], "n": number})
    assert json.loads(file.read_text())["n"] == 1
    for other in ("notes", "{}", "[" * 100_000):
        file.write_text(other)
        with pytest.raises(ConfigError, match="nothing was overwritten"):
            write_plan(str(file), {"gpu": "h100", "stages": []})
        assert file.read_text() == other
    with pytest.raises(StorageError, match=r"plan\.output"):
        write_plan(str(tmp_path / "no/such/plan.json"), {"gpu": "h100", "stages": []})


def test_an_export_overwrites_nothing(train: Train, tiny_args: list[str], tmp_path: Path):
    (tmp_path / "out").mkdir()
    assert export.main([str(tmp_path), str(tmp_path / "out")]) == 2
