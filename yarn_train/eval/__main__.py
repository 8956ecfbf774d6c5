"""``python -m yarn_train.eval eval=perplexity model.path=FOLDER``: evaluate any model as its config reads.

Takes the options of ``train.py``, and a run or stage folder as a model too. The model is read with whatever RoPE its
own config says; only the studies (eval=dynamic, temperature, ramp) scale it, which takes an unscaled base.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from .. import cli, model_revision, remote_code
from .. import config as schema
from ..checks.evaluation import problems_of_a_model
from ..config import Config
from ..data.sources import pinned
from ..data.tokenize import load_tokenizer
from ..dist import environment
from ..dist import runtime as dist_runtime
from ..dist.collectives import on_main
from ..errors import problem
from ..launch import elastic
from ..model.folder import find_model
from ..model.load import DTYPES, is_language_model, load_config, unsupported
from ..model.probe import attention_problems
from ..model.registry import choose_kernel
from ..option_rules_eval import reads_documents
from ..parallel.context import context_problems
from ..problem_list import ProblemList
from ..rope import hf as rope_hf
from .documents import evaluated
from .job import Job
from .tasks import run_tasks
from .variants import Variant


def evaluate_model(raw: Mapping[str, Any], typed: Collection[str], run_folder: Path) -> None:
    """All of eval.tasks on ``model.path``; rows go to ``<folder>/eval/<task>.json``, then their report.

    The folder is ``outputs/eval/<model>``, or run.dir where that was typed.

    Raises:
        ConfigError: the evaluation was switched off or is asked to be tried only, or the model's head is not supported.
        CheckpointError: ``model.path`` is a run or a stage that is not finished.
    """
    cfg = schema.examine(raw)[0]
    pinned = model_revision.pinned(cfg.model.path, cfg.model.revision)
    with remote_code.allowed(cfg.model.trust_remote_code), pinned:
        base = check_evaluation(raw, typed, run_folder)
        cfg = of_model(cfg)
        _evaluate(cfg, base, folder_of(cfg, typed, run_folder))


def check_evaluation(raw: Mapping[str, Any], typed: Collection[str] = (), run_folder: Path | None = None) -> Any:
    """Every check that needs no weights; returns the model's config.

    Raises:
        ConfigError: listing all problems.
    """
    cfg, found = schema.examine(raw)
    problems = ProblemList()
    problems.add_options(found)
    with problems.collecting():
        schema.refuse_dry_run(cfg)
    if run_folder is not None and "run.dir" in typed and (run_folder / "run.json").is_file():
        fix = "choose another, or leave it out for one below outputs/eval"
        problems.add([problem("run.dir", str(run_folder), "a folder of its own: that one is a training's", fix)])
    if not cfg.eval.enabled:
        problems.add([problem("eval", "none", "perplexity | passkey | ...", "leave eval=none out")])
    problems.add(environment.launcher_problems())
    problems.add(model_revision.problems(cfg.model.path, cfg.model.revision))
    with problems.collecting():
        if environment.world_size() % cfg.parallel.context:
            allowed = f"a divisor of the number of ranks ({environment.world_size()})"
            fix = "start another number of ranks"
            problems.add([problem("parallel.context", cfg.parallel.context, allowed, fix)])
    with problems.collecting():
        choose_kernel(cfg.model.attention, dist_runtime.device(), DTYPES[cfg.model.dtype])
    base = None
    with problems.collecting(), remote_code.allowed(cfg.model.trust_remote_code):
        base = load_config(of_model(cfg).model.path)
        problems.add(_model_problems(cfg, base))
    problems.refuse()
    return base


def _model_problems(cfg: Config, base: PretrainedConfig) -> list[str]:
    found = unsupported(base)
    if not is_language_model(base):
        return found or [problem("model.path", base.model_type, "causal language models", "use one")]
    found += context_problems(cfg.parallel, base)
    found += [] if found else attention_problems(base)
    return found or problems_of_a_model(cfg, base)


def _evaluate(cfg: Config, base: PretrainedConfig, folder: Path) -> None:
    method, factor = rope_hf.method_of(base)
    length = rope_hf.pretrained_length(base) or 0
    tokenizer = load_tokenizer(cfg.model.path)
    runtime = dist_runtime.start(cfg.launch.timeout)
    say = print if runtime.is_main else (lambda text: None)
    name, stage = name_of(cfg.model.path)
    variant = Variant(f"{name} ({method} s={factor:g})", method, None, factor, stage, cfg.model.path, rope=None)
    # one rank asks the hub, so that all read the same commit
    data = on_main(lambda: pinned(evaluated(cfg)) if reads_documents(cfg) else evaluated(cfg))
    run_tasks(Job(cfg, [variant], base, tokenizer, length, factor, data, folder / "eval", runtime, say))
    if runtime.is_main:
        from ..report.terminal import show_report  # its plots take half a second to import, on every rank

        show_report(folder)
    say(f"wrote {folder}")


def of_model(cfg: Config) -> Config:
    """The same options with the model's own folder as model.path, where that was a run or a stage.

    Raises:
        CheckpointError: it is not finished.
    """
    folder = Path(cfg.model.path).expanduser()
    stages = (folder / "model", folder / "checkpoints", *folder.glob("[0-9][0-9]_*"))
    if (folder / "config.json").is_file() or not any(stage.is_dir() for stage in stages):
        return cfg
    path = find_model(cfg.model.path, "model.path")
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, path=path))


def name_of(path: str) -> tuple[str, str | None]:
    """(what a model is called, the stage that trained it): ``run/01_s16`` for a stage's, else its folder's name."""
    folder = Path(path)
    if folder.name == "model" and len(folder.parts) > 2:
        return "/".join(folder.parts[-3:-1]), folder.parts[-2]
    return folder.name, None


def folder_of(cfg: Config, typed: Collection[str], run_folder: Path) -> Path:
    """Where an evaluation writes: run.dir if a person named it, else the model's own folder."""
    return run_folder if "run.dir" in typed else output_folder(cfg.model.path)


def output_folder(model_path: str) -> Path:
    """A folder of the model's own: its last names, and a short hash so that two models never share one."""
    digest = hashlib.sha256(str(Path(model_path).absolute()).encode()).hexdigest()[:8]
    return Path("outputs") / "eval" / f"{'-'.join(Path(model_path).parts[-3:]).strip('/-.')}-{digest}"


def start_workers(raw: Mapping[str, Any], typed: Collection[str], folder: Path, words: Sequence[str]) -> int | None:
    """Evaluate in workers of its own; their logs lie beside the result."""
    cfg = schema.build(raw)
    return elastic.run_workers(cfg.launch, folder_of(of_model(cfg), typed, folder), words)


if __name__ == "__main__":
    cli.run(evaluate_model, start_workers, check_evaluation)
