"""The errors a user can cause. Each says what is wrong, what was given, what is allowed and how to fix it.

Anything else that is raised is a bug in yarn-train and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class YarnTrainError(Exception):
    """Base of every error with a message meant for the user; the entries print it without a traceback."""


class ConfigError(YarnTrainError):
    """The configuration cannot be run. Collects ALL problems so that one attempt shows them all."""

    def __init__(self, problems: str | Sequence[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        count = len(self.problems)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"{count} problem{'s' if count != 1 else ''} in the configuration:\n{lines}")

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        return ConfigError, (self.problems,)  # as it was made: an exception is pickled by its message otherwise


class DataError(YarnTrainError):
    """A source, a document or a prepared folder is missing, unreadable or not what the run asked for."""


class CheckpointError(YarnTrainError):
    """A checkpoint or run folder is missing, incomplete or belongs to another run."""


def problem(key: str, got: object, allowed: str, fix: str) -> str:
    """One problem in the house style: the option, what it got, what is allowed and how to fix it."""
    return f"{key}: got {got!r}; allowed: {allowed}; fix: {fix}"
