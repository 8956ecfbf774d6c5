"""Rules between the options of evaluations, and which evaluations read documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from .errors import problem
from .options import DOCUMENT_SOURCES, Config, PasskeyConfig


def reads_documents(c: Config) -> bool:
    """Whether an evaluation that is asked for needs held-out documents; passkeys in filler and benchmarks do not."""
    others = set(c.eval.tasks) - {"passkey", "harness"}
    return c.eval.enabled and (bool(others) or ("passkey" in c.eval.tasks and c.passkey.variant == "book"))


def evaluation_rules(c: Config) -> list[str]:
    """Rules between the keys of eval, passkey, harness and study."""
    return [*_list_rules(c), *_protocol_rules(c), *_passkey_rules(c), *_document_rules(c)]


def _list_rules(c: Config) -> list[str]:
    """Lists that ask for nothing, or for something twice: the second would only be found done."""
    lists: dict[str, Sequence[Any]] = {
        "eval.tasks": c.eval.tasks,
        "harness.tasks": c.harness.tasks,
        **{f"study.{key}": getattr(c.study, key) for key in ("factors", "temperatures", "alphas", "betas", "methods")},
    }
    found = []
    for key, values in lists.items():
        if not values:
            fix = "leave it out for the default" + ("; eval=none evaluates nothing" if key == "eval.tasks" else "")
            found.append(problem(key, [], "one or more", fix))
    for key, values in {**lists, "eval.windows": c.eval.windows, "passkey.lengths": c.passkey.lengths}.items():
        if twice := [value for value, times in Counter(values).items() if times > 1]:
            found.append(problem(key, f"{twice[0]} twice", "each of them once", "leave one out"))
    return found


def _protocol_rules(c: Config) -> list[str]:
    """What only one way of scoring documents has a use for, or contradicts it."""
    options, found = c.eval, []
    if options.windows_per_document is not None:
        allowed = f"{{}} for eval.windows_per_document={options.windows_per_document}"
        fix = "set eval.windows_per_document=null, or leave it out"
        if options.truncate:
            found.append(problem("eval.truncate", True, allowed.format("false"), fix))
        if options.max_tokens is not None:
            found.append(problem("eval.max_tokens", options.max_tokens, allowed.format("null"), fix))
    elif options.windows:
        found += max_tokens_problems(options.max_tokens, max(options.windows))
    return found


def max_tokens_problems(max_tokens: int | None, largest: int) -> list[str]:
    """Documents cut so short that nothing fills the largest window; also of windows that are not listed."""
    if max_tokens is None or largest <= max_tokens:
        return []
    allowed = f">= the largest of eval.windows ({largest}), which nothing would fill otherwise"
    return [problem("eval.max_tokens", max_tokens, allowed, "use more of each document, or evaluate smaller windows")]


def _passkey_rules(c: Config) -> list[str]:
    default = PasskeyConfig().keys
    if c.passkey.variant != "many_keys" and c.passkey.keys != default:
        fix = "set passkey.variant=many_keys, or leave it out"
        allowed = f"{default} (the default) for passkey.variant={c.passkey.variant}"
        return [problem("passkey.keys", c.passkey.keys, allowed, fix)]
    return []


def _document_rules(c: Config) -> list[str]:
    """Where held-out documents come from."""
    found = []
    source = c.eval.source or c.data.source
    if reads_documents(c) and source not in DOCUMENT_SOURCES:
        allowed, fix = " | ".join(DOCUMENT_SOURCES), "set eval.source (and eval.path), or eval.enabled=false"
        found.append(problem("eval.source", c.eval.source, f"{allowed} for data.source={c.data.source}", fix))
    if c.eval.source == "stdlib" and c.eval.path is not None:
        found.append(problem("eval.path", c.eval.path, "null for eval.source=stdlib", "set eval.source to use it"))
    if c.eval.column is not None and source == "stdlib":
        found.append(problem("eval.column", c.eval.column, f"null for source {source}", "leave it out"))
    if c.eval.revision is not None and c.eval.path is None:
        fix = "set eval.path too, or data.revision for both"
        found.append(problem("eval.revision", c.eval.revision, "null without eval.path", fix))
    if reads_documents(c) and c.eval.source not in (None, "stdlib") and not (c.eval.path or c.data.path):
        fix = f"eval.source={c.eval.source} needs eval.path=..."
        found.append(problem("eval.path", None, "a folder, file or hub id", fix))
    return found
