"""What ``train.py`` does with a composed configuration: check everything, prepare data, train, evaluate, report."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from . import config as schema
from .checkpoint.manager import complete_checkpoints
from .config import Config
from .data.progress import progress_bar
from .data.store import prepare_parts
from .data.stream import Part
from .data.tokenize import load_tokenizer, resolve_workers
from .dist import runtime as dist_runtime
from .dist.collectives import barrier, from_main
from .engine.deepspeed import missing as deepspeed_missing
from .errors import ConfigError, YarnTrainError, problem
from .eval import suite
from .model.attention import choose_kernel
from .model.load import DTYPES, is_language_model, load_config, unsupported
from .model.loss import loss_missing
from .model.probe import attention_problems, mask_problems
from .optim.adamw import missing as optim_missing
from .parallel.context import context_problems
from .plan.check import check_run_fits
from .report.terminal import show_report
from .rope import hf as rope_hf
from .stages import Stage, resolve
from .train import run_folder
from .train.commits import Commits
from .train.curriculum import run_stages
from .train.init_from import check_weights, find_model


def train(raw: Mapping[str, Any], typed: Collection[str], folder: Path) -> None:
    """Run a composed configuration to its end, or on from where its run folder stands.

    Args:
        raw: the composed options as a plain nested dict.
        typed: keys the user typed on the command line.
        folder: the run folder.

    Raises:
        YarnTrainError: anything a user can cause; every configuration problem is found before weights load.
    """
    stages = resolve(raw, folder, typed)
    cfg = stages[0].cfg
    base = check_run(stages)
    if cfg.run.resume == "never":
        run_folder.refuse_existing(folder)
    run_folder.check_config(folder, schema.build(raw))
    for stage in stages:
        run_folder.check_config(stage.folder, stage.cfg)
    unfinished = [stage.cfg for stage in stages if not stage.finished]
    ranks = dist_runtime.world_size(), dist_runtime.local_world_size()
    memory = check_run_fits(unfinished, base, dist_runtime.device(), *ranks) if unfinished else None
    tokenizer = load_tokenizer(cfg.model.path)
    weights = first_weights(stages, base, tokenizer)
    # No collective waits for this: none exists yet.
    commits = Commits(folder)
    data = {stage.name: stage_data(stage, commits) for stage in stages if not stage.finished}
    runtime = dist_runtime.start()
    say = print_line if runtime.is_main else silent
    if runtime.is_main:
        run_folder.freeze_config(folder, schema.build(raw))
        commits.save()
        run_folder.start_record(folder, cfg, runtime.world_size, str(runtime.device))
    barrier()
    reason = "failed"
    try:
        say(f"run folder: {folder}")
        if memory:
            say(memory)
        done = run_stages(stages, base, tokenizer, weights, lambda s: data[s.name], runtime, say)
        if done and cfg.eval.enabled:
            evaluate_run(stages, base, tokenizer, weights, folder, commits, runtime, say)
        reason = "complete" if done else "stopped by train.stop_after"
        if done:
            say(f"run complete; the model is {stages[-1].model_folder}")
    except KeyboardInterrupt:
        reason = "interrupted"
        raise
    except YarnTrainError as error:
        reason = f"failed: {error}"
        raise
    except Exception as error:
        reason = f"failed: {type(error).__name__}: {error}"
        raise
    finally:
        if runtime.is_main:
            run_folder.end_record(folder, reason)


def check_run(stages: list[Stage]) -> PretrainedConfig:
    """Every check that needs no weights: batch arithmetic, kernel, architecture and RoPE of all stages at once.

    Returns:
        The unscaled base config.

    Raises:
        ConfigError: listing all problems.
    """
    problems: list[str] = []
    world_size = dist_runtime.world_size()
    base = load_config(stages[0].cfg.model.path)
    problems += unsupported(base)
    problems += [p for p in rope_hf.check_base(base, stages[0].cfg.rope) if p not in problems]
    refused = bool(problems)
    if not is_language_model(base):
        raise ConfigError(problems or problem("model.path", base.model_type, "causal language models", "use one"))
    tried: set[str | None] = set()  # kernels that the architecture was tried with
    for stage in stages:
        primitive = None
        try:
            schema.validate(stage.cfg, world_size)
        except ConfigError as error:
            problems += [p for p in error.problems if p not in problems]
        try:
            device, dtype = dist_runtime.device(), DTYPES[stage.cfg.model.dtype]
            primitive = choose_kernel(stage.cfg.model.attention, device, dtype).primitive
        except ConfigError as error:
            problems += [p for p in error.problems if p not in problems]
        found = rope_hf.check_base(base, stage.cfg.rope)
        if not (refused or found):
            found += mask_problems(stage.cfg, base)
            found += [] if primitive in tried else attention_problems(base, primitive)
            tried.add(primitive)
        found += context_problems(stage.cfg.parallel, base)
        found += optim_missing(stage.cfg.optim)
        found += loss_problems(stage.cfg, base)
        found += deepspeed_missing(stage.cfg) if stage.cfg.engine.name == "deepspeed" else []
        problems += [p for p in found if p not in problems]
    if problems:
        raise ConfigError(problems)
    return base


def loss_problems(cfg: Config, base: PretrainedConfig) -> list[str]:
    """Problems of a loss that cannot run on this device or at this size."""
    rows = cfg.train.micro_batch_size * cfg.data.seq_len // cfg.parallel.context
    missing = loss_missing(cfg.memory.loss, dist_runtime.device(), rows * base.vocab_size)
    return [problem("memory.loss", cfg.memory.loss, "losses that can run here", missing)] if missing else []


def evaluate_run(
    stages: list[Stage],
    base: PretrainedConfig,
    tokenizer: Any,
    weights: str | None,
    folder: Path,
    commits: Commits,
    runtime: dist_runtime.Runtime,
    say: Callable[[str], None],
) -> None:
    """Perplexity of the base, the untrained methods and every stage; then the report (on the main process)."""
    cfg = stages[0].cfg
    length = cfg.rope.original_max_position_embeddings or rope_hf.base_rope(base).original_length or 0
    chosen = suite.variants(stages, weights)
    data = from_main(commits.pin(suite.evaluated(cfg)) if runtime.is_main else None)
    if runtime.is_main:
        commits.save()
    scoring = suite.plan(cfg, data, tokenizer, length, max(stage.cfg.rope.factor for stage in stages))
    suite.evaluate(chosen, base, scoring, cfg, folder / "eval" / "perplexity.json", runtime, say)
    if runtime.is_main:
        suite.write_frequencies(folder / "frequencies.json", chosen, base, length)
        show_report(folder)


def first_weights(stages: list[Stage], base: PretrainedConfig, tokenizer: Any) -> str | None:
    """Where the first stage's weights come from: None for a random initialisation."""
    cfg = stages[0].cfg
    if cfg.run.init_from is not None:
        source = find_model(cfg.run.init_from)
        length = cfg.rope.original_max_position_embeddings or rope_hf.base_rope(base).original_length
        check_weights(source, base, tokenizer, length or 0)
        return source
    return None if cfg.model.init == "random" else cfg.model.path


def stage_data(stage: Stage, commits: Commits) -> list[Part]:
    """The stage's prepared training data, prepared now if it is missing.

    Every rank may get here. Ranks share the work out among themselves through file locks, so each takes its share of
    the machine's cores.
    """
    data = commits.pin(stage.cfg.data)
    workers = data.workers or max(1, resolve_workers(0) // dist_runtime.local_world_size())
    with progress_bar(f"prepare {data.source}") as update:
        return prepare_parts(
            data,
            stage.cfg.model.path,
            workers=workers,
            resumed=bool(complete_checkpoints(stage.folder / "checkpoints")),
            progress=update if dist_runtime.rank() == 0 else None,
            say=print_line if dist_runtime.rank() == 0 else silent,
        )


def print_line(text: str) -> None:
    """A line for the user, at once even when the output is a file."""
    print(text, flush=True)


def silent(text: str) -> None:
    """The same on ranks that do not print."""
