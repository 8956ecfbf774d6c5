"""Rows of models that nobody trained, shared by the jobs of a sweep."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from safetensors.torch import load_file, save_file
from support import ROOT

from yarn_train.eval.perplexity import shared, task
from yarn_train.sweep import record

Train = Callable[..., Path]
SMALL = (
    "train.steps=1",
    "schedule.warmup_steps=0",
    "checkpoint.every=1",
    "eval=perplexity",
    "eval.documents=2",
    "eval.windows=[32,64]",
)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "sweep"
    record.write(folder, record.Sweep("sweep", "", "basic", "basic", {}))
    return folder


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Labels of the models that were built for evaluation."""
    labels: list[str] = []
    real = task.loaded

    def noted(variant, *rest):
        labels.append(variant.label)
        return real(variant, *rest)

    monkeypatch.setattr(task, "loaded", noted)
    return labels


FILES = ("perplexity", "perplexity_documents", "positions")


def rows(run: Path) -> list[dict]:
    """Of all three files, one after the other."""
    return [row for name in FILES for row in json.loads((run / "eval" / f"{name}.json").read_text())]


def untrained(run: Path) -> list[dict]:
    return [row for row in rows(run) if row["stage"] is None]


def shared_files(sweep: Path) -> list[Path]:
    return [path for path in (sweep / "shared").glob("*.json") if not path.name.startswith("weights")]


def test_the_second_job_evaluates_what_it_trained_alone(train: Train, sweep, tmp_path, built, tiny_args) -> None:
    args = (*tiny_args, *SMALL)
    one = train(sweep / "one", *args)
    assert len(built) == 7
    built.clear()
    other = train(sweep / "other", *args, "optim.lr=0.01")
    assert built == [row["label"] for row in rows(other)[-1:]]
    assert untrained(other) == untrained(one)
    built.clear()
    lone = train(tmp_path / "lone", *args)
    assert len(built) == 7
    assert rows(lone) == rows(one)
    assert [list(row) for row in rows(other)] == [list(row) for row in rows(lone)]
    assert not (tmp_path / "shared").exists()


@pytest.mark.long
def test_all_ranks_take_the_rows_that_rank_0_reads(launch, sweep, tiny_args) -> None:
    args = (*tiny_args, *SMALL, "train.global_batch_size=4")
    launch(*args, f"run.dir={sweep / 'one'}", ranks=2)
    for file in shared_files(sweep):  # told apart from what would be computed
        found = json.loads(file.read_text())
        file.write_text(json.dumps({**found, "perplexity": [{**r, "perplexity": 123.0} for r in found["perplexity"]]}))
    launch(*args, f"run.dir={sweep / 'other'}", ranks=2)
    assert {row["perplexity"] for row in untrained(sweep / "other")} == {123.0}
    assert {row["stage"] for row in rows(sweep / "other")} == {None, "01_s4"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "reused"),
    [
        (
            ["rope.temperature=1.5"],
            {"base", "PI s=4, untrained", "NTK-aware s=4, untrained", "NTK-by-parts s=4, untrained"},
        ),
        (["eval.stride=16"], set()),
        (["model.dtype=float32"], set()),
    ],
)
def test_only_what_decides_the_same_numbers_is_shared(train: Train, sweep, built, tiny_args, words, reused) -> None:
    train(sweep / "one", *tiny_args, *SMALL)
    built.clear()
    run = train(sweep / "other", *tiny_args, *SMALL, *words)
    assert {row["label"] for row in rows(run)} - set(built) == reused


def test_another_base_of_the_same_name_and_size_is_not_mixed_in(
    train: Train, sweep, built, tiny_args, tiny_model, tmp_path
) -> None:
    """Even one whose file says that it was changed at the same time."""
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    args = (*tiny_args, *SMALL, f"model.path={base}")
    one = train(sweep / "one", *args)
    file = base / "model.safetensors"
    stamp = file.stat()
    save_file({name: tensor * 0.5 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stamp.st_size, stamp.st_mtime_ns)
    built.clear()
    other = train(sweep / "other", *args)
    assert len(built) == 7
    assert untrained(other) != untrained(one)


@pytest.mark.long
def test_a_copy_of_the_base_is_the_same_base(train: Train, sweep, built, tiny_args, tiny_model, tmp_path) -> None:
    train(sweep / "one", *tiny_args, *SMALL)
    shutil.copytree(tiny_model, tmp_path / "copy")
    built.clear()
    train(sweep / "other", *tiny_args, *SMALL, f"model.path={tmp_path / 'copy'}")
    assert len(built) == 1


def claim(sweep: Path, said: list[str]):
    rows = {"perplexity": [(32, "token_mean")], "perplexity_documents": [(32, "book")], "positions": [(32, 1)]}
    wanted = shared.Decisive(str(sweep / "weights"), {"a": 1}, rows)
    return shared.claimed(sweep, wanted, "base", said.append)


@pytest.fixture
def alone(sweep: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Path:
    """A sweep for claims by one rank that has no process group."""
    monkeypatch.setattr(shared, "on_main", lambda work: work())
    monkeypatch.setattr(shared, "INTERVAL", 0.02)
    shutil.copytree(tiny_model, sweep / "weights")
    return sweep


ENDS = {"low": 1.5, "high": None}
ROWS = {
    "perplexity": [
        {
            "window": 32,
            "stride": 8,
            "mode": "token_mean",
            "perplexity": 2.0,
            **ENDS,
            "tokens": 1,
            "documents": 1,
            "score_from": 0,
        }
    ],
    "perplexity_documents": [{"window": 32, "document": "book", "nll": 0.7, "tokens": 1}],
    "positions": [{"window": 32, "begin": 1, "end": 32, "loss": 0.7, "tokens": 31, **ENDS}],
}


def test_two_jobs_at_once_compute_once(alone: Path) -> None:
    computed, got, said = [], [], []
    inside = threading.Event()

    def job() -> None:
        with claim(alone, said) as mine:
            if mine.rows is None:
                computed.append(1)
                inside.set()
                threading.Event().wait(0.5)
                mine.publish({name: [{**row, "label": "base"} for row in ROWS[name]] for name in FILES})
            got.append(mine.rows)

    threads = [threading.Thread(target=job) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert computed == [1]
    assert got.count(ROWS) == 2
    assert set(said) <= {
        "another job of the sweep evaluates base; waiting for its result",
        "another job of the sweep reads the base's weights to tell them from others; waiting for it",
    }
    assert "another job of the sweep evaluates base; waiting for its result" in said


def test_a_job_that_fails_leaves_the_work_to_the_next(alone: Path) -> None:
    def fail() -> None:
        with claim(alone, []) as mine:
            assert mine.rows is None
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with claim(alone, []) as mine:
        assert mine.rows is None


@pytest.mark.parametrize("torn", ["", "[", "[]", "null", '{"perplexity": []}', "half", "nan", "a file less"])
def test_a_file_that_is_torn_is_computed_again(alone: Path, torn: str) -> None:
    with claim(alone, []) as mine:
        mine.publish(ROWS)
    (file,) = shared_files(alone)
    whole = file.read_text()
    less = json.dumps({**ROWS, "positions": []})
    broken = {"half": whole[: len(whole) // 2], "nan": whole.replace("2.0", "NaN"), "a file less": less}
    file.write_text(broken.get(torn, torn))
    with claim(alone, []) as mine:
        assert mine.rows is None
        mine.publish(ROWS)
    assert file.read_text() == whole
    with claim(alone, []) as mine:
        assert mine.rows == ROWS


HOLD = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_job_that_was_killed_keeps_nobody_waiting(alone: Path) -> None:
    with claim(alone, []) as mine:
        assert mine.path
        lock = mine.path.with_suffix(".lock")
    command = [sys.executable, "-c", HOLD, str(lock)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    threading.Timer(0.3, process.send_signal, [signal.SIGKILL]).start()
    said: list[str] = []
    with claim(alone, said) as mine:
        assert mine.rows is None
    process.wait()
    assert said == ["another job of the sweep evaluates base; waiting for its result"]


def test_storage_that_cannot_be_written_costs_no_job_its_rows(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (alone / "shared").write_text("a file")
    said: list[str] = []
    with claim(alone, said) as mine:
        assert mine.rows is None
        mine.publish(ROWS)
    assert len(said) == 1
    assert said[0].startswith("evaluation of base is not shared with the sweep's other jobs: ")


def test_weights_are_read_once_per_sweep(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: (opened.append(self), real(self, *a, **k))[1])
    digests = {shared._weights_sha256(str(alone / "weights"), alone, print) for _ in range(3)}
    assert (len(digests), len([path for path in opened if path.suffix == ".safetensors"])) == (1, 1)
    assert not FileLock(next(alone.glob("*.lock"))).is_locked
