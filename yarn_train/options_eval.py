"""Options of the evaluations: which run, on what, and what each of them needs."""

from __future__ import annotations

from dataclasses import dataclass

from .option_field import DOCUMENT_SOURCES, option

TASKS = ("perplexity", "passkey", "harness")  # of any model, also at the end of a run
STUDIES = ("dynamic", "temperature", "ramp")  # of an unscaled base, without training


@dataclass(frozen=True)
class EvalConfig:
    enabled: bool = option(True, "evaluate when the last stage is done")
    tasks: list[str] = option(
        ["perplexity"],
        "what is evaluated, in this order: perplexity, passkey, harness (lm-evaluation-harness); by python -m "
        "yarn_train.eval also dynamic, temperature and ramp: studies of an unscaled base without training",
        choices=(*TASKS, *STUDIES),
    )
    windows: list[int] = option(
        [], "context windows in tokens; empty means L, 2L, 4L ... largest factor * L", minimum=2
    )
    stride: int = option(256, "tokens a window moves by, and tokens it scores", minimum=1)
    documents: int = option(12, "held-out documents, each longer than the largest window", minimum=1)
    order: str = option(
        "hash",
        "which of the long enough documents: hash: by sha256 of their names; first: as they come, as the reference "
        "implementation does",
        choices=("hash", "first"),
    )
    min_tokens: int | None = option(
        None, "shortest document, in tokens; null: as long as the largest window needs", minimum=2
    )
    windows_per_document: int | None = option(
        2,
        "score the SAME windows_per_document * stride tokens of each document at every window size; "
        "null scores whole documents from their first token, as the reference implementation does",
        minimum=1,
    )
    max_tokens: int | None = option(
        None, "with windows_per_document=null: tokens of each document that are used; null uses all", minimum=1
    )
    truncate: bool = option(
        False,
        "one pass over the beginning of each document per window size and no sliding, as the reference implementation "
        "ran on Proof-pile; with windows_per_document=null",
    )
    positions: bool = option(
        True, "also the loss at every position of the largest window, in one pass over the beginning of each document"
    )
    bootstrap: int = option(
        1000, "resamples of the documents for the 95 % interval of a perplexity; 0: no interval", minimum=0
    )
    batch_tokens: int = option(16384, "positions per forward pass; a window longer than this runs by itself", minimum=1)
    shard: bool = option(
        False,
        "every rank holds a part of the weights (FSDP2), for a model that does not fit one GPU; false: all of them",
    )
    baselines: bool = option(True, "also evaluate the untouched base and every method at the first factor, untrained")
    bos: bool = option(True, "begin every window with BOS, as the reference does")
    source: str | None = option(None, "documents to evaluate on; null takes data.source", choices=DOCUMENT_SOURCES)
    path: str | None = option(None, "folder, file or hub id of eval.source; null takes data.path and data.revision")
    revision: str | None = option(None, "commit, tag or branch of eval.path, as data.revision")
    column: str | None = option(None, "the column that holds the texts of eval.path; null takes data.column")
    split: str = option("test", "held-out split", choices=("validation", "test"))


@dataclass(frozen=True)
class PasskeyConfig:
    variant: str = option(
        "plain",
        "plain: a key of five digits in the paper's filler; reference: as jquesnelle/yarn makes it (key from 1 to "
        "50000, a random place, lengths in steps of 128 characters); many_keys: several named keys, one is asked for; "
        "book: the key in the text of held-out documents",
        choices=("plain", "reference", "many_keys", "book"),
    )
    lengths: list[int] = option([], "prompt lengths in tokens; empty means L, 2L, 4L ... largest factor * L", minimum=1)
    depths: int = option(10, "places of the key, evenly from the beginning (0) to the end (1)", minimum=1)
    trials: int = option(2, "keys per length and place, each with its own seed", minimum=1)
    keys: int = option(8, "with variant=many_keys: keys in a prompt", minimum=2)
    new_tokens: int = option(10, "tokens generated, greedily, in which the first number must be the key", minimum=1)
    seed: int = option(0, "seed of keys, names and places")


@dataclass(frozen=True)
class HarnessConfig:
    tasks: list[str] = option(
        ["paper"],
        "tasks of lm-evaluation-harness by name; paper: ARC-c 25-shot, HellaSwag 10-shot, MMLU 5-shot, TruthfulQA "
        "0-shot, with the paper's metrics",
    )
    shots: int | None = option(
        None, "examples in front of each question; null: the paper's, else the task's own", minimum=0
    )
    limit: int | None = option(None, "questions per task; null: all", minimum=1)
    max_length: int | None = option(None, "longest prompt in tokens; null: the model's extended length", minimum=2)
    include_path: str | None = option(None, "folder with task files of your own")
    seed: int = option(1234, "seed of the examples in front of each question")


@dataclass(frozen=True)
class StudyConfig:
    factors: list[float] = option(
        [2.0, 4.0, 8.0, 16.0], "eval=temperature, ramp and dynamic: values of s, without training", minimum=1.0
    )
    temperatures: list[float] = option(
        [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4],
        "eval=temperature: values of t; the paper's rule is always added",
        above=0.0,
    )
    alphas: list[float] = option([0.5, 1.0, 2.0], "eval=ramp: values of alpha", above=0.0)
    betas: list[float] = option([8.0, 16.0, 32.0], "eval=ramp: values of beta", above=0.0)
    methods: list[str] = option(
        ["pi", "ntk", "yarn"],
        "eval=dynamic: methods, each with a fixed factor and with s = max(1, l'/L)",
        choices=("pi", "ntk", "ntk_by_parts", "yarn"),
    )
