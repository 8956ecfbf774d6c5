"""The fenced blocks of the README and the documentation, and how each of them is checked.

A comment on the line before a fence says how: ``<!-- run -->`` executes it, ``<!-- run 0 1 -->`` accepts these exit
codes, ``<!-- not ours -->`` is for programs of others, which are only parsed. Any other bash block is checked command
by command without running it; any other Python block is run too.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from support import ROOT

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("CONTRIBUTING.md", "bench/README.md", "data/README.md", "data/base/README.md")),
    ROOT / "launch/k8s/README.md",
]
FENCE = re.compile(r"^(\s*)(`{3,})(\S*).*$")
MARK = re.compile(r"^\s*<!-- (run|checked|not ours)((?: \d+)*) -->$")
LANGUAGES = {"bash", "python", "text", "yaml", "json"}
OUTPUT = {"text", "yaml", "json"}


@dataclass(frozen=True)
class Snippet:
    """One fenced block; `codes` are the exit codes that `how` == "run" accepts."""

    page: str
    line: int
    language: str
    text: str
    how: str
    codes: tuple[int, ...] = (0,)

    @property
    def name(self) -> str:
        """Where it stands and how it is checked."""
        return f"{self.page}:{self.line} {self.how}"


def snippets(page: Path) -> list[Snippet]:
    """All fenced blocks of a page in order."""
    found, lines, begin = [], page.read_text(encoding="utf-8").splitlines(), 0
    opened: tuple[str, str] | None = None
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if fence and opened is None:
            opened, begin = (fence[2], fence[3]), number
        elif fence and opened is not None and line.strip() == opened[0]:
            found.append(_snippet(page, begin, opened[1], lines))
            found[-1] = _with_text(found[-1], lines[begin + 1 : number])
            opened = None
    assert opened is None, f"{page}: the fence of line {begin + 1} is never closed"
    return found


def _snippet(page: Path, begin: int, language: str, lines: list[str]) -> Snippet:
    mark = MARK.match(lines[begin - 1]) if begin else None
    default = {"bash": "checked", "python": "run"}.get(language, "output")
    codes = tuple(int(code) for code in mark[2].split()) if mark else ()
    where = str(page.relative_to(ROOT))
    return Snippet(where, begin + 1, language, "", mark[1] if mark else default, codes or (0,))


def _with_text(snippet: Snippet, lines: list[str]) -> Snippet:
    return Snippet(**{**vars(snippet), "text": "\n".join(lines) + "\n"})


def everything() -> list[Snippet]:
    """All fenced blocks of all pages."""
    return [snippet for page in PAGES for snippet in snippets(page)]


def commands(text: str) -> list[list[str]]:
    """The simple commands of a bash block as words: comments gone, ``...`` gone, pipes cut apart."""
    joined = text.replace("\\\n", " ")
    found = []
    for line in joined.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in lexer:
            if word and set(word) <= set("|;&"):
                found.append(words)
                words = []
            else:
                words.append(word)
        found.append(words)
    return [kept for words in found if (kept := _meant(words))]


def _meant(words: list[str]) -> list[str]:
    """Without ``...``, what stands for the reader's own words, and without variables set in front of the command.

    A variable's value is a number here.
    """
    words = [re.sub(r"\$\{?[A-Z_]+\}?", "1", word) for word in words]
    kept = [word for word in words if word != "..." and not word.endswith("=...")]
    while kept and re.match(r"^[A-Z_]+=", kept[0]):
        kept.pop(0)
    return kept
