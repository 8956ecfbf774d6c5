"""Findings as aligned text, in colour on a terminal, and as JSON. Never imports torch."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.text import Text

from ..errors import problem
from .finding import FAIL, OK, SKIP, WARN, Finding, broken, merged_facts

STYLES = {OK: "green", WARN: "yellow", FAIL: "bold red", SKIP: "dim"}
WIDE = 18  # of the subject's column


class Printer:
    """Prints findings; colours are the terminal's own affair (rich honours NO_COLOR and pipes)."""

    def __init__(self, file: TextIO | None = None):
        self._console = Console(file=file or sys.stdout, highlight=False, soft_wrap=True)

    def finding(self, finding: Finding) -> None:
        """One line, and for anything not ok what it means and what to type."""
        line = Text(f"{finding.status:<5}", STYLES[finding.status])
        line.append(f" {finding.what:<{WIDE}} {finding.figure}", "default")
        self._console.print(line)
        if finding.status not in (OK, SKIP):
            for label, text in (("means:", finding.means), ("do:", finding.fix)):
                if text:
                    self._console.print(Text(f"{'':<5} {'':<{WIDE}} {label:<6} {text}"))

    def line(self, text: str, style: str = "default") -> None:
        """A line of its own."""
        self._console.print(Text(text, style))

    def verdict(self, text: str, is_broken: bool) -> None:
        """The last line."""
        self.line(text, STYLES[FAIL] if is_broken else STYLES[OK])


def unwritable(target: str | None) -> list[str]:
    """Why the report for machines could not be written there: asked before any work, answered as problems."""
    if target in (None, "-"):
        return []
    file, fix = Path(str(target)), "create the folder, or choose another one"
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        return [problem("--json", target, "- or a file in a folder that exists and can be written", fix)]
    return []


def write_json(target: str, findings: Sequence[Finding], verdict: str, seconds: float) -> bool:
    """The report for machines, to a file or to stdout (``-``); whether it is there, and why not on stderr."""
    data = {
        "verdict": verdict,
        "broken": broken(findings),
        "seconds": round(seconds, 2),
        "facts": merged_facts(findings),
        "findings": [finding.as_data() for finding in findings],
    }
    text = json.dumps(data, indent=1) + "\n"
    if target == "-":
        sys.stdout.write(text)
        return True
    try:
        Path(target).write_text(text)
    except OSError as error:
        print(f"error: --json {target}: {error.strerror or error}", file=sys.stderr, flush=True)
        return False
    return True
