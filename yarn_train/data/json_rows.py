"""One column of JSON files, exactly: lines of objects, a list of objects or strings, or a single object.

``datasets`` reads JSON too, but guesses types from the first megabytes, and where a later line has another one it
encodes the whole column again: texts would arrive with quotation marks around them and escapes inside.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ..errors import DataError, problem
from .convert import quiet

ROWS_PER_WRITE = 64  # of Python objects: books of 20 MB, or 65536 ids


def convert_json(path: str, splits: dict[str, list[Path]], column: str, fingerprint: str) -> dict[str, Any]:
    """Splits of a data set of JSON files with the one column ``column``, converted to Arrow unless the cache has them.

    Texts with bytes that are no UTF-8 become nulls; other rows and columns do not matter.

    Args:
        path: what the user named, for errors.
        splits: split -> files.
        column: ``input_ids`` holds lists of integers, any other column texts.
        fingerprint: of the files as they are; another one converts them again.

    Raises:
        DataError: naming file and line that cannot be read, lack the column or hold something else in it.
    """
    from datasets import Dataset, Features, List, Value
    from datasets.exceptions import DatasetGenerationError

    kind = List(Value("int64")) if column == "input_ids" else Value("large_string")
    converted = {}
    for split, files in splits.items():
        given = {"files": tuple(str(file) for file in files), "column": column, "fingerprint": fingerprint}
        try:
            with quiet():
                converted[split] = Dataset.from_generator(
                    _rows, features=Features({column: kind}), gen_kwargs=given, writer_batch_size=ROWS_PER_WRITE
                )
        except (DatasetGenerationError, DataError, OSError) as error:
            cause = error.__cause__ if isinstance(error.__cause__, DataError) else error
            if isinstance(cause, DataError):
                raise DataError(str(cause)) from error
            raise DataError(problem("data.path", path, "files that can be converted", str(cause))) from error
    return converted


def _rows(files: Sequence[str], column: str, fingerprint: str) -> Iterator[dict[str, Any]]:
    wanted = list if column == "input_ids" else str
    for file in files:
        for place, row in _objects(Path(file)):
            value = row.get(column) if isinstance(row, dict) else row
            if isinstance(row, dict) and column not in row:
                got, there = f"{column}, missing in {place}", ", ".join(map(_printable, row))
                raise DataError(problem("data.column", got, f"a column of every row: {there}", "set data.column"))
            if value is not None and not (isinstance(value, wanted) and _are_ids(value)):
                got = f"{column} of type {type(value).__name__} in {place}"
                raise DataError(problem("data.column", got, _NAMES[wanted], "set data.column, or correct the row"))
            yield {column: value if not isinstance(value, str) or _is_text(value) else None}


_NAMES = {str: "strings", list: "lists of integers"}


def _are_ids(value: Any) -> bool:
    return isinstance(value, str) or all(type(number) is int for number in value)


def _is_text(value: str) -> bool:
    """Half a surrogate pair is no character: JSON can write one, and `_parsed` makes them of bytes beyond UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(key: str) -> str:
    return key.encode(errors="backslashreplace").decode()


def _objects(file: Path) -> Iterator[tuple[str, Any]]:
    """(where it is, for errors; value) of every row. Lines and the rows of a list are counted from 1."""
    number = 0
    try:
        with _open(file) as stream:
            first = stream.readline().removeprefix(b"\xef\xbb\xbf")
            if first.lstrip()[:1] == b"[" or _begins_a_long_object(first):
                whole = _parsed(file, "it", first + stream.read())
                for position, row in enumerate(whole if isinstance(whole, list) else [whole], 1):
                    yield f"row {position} of {file.name}", row
                return
            line = first
            while line:
                number += 1
                if line.strip():
                    yield f"line {number} of {file.name}", _parsed(file, f"line {number}", line)
                line = stream.readline()
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ImportError) as error:
        raise _unreadable(file, str(error)) from error
    if number == 0:
        raise _unreadable(file, "there is no row in it")


def _begins_a_long_object(line: bytes) -> bool:
    """Whether an object goes on in the next line, as in files that are indented for people."""
    return line.strip() == b"{" or line.rstrip()[-1:] == b","


def _parsed(file: Path, what: str, text: bytes) -> Any:
    """The value of a file or line; bytes that are not UTF-8 become half surrogate pairs in the strings they are in."""
    encoding = json.detect_encoding(text)
    try:
        # one bad byte must not cost the other rows of a list
        return json.loads(text.decode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise _unreadable(file, f"{what} is no JSON: {error}") from error


def _open(file: Path) -> IO[bytes]:
    opener: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zstd}
    opened: IO[bytes] = opener.get(file.suffix.lower(), open)(file, "rb")
    return opened


def _open_zstd(file: Path, mode: str) -> IO[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise ImportError("it is compressed with zstd: pip install zstandard") from error
    opened: IO[bytes] = zstandard.open(file, mode)
    return opened


def _unreadable(file: Path, reason: str) -> DataError:
    return DataError(
        problem("data.path", f"file {file.name}", "complete JSON files", f"{reason}; replace or leave out")
    )
