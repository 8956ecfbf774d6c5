from __future__ import annotations

import os
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yarn_train.config import DataConfig
from yarn_train.data import files
from yarn_train.data.documents import Document, Documents, UndecodableError, read_all
from yarn_train.data.files import FileDocuments, stdlib_root
from yarn_train.data.sources import Joined, open_documents
from yarn_train.data.splits import SPLITS
from yarn_train.errors import DataError


def opened(source: str, path: object, split: str = "train", **options: Any) -> Documents:
    return open_documents(DataConfig(source=source, path=None if path is None else str(path), **options), split)


def stdlib(split: str, held_out: float = 0.1) -> set[str]:
    return {d.name for d in opened("stdlib", None, split, held_out=held_out)}


def texts(found: Documents) -> dict[str, str]:
    return {d.name: d.read() for d in found}


def write(folder: Path, **named: str | bytes) -> Path:
    """Files whose names are the keywords, with .txt added and __ as /."""
    for name, text in named.items():
        file = folder / f"{name.replace('__', '/')}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_stdlib_splits_are_disjoint_and_complete():
    split = {s: stdlib(s) for s in SPLITS}
    every = {p.relative_to(stdlib_root()).as_posix() for p in stdlib_root().rglob("*.py")}
    own = {n for n in every if not {"site-packages", "dist-packages", "__pycache__"} & set(n.split("/"))}
    assert split["train"] | split["validation"] | split["test"] == own
    assert sum(map(len, split.values())) == len(own)
    assert "pydoc_data/topics.py" in own
    held = len(split["validation"] | split["test"]) / len(own)
    assert 0.05 < held < 0.15


def test_more_held_out_only_adds():
    assert stdlib("train", 0.3) < stdlib("train", 0.1)
    assert stdlib("test", 0.1) < stdlib("test", 0.3)
    assert len(stdlib("train", 0.0)) == sum(len(stdlib(s)) for s in SPLITS)


def test_listing_is_sorted_and_repeatable():
    first = [d.name for d in opened("stdlib", None)]
    assert first == sorted(first) == [d.name for d in opened("stdlib", None)]


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
    found = opened("pg19", root)
    assert [(d.name, d.read()) for d in found] == [("pg19/train/0.txt", "a\r\nb\n"), ("pg19/train/1.txt", "c")]
    assert found.sizes().tolist() == [5, 1]
    assert found.identity() == {}
    assert [d.read() for d in opened("pg19", root, "test")] == ["d"]


def test_both_sources_are_concatenated(books: Callable[..., str]):
    root = books(test=["d", "efg"])
    both = opened("stdlib+pg19", root, "test")
    assert [d.name for d in both] == [*sorted(stdlib("test")), "pg19/test/0.txt", "pg19/test/1.txt"]
    assert [both[-2].read(), both[-1].read_bytes()] == ["d", b"efg"]
    assert both.sizes().tolist() == [len(d.read_bytes()) for d in both]
    assert set(both.identity()) == {"python", "held_out"}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.text(max_size=3), max_size=4), min_size=1, max_size=4))
def test_joined_is_the_lists_one_after_the_other(tmp_path_factory: pytest.TempPathFactory, parts: list[list[str]]):
    root = tmp_path_factory.mktemp("joined")
    for p, part in enumerate(parts):
        for i, text in enumerate(part):
            (root / f"{p}.{i}").write_text(text, encoding="utf-8", newline="")
    lists = [FileDocuments(root, [f"{p}.{i}" for i in range(len(part))]) for p, part in enumerate(parts)]
    joined = Joined(lists)
    assert [d.read() for d in joined] == [text for part in parts for text in part]
    assert [d.name for d in joined] == [d.name for part in lists for d in part]


@pytest.mark.parametrize(
    ("source", "path", "split", "told"),
    [
        ("pg19", None, "train", ["data.path", "train/*.txt"]),
        ("text", None, "train", ["data.path", "hub id"]),
        ("pg19", "{tmp}/nowhere", "train", ["data.path", "nowhere", "existing"]),
        ("pg19", "{tmp}/empty", "train", ["data.path", "no *.txt"]),
        ("pg19", "{tmp}/empty", "test", ["data.path", "not a folder"]),
        ("text", "{tmp}/empty", "train", ["data.path", "*.parquet", "0 files"]),
        ("text", "{tmp}/other", "train", ["data.path", "*.parquet", "1 files"]),
        ("text", "{tmp}/other/a.bin", "train", ["data.path", "*.parquet"]),
        ("text", "{tmp}/*.jsonl", "train", ["data.path", "*.parquet", "0 files"]),
        ("books3", None, "train", ["data.source", "books3", "stdlib+pg19"]),
        ("mixture", None, "train", ["data.source", "mixture", "stdlib+pg19"]),
        ("stdlib", None, "dev", ["split", "dev", "validation"]),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, source: str, path: str | None, split: str, told: list[str]):
    (tmp_path / "empty" / "train").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.bin").write_text("x")
    with pytest.raises(DataError) as error:
        opened(source, path and path.format(tmp=tmp_path), split)
    assert all(word in str(error.value) for word in [*told, "got", "allowed", "fix"])


def test_an_empty_held_out_split_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"data\.held_out: got 0\.0"):
        opened("stdlib", None, "test", held_out=0.0)
    with pytest.raises(DataError, match=r"data\.held_out: got 0\.1"):
        opened("text", write(tmp_path, a="x"), "test")


def test_a_revision_of_a_folder_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"data\.revision: got 'main'"):
        opened("text", write(tmp_path, a="x"), revision="main")


def test_installed_packages_are_not_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("os.py", "site-packages/x.py", "dist-packages/x.py", "json/__init__.py", "json/__pycache__/x.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("pass\n")
    monkeypatch.setattr(files, "stdlib_root", lambda: tmp_path)
    assert stdlib("train", 0.0) == {"os.py", "json/__init__.py"}


def test_texts_in_folders_called_like_splits(tmp_path: Path):
    write(tmp_path, train__a="1", train__sub__a="2", test__a="3")  # twice the same file name
    (tmp_path / "metadata.csv").write_text("beside them")
    (tmp_path / "train" / ".hidden.txt").write_text("no")
    assert texts(opened("text", tmp_path)) == {"train/a.txt": "1", "train/sub/a.txt": "2"}
    assert texts(opened("text", tmp_path, "test")) == {"test/a.txt": "3"}
    with pytest.raises(DataError, match=r"split 'validation'; it has train, test"):
        opened("text", tmp_path, "validation")


def test_texts_without_splits_are_held_out_by_name(tmp_path: Path):
    write(tmp_path, **{f"b{i}": str(i) for i in range(200)})
    found = {s: texts(opened("text", tmp_path, s)) for s in SPLITS}
    assert sorted(int(t) for f in found.values() for t in f.values()) == list(range(200))
    assert 5 < len(found["validation"]) + len(found["test"]) < 40
    assert opened("text", tmp_path).identity() == {"held_out": 0.1}
    assert len(opened("text", tmp_path, held_out=0.0)) == 200
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "copy").symlink_to(tmp_path / "b1.txt")
    assert len(opened("text", str(tmp_path / "b1?.txt"), held_out=0.0)) == 10


@pytest.mark.parametrize(
    ("source", "path"),
    [("text", ""), ("text", "train"), ("text", "*/*.txt"), ("text", "train/n\udce9.txt"), ("pg19", "")],
)
def test_a_file_name_that_is_not_utf8_is_one_error(tmp_path: Path, source: str, path: str):
    write(tmp_path, train__a="1")
    try:
        (tmp_path / "train" / "n\udce9.bin").write_text("2")
    except OSError:
        pytest.skip("this file system has no such names")
    assert len(opened(source, tmp_path, held_out=0.0)) == 1  # a file that is not read may have any name
    (tmp_path / "train" / "n\udce9.txt").write_text("2")
    with pytest.raises(DataError, match=r"data\.path: got 'file .*n\\udce9\.txt'.*rename it") as error:
        opened(source, tmp_path / path)
    assert str(error.value).encode()


def test_links_are_followed_and_loops_are_not(tmp_path: Path):
    write(tmp_path / "far", a="1")
    root = write(tmp_path / "near", b="2")
    (root / "c.txt").symlink_to(root / "b.txt")
    (root / "linked").symlink_to(tmp_path / "far")
    (root / "loop").symlink_to(root)
    found = texts(opened("text", root, held_out=0.0))
    assert found == {"b.txt": "2", "c.txt": "2", "linked/a.txt": "1"}
    (root / "d.txt").symlink_to(root / "nothing")
    broken = opened("text", root, held_out=0.0)
    for read in (broken.sizes, broken[2].read):
        with pytest.raises(DataError, match=r"document d\.txt"):
            read()


@pytest.mark.parametrize("layout", ["pg19", "text"])
def test_odd_texts(tmp_path: Path, layout: str):
    odd = {
        "bom": b"\xef\xbb\xbfx",
        "empty": b"",
        "latin": b"n\xe9\n",
        "long": b"x" * 20_000_000,
        "nul": b"a\0b",
        "one": b"a",
        "rtl": "שלום 👩‍👩‍👧 \u202e".encode(),
        "space": b" \n\t ",
        "surrogate": b"\xed\xa0\x80",
    }
    write(tmp_path, **{f"train__{name}": text for name, text in odd.items()})
    found = opened(layout, tmp_path, held_out=0.0)  # there is nothing but train
    assert [d.read_bytes() for d in found] == list(odd.values())
    assert found.sizes().tolist() == [len(text) for text in odd.values()]
    skipped: list[str] = []
    read = list(read_all(found, skipped))
    assert [Path(name).stem for name in skipped] == ["latin", "surrogate"]
    assert [text.encode() for _, text in read] == [t for n, t in odd.items() if n not in ("latin", "surrogate")]
    with pytest.raises(UndecodableError, match="byte 1 is not UTF-8"):
        found[2].read()


def test_a_file_that_is_gone_or_closed_is_named(tmp_path: Path):
    found = opened("text", write(tmp_path, a="1", b="2"), held_out=0.0)
    os.remove(tmp_path / "b.txt")
    for read in (found.sizes, found[1].read_bytes):
        with pytest.raises(DataError, match=r"document b\.txt.*b\.txt"):
            read()


def test_a_list_of_documents_is_a_sequence(tmp_path: Path):
    found = opened("text", write(tmp_path, a="1", b="2", c="3"), held_out=0.0)
    assert [d.name for d in found[::-1]] == ["c.txt", "b.txt", "a.txt"]
    assert found[-1] == Document(found, 2)
    assert found.sizes().dtype == np.int64
    with pytest.raises(IndexError):
        found[3]


def test_the_shared_sample_reads_the_same_as_files_and_as_texts():
    root = Path(__file__).resolve().parents[3] / "shared" / "pg19-sample"
    if not root.is_dir():
        pytest.skip("no ../shared/pg19-sample")
    books, folder = opened("pg19", root, "test"), opened("text", root, "test")
    assert [d.name for d in books] == [f"pg19/{d.name}" for d in folder]
    assert [d.read_bytes() for d in books] == [d.read_bytes() for d in folder]
