"""An error that nobody expected, told in one message: its traceback goes into the run folder. Never imports torch."""

from __future__ import annotations

import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path

from .. import redact
from ..dist import environment

PACKAGE = Path(__file__).resolve().parents[1]
ENDING = "_yarn_train_ending"
HOW = "HYDRA_FULL_ERROR=1 prints it"


def tell(error: Exception, folder: Path | None, rank: int, speaker: str = "") -> None:
    """Print what an error is and where its traceback is; the traceback itself where there is no run to keep it in.

    Args:
        folder: the run folder; only one that holds a run gets a file.
        speaker: what the message begins with.
    """
    kept = write(error, folder, rank) if folder is not None else None
    if kept is None:
        traceback.print_exception(error)
    where = f"the traceback is in {kept}; {HOW}" if kept else "its traceback is above"
    text = " ".join(str(error).split()) or "no message"
    said = f"{speaker}unexpected error: {type(error).__name__}: {text} (at {place(error)})\n{where}"
    print("\n".join([said, *notes(error)]), file=sys.stderr, flush=True)


def write(error: BaseException, folder: Path, rank: int) -> Path | None:
    """Write the traceback into the run's logs, without secrets; None where that is no run, or cannot be written."""
    if not (folder / "run.json").is_file():
        return None
    name = f"traceback-{datetime.now(UTC):%Y%m%dT%H%M%S}-rank{rank}.txt"
    path = folder / "logs" / name
    text = redact.redacted("".join(traceback.format_exception(error)), environment.secrets())
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError:
        return None
    return path


def place(error: BaseException) -> str:
    """File and line of this program that the error came through last; of its origin where it is not ours."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "an unknown place"
    ours = [frame for frame in frames if Path(frame.filename).resolve().is_relative_to(PACKAGE)]
    frame = (ours or frames)[-1]
    path = Path(frame.filename)
    shown = path.resolve().relative_to(PACKAGE.parent) if ours else path
    return f"{shown}:{frame.lineno}"


def end_with(error: BaseException, text: str) -> None:
    """Have `text` printed after the error: how the run stands, and the command that goes on.

    It is no note of the exception (``add_note``): those are taken for a part of its message.
    """
    setattr(error, ENDING, text)


def notes(error: BaseException) -> list[str]:
    """What is printed after an error."""
    text = getattr(error, ENDING, None)
    return [] if text is None else [text]
