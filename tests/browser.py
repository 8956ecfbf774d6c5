"""A real browser without a window: opens a page from a file and says what it became and what it complained of."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# no name is ever looked up, for the browser's own wishes either
OFFLINE = (
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--disable-background-networking",
)


def find_browser() -> str:
    """Path of a Chromium; the test is skipped where there is none."""
    found = os.environ.get("CHROME") or next((p for name in NAMES if (p := shutil.which(name))), None)
    if not found:
        pytest.skip("needs a Chromium on PATH or in $CHROME")
    return found


@dataclass(frozen=True)
class Seen:
    """A page after its scripts ran: its elements as text, and what was logged to the console."""

    dom: str
    console: list[str]

    @property
    def plots(self) -> list[str]:
        """The elements that figures were drawn in, each with all that is in it."""
        parts = re.split(r'(?=<div class="plot[ "])', self.dom)
        return [part for part in parts[1:] if 'class="main-svg"' in part]


def look(page: Path, home: Path, *flags: str, timeout: float = 60.0) -> Seen:
    """Open a file, wait until it is drawn, and return what is there.

    Args:
        home: an empty folder for the browser's own files.
    """
    command = [
        find_browser(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={home}",
        *OFFLINE, "--enable-logging=stderr", "--virtual-time-budget=20000",
        "--window-size=1400,1000", *flags, "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    console = re.findall(r"CONSOLE[^\]]*\] (.*)", done.stderr)
    return Seen(done.stdout, console)
