"""Where the main thread is, seen from another one. Never imports torch."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import FrameType

PACKAGE = Path(__file__).resolve().parents[1]


def main_thread() -> str:
    """Its innermost line of this package, and its innermost line of all where that is another."""
    ident = threading.main_thread().ident
    frame = sys._current_frames().get(ident) if ident else None
    if frame is None:
        return "at an unknown place"
    innermost, ours = frame, frame
    while not _is_ours(ours) and ours.f_back is not None:
        ours = ours.f_back
    places = [ours, innermost] if _is_ours(ours) and ours is not innermost else [innermost]
    return "at " + ", in ".join(_named(place) for place in places)


def _is_ours(frame: FrameType) -> bool:
    return Path(frame.f_code.co_filename).is_relative_to(PACKAGE)


def _named(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    parts = path.parts[-3:]  # enough to tell files of one name apart
    return f"{'/'.join(parts)}:{frame.f_lineno} in {frame.f_code.co_name}"
