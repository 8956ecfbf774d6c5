"""Write a report's files: for a run, for a sweep or a folder of runs, and for several folders side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import DataError, StorageError, problem
from . import group_page, group_plots, page, plots
from .blocks import Block
from .collect import Run, collect
from .eval_figures import PANELS, save, scene_of
from .groups import Group, collect_group, collect_several, is_group
from .html import as_html, is_report
from .markdown import as_markdown
from .side_by_side import side_by_side

Subject = Run | Group


def _compared(name: str, group: Group, path: Path) -> Path | None:
    scene = side_by_side(group)
    return save(name, scene, path) if scene else None


def _evaluation(name: str, run: Run, path: Path) -> Path | None:
    return save(name, scene_of(run), path)


RUN_PICTURES: Mapping[str, Callable[[Any, Path], Path | None]] = {
    "perplexity": plots.perplexity,
    "training": plots.training,
    "frequencies": plots.frequencies,
    **{name: partial(_evaluation, name) for name in PANELS},
}
GROUP_PICTURES: Mapping[str, Callable[[Any, Path], Path | None]] = {
    "sweep": group_plots.sweep,
    "perplexity": group_plots.perplexity,
    "losses": group_plots.losses,
    **{name: partial(_compared, name) for name in PANELS},
}


def read(folders: Sequence[str | Path]) -> Subject:
    """What a report of these folders is about.

    Raises:
        DataError: none of them holds a run, or the only one is damaged.
    """
    if len(folders) > 1:
        return collect_several(folders)
    folder = Path(folders[0])
    return collect_group(folder) if is_group(folder) else collect(folder)


def write_report(folder: str | Path) -> list[Path]:
    """Write ``report/`` of a run folder, a sweep or a folder of runs; :func:`write_subject` says more."""
    return write_subject(read([folder]), Path(folder) / "report")


def write_subject(subject: Subject, out: Path) -> list[Path]:
    """Write index.html, report.md and the pictures that there is something to show on.

    Parts that a run lacks (not evaluated yet, not finished) are left out and said to be; an earlier report is replaced.

    Returns:
        The written files, index.html first.

    Raises:
        StorageError: the folder cannot be written.
    """
    try:
        return _write_subject(subject, out)
    except OSError as error:
        fix = "make room or choose another folder with -o"
        raise StorageError(problem(str(out), str(error), "a folder that can be written", fix)) from error


def check_free(out: Path) -> None:
    """Refuse a folder for a new report that holds something else.

    Raises:
        DataError: it is a file, or a folder with files that are no report's.
    """
    index = out / "index.html"
    empty = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    if not empty and not (index.is_file() and is_report(index)):
        fix = "name a new folder, such as -o outputs/comparison"
        raise DataError(problem("-o", str(out), "a new or empty folder, or an earlier report", fix))


def _write_subject(subject: Subject, out: Path) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    drawing = RUN_PICTURES if isinstance(subject, Run) else GROUP_PICTURES
    pictures = {}
    for name, draw in drawing.items():
        path = out / f"{name}.png"
        path.unlink(missing_ok=True)  # a picture of an earlier report must not stand for what is missing now
        if draw(subject, path):
            pictures[name] = path
    blocks = _blocks(subject, pictures, out)
    written = [out / "index.html", out / "report.md"]
    _write(written[0], as_html(blocks, subject.name))
    _write(written[1], as_markdown(blocks))
    return [*written, *pictures.values()]


def _blocks(subject: Subject, pictures: Mapping[str, Path], out: Path) -> list[Block]:
    return page.blocks(subject, pictures) if isinstance(subject, Run) else group_page.blocks(subject, pictures, out)


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
