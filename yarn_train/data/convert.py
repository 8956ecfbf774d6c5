"""Running a builder of ``datasets``: files of any format become memory-mapped Arrow tables in its cache."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import DataError, problem

SCRIPT = "Dataset scripts are no longer supported"
EXACT: dict[str, dict[str, Any]] = {
    "text": {"sample_by": "document"},  # else by lines; line ends become \n
    "json": {"on_mixed_types": None},  # else a column with another type in some line is encoded again as JSON
    "csv": {"keep_default_na": False},  # else the words NA, null and None are missing values
}  # builder -> options without which it changes texts; they become part of the name of its cache folder
MOST_OF_A_REASON = 300  # characters
HINTS = {
    "zstd": " (pip install zstandard)",
    "Config name is missing": "; write data.path=owner/name:config",
}  # words of a reason -> what to add to it


@dataclass(frozen=True)
class Tables:
    """A data set that is open.

    Attributes:
        splits: name -> ``datasets.Dataset``.
        identity: JSON values that determine the content.
    """

    splits: Mapping[str, Any]
    identity: dict[str, Any]


def convert(path: str, builder: str, **options: Any) -> dict[str, Any]:
    """Splits of a data set, converted to Arrow unless the cache has them already.

    Args:
        path: what the user named, for errors.
        builder: name of a format, or a hub id.
        options: for ``datasets.load_dataset_builder``.

    Raises:
        DataError: if anything in it cannot be read.
    """
    import datasets

    with quiet() as told:
        try:
            made = datasets.load_dataset_builder(builder, **options)
            exact = {key: value for key, value in EXACT.get(made.name, {}).items() if hasattr(made.config, key)}
            if exact:
                made = datasets.load_dataset_builder(builder, **options, **exact)
            made.download_and_prepare()
            return {str(name): split for name, split in made.as_dataset().items()}
        except Exception as error:  # of pyarrow, pandas, ujson, fsspec, compression ...: files make them raise anything
            raise failed(path, error, _file_in(told)) from error


def failed(path: str, error: Exception, file: str | None = None) -> DataError:
    """One line about files that cannot be read."""
    if SCRIPT in str(error):
        return script_based(path)
    if isinstance(error, StopIteration):
        reason = "there is no row in it"
    else:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = " ".join(str(cause).split())[:MOST_OF_A_REASON] or type(cause).__name__
    for words, hint in HINTS.items():
        reason += hint if words in reason else ""
    got = f"{path}, file {file}" if file else path
    return DataError(
        problem("data.path", got, "complete files with the same columns", f"{reason}; replace or leave out")
    )


def script_based(path: str) -> DataError:
    """The error for data sets that are made by a Python script."""
    name = path.split(":")[0]
    if name in ("pg19", "deepmind/pg19"):
        fix = "use data.path=emozilla/pg19, the same books as parquet"
    else:
        fix = "use a copy of it as parquet, or its export if its page has one: data.revision=refs/convert/parquet"
    return DataError(problem("data.path", path, "a data set of files; this one is a script, which never runs", fix))


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Collects what ``datasets`` would log, and draws its bars only for somebody who watches."""
    import datasets
    from huggingface_hub import utils as hub

    told: list[str] = []
    logger = logging.getLogger("datasets")
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [_Collector(told)], False
    hide = not sys.stderr.isatty()
    hide_datasets = hide and not datasets.are_progress_bars_disabled()
    hide_hub = hide and not hub.are_progress_bars_disabled()
    if hide_datasets:
        datasets.disable_progress_bars()
    if hide_hub:
        hub.disable_progress_bars()
    try:
        yield told
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        if hide_datasets:
            datasets.enable_progress_bars()
        if hide_hub:
            hub.enable_progress_bars()


class _Collector(logging.Handler):
    def __init__(self, told: list[str]):
        super().__init__()
        self.told = told

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())


def _file_in(told: list[str]) -> str | None:
    """The last file that ``datasets`` complained about."""
    found = [m[1] for line in told if (m := re.search(r"[Ff]ile '([^']+)'|from '([^']+)'", line)) and m[1]]
    return found[-1].replace("\\", "/").rsplit("/", 1)[-1] if found else None
