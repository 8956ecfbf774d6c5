"""Many problems as one list: each once, and none that only follows from another."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from .errors import ConfigError, YarnTrainError

STAGE = re.compile(r"stage \S+: ")
SUGGESTED = re.compile(r"did you mean (\S+)\?")


class ProblemList:
    """Problems in the order in which they were found.

    Attributes:
        lines: the problems, in the house style of :func:`errors.problem`.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._wrong: set[str] = set()
        self._meant: set[str] = set()
        self._alone: YarnTrainError | None = None

    def add(self, lines: Iterable[str]) -> None:
        """Add problems of the machine, the model or the data, except those that name a wrong option."""
        self.lines += [line for line in dict.fromkeys(lines) if line not in self.lines and not self._follows(line)]

    def add_options(self, lines: Iterable[str]) -> None:
        """Add problems of options as such. What is checked later is checked with defaults in the place of these."""
        self.lines += [line for line in dict.fromkeys(lines) if line not in self.lines]
        self._wrong |= {_key(line) for line in self.lines} - {""}
        self._meant |= {name for line in self.lines for name in SUGGESTED.findall(line) if "." in name}

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """An error of the block that a user can cause is added, and what comes after the block goes on."""
        try:
            yield
        except ConfigError as error:
            self.add(error.problems)
        except YarnTrainError as error:
            self._alone = error if not self.lines else self._alone
            self.add([str(error)])

    def run(self, *checks: Callable[[], Iterable[str]]) -> None:
        """Add what each of the checks returns or raises."""
        for check in checks:
            with self.collecting():
                self.add(check())

    def refuse(self) -> None:
        """Raise the list if there is anything on it.

        Raises:
            ConfigError: listing all problems.
            YarnTrainError: the only problem, as it was raised.
        """
        if self._alone is not None and self.lines == [str(self._alone)]:
            raise self._alone
        if self.lines:
            raise ConfigError(self.lines)

    def _follows(self, line: str) -> bool:
        key, _, rest = STAGE.sub("", line).partition(":")
        named = [wrong for wrong in self._wrong | self._meant if _names(rest, wrong)]
        return key in self._wrong or any(name != key for name in named)


def _names(text: str, option: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(option)}(?!\w)", text) is not None


def _key(line: str) -> str:
    """The option that a problem names first; empty where that is something else."""
    key = STAGE.sub("", line).partition(":")[0].partition("=")[0]
    return key if "." in key and " " not in key else ""
