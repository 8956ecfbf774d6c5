"""Files that lie: too deep, too large, of another kind, or not JSON at all. Each is one clear error, no traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from yarn_train import diff
from yarn_train.data.segments import open_segments
from yarn_train.errors import YarnTrainError
from yarn_train.report.__main__ import main as report

Train = Callable[..., Path]
JSON = {
    "deep": "[" * 100_000,
    "a list": "[]",
    "cut off": '{"a": ' + "9" * 10_000,
    "other kinds": '{"seq_len": 4, "seq_len": NaN, "tensors": 1, "tensors": [], "starts": 3}',
}
YAML = {
    "makes objects": "!!python/object/apply:os.system ['true']",
    "grows": "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n",
    "deep": "[" * 2_000,
}
CHECKPOINT = "01_s4/checkpoints/step_00000002"
OF_A_RUN = [
    *((name, kind) for name in ("run.json", "01_s4/metrics.jsonl") for kind in JSON.items()),
    *(
        (f"{CHECKPOINT}/{name}", kind)
        for name in ("COMPLETE", "index.json", "train_state.json")
        for kind in JSON.items()
    ),
    *((name, kind) for name in ("config.yaml", "01_s4/config.yaml") for kind in YAML.items()),
]


def told_by_diff(file: str, kind: str) -> int:
    """1 where COMPLETE says what the file should be, 0 where what it says is still usable or not needed, else 2."""
    if Path(file).name in ("index.json", "train_state.json"):
        return 1
    usable = {"run.json": ("other kinds",), "config.yaml": ("grows",), "COMPLETE": tuple(JSON)}
    return 0 if kind in usable.get(Path(file).name, ()) else 2


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run folder, made by the first test that needs it; every test damages a copy, so none sees what another did."""
    return []


@pytest.fixture
def run(made: list[Path], train: Train, tiny_args: list[str], tmp_path: Path) -> Path:
    if not made:
        train(tmp_path / "run", *tiny_args, "train.stop_after=2")
        made.append(tmp_path)
    return shutil.copytree(made[0] / "run", tmp_path / "copy")


@pytest.mark.parametrize(("file", "kind"), OF_A_RUN, ids=lambda value: value if isinstance(value, str) else value[0])
def test_of_a_run_folder(
    run: Path, made: list[Path], train: Train, tiny_args: list[str], file: str, kind: tuple[str, str]
):
    """Comparing, reporting and resuming go on without the file, or say which it is."""
    (run / file).write_text(kind[1])
    assert diff.main([str(run), str(run)]) == told_by_diff(file, kind[0])
    assert report([str(run)]) in (0, 1)
    told = ""
    try:
        train(run, *tiny_args, f"data.cache={made[0] / 'cache'}", "train.stop_after=2")
    except YarnTrainError as error:
        told = str(error)
    assert not told or "step_00000002" in told or Path(file).name in told


@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_of_a_model(train: Train, tiny_args: list[str], tiny_model: Path, tmp_path: Path, file: str, text: str):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / file).write_text(text)
    told = ""
    try:
        train(tmp_path / "run", *tiny_args, f"model.path={model}", "train.stop_after=1")
    except YarnTrainError as error:
        told = str(error)
    assert "model.path" in told or (file, text) == ("tokenizer_config.json", JSON["other kinds"])


@pytest.mark.parametrize("file", ["manifest.json", "state.json", "dataset_info.json"])
def test_of_prepared_data(run: Path, made: list[Path], file: str):
    folder = shutil.copytree(made[0] / "cache", run / "cache")
    for name, text in JSON.items():
        (folder / file).write_text(text)
        if (file, name) != ("dataset_info.json", "other kinds"):  # datasets ignores what it does not know
            with pytest.raises(YarnTrainError, match=r"data\.cache"):
                open_segments(folder)


def test_a_header_of_weights_that_promises_too_much_is_refused(run: Path):
    [file] = (run / "01_s4/checkpoints/step_00000002").glob("rank_*")
    header = json.dumps({"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    for content in ((1 << 63).to_bytes(8, "little"), len(header).to_bytes(8, "little") + header, b"", b"\1" * 7):
        file.write_bytes(content)
        (run / "01_s4/checkpoints/step_00000002/COMPLETE").write_text("{}")
        assert diff.main([str(run), str(run)]) == 2
