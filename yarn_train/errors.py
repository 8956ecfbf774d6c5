"""The errors a user can cause. Each says what is wrong, what was given, what is allowed and how to fix it.

Anything else that is raised is a bug in yarn-train: its traceback is kept, see ``console.crash``.
"""

from __future__ import annotations

from collections.abc import Sequence


class YarnTrainError(Exception):
    """Base of every error with a message meant for the user; the entries print it without a traceback.

    Attributes:
        exit_code: what the entries exit with: 2 is for what the user can fix and a restart cannot.
    """

    exit_code = 2


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


class RunFolderTaken(CheckpointError):
    """Another process works in the run folder."""


class TrainingDiverged(YarnTrainError):
    """Losses or gradients are not finite, or spike, step after step: the same command would do the same again."""

    exit_code = 4


class StorageError(YarnTrainError):
    """The run's storage is full, read-only or gone; the newest complete checkpoint is intact."""

    exit_code = 5


class RanksLost(YarnTrainError):
    """Other ranks of the run no longer answer: starting again may help."""

    exit_code = 1


def problem(key: str, got: object, allowed: str, fix: str) -> str:
    """One problem in the house style: the option, what it got, what is allowed and how to fix it."""
    return f"{key}: got {got!r}; allowed: {allowed}; fix: {fix}"
