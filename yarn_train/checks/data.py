"""Whether the files that a run names as data are here; nothing is opened, and the hub is not asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..config import DOCUMENT_SOURCES, Config, DataConfig, parts_of
from ..data.hub import is_hub_id
from ..data.local import list_files
from ..data.manifest import MANIFEST
from ..errors import YarnTrainError, problem


def data_problems(configs: Sequence[Config]) -> Iterator[str]:
    """Paths of training and evaluation data that are no data; `configs` are of the unfinished stages.

    A stage of no steps reads no training data, but is evaluated like any other.
    """
    for cfg in configs:
        for part in parts_of(cfg.data) if cfg.train.steps else ():
            key = "data" if part.name == cfg.data.source else f"data.mixture.{part.name}"
            if not _prepared(cfg.data.cache):
                yield from _path_problems(f"{key}.path", part.data)
    evaluation = configs[0].eval if configs else None
    if evaluation and evaluation.enabled and evaluation.path is not None and evaluation.source in DOCUMENT_SOURCES:
        yield from _path_problems("eval.path", DataConfig(source=evaluation.source, path=evaluation.path))


def _prepared(cache: str | None) -> bool:
    """Whether a folder is named that needs no source any more."""
    return cache is not None and ((Path(cache) / MANIFEST).is_file() or any(Path(cache).glob(f"*/{MANIFEST}")))


def _path_problems(key: str, data: DataConfig) -> Iterator[str]:
    path = data.path
    if path is None or data.source in ("stdlib", "mixture"):
        return
    try:
        found = list_files(path)
    except YarnTrainError as error:
        yield str(error).replace("data.path: ", f"{key}: ", 1)
        return
    except OSError as error:
        yield problem(key, path, "a file or folder that can be read", str(error.strerror or error))
        return
    if found is None and (path.startswith((".", "/", "~")) or not is_hub_id(path)):
        fix = "there is nothing of this name here; check the spelling"
        yield problem(key, path, "an existing folder or file, or a hub id", fix)
