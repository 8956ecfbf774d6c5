from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from yarn_train.data.splits import SPLITS, by_file_name, chosen, split_of, utf8
from yarn_train.errors import DataError

WORDS = ["train", "training", "valid", "dev", "val", "test", "eval", "books", "latest", "trainer", "data"]
NAMES = st.lists(st.sampled_from([*WORDS, "-", "_", ".", "1", "x"]), min_size=1, max_size=3).map("".join)
PATHS = st.lists(NAMES.filter(lambda n: not n.startswith((".", "__"))), min_size=1, max_size=3).map(
    lambda p: "/".join(p) + ".jsonl"
)


def test_held_out_is_decided_by_the_name_alone():
    # literal values: if these move, published numbers stop being comparable
    known = ["os.py", "json/decoder.py", "subprocess.py", "enum.py", "pydoc_data/topics.py", "test/test_doctest.py"]
    assert [split_of(n, 0.1) for n in known] == ["train", "train", "validation", "validation", "test", "test"]


@settings(max_examples=60, deadline=None)
@example(["train.jsonl", "train-train.jsonl"])
@example(["data/odd-00000-of-00001.jsonl", "b.jsonl"])
@given(st.lists(PATHS, min_size=1, max_size=4, unique=True))
def test_the_rules_are_those_of_datasets(tmp_path_factory: pytest.TempPathFactory, names: list[str]):
    from datasets.data_files import DataFilesDict, get_data_patterns

    root = tmp_path_factory.mktemp("named")
    for name in names:
        try:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("x")
        except OSError:
            return  # one name is the folder of another
    theirs = DataFilesDict.from_patterns(get_data_patterns(root.as_posix()), base_path=root.as_posix())
    # sets, because a file that fits two patterns of a split is in their list twice
    found = {str(s): sorted({Path(f).relative_to(root).as_posix() for f in files}) for s, files in theirs.items()}
    try:
        ours = {split: sorted(files) for split, files in by_file_name(sorted(names)).items()}
    except DataError:  # they would leave a file out, or use it twice
        assert sorted(f for files in found.values() for f in files) != sorted(names)
    else:
        assert ours == found


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a.txt", "crash-test-dummies.txt"], ["a.txt in no split", "crash-test-dummies.txt"]),
        (["train/a.txt", "b.txt"], ["b.txt in no split"]),
        (["train/test/a.txt"], ["train/test/a.txt in the splits train and test"]),
    ],
)
def test_a_file_that_would_be_lost_or_read_twice_is_named(names: list[str], told: list[str]):
    with pytest.raises(DataError) as error:
        by_file_name(names)
    assert all(word in str(error.value) for word in told)


def test_which_splits_are_taken_as_they_are():
    assert chosen(["train"], "test", "x") == ("train", True)
    assert chosen(["test"], "test", "x") == ("test", False)
    assert [chosen(["train", "test"], s, "x") for s in ("train", "test")] == [("train", False), ("test", False)]
    with pytest.raises(DataError, match=r"'validation'; it has train, test"):
        chosen(["train", "test"], "validation", "x")


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_more_held_out_only_adds(name: str, a: float, b: float):
    less, more = sorted((a, b))
    assert split_of(name, less) in SPLITS
    assert split_of(name, more) != "train" or split_of(name, less) == "train"
    assert split_of(name, less) != "test" or split_of(name, more) == "test"


@given(st.lists(st.binary(min_size=1, max_size=3)))
def test_names_are_those_that_can_be_hashed(raw: list[bytes]):
    names = [name.decode(errors="surrogateescape") for name in raw]
    if all(name.decode(errors="ignore").encode() == name for name in raw):
        assert utf8(names) is names
    else:
        with pytest.raises(DataError, match="rename it") as error:
            utf8(names)
        assert str(error.value).encode()
