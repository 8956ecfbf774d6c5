"""Secrets do not leave: keys and tokens are replaced wherever text is printed or written into a run folder.

Never imports torch. A secret belongs into the environment or the hub's own login; this is for the one that a person
puts on a command line or into a path all the same, and for libraries whose errors repeat what they were given.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, TextIO

HIDDEN = "***"
SHORTEST = 8  # characters of a value from the environment; shorter ones are words
NAME = r"(?:token|secret|passwd|password|api[_-]?key|access[_-]?key(?:[_-]?id)?|credential|wandb[_-]?key)"
_RULES = (
    (re.compile(r"\b([a-z][a-z0-9+.-]{1,20}://)[^\s/@'\"]+@", re.IGNORECASE), rf"\1{HIDDEN}@"),  # user:password@host
    (re.compile(rf"({NAME}=['\"]?)[^\s'\"&,;}}\]]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    # after a colon there may be prose; a key has digits and no spaces
    (re.compile(rf"({NAME}['\"]?:\s*['\"]?)(?=\S*\d)[^\s'\"&,;}}\]]{{12,}}", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"([?&][\w-]*(?:sig|signature|key|auth)=)[^\s'\"&]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"\b(Bearer|Basic) [A-Za-z0-9+/._~=-]{8,}", re.IGNORECASE), rf"\1 {HIDDEN}"),
    (re.compile(r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{20,}"), f"hf_{HIDDEN}"),
    (re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"), HIDDEN),
    (re.compile(r"(?<![A-Za-z0-9])(?:gh[pousr]_|github_pat_|glpat-|wandb_v\d_)[A-Za-z0-9_-]{16,}"), HIDDEN),
    (re.compile(r"(?<![A-Za-z0-9/])sk-(?:[a-z]+-){0,2}[A-Za-z0-9_]{20,}"), HIDDEN),  # and no name such as sk-base-cased
)
_HEX_KEY = re.compile(r"(?<![0-9a-zA-Z])(?<!revision=)[0-9a-f]{40}(?![0-9a-zA-Z])")  # W&B's; a commit looks the same
# Names that end like a secret's, of values that are none: eos_token=</s>
_NO_SECRET = re.compile(
    r"(?:bos|eos|pad|unk|added|special|max|per|input|output|num|seq)[\w.-]{0,16}token['\"]?[=:][^=:]*$", re.IGNORECASE
)


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """The text with ``***`` in the place of what is, or looks like, a key, token or password.

    Args:
        secrets: values that are known to be some, such as those in the environment.
    """
    for secret in sorted({s for s in secrets if len(s) >= SHORTEST}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    for pattern, replacement in _RULES:
        text = pattern.sub(partial(_replaced, replacement), text)
    return text


def redacted_command(words: Iterable[str], secrets: Iterable[str] = ()) -> list[str]:
    """Words of a command line; there, 40 hex digits that are no revision are a key."""
    known = list(secrets)
    return [_HEX_KEY.sub(HIDDEN, redacted(word, known)) for word in words]


def redacted_values(value: Any, secrets: Iterable[str] = ()) -> Any:
    """The same for every string of nested dicts and lists; changed ones end with a mark that tells them apart."""
    known = list(secrets)
    if isinstance(value, str):
        shown = redacted(value, known)
        return shown if shown == value else f"{shown}#{hashlib.sha256(value.encode()).hexdigest()[:6]}"
    if isinstance(value, Mapping):
        return {key: redacted_values(entry, known) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_values(entry, known) for entry in value]
    return value


def guard_streams(secrets: Iterable[str]) -> None:
    """From now on stdout and stderr of this process are redacted: tracebacks, progress bars, and the logs of libraries.

    Not what C code writes by itself.
    """
    known, before = list(secrets), (sys.stdout, sys.stderr)
    sys.stdout, sys.stderr = _Guarded(sys.stdout, known), _Guarded(sys.stderr, known)
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for handler in (one for logger in loggers for one in getattr(logger, "handlers", [])):
        if isinstance(handler, logging.StreamHandler) and handler.stream in before:
            handler.stream = sys.stdout if handler.stream is before[0] else sys.stderr


def _replaced(to: str, found: re.Match[str]) -> str:
    before = found.string[max(0, found.start() - 24) : found.end()]
    return found[0] if _NO_SECRET.search(before) else found.expand(to)


class _Guarded:
    """A text stream that is another one, but for what it writes."""

    def __init__(self, stream: TextIO | _Guarded, secrets: list[str]):
        self._stream: Any = stream._stream if isinstance(stream, _Guarded) else stream
        self._secrets = secrets

    def write(self, text: str) -> int:
        """Write the redacted text; returns the length of the one that was given."""
        self._stream.write(redacted(text, self._secrets))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of them."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
