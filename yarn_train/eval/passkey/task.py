"""Passkey retrieval of every variant: lengths x depths x trials, greedy."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from ...config import Config, DataConfig
from ...console.work import Work
from ...data.tokenize import load_tokenizer, tokenizer_sha256
from ...dist.collectives import barrier, from_main
from ...errors import DataError, problem
from ...rope import hf as rope_hf
from .. import made_by
from ..job import Job
from ..loading import generation_problems, loaded, ranks_of
from ..perplexity.windows import default_windows
from ..rows import MODELS, Rows, earlier_files, settings_beside, write_rows
from ..variants import Variant
from .answers import rows_of
from .ask import Asker
from .book import Book, content, read_books
from .keys import NAMES
from .kinds import cells, shortest_of
from .prompts import needle
from .tokens import Tokens

NAMED = ("label", "method", "ramp", "factor", "stage")
KEY = "12345"


def problems(cfg: Config, base: PretrainedConfig) -> list[str]:
    """Ranks that share sequences, sharded weights, names, a tokenizer without digits, lengths without room."""
    found = generation_problems(cfg, "passkey")
    if cfg.parallel.context > 1:
        allowed = "1 for passkey, whose prompts each stay on one rank"
        fix = "evaluate the finished model in a command of its own: python -m yarn_train.eval eval=passkey"
        found.append(problem("parallel.context", cfg.parallel.context, allowed, fix))
    if cfg.passkey.keys > len(NAMES):
        return [*found, problem("passkey.keys", cfg.passkey.keys, f"at most {len(NAMES)}", "hide fewer keys")]
    try:
        tokens = Tokens(load_tokenizer(cfg.model.path or ""), cfg.eval.bos)
    except DataError:  # found where the tokenizer is checked
        return found
    return found + _tokenizer_problems(cfg, tokens) + _length_problems(cfg, base, tokens)


def run(job: Job) -> None:
    """Write ``passkey.json`` and ``passkey_answers.json`` after each length of each variant; what is there stays."""
    cfg, options, main = job.cfg, job.cfg.passkey, job.runtime.is_main
    tokens = Tokens(job.tokenizer, cfg.eval.bos)
    lengths = lengths_of(cfg, job.length, job.factor)
    books = passkey_books(cfg, job.data, job.tokenizer, job.length, job.factor) if options.variant == "book" else []
    asker = Asker(tokens, options, cfg.eval.batch_tokens, books)
    out, answers_out = job.folder / "passkey.json", job.folder / "passkey_answers.json"
    done: Rows = from_main(_earlier(job, out, answers_out, content(books)) if main else [])
    there = {(row["label"], row["length"]) for row in done if row["variant"] == options.variant}
    missing = {v: [n for n in lengths if (v.label, n) not in there] for v in job.variants}
    ranks = ranks_of(job.base, cfg, job.runtime)
    total = sum(map(sum, missing.values())) * options.depths * options.trials
    work = Work("passkeys", total, "tok", shown=main and total > 0)
    for number, (variant, wanted) in enumerate(missing.items(), start=1):
        if not wanted:
            continue
        with loaded(variant, job.base, cfg, ranks) as model:
            for length in wanted:
                work.at(f"{number}/{len(missing)} {variant.label}")
                names = {key: getattr(variant, key) for key in NAMED}
                done += [{**names, **row} for row in asker.answers(model, length, ranks)]
                done = _in_order(done, job.variants)
                if main:
                    write_rows(answers_out, done)
                    write_rows(out, rows_of(done))
                work.add(length * options.depths * options.trials)
    work.close()
    barrier()


def passkey_books(cfg: Config, data: DataConfig, tokenizer: Any, length: int, factor: float) -> list[Book]:
    """The documents that hide the keys.

    Raises:
        DataError: none fills the longest prompt.
    """
    return read_books(cfg, data, Tokens(tokenizer, cfg.eval.bos), max(lengths_of(cfg, length, factor)))


def lengths_of(cfg: Config, length: int, factor: float) -> list[int]:
    """Prompt lengths in tokens: those asked for, or L, 2L, 4L ... factor * L."""
    return sorted(cfg.passkey.lengths) or default_windows(length, factor)


def _earlier(job: Job, out: Path, answers: Path, books: dict[str, str]) -> Rows:
    """Answers of an interrupted or repeated evaluation; each variant has settings of its own in the same file."""
    variant, mine = job.cfg.passkey.variant, _settings(job, books)
    file = settings_beside(out)
    try:
        settings = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):
        settings = {}
    if MODELS in settings and variant not in settings:
        settings[variant] = mine
        file.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    same = settings.pop(MODELS, None) is not None and settings[variant] == mine
    wanted = settings if same else {variant: mine}
    rows, found = earlier_files([out, answers], wanted, job.say, made_by.marks(job.variants))
    whole = {(row["label"], row["variant"], row["length"]) for row in rows}
    return [row for row in found if (row["label"], row["variant"], row["length"]) in whole]


def _settings(job: Job, books: dict[str, str]) -> dict[str, Any]:
    """Everything beside the model and the length that decides an answer."""
    options = job.cfg.passkey
    return {
        "depths": options.depths,
        "trials": options.trials,
        "new_tokens": options.new_tokens,
        "seed": options.seed,
        "bos": job.cfg.eval.bos,
        "tokenizer_sha256": tokenizer_sha256(job.tokenizer),
        **made_by.options_of(job.cfg, job.runtime.device, job.base),
        "keys": options.keys if options.variant == "many_keys" else 1,
        "books": books,
    }


def _in_order(rows: Rows, variants: Iterable[Variant]) -> Rows:
    """By model as in tables, then by kind of prompt and length."""
    labels = list(dict.fromkeys([*(variant.label for variant in variants), *(row["label"] for row in rows)]))
    kinds = list(dict.fromkeys(row["variant"] for row in rows))
    return sorted(rows, key=lambda row: (labels.index(row["label"]), kinds.index(row["variant"]), row["length"]))


def _tokenizer_problems(cfg: Config, tokens: Tokens) -> list[str]:
    if KEY in tokens.text(tokens.more(needle(KEY))):
        return []
    allowed = "a tokenizer that can write digits and the words around them"
    got = f"{tokens.text(tokens.more(needle(KEY)))!r} for {needle(KEY)!r}"
    return [problem("model.path", got, allowed, "leave passkey out of eval.tasks")]


def _length_problems(cfg: Config, base: PretrainedConfig, tokens: Tokens) -> list[str]:
    """Lengths without room for the sentences; of the reference's prompts any length is tried."""
    known = rope_hf.pretrained_length(base)
    if cfg.passkey.variant == "reference":
        return []
    found = []
    for length in cfg.passkey.lengths or ([known] if known else []):
        least = max(shortest_of(tokens, cell, cfg.passkey) for cell in cells(cfg.passkey, length))
        if length < least:
            fix = "ask for longer prompts: passkey.lengths=[...]"
            if cfg.passkey.variant == "many_keys":
                fix += ", or hide fewer: passkey.keys=2"
            found.append(problem("passkey.lengths", length, f">= {least} tokens, the shortest possible", fix))
    return found
