"""Data that is missing, empty, unreadable or too little."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from bad_inputs.bad_input import Bad, Place

DATA = "Training data"


def bad(title: str, spoil: Callable[[Place], object], *words: str, leaves: tuple[str, ...] = ()) -> Bad:
    return Bad(DATA, title, words, lambda place: (spoil(place), None)[1], leaves=leaves)


def texts(name: str, content: bytes) -> Callable[[Place], None]:
    """One file in a folder of texts."""

    def spoil(place: Place) -> None:
        (place.folder / "texts").mkdir()
        (place.folder / "texts" / name).write_bytes(content)

    return spoil


def no_training_books(place: Place) -> None:
    shutil.rmtree(place.books / "train")


TEXTS = ("data.source=text", "data.path={w}/texts")
LONG = ("data.held_out=0", "data.seq_len=4096")
ROWS = b'{"text": "a b c"}\n'
CASES = [
    Bad(DATA, "no such folder", ("data.path={w}/nothing",)),
    Bad(DATA, "a hub id that is neither cached nor reachable", ("data.source=text", "data.path=nobody/nothing")),
    Bad(DATA, "a name that is no hub id", ("data.source=text", "data.path=what is this")),
    bad("an empty folder", lambda place: (place.folder / "texts").mkdir(), *TEXTS),
    bad("no file of a known kind", texts("book.pdf", b"%PDF-1.7"), *TEXTS),
    bad("books without a train folder", no_training_books),
    bad("texts that are not UTF-8", texts("a.txt", b"\xff\xfe\x00" * 99), *TEXTS, "data.held_out=0", leaves=("cache",)),
    bad("empty texts", texts("a.txt", b""), *TEXTS, "data.held_out=0", leaves=("cache",)),
    bad("less than one segment", texts("a.txt", b"a few words"), *TEXTS, *LONG, leaves=("cache",)),
    bad("a table that is no JSON", texts("rows.jsonl", b"{'text': 1}\n"), *TEXTS),
    bad("a table without the column", texts("rows.jsonl", b'{"body": "a b c"}\n'), *TEXTS),
    bad("a parquet file that is none", texts("rows.parquet", b"PAR1 and nothing"), *TEXTS),
    bad("ids where none are", texts("rows.jsonl", ROWS), "data.source=pretokenized", "data.path={w}/texts"),
    bad(
        "data.cache is a folder of something else",
        lambda place: [(place.folder / "cache").mkdir(), (place.folder / "cache" / "photo.jpg").write_bytes(b"x")],
    ),
    bad("data.cache is a file", lambda place: (place.folder / "cache").write_text("x")),
    Bad(
        DATA,
        "a part of a mixture without a weight",
        ("data.source=mixture", "data.path=null", "+data.mixture.a.source=stdlib"),
    ),
    Bad("Evaluation", "no such folder", ("eval=perplexity", "eval.source=text", "eval.path={w}/nothing")),
    Bad("Evaluation", "nothing held out", (*TEXTS, "data.held_out=0", "eval=perplexity"), texts("a.txt", b"a " * 999)),
    Bad("Evaluation", "documents shorter than the largest window", ("eval=perplexity", "eval.windows=[100000]")),
]
