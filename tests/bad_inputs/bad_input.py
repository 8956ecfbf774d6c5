"""What a bad input is, the place it is tried in, and running it through the real entry in this process."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from support import ROOT

from yarn_train import cli

Entry = Callable[[], None]


@dataclass(frozen=True)
class Place:
    """A folder of one's own with a model, books and, where a case needs one, a trained run; `words` train in it."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def books(self) -> Path:
        return self.folder / "books"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def words(self, changed: list[str]) -> list[str]:
        """A command line that trains two steps here, less what `changed` has in its place."""
        plain = [
            *("experiment=extend", "eval=none", "data.source=pg19", "data.seq_len=64", "data.workers=1"),
            *("rope.factor=4", "train.steps=2", "schedule.warmup_steps=1", "train.global_batch_size=2"),
            *("checkpoint.every=1", f"data.path={self.books}", f"data.cache={self.folder / 'cache'}"),
            *(f"model.path={self.model}", f"run.dir={self.run}"),
        ]
        keys = {word.partition("=")[0].lstrip("+~") for word in changed}
        if any(word.startswith("+curriculum") for word in changed):
            keys.add("rope.factor")
        return [word for word in plain if word.partition("=")[0] not in keys] + changed


def nothing(place: Place) -> None:
    """A case that its words alone make bad."""


@dataclass(frozen=True)
class Bad:
    """A bad input.

    Attributes:
        group: heading in docs/errors.md.
        title: what is wrong, for the table.
        words: added to the command line; {w} is the place.
        spoil: makes the place bad.
        code: what the entry exits with.
        trained: whether the place needs a run that has trained two steps.
        environ: variables that are set.
        leaves: what the names of the files that it may leave behind begin with.
        late: whether only a run that has begun can see it.
        entry: program and its whole command line, train.py without.
    """

    group: str
    title: str
    words: tuple[str, ...] = ()
    spoil: Callable[[Place], None] = nothing
    code: int = 2
    trained: bool = False
    environ: tuple[tuple[str, str], ...] = ()
    leaves: tuple[str, ...] = ()
    late: bool = False
    entry: Callable[[], object] | None = None


def train() -> None:
    """What ``python train.py`` does."""
    sys.path.insert(0, str(ROOT))
    try:
        import train as program
    finally:
        sys.path.pop(0)
    cli.run(program.train, program.start_workers, program.check)


@contextlib.contextmanager
def _as_before() -> Iterator[None]:
    """Entries watch for signals until their process ends; this one goes on."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    words = sys.argv
    try:
        yield
    finally:
        sys.argv = words
        for number, handler in before.items():
            signal.signal(number, handler)


def run(bad: Bad, place: Place) -> tuple[object, str]:
    """(exit code, what it says on stderr)."""
    words = [word.replace("{w}", str(place.folder)) for word in bad.words]
    said = io.StringIO()
    with _as_before(), contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        sys.argv = ["train.py", *(place.words(words) if bad.entry is None else words)]
        try:
            code: object = (bad.entry or train)()
        except SystemExit as left:
            code = left.code
    return code, said.getvalue()


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of writing of everything below a folder."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
        if not path.is_dir()
    } | {str(path.relative_to(folder)): (0, 0) for path in folder.rglob("*") if path.is_dir()}


MEASURED = re.compile(
    r"(\d+ )steps in [^;]+; loss [\d.]+, best [\d.]+ at step (\d+); [\d,]+ tok/s; peak memory [\d.]+ GiB"
)


def neutral(text: str, place: Place) -> str:
    """A message without what differs from machine to machine."""
    text = text.replace(str(place.folder), "/w").replace(str(ROOT), "/yarn-train")
    text = text[text.index("error: ") + len("error: ") :] if "error: " in text else text  # after bars of progress
    text = re.sub(r"\b\d[\d,]* bytes", "N bytes", re.sub(r"\b[0-9a-f]{12}\b", "0123456789ab", text))
    text = MEASURED.sub(r"\1steps in N s; loss N, best N at step \2; N tok/s; peak memory N GiB", text)
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


def row(title: str, message: str) -> str:
    """A line of the table."""
    cells = (title, message)
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    for sign, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("\n", "<br>")):
        text = text.replace(sign, written)
    return re.sub(r"([*_`\[\]])", r"\\\1", text)


def copied(source: Path, target: Path) -> None:
    """A copy of a folder, for a case to spoil."""
    shutil.copytree(source, target)
