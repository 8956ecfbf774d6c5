"""What ``train.py`` does with a composed configuration: check everything, prepare data, train, evaluate, report."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from . import config as schema
from . import model_revision, remote_code
from .checkpoint.manager import complete_checkpoints
from .checks.start import Checked, check_run, check_start
from .config import Config
from .console import crash, ending
from .console.banner import Row, render
from .console.lines import say as print_line
from .console.lines import silent
from .console.terminal import Style
from .data.progress import progress_bar
from .data.store import prepare_parts
from .data.stream import Part
from .data.tokenize import resolve_workers
from .dist import environment
from .dist import runtime as dist_runtime
from .dist.collectives import on_main
from .dist.deterministic import deterministic
from .dist.failure import after_others, explained
from .dist.heartbeat import heartbeat
from .dist.stop import requests
from .dry_run.run import dry_run
from .errors import ConfigError, TrainingDiverged, YarnTrainError
from .eval.documents import evaluated
from .eval.frequencies import write_frequencies
from .eval.job import Job
from .eval.tasks import run_tasks
from .eval.variants import variants
from .model.load import base_scaling
from .option_rules_eval import reads_documents
from .plan.check import check_run_fits
from .plan.disk import check_disk
from .rope import hf as rope_hf
from .stages import Stage, examine
from .sweep.record import sweep_of
from .train import model_card, overview, run_folder, run_lock, same_run, tracking
from .train.commits import Commits
from .train.curriculum import run_stages
from .train.phases import phases


def train(raw: Mapping[str, Any], typed: Mapping[str, str], folder: Path) -> None:
    """Run a composed configuration to its end, or on from where its run folder stands.

    Args:
        raw: the composed options as a plain nested dict.
        typed: what the user typed on the command line, by option.
        folder: the run folder.

    Raises:
        YarnTrainError: anything a user can cause; every configuration problem is found before weights load.
    """
    stages, problems = examine(raw, folder, typed)
    whole = schema.examine(raw)[0]
    model, recorded = whole.model, run_folder.model_commit(folder, whole)
    pinned = model_revision.pinned(model.path, model.revision, recorded, ask=not whole.launch.dry_run)
    with remote_code.allowed(model.trust_remote_code), pinned:
        if whole.launch.dry_run and not problems.lines:
            dry_run(stages, whole, typed, folder, check_run)
            return
        checked = check_start(raw, typed, folder)
        compiled = any(stage.cfg.compile.enabled for stage in stages)
        with (
            requests.limited(whole.run.max_hours),
            run_lock.held(folder),
            deterministic(whole.run.deterministic, compiled),
        ):
            start(stages, whole, checked, folder)


def start(stages: list[Stage], whole: Config, checked: Checked, folder: Path) -> None:
    """Train the stages of a run whose folder nobody else writes; `whole` is what they have in common."""
    cfg, base = stages[0].cfg, checked.base
    changes = same_run.check_options(folder, whole, stages)
    unfinished = [stage.cfg for stage in stages if stage.trains and not stage.finished]
    ranks = environment.world_size(), environment.local_world_size()
    timed: list[float] = []
    memory = check_run_fits(unfinished, base, dist_runtime.device(), *ranks, timed) if unfinished else None
    planned = dict(zip((stage.name for stage in stages if stage.trains and not stage.finished), timed, strict=False))
    disk = check_disk(stages, base, folder) if environment.rank() == 0 else ""  # for all: they share the folder
    nccl = dist_runtime.device().type == "cuda"
    lines = [*checked.notes, *same_run.lines(changes, stages), *filter(None, (memory, disk))]
    with heartbeat.watched(folder, cfg.launch.stall_after, nccl, together=False):
        run(stages, whole, checked, folder, changes, lines, planned)


def run(
    stages: list[Stage],
    whole: Config,
    checked: Checked,
    folder: Path,
    changes: Sequence[same_run.Change],
    lines: Sequence[str],
    planned: Mapping[str, float],
) -> None:
    """Prepare data, meet the other ranks, train, evaluate, report, and write into run.json how it ended.

    Args:
        changes: options that differ from those of the folder's earlier starts.
        lines: what the checks of the start found to say.
        planned: stage name -> seconds of a step, where that is known before the first.
    """
    cfg, base, tokenizer, weights = stages[0].cfg, checked.base, checked.tokenizer, checked.weights
    commits = Commits(folder)
    phases.begin()
    with phases.timed("prepare"):
        data, runtime = prepare(stages, commits, folder)
    model_revision.agreed(cfg.model.path, on_main(lambda: model_revision.commit(cfg.model.path)))
    heartbeat.together = True
    say = print_line if runtime.is_main else silent
    head, events = overview.head_rows(folder, lines)

    def record() -> None:
        run_folder.freeze_config(folder, whole)
        commits.save()
        changed = same_run.records(changes, stages)
        run_folder.start_record(folder, cfg, runtime.world_size, str(runtime.device), changed)

    on_main(record)
    reason, trackers = "failed", None
    try:
        for line in events:
            say(line)
        trackers = tracking.start_trackers(stages, whole, folder, runtime, say)
        head.append(Row("tracking", tracking.tracking_line(whole.tracking, folder)))
        done = run_stages(
            stages, base, tokenizer, weights, lambda s: data[s.name], runtime, say, head, planned, trackers=trackers
        )
        if done and cfg.eval.enabled:
            heartbeat.at("evaluate")
            evaluate_run(stages, base, tokenizer, weights, folder, commits, runtime, say)
            trackers.evaluation(folder / "eval" / "perplexity.json")
        if done:
            trackers.model(stages[-1].model_folder)
        reason = "complete" if done else "stopped by train.stop_after"
        say(ending_of(folder, stages, None if done else reason))
    except BaseException as error:
        reason = ended_by(error)
        if runtime.is_main:
            with suppress(Exception):  # it must not hide the error, after which the entry prints it
                again = getattr(error, "exit_code", 1) not in (ConfigError.exit_code, TrainingDiverged.exit_code)
                crash.end_with(error, ending_of(folder, stages, reason, again, Style(sys.stderr)))
        raise
    finally:
        if runtime.is_main:
            record_end(folder, reason)
        if trackers is not None:
            heartbeat.at("end trackers")
            trackers.close(tracking.ending_of(reason))


def prepare(stages: list[Stage], commits: Commits, folder: Path) -> tuple[dict[str, list[Part]], dist_runtime.Runtime]:
    """The data of every stage that is not finished, and this process's place among the ranks, which meet here.

    No collective waits for the data: none exists yet. What ends a start here is recorded like any other end, but for
    errors of the user: those leave an empty run folder as it was.
    """
    cfg = stages[0].cfg
    try:
        heartbeat.at("prepare data")
        data = {stage.name: stage_data(stage, commits) for stage in stages if stage.trains and not stage.finished}
        heartbeat.at("meet the other ranks")
        return data, dist_runtime.start(cfg.launch.timeout)
    except BaseException as error:
        if environment.rank() == 0 and getattr(error, "exit_code", None) != YarnTrainError.exit_code:
            with suppress(OSError):
                run_folder.start_record(folder, cfg, environment.world_size(), str(dist_runtime.device()))
                record_end(folder, ended_by(error))
        raise


def ending_of(
    folder: Path, stages: Sequence[Stage], reason: str | None, again: bool = True, style: Style | None = None
) -> str:
    """The banner at the end of a run.

    Args:
        reason: why it ended before its end; None where it is complete.
        again: whether the same command can go on.
        style: of the stream that it goes to; stdout's without it.
    """
    typed = run_folder.typed() if again else None
    command = None if typed is None else [word for word in typed if not word.startswith("train.stop_after=")]
    ended = ending.Ended(folder, [stage.folder for stage in stages], command, next_words(stages, folder), reason)
    return render(ending.title(ended), ending.rows(ended), style, good=reason is None)


def next_words(stages: Sequence[Stage], folder: Path) -> list[str]:
    """What continues a finished run with a stage of twice its length: what was typed, with other weights and scale.

    Nothing where the run has stages of its own, as one word cannot say what comes after them.
    """
    typed, cfg = run_folder.typed(), stages[-1].cfg
    if typed is None or [stage.name for stage in stages] != [f"s{cfg.rope.factor:g}"]:
        return []
    own = ("run.name", "run.dir", "hydra.run.dir", "run.init_from", "rope.factor", "train.stop_after")
    kept = [word for word in typed[2:] if word.partition("=")[0].lstrip("+") not in own]
    factor = 2 * cfg.rope.factor
    return [*kept, f"run.name={cfg.run.name}_s{factor:g}", f"run.init_from={folder}", f"rope.factor={factor:g}"]


def record_end(folder: Path, reason: str) -> None:
    """Write why the run ended; that this fails must not hide why."""
    try:
        run_folder.end_record(folder, reason, phases.seconds)
    except OSError as error:
        print_line(f"{folder / 'run.json'} could not be written ({error}); it would say: {reason}")


def ended_by(error: BaseException) -> str:
    """What run.json says of a run that did not end by itself."""
    if isinstance(error, KeyboardInterrupt):
        lost = after_others(error) if getattr(error, "step", None) is None else None
        return f"failed: {lost}" if lost else str(error) or "interrupted"
    told = explained(error) if isinstance(error, Exception) else error
    return f"failed: {told}" if isinstance(told, YarnTrainError) else f"failed: {type(told).__name__}: {told}"


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
    """Evaluate the base, the untrained methods and every stage; then the report (on the main process)."""
    cfg = stages[0].cfg
    length = cfg.rope.original_max_position_embeddings or rope_hf.base_rope(base).original_length or 0
    came = base_scaling(cfg) if weights == cfg.model.path else None
    chosen = variants(stages, weights, came)
    data = on_main(lambda: commits.pin(evaluated(cfg)) if reads_documents(cfg) else evaluated(cfg))
    if runtime.is_main:
        commits.save()
    factor = max(stage.cfg.rope.factor for stage in stages)
    with phases.timed("evaluate"):
        run_tasks(Job(cfg, chosen, base, tokenizer, length, factor, data, folder / "eval", runtime, say))
    if runtime.is_main:
        write_frequencies(folder / "frequencies.json", chosen, base, length)
        rows = folder / "eval" / "perplexity.json"
        for stage in stages if rows.is_file() else []:
            model_card.add_results(stage.model_folder, json.loads(rows.read_text()), stage.folder.name)
        if sweep_of(folder) is None:  # a sweep has one report for all its jobs
            from .report.terminal import show_report  # its plots take half a second to import, on every rank

            show_report(folder)


def stage_data(stage: Stage, commits: Commits) -> list[Part]:
    """The stage's prepared training data, prepared now if it is missing.

    Every rank may get here. Ranks share the work out among themselves through file locks, so each takes its share of
    the machine's cores.
    """
    data = commits.pin(stage.cfg.data)
    workers = data.workers or max(1, resolve_workers(0) // environment.local_world_size())
    with progress_bar(f"prepare {data.source}") as update:
        return prepare_parts(
            data,
            stage.cfg.model.path,
            workers=workers,
            resumed=bool(complete_checkpoints(stage.folder / "checkpoints")),
            progress=update if environment.rank() == 0 else None,
            say=print_line if environment.rank() == 0 else silent,
        )
