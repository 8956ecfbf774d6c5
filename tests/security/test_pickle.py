"""Nothing that comes with a checkpoint, a model or data is ever unpickled or run."""

from __future__ import annotations

import ast
import contextlib
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support import ROOT

from yarn_train.compare.comparison import compare
from yarn_train.errors import CheckpointError, YarnTrainError

Train = Callable[..., Path]
SOURCES = [*(ROOT / "yarn_train").rglob("*.py"), *(ROOT / "data").glob("*.py"), *(ROOT / "bench").glob("*.py")]
# Calls that run what they read. torch.load and np.load do so unless told not to.
NEVER = {
    *("eval", "exec", "compile", "pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "dill.loads"),
    *("marshal.load", "marshal.loads", "shelve.open", "joblib.load", "cloudpickle.load", "cloudpickle.loads"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "os.system", "os.popen"),
    *("tarfile.open", "zipfile.ZipFile", "shutil.unpack_archive", "torch.hub.load", "torch.jit.load"),
    *("torch.distributed.checkpoint.load", "torch_dcp.load", "pd.read_pickle", "np.fromfile"),
}
IF = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False)}


def wrong_calls(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if name in IF and given.get(IF[name][0]) != str(IF[name][1]):
                yield name
            if name in NEVER or given.get("shell") == "True" or given.get("use_safetensors") == "False":
                yield name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            yield from sorted(str(name) for name in names & {"pickle", "dill", "cloudpickle", "shelve", "marshal"})


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_source_calls_what_runs_what_it_reads(file: Path):
    assert list(wrong_calls(file.read_text(encoding="utf-8"))) == []


def test_the_scan_sees_such_calls():
    source = (
        "torch.load(f)\ntorch.load(f, weights_only=True)\nnp.load(f)\nimport pickle\nyaml.load(f)\nrun(x, shell=True)"
    )
    assert sorted(wrong_calls(source)) == ["np.load", "pickle", "run", "torch.load", "yaml.load"]


class Bomb:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that nothing may make; the bomb does, where it is unpickled."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "proof")))
    assert (tmp_path / "proof").exists()
    return tmp_path / "mark"


def plant(mark: Path, *files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix in (".bin", ".pt"):
            torch.save({"weight": Bomb(mark)}, file)
        else:
            file.write_bytes(pickle.dumps(Bomb(mark)))


def test_a_model_of_pickles_alone_is_refused_with_what_to_do(
    train: Train, tiny_args: list[str], tiny_model: Path, tmp_path: Path, mark: Path
):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "model.safetensors").unlink()
    plant(mark, model / "pytorch_model.bin")
    with pytest.raises(YarnTrainError, match=r"pytorch_model\.bin is a pickle.*save_pretrained"):
        train(tmp_path / "run", *tiny_args, f"model.path={model}")
    assert not mark.exists()


def test_pickles_beside_safetensors_and_in_a_run_folder_are_left_alone(
    train: Train, tiny_args: list[str], tiny_model: Path, tmp_path: Path, mark: Path
):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    plant(mark, model / "pytorch_model.bin", model / "training_args.bin", model / "optimizer.pt")
    run = train(tmp_path / "run", *tiny_args, f"model.path={model}", "train.stop_after=2")
    checkpoint = run / "01_s4/checkpoints/step_00000002"
    plant(
        mark, checkpoint / ".metadata", checkpoint / "rng_0.pt", checkpoint / "__0_0.distcp", tmp_path / "cache/x.pkl"
    )
    train(run, *tiny_args, f"model.path={model}")
    assert len((run / "01_s4/metrics.jsonl").read_text().splitlines()) == 8
    assert compare(run, run).equal
    assert not mark.exists()


@pytest.mark.parametrize("pattern", ["index.json", "rank_*", "rng_*", "train_state.json", "COMPLETE"])
def test_a_pickle_in_the_place_of_a_checkpoints_file_is_not_run(
    train: Train, tiny_args: list[str], tmp_path: Path, mark: Path, pattern: str
):
    """Even as the only checkpoint: training begins anew, or says what is wrong."""
    run = train(tmp_path / "run", *tiny_args, "train.stop_after=2")
    [file] = (run / "01_s4/checkpoints/step_00000002").glob(pattern)
    plant(mark, file)
    with contextlib.suppress(CheckpointError):
        train(run, *tiny_args)
    assert not mark.exists()


def test_a_pickle_in_the_place_of_prepared_data_is_not_run(
    train: Train, tiny_args: list[str], tmp_path: Path, mark: Path
):
    train(tmp_path / "run", *tiny_args, "train.stop_after=1")
    plant(mark, tmp_path / "cache/documents.npy")
    with pytest.raises(YarnTrainError, match=r"data\.cache"):
        train(tmp_path / "again", *tiny_args)
    assert not mark.exists()
