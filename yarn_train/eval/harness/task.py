"""Standard benchmarks by lm-evaluation-harness, of every variant: ``eval/harness.json``."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PretrainedConfig

from ...config import Config
from ...console.work import Work
from ...data.tokenize import tokenizer_sha256
from ...dist import environment
from ...dist.collectives import barrier, from_main, on_main
from ...errors import problem
from ...rope import hf as rope_hf
from .. import made_by
from ..job import Job
from ..loading import Ranks, loaded, ranks_of
from ..rows import earlier_rows, write_rows
from ..variants import Variant
from .results import Row, rows
from .selection import in_short_table, list_problems, wanted

if TYPE_CHECKING:
    from .lm_eval_calls import Selected


def problems(cfg: Config, base: PretrainedConfig) -> list[str]:
    """The package, names, folder and lengths; on the first rank also whether the data sets are within reach."""
    options, found = cfg.harness, list_problems(cfg.harness)
    if options.max_length is None and not _length(cfg, base):
        fix = "harness.max_length=4096; the model's config does not say how long it was pretrained"
        found.append(problem("harness.max_length", None, "a number of tokens for this model", fix))
    if options.include_path is not None and not Path(options.include_path).is_dir():
        fix = "correct the path, or leave it out"
        found.append(problem("harness.include_path", options.include_path, "a folder with task files", fix))
    if importlib.util.find_spec("lm_eval") is None:
        fix = "pip install 'yarn-train[harness]'"
        return [*found, problem("eval.tasks", "harness", "without it: lm-evaluation-harness is not installed", fix)]
    if found or environment.rank() != 0:
        return found
    from . import lm_eval_calls

    names = lm_eval_calls.name_problems(wanted(options), options.include_path)
    return names or lm_eval_calls.data_problems(wanted(options), options.include_path)


def run(job: Job) -> None:
    """Write ``harness.json`` after every task of every variant; what is there with the same settings stays.

    The main rank asks, all ranks answer: see :mod:`.sharing`.

    Raises:
        DataError: a task's data cannot be read, or a task cannot be asked; before any weights are read.
    """
    selected: list[Selected] = []
    out = job.folder / "harness.json"
    on_main(lambda: selected.extend(_load(job)))
    done: list[Row] = from_main(_earlier(job, out) if job.runtime.is_main else [])
    missing = [_missing(variant, selected, done) for variant in job.variants] if job.runtime.is_main else []
    alone = dataclasses.replace(job.cfg.parallel, context=1, ulysses=None)  # a prompt fits one GPU, and there are many
    cfg = dataclasses.replace(job.cfg, parallel=alone)
    ranks = ranks_of(job.base, cfg, job.runtime)
    for variant, names in zip(job.variants, from_main(missing), strict=True):
        if names:
            _evaluate(job, ranks, variant, [task for task in selected if task.name in names], done, out)
    barrier()


def _load(job: Job) -> list[Selected]:
    from . import lm_eval_calls

    environment.become({"DISABLE_MULTIPROC": "1"})  # no processes are forked under a process group
    options = job.cfg.harness
    names = lm_eval_calls.expanded(wanted(options), options.include_path)
    length = options.max_length or round(job.length * job.factor)
    return lm_eval_calls.load(names, options.include_path, length, job.tokenizer, options.seed)


def _earlier(job: Job, out: Path) -> list[Row]:
    return earlier_rows(out, _settings(job), job.say, made_by.marks(job.variants))


def _settings(job: Job) -> dict[str, Any]:
    """Everything beside task, shots and model that decides the numbers."""
    from .lm_eval_calls import VERSION, own_files

    options = job.cfg.harness
    own = b"".join(file.read_bytes() for file in own_files(options.include_path))
    return {
        "limit": options.limit,
        "max_length": options.max_length,
        "seed": options.seed,
        "own_tasks_sha256": hashlib.sha256(own).hexdigest() if own else None,
        "tokenizer_sha256": tokenizer_sha256(job.tokenizer),
        **made_by.options_of(job.cfg, job.runtime.device, job.base),
        "lm_eval": VERSION,
    }


def _missing(variant: Variant, selected: list[Selected], done: list[Row]) -> list[str]:
    """Names of tasks that have no rows of this variant with as many shots."""
    there = {(row["group"] or row["task"], row["task"], row["shots"]) for row in done if row["label"] == variant.label}
    return [t.name for t in selected if not {(t.name, *one) for one in t.shots.items()} <= there]


def _evaluate(job: Job, ranks: Ranks, variant: Variant, selected: list[Selected], done: list[Row], out: Path) -> None:
    """All missing tasks of one variant; every rank calls it, the main one has the tasks and gets the rows."""
    from .language_model import LanguageModel
    from .sharing import Sharing

    options = job.cfg.harness
    length = options.max_length or round(job.length * variant.factor)
    names = {key: getattr(variant, key) for key in ("label", "method", "ramp", "factor", "stage")}

    def ask(sharing: Sharing) -> None:
        for task in selected:
            model = LanguageModel(job.tokenizer, sharing, length)
            found = [{**names, **row} for row in _ask(task, model, job, variant)]
            done.extend(found)
            write_rows(out, done)
            for row in found:
                if in_short_table(row["task"], row["group"], row["metric"], row["shots"]):
                    job.say(f"{variant.label}: {_said(row)}")
            if model.cut:
                job.say(
                    f"{variant.label}: {task.name}: {model.cut} prompts lost their beginning to fit {length} tokens"
                )

    with loaded(variant, job.base, job.cfg, ranks) as model:
        sharing = Sharing(model, ranks, job.cfg.eval.batch_tokens)
        sharing.ask_from(lambda: ask(sharing))


def _ask(task: Selected, model: Any, job: Job, variant: Variant) -> list[Row]:
    from . import lm_eval_calls

    options = job.cfg.harness
    work = model.sharing.work = Work("evaluate", 1, "req", shown=job.runtime.is_main)
    work.at(f"{variant.label}: {task.name}")
    results = lm_eval_calls.evaluate(task, model, options.limit, options.seed)
    work.close()
    return rows(task.name, results, list(task.shots))


def _said(row: Row) -> str:
    shots = "" if row["shots"] is None else f", {row['shots']}-shot"
    value = "not finite" if row["value"] is None else f"{row['value']:.4f}"
    error = "" if row["stderr"] is None else f" +- {row['stderr']:.4f}"
    return f"{row['task']} {row['metric']}{shots}: {value}{error} ({row['samples']} questions)"


def _length(cfg: Config, base: PretrainedConfig) -> int | None:
    return cfg.rope.original_max_position_embeddings or rope_hf.pretrained_length(base)
