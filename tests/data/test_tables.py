from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import httpx2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import errors
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tables_support import COMMIT, Hub, use_cache, write

from yarn_train.config import DataConfig
from yarn_train.data import hub
from yarn_train.data.documents import Documents, UndecodableError, read_all
from yarn_train.data.sources import open_documents, pinned
from yarn_train.data.splits import SPLITS
from yarn_train.data.tables import TableDocuments
from yarn_train.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_cache(monkeypatch, tmp_path / "cache")
    hub.find.cache_clear()
    return tmp_path / "cache"


def opened(path: object, split: str = "train", source: str = "text", **options: Any) -> Documents:
    return open_documents(DataConfig(source=source, path=str(path), **options), split)


def texts(found: Documents) -> list[str]:
    return [d.read() for d in found]


def books(folder: Path) -> Path:
    """PG19 as the hub's copy has it."""
    for split, names in {"train": ["a", "b", "c"], "validation": ["d"], "test": ["e", "f"]}.items():
        rows = [{"short_book_title": n, "publication_date": 1900, "url": "u", "text": f"{n}\r\n"} for n in names]
        (folder / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.none() | st.text(max_size=4), max_size=5), min_size=1, max_size=4),
    st.sampled_from([pa.string(), pa.large_string()]),
    st.integers(0, 3),
    st.data(),
)
def test_sizes_and_bytes_of_any_column(
    chunks: list[list[str | None]], kind: pa.DataType, cut: int, draw: st.DataObject
):
    column = pa.chunked_array([pa.array(chunk, type=kind) for chunk in chunks], type=kind).slice(cut)
    values = [text for chunk in chunks for text in chunk][cut:]
    rows = draw.draw(st.lists(st.integers(0, len(values) - 1), max_size=6) if values else st.just([]))
    found = TableDocuments(column, np.array(rows, np.int64), "p/", {})
    assert found.sizes().dtype == np.int64
    assert found.sizes().tolist() == [len((values[r] or "").encode()) for r in rows]
    skipped: list[str] = []
    assert list(read_all(found, skipped)) == [(f"p/{r}", values[r]) for r in rows if values[r] is not None]
    assert skipped == [f"p/{r}" for r in rows if values[r] is None]


@pytest.mark.parametrize("where", ["{tmp}", "{tmp}/data", "{tmp}/data/*.parquet"])
def test_books_as_parquet(tmp_path: Path, where: str):
    path = where.format(tmp=books(tmp_path / "books"))
    found = {split: opened(path, split, source="pg19") for split in SPLITS}
    assert {s: texts(f) for s, f in found.items()} == {
        "train": ["a\r\n", "b\r\n", "c\r\n"],
        "validation": ["d\r\n"],
        "test": ["e\r\n", "f\r\n"],
    }
    assert [d.name for d in found["train"]] == ["pg19/train/0", "pg19/train/1", "pg19/train/2"]
    assert found["train"].sizes().tolist() == [3, 3, 3]
    assert set(found["train"].identity()) == {"files_sha256", "column"}


def test_books_as_parquet_beside_the_standard_library(tmp_path: Path):
    both = opened(books(tmp_path), "test", source="stdlib+pg19")
    assert [d.name for d in both][-2:] == ["pg19/test/0", "pg19/test/1"]
    assert set(both.identity()) == {"python", "held_out", "files_sha256", "column"}


def test_one_file_is_held_out_by_row(tmp_path: Path):
    file = write(tmp_path / "test.parquet", [str(i) for i in range(200)])
    found = {split: opened(file, split) for split in SPLITS}
    assert sorted(int(t) for f in found.values() for t in texts(f)) == list(range(200))
    assert 5 < len(found["validation"]) + len(found["test"]) < 40
    for split, documents in found.items():
        assert [d.name for d in documents] == [f"train/{t}" for t in texts(documents)], split
        assert documents.identity()["held_out"] == 0.1
        assert documents.sizes().tolist() == [len(t) for t in texts(documents)]
    assert len(opened(file, held_out=0.0)) == 200
    with pytest.raises(DataError, match=r"data\.held_out: got 0\.0"):
        opened(file, "test", held_out=0.0)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz", "a.csv", "a.csv.gz", "a[1].parquet"])
def test_formats(tmp_path: Path, name: str):
    written = ["one", "two\nlines", "", " \n", "שלום 👩‍👩‍👧", "NA", "a,b", "2020-01-01 x"]
    found = opened(write(tmp_path / "t" / name, written, column="story"), column="story", held_out=0.0)
    assert texts(found) == written
    assert [d.name for d in found] == [f"train/{i}" for i in range(8)]


def test_folders_of_files_keep_their_order_and_splits(tmp_path: Path):
    write(tmp_path / "train" / "b" / "x.jsonl", ["2"])
    write(tmp_path / "train" / "a" / "x.jsonl", ["1"])  # the same file name in two folders
    write(tmp_path / "test" / "x.jsonl.gz", ["3"])
    (tmp_path / "dataset_info.json").write_text("{}")
    assert texts(opened(tmp_path)) == ["1", "2"]
    assert texts(opened(tmp_path, "test")) == ["3"]


@pytest.mark.parametrize("divided", [True, False])
def test_a_folder_of_save_to_disk(tmp_path: Path, divided: bool):
    table = datasets.Dataset.from_dict({"text": ["a", "b"]})
    (datasets.DatasetDict({"train": table, "test": table}) if divided else table).save_to_disk(str(tmp_path / "saved"))
    assert texts(opened(tmp_path / "saved", held_out=0.0)) == ["a", "b"]
    if divided:
        assert texts(opened(tmp_path / "saved", "test")) == ["a", "b"]
    next((tmp_path / "saved").rglob("*.arrow")).write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"data\.path"):
        opened(tmp_path / "saved")


def test_the_identity_is_that_of_the_content_and_not_of_the_place(tmp_path: Path):
    def identity(folder: str, *rows: str, name: str = "a.parquet") -> Any:
        write(tmp_path / folder / name, rows)
        return opened(tmp_path / folder, held_out=0.0).identity()["files_sha256"]

    first = identity("here", "a", "b")
    assert identity("there", "a", "b") == first
    others = [identity("1", "a", "c"), identity("2", "b", "a"), identity("3", "a", "b", name="b.parquet")]
    assert len({first, *others}) == 4


def test_odd_texts(tmp_path: Path):
    odd: list[bytes | None] = [b"", b"a", b" \n\t", b"n\xe9", b"a\0b", None, "שלום 👩‍👩‍👧".encode(), b"x" * 20_000_000]
    # Arrow does not check that strings are UTF-8
    column = pa.array(odd, type=pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "odd.parquet")
    found = opened(tmp_path / "odd.parquet", held_out=0.0)
    assert found.sizes().tolist() == [len(text or b"") for text in odd]
    skipped: list[str] = []
    assert [text.encode() for _, text in read_all(found, skipped)] == [odd[i] for i in (0, 1, 2, 4, 6, 7)]
    assert skipped == ["train/3", "train/5"]
    with pytest.raises(UndecodableError, match="byte 1 is not UTF-8"):
        found[3].read()
    with pytest.raises(UndecodableError, match="train/5"):
        found[5].read_bytes()


def test_odd_texts_in_json(tmp_path: Path):
    odd = ["", "a\0b", None, "שלום 👩‍👩‍👧", "x" * 20_000_000]
    found = opened(write(tmp_path / "odd.jsonl", odd), held_out=0.0)
    assert [d.read() for i, d in enumerate(found) if i != 2] == [text for text in odd if text is not None]
    assert found.sizes().tolist() == [len((text or "").encode()) for text in odd]


def broken(folder: Path, name: str) -> Path:
    whole = write(folder / "whole.parquet", ["a", "b"]).read_bytes()
    (folder / "whole.parquet").unlink()
    content = {
        "corrupt.parquet": b"not parquet",
        "truncated.parquet": whole[:-20],
        "empty.parquet": b"",
        "empty.jsonl": b"",
        "empty.csv": b"",
        "line.jsonl": b'{"text": "a"}\n{"text": "b\n',
        "not.json.gz": b'{"text": "a"}\n',
        "cut.jsonl.gz": gzip.compress(b'{"text": "a"}\n' * 10_000)[:60],
        "a.jsonl.zst": b"\x28\xb5\x2f\xfd\x00",
    }
    (folder / name).write_bytes(content[name])
    return folder / name


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("corrupt.parquet", "file corrupt.parquet"),
        ("truncated.parquet", "file truncated.parquet"),
        ("empty.parquet", "file empty.parquet"),
        ("empty.jsonl", "there is no row in it"),
        ("empty.csv", "No columns"),
        ("line.jsonl", "file line.jsonl'; allowed: complete JSON files; fix: line 2 is no JSON"),
        ("not.json.gz", "Not a gzipped file"),
        ("cut.jsonl.gz", "ended before"),
        ("a.jsonl.zst", "pip install zstandard"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_error(
    tmp_path: Path, name: str, told: str, capfd: pytest.CaptureFixture[str]
):
    with pytest.raises(DataError) as error:
        opened(broken(tmp_path, name))
    message = str(error.value)
    assert told in message or (name == "a.jsonl.zst" and "zst" in message)
    assert message.startswith("data.path: got ")
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")  # no progress, nothing logged by libraries


def test_the_broken_one_of_many_files_is_named(tmp_path: Path):
    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.jsonl", ["x"])
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n{"text": "b\n')
    with pytest.raises(DataError, match=r"file b\.jsonl"):
        opened(tmp_path)


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_columns_that_are_missing_or_no_texts(tmp_path: Path, ending: str):
    file = write(tmp_path / f"a.{ending}", ["x"], column="story")
    with pytest.raises(DataError, match=r"data\.column: got 'text.*id, story"):
        opened(file)
    with pytest.raises(DataError, match=r"data\.column: got 'id of type int"):
        opened(file, column="id")


def test_files_with_different_columns(tmp_path: Path):
    write(tmp_path / "a.csv", ["x"])
    write(tmp_path / "b.csv", ["x"], column="story")
    with pytest.raises(DataError, match=r"same columns"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ('{"text": "a"}\n{"text": {"nested": 1}}\n', r"text of type dict in line 2 of a\.jsonl"),
        ('{"text": "a"}\n{"story": "b"}\n', r"text, missing in line 2 of a\.jsonl.*: story"),
        ('[{"text": "a"},\n{"story": "b"}]', r"text, missing in row 2 of a\.jsonl.*: story"),
        ('{"text": "a"}\n\n3\n', r"text of type int in line 3 of a\.jsonl"),
        ('["a", 3]', r"text of type int in row 2 of a\.jsonl"),
        ('{\n "text": 3\n}', r"text of type int in row 1 of a\.jsonl"),
        ('{"text": "a"}\n' * 20_000 + '{"text": 3}\n', r"text of type int in line 20001 of a\.jsonl"),
        ('[\n"a",\n"b]', r"file a\.jsonl'.*it is no JSON: .* line 3 column"),
    ],
)
def test_rows_of_json_are_never_guessed(tmp_path: Path, rows: str, told: str):
    (tmp_path / "a.jsonl").write_text(rows)
    with pytest.raises(DataError, match=told):
        opened(tmp_path)


@example(["a\ud800", "b"], "lines", True)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.none() | st.text(st.characters(exclude_categories=())), min_size=1, max_size=4),
    st.sampled_from(["lines", "list", "object", "bom"]),
    st.booleans(),
)
def test_json_keeps_every_text(tmp_path: Path, values: list[str | None], layout: str, ascii_only: bool):
    """Half surrogate pairs are no text: such a row is a null."""
    rows = [{"n": [n, {"deep": str(n)}][n % 2], "text": value} for n, value in enumerate(values)]  # n has two types
    rows = rows[:1] if layout == "object" else rows
    dumped = [json.dumps(row, ensure_ascii=ascii_only, indent=1 if layout == "object" else None) for row in rows]
    content = "[" + ",\n".join(dumped) + "]" if layout == "list" else "\n".join(dumped)
    try:
        encoded = content.encode("utf-8-sig" if layout == "bom" else "utf-8")
    except UnicodeEncodeError:
        return
    (tmp_path / "a.json").write_bytes(encoded)
    found = opened(tmp_path / "a.json", held_out=0.0)
    for row, document in zip(rows, found, strict=True):
        try:
            expected = (row["text"] or "").encode()
        except UnicodeEncodeError:
            expected = None
        if row["text"] is None or expected is None:
            with pytest.raises(UndecodableError):
                document.read_bytes()
        else:
            assert document.read_bytes() == expected


def test_lines_that_are_not_utf8_are_skipped(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "n\xe9"}\n{"text": "b"}')
    skipped: list[str] = []
    assert list(read_all(opened(tmp_path, held_out=0.0), skipped)) == [("train/0", "a"), ("train/2", "b")]
    assert skipped == ["train/1"]


@example([b"a", b"n\xe9", b"\xed\xa0\x80", b"\xc3", b"b"], "list")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.binary(max_size=4) | st.text(max_size=3).map(str.encode), min_size=1, max_size=4),
    st.sampled_from(["lines", "list", "texts", "object"]),
)
def test_bad_bytes_in_json_cost_their_own_text_only(tmp_path: Path, values: list[bytes], layout: str):
    unsafe = bytes.maketrans(bytes(range(32)) + b'"\\', b"." * 34)
    strings = [b'"' + value.translate(unsafe) + b'"' for value in values][: 1 if layout == "object" else None]
    end = b" " if layout == "lines" else b"\n"
    rows = strings if layout == "texts" else [b'{"title": "n\xe9",%s"text": %s}' % (end, s) for s in strings]
    as_list = layout in ("list", "texts")
    (tmp_path / "a.json").write_bytes(b"[%s]" % b",\n".join(rows) if as_list else b"\n".join(rows))
    found = opened(tmp_path / "a.json", held_out=0.0)
    expected = {i: s[1:-1] for i, s in enumerate(strings) if s.decode(errors="ignore").encode() == s}
    skipped: list[str] = []
    assert {name: text.encode() for name, text in read_all(found, skipped)} == {
        f"train/{i}": text for i, text in expected.items()
    }
    assert skipped == [f"train/{i}" for i in range(len(strings)) if i not in expected]


def test_rows_of_several_json_files_keep_their_numbers_around_bad_bytes(tmp_path: Path):
    (tmp_path / "a.json").write_bytes(b"[" + b",".join([b'{"text": "a"}'] * 30 + [b'{"text": "\xff"}'] * 2) + b"]")
    (tmp_path / "b.json").write_bytes(b'{\n "text": "\xff"\n}')
    (tmp_path / "c.json").write_bytes(b'{"text": "b"}\n{"text": "\xff"}\n{"text": "c"}')
    skipped: list[str] = []
    read = list(read_all(opened(tmp_path, held_out=0.0), skipped))
    assert read == [*[(f"train/{i}", "a") for i in range(30)], ("train/33", "b"), ("train/35", "c")]
    assert skipped == ["train/30", "train/31", "train/32", "train/34"]


def test_bad_bytes_outside_of_texts_are_one_error_that_can_be_printed(tmp_path: Path):
    for content, told in [
        (b'{"text": \xff}', "line 1 is no JSON"),
        (b'{"te\xfft": "a"}', r"a column of every row: te"),
    ]:
        (tmp_path / "a.jsonl").write_bytes(content)
        with pytest.raises(DataError, match=told) as error:
            opened(tmp_path)
        assert str(error.value).encode()


def test_a_change_in_the_middle_of_a_large_file_is_read(tmp_path: Path):
    """The identity does not see it, because it must be equal wherever the files are copied; the conversion does."""
    written = {}
    for text in ("a", "b"):
        file = write(tmp_path / "a.jsonl", ["x" * 100_000, text, "x" * 100_000])
        os.utime(file, ns=(0, len(written)))
        found = opened(file, held_out=0.0)
        assert found[1].read() == text
        written[text] = found.identity()
    assert written["a"] == written["b"]


def test_a_changed_file_is_read_again(tmp_path: Path):
    for text in ("a", "b"):
        assert texts(opened(write(tmp_path / "a.jsonl", [text]), held_out=0.0)) == [text]


def test_nothing_is_converted_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = write(tmp_path / "a.jsonl", ["x"])
    opened(file, held_out=0.0)
    monkeypatch.setattr("yarn_train.data.json_rows._objects", lambda *a: pytest.fail("converted again"))
    assert texts(opened(file, held_out=0.0)) == ["x"]


# --- the hub ---------------------------------------------------------------------------------------------------------


def commits(tmp_path: Path) -> dict[str, Path]:
    folders = {}
    for n in (1, 2):
        folders[COMMIT[n]] = tmp_path / COMMIT[n]
        write(folders[COMMIT[n]] / "data" / "train-00000-of-00001.parquet", [f"commit {n}"])
        write(folders[COMMIT[n]] / "data" / "test-00000-of-00001.parquet", ["held out"])
    return folders


def response(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("GET", "https://hub.test"))


def test_the_newest_commit_is_looked_up_once_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake = Hub(monkeypatch, commits(tmp_path))
    found = opened("owner/Name", source="pg19")
    assert texts(found) == ["commit 2"]
    assert found.identity() == {"repository": "owner/Name", "revision": COMMIT[2], "column": "text"}
    assert found[0].name == "pg19/train/0"
    opened("owner/Name", "test")
    assert fake.asked == [None]


def test_what_an_identity_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``column`` where a table was read, ``held_out`` where names decided, ``repository`` and ``revision`` of a hub."""
    Hub(monkeypatch, commits(tmp_path))
    undivided = write(tmp_path / "one" / "a.parquet", ["x"], column="story")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    divided = write(tmp_path / "two" / "train.parquet", ["x"], column="story")
    write(tmp_path / "two" / "test.parquet", ["x"], column="story")
    files = {"files_sha256", "column"}
    for path, keys in {
        undivided: files | {"held_out"},
        divided.parent: files,
        tmp_path / "texts": {"held_out"},
        "owner/Name": {"repository", "revision", "column"},
    }.items():
        options = {} if path == "owner/Name" else {"column": "story"}
        identity = opened(path, held_out=0.0, **options).identity()
        values = {"column": options.get("column", "text"), "held_out": 0.0, "revision": COMMIT[2]}
        assert set(identity) == keys, path
        assert {key: identity[key] for key in keys & values.keys()} == {
            key: values[key] for key in keys & values.keys()
        }


def test_a_pinned_commit_is_the_one_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake = Hub(monkeypatch, commits(tmp_path))
    old = opened("owner/Name", revision=COMMIT[1])
    assert (texts(old), old.identity()["revision"], fake.asked) == (["commit 1"], COMMIT[1], [COMMIT[1]])
    data = DataConfig(source="text", path="owner/Name")
    assert pinned(data).revision == COMMIT[2]
    assert pinned(DataConfig(source="text", path=str(tmp_path))) == DataConfig(source="text", path=str(tmp_path))
    assert pinned(DataConfig()) == DataConfig()


def test_text_files_of_the_hub_are_documents_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / COMMIT[1]
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "a.txt").write_text("two\nlines\n")
    fake = Hub(monkeypatch, {COMMIT[1]: folder})
    assert texts(opened("owner/books", held_out=0.0)) == ["two\nlines\n"]
    fake.error = ConnectionError("no route to host")
    hub.find.cache_clear()
    assert texts(opened("owner/books", held_out=0.0)) == ["two\nlines\n"]


def test_without_a_connection_the_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake = Hub(monkeypatch, commits(tmp_path))
    opened("owner/Name", revision=COMMIT[1])
    opened("owner/Name")
    fake.error = errors.OfflineModeIsEnabled("offline mode is enabled")
    hub.find.cache_clear()
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *a, **k: pytest.fail("must not ask the hub"))
    for revision, text in ((None, "commit 2"), (COMMIT[1], "commit 1"), (COMMIT[2], "commit 2")):
        found = opened("owner/Name", revision=revision)
        assert (texts(found), found.identity()["revision"]) == ([text], COMMIT[int(text[-1])])
    with pytest.raises(DataError, match=rf"cannot be reached \(offline mode.*{COMMIT[1]}.*{COMMIT[2]}"):
        opened("owner/Name", revision="main")
    with pytest.raises(DataError, match=r"cannot be reached.* not in the cache"):
        opened("owner/other")


@pytest.mark.parametrize("files", [(), ("name.py", "README.md")])
def test_a_script_is_refused_with_the_alternative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...]
):
    fake = Hub(monkeypatch, commits(tmp_path), files)
    for name in ("pg19", "deepmind/pg19"):
        with pytest.raises(DataError, match=r"script.*data\.path=emozilla/pg19"):
            opened(name, source="pg19")
    assert fake.asked == []  # known without asking
    if not files:  # told by datasets itself

        def refuse(*_: Any, **__: Any) -> Any:
            raise RuntimeError("Dataset scripts are no longer supported, but found name.py")

        monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(DataError, match=r"script.*refs/convert/parquet") as error:
        opened("owner/name")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (lambda: errors.RepositoryNotFoundError("404", response=response(404)), "existing file or folder, or a data"),
        (lambda: errors.RevisionNotFoundError("404", response=response(404)), "data.revision: got 'v9'"),
        (lambda: errors.GatedRepoError("403", response=response(403)), "ask for access"),
        (lambda: errors.HfHubHTTPError("503 busy", response=response(503)), "503 busy"),
        (lambda: httpx2.ConnectError("no route"), "cannot be reached (no route) and it is not in the cache"),
    ],
)
def test_what_the_hub_answers_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any, told: str):
    Hub(monkeypatch, commits(tmp_path)).error = error()
    with pytest.raises(DataError) as raised:
        opened("owner/name", revision="v9")
    assert told in str(raised.value)


def test_a_data_set_with_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake = Hub(monkeypatch, commits(tmp_path))
    asked: list[Any] = []
    build = datasets.load_dataset_builder

    def builder(path: str, **options: Any) -> Any:
        asked.append((path, options.get("name")))
        if path == "owner/Name" and "name" not in options:
            raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']")
        return build(path, **options)

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    with pytest.raises(DataError, match=r"\['a', 'b'\]; write data\.path=owner/name:config"):
        opened("owner/Name")
    found = opened("owner/Name:default")
    assert ("owner/Name", "default") in asked
    assert found.identity()["repository"] == "owner/Name:default"
    fake.error = ConnectionError()
    hub.find.cache_clear()
    assert texts(opened("owner/Name:default")) == texts(opened("owner/Name")) == ["commit 2"]
    with pytest.raises(DataError, match="not in the cache"):
        opened("owner/Name:other")


def test_a_name_that_is_neither_a_file_nor_a_hub_id():
    for path in ("a/b/c", "/no/where", "s3://bucket/x"):
        with pytest.raises(DataError, match="existing folder, file or pattern, or a hub id"):
            opened(path)


def test_progress_and_log_of_datasets_are_as_before(tmp_path: Path):
    import logging

    logger = logging.getLogger("datasets")
    before = (logger.handlers, logger.propagate, datasets.are_progress_bars_disabled())
    opened(write(tmp_path / "a.jsonl", ["x"]), held_out=0.0)
    assert (logger.handlers, logger.propagate, datasets.are_progress_bars_disabled()) == before


def test_siblings_may_be_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake = Hub(monkeypatch, commits(tmp_path))
    monkeypatch.setattr(
        "huggingface_hub.dataset_info", lambda *a, **k: SimpleNamespace(sha=list(fake.commits)[-1], siblings=None)
    )
    assert texts(opened("owner/Name")) == ["commit 2"]
