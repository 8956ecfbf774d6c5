from __future__ import annotations

import subprocess
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from yarn_train.data import sources
from yarn_train.data.sources import SPLITS, Document, UndecodableError, documents, read_all, split_of, stdlib_root
from yarn_train.errors import DataError


def names(split: str, held_out: float = 0.1) -> set[str]:
    return {d.name for d in documents("stdlib", None, split, held_out)}


def test_stdlib_splits_are_disjoint_and_complete():
    split = {s: names(s) for s in SPLITS}
    every = {p.relative_to(stdlib_root()).as_posix() for p in stdlib_root().rglob("*.py")}
    own = {n for n in every if not {"site-packages", "dist-packages", "__pycache__"} & set(n.split("/"))}
    assert split["train"] | split["validation"] | split["test"] == own
    assert sum(map(len, split.values())) == len(own)
    assert "pydoc_data/topics.py" in own
    held = len(split["validation"] | split["test"]) / len(own)
    assert 0.05 < held < 0.15


def test_held_out_is_decided_by_the_name_alone():
    # literal values: if these move, published numbers stop being comparable
    known = ["os.py", "json/decoder.py", "subprocess.py", "enum.py", "pydoc_data/topics.py", "test/test_doctest.py"]
    assert [split_of(n, 0.1) for n in known] == ["train", "train", "validation", "validation", "test", "test"]


def test_more_held_out_only_adds():
    assert names("train", 0.3) < names("train", 0.1)
    assert names("test", 0.1) < names("test", 0.3)
    assert len(names("train", 0.0)) == sum(len(names(s)) for s in SPLITS)


def test_listing_is_sorted_and_repeatable():
    first = [d.name for d in documents("stdlib", None, "train", 0.1)]
    assert first == sorted(first) == [d.name for d in documents("stdlib", None, "train", 0.1)]


def test_a_venv_uses_the_library_of_its_base_interpreter(tmp_path: Path):
    venv.create(tmp_path / "venv", with_pip=False)
    code = "import sysconfig; print(sysconfig.get_path('stdlib'))"
    inside = subprocess.run(
        [str(tmp_path / "venv" / "bin" / "python"), "-c", code], capture_output=True, text=True, check=True
    )
    assert Path(inside.stdout.strip()) == stdlib_root()
    assert (stdlib_root() / "os.py").exists()
    assert not stdlib_root().is_relative_to(tmp_path)


def test_pg19_lists_one_split_in_order_and_keeps_line_ends(books: Callable[..., str]):
    root = books(train=["a\r\nb\n", "c"], test=["d"])
    found = documents("pg19", root, "train", 0.1)
    assert [(d.name, d.read()) for d in found] == [("pg19/train/0.txt", "a\r\nb\n"), ("pg19/train/1.txt", "c")]
    assert [d.read() for d in documents("pg19", root, "test", 0.1)] == ["d"]


def test_both_sources_are_concatenated(books: Callable[..., str]):
    root = books(test=["d"])
    both = documents("stdlib+pg19", root, "test", 0.1)
    assert [d.name for d in both] == [*sorted(names("test")), "pg19/test/0.txt"]


@pytest.mark.parametrize(
    ("source", "path", "split", "told"),
    [
        ("pg19", None, "train", ["data.path", "train/*.txt"]),
        ("pg19", "{tmp}/nowhere", "train", ["data.path", "nowhere", "not a folder"]),
        ("pg19", "{tmp}/empty", "train", ["data.path", "no *.txt"]),
        ("books3", None, "train", ["data.source", "books3", "stdlib+pg19"]),
        ("stdlib", None, "dev", ["split", "dev", "validation"]),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, source: str, path: str | None, split: str, told: list[str]):
    (tmp_path / "empty" / "train").mkdir(parents=True)
    with pytest.raises(DataError) as error:
        documents(source, path and path.format(tmp=tmp_path), split, 0.1)
    assert all(word in str(error.value) for word in [*told, "got", "allowed", "fix"])


def test_an_empty_held_out_split_is_named():
    with pytest.raises(DataError, match=r"data\.held_out: got 0\.0"):
        documents("stdlib", None, "test", 0.0)


def test_undecodable_documents_are_skipped_and_named(tmp_path: Path):
    (tmp_path / "good").write_bytes("né\n".encode())
    (tmp_path / "bad").write_bytes(b"n\xe9\n")
    listed = [Document(n, tmp_path / n) for n in ("bad", "good")]
    skipped: list[str] = []
    assert list(read_all(listed, skipped)) == [("good", "né\n")]
    assert skipped == ["bad"]
    with pytest.raises(UndecodableError, match="byte 1 is not UTF-8"):
        listed[0].read()
    with pytest.raises(DataError, match="gone"):
        Document("gone", tmp_path / "gone").read()


def test_installed_packages_are_not_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("os.py", "site-packages/x.py", "dist-packages/x.py", "json/__init__.py", "json/__pycache__/x.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("pass\n")
    monkeypatch.setattr(sources, "stdlib_root", lambda: tmp_path)
    assert names("train", 0.0) == {"os.py", "json/__init__.py"}
