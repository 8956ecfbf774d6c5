"""Which documents train a model and which are kept for evaluation. Pure functions of names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence

from ..errors import DataError, problem

SPLITS = ("train", "validation", "test")
WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}  # and the marks that end a word, as `datasets` has them
MARK = r"[-._ 0-9]"
SHARDED = re.compile(r"data/([^/]*)-\d{5}-of-\d{5}[^/]*\.[^/]*")


def split_of(name: str, held_out: float) -> str:
    """The split of a document whose source brings no splits: by hash of its name alone, equal on every machine.

    The first half of the held-out interval is ``test``, the second ``validation``; a larger ``held_out`` only adds.
    """
    position = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    if position >= held_out:
        return "train"
    return "test" if position < held_out / 2 else "validation"


def utf8(names: list[str]) -> list[str]:
    """The same names of files, which decide splits and order by their bytes in UTF-8.

    Raises:
        DataError: if one has none, because its bytes in the file system are something else.
    """
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            fix = "rename it, or leave it out"
            raise DataError(problem("data.path", f"file {name}", "files with names in UTF-8", fix)) from error
    return names


def check_split(split: str) -> None:
    """Raise DataError unless ``split`` is one of SPLITS."""
    if split not in SPLITS:
        raise DataError(problem("split", split, " | ".join(SPLITS), "choose one of these"))


def chosen(given: Collection[str], split: str, path: str) -> tuple[str, bool]:
    """(the split to read of those that a data set brings, whether documents of it are to be held out by their names).

    A data set with nothing but ``train`` has not been divided yet; any other division is taken as it is.

    Raises:
        DataError: if the data set has splits, but not this one.
    """
    if list(given) == ["train"]:
        return "train", True
    if split in given:
        return split, False
    fix = "read one of these, or name files without splits: some of their documents are then held out by data.held_out"
    raise DataError(problem("data.path", path, f"data with a split {split!r}; it has {', '.join(given)}", fix))


def nothing_held_out(held_out: float, what: str) -> DataError:
    """The error for a split that has no document because of ``data.held_out``."""
    allowed = "a share that leaves documents in every split that is read"
    return DataError(problem("data.held_out", held_out, allowed, f"{what}; use data.held_out=0.1, or more documents"))


def by_file_name(names: Sequence[str]) -> dict[str, list[str]]:
    """Splits of files by their names, the rules of ``datasets``: split -> names in the order given.

    The first rule that fits any file decides about all: ``data/<split>-00000-of-00001.*``; a folder called like a
    split (``train/``, ``my-test/``); a file called like one (``train.jsonl``, ``books_val_1.txt``); else all is train.
    In contrast to ``datasets``, a file that the rule leaves out or puts into two splits is an error, because its text
    would be missing without a word, or be trained on and evaluated.

    Args:
        names: paths below the data set's folder, with ``/``.
    """
    for rule in (_of_shard, _of_folders, _of_file):
        found = [rule(name) for name in names]
        if not any(found):
            continue
        for name, splits in zip(names, found, strict=True):
            if len(splits) != 1:
                raise _unclear(name, splits, next(name for name, splits in zip(names, found, strict=True) if splits))
        there = {split for (split,) in found}
        order = [s for s in SPLITS if s in there] + sorted(there - set(SPLITS))
        return {split: [n for n, (own,) in zip(names, found, strict=True) if own == split] for split in order}
    return {"train": list(names)}


def _unclear(name: str, splits: list[str], other: str) -> DataError:
    where = f"the splits {' and '.join(splits)}" if splits else "no split"
    got = f"{name} in {where}, while {other} is in one"
    fix = "move the files into folders train, validation and test, or name one folder or file of them in data.path"
    return DataError(problem("data.path", got, "files whose names put all of them, or none, into one split each", fix))


def _of_shard(name: str) -> list[str]:
    found = SHARDED.fullmatch(name)
    return [found[1]] if found else []


def _of_folders(name: str) -> list[str]:
    return _mentioned(name.split("/")[:-1], r"(?:{mark}.*)?")


def _of_file(name: str) -> list[str]:
    return _mentioned([name.split("/")[-1]], r"{mark}.*")


def _mentioned(parts: list[str], ending: str) -> list[str]:
    """Splits of which a word begins one of ``parts``, or follows a mark in it."""
    found = []
    for split, words in WORDS.items():
        pattern = rf"(?:.*{MARK})?(?:{'|'.join(words)}){ending.format(mark=MARK)}"
        if any(re.fullmatch(pattern, part, re.DOTALL) for part in parts):
            found.append(split)
    return found
