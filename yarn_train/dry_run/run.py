"""``launch.dry_run=true``: a run of any number of GPUs, checked on a laptop without GPUs, weights or data.

The checks of a start, every rank as it would see itself, the plan of every stage, and what the run would read and
write. Nothing is written and no hub is asked. Exit codes: 0 it could start, 2 the options are wrong, 3 a stage does not
fit, 1 the ranks do not fit together, which is an error in yarn-train.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from transformers import PretrainedConfig

from ..config import Config, parts_of
from ..dist import environment, runtime
from ..errors import ConfigError, YarnTrainError, problem
from ..plan import show
from ..plan.architectures import architecture
from ..plan.estimate import DOES_NOT_FIT, StagePlan, Target, plan_stages
from ..plan.jobs import Tracer, shape_of
from ..plan.machines import GIB
from ..plan.memory import MASTER, MOMENTS
from ..plan.sizes import Sizes
from ..stages import Stage
from . import files, layout
from .checkpoints import checkpoint_bytes
from .command import commands
from .kernels import kernel_line
from .ranks import RankView, every_rank
from .verify import uneven, verify, without

Check = Callable[[list[Stage], PretrainedConfig, int, list[str]], object]
SHOWN = ("stage", "  batch", "  memory", "  REFUSED", "  host", "  step", "  speed", "  total")  # of a plan's lines


@dataclasses.dataclass(frozen=True)
class Alike:
    """Stages whose ranks all do the same, and those ranks."""

    names: list[str]
    cfg: Config
    views: list[RankView]
    seconds: float


def dry_run(stages: list[Stage], whole: Config, typed: Mapping[str, str], folder: Path, check: Check) -> None:
    """Check a run and print what it would be; under a launcher on rank 0 only.

    Args:
        whole: the configuration that the stages were made of.
        typed: what the user typed on the command line, by option.
        folder: the run folder.
        check: the checks of a start, ``app.check_run``.

    Raises:
        ConfigError: with the problems of everything that was looked at.
        RuleBroken: see :mod:`dry_run.verify`.
    """
    if environment.rank() != 0:
        return
    runtime.stop()  # of an earlier job of a sweep: ranks that exist in name only make groups of their own
    with files.offline():
        base, note = _architecture(whole)
        stages = [dataclasses.replace(stage, cfg=_planned(stage.cfg)) for stage in stages]
        target = Target.of(stages[0].cfg)
        absent: list[str] = []
        weights, data = _checked(stages, whole, folder, base, target, absent, check)
        say(_title(target, whole), *([note] if note else []))
        if "plan.gpus" in typed and whole.plan.gpus != target.gpus:
            say(f"plan.gpus={whole.plan.gpus} is not used: launch.nnodes and launch.nproc_per_node say {target.gpus}")
        say(f"attention: {kernel_line(whole)}", *(f"needed on every node, not here: {line}" for line in absent))
        sizes = Sizes.of(base)
        warned: list[str] = []
        groups = list(_alike(stages, base, target.gpus))
        for group in groups:
            say(*_rank_lines(group, target))
            warned += layout.warnings(group.views, group.cfg, base, target, sizes) + uneven(group.views)
        say(*(f"WARNING: {line}" for line in dict.fromkeys(warned)))
        with Tracer(base) as tracer:
            plans = plan_stages(stages, tracer, sizes, target)
        fits = _say_plans(plans, target, sizes)
        saved = {name: checkpoint_bytes(g.cfg, base, g.views) for g in groups for name in g.names}
        say("disk", *_indented(files.disk_lines(plans, saved, folder)))
        say("weights", *_indented(weights), "data", *_indented(data))
        say(f"run folder: {files.folder_line(stages, folder, target.gpus)}")
    if not fits:
        say("dry run: DOES NOT FIT; python -m yarn_train.plan with the same options lists what makes it fit")
        sys.exit(DOES_NOT_FIT)
    say(f"dry run: the run can start{f', with {len(warned)} warning(s)' if warned else ''}; to start it:")
    longest = max(plan.estimate.time.seconds for plan in plans)
    say(*(f"  {line}" for line in commands(whole.launch, list(typed.values()), longest)))


def _architecture(cfg: Config) -> tuple[PretrainedConfig, str]:
    """The config of a model and a note on it, without asking the hub."""
    try:
        return architecture(cfg)
    except ConfigError:
        path = cfg.model.path
        if path.startswith((".", "/", "~")) or Path(path).is_dir():
            raise
        allowed = "a folder, or a hub id that this machine's cache has: a dry run does not ask the hub"
        fix = f"hf download {path} --include '*.json' fetches what is needed, without weights"
        raise ConfigError(problem("model.path", path, allowed, fix)) from None


def _planned(cfg: Config) -> Config:
    """`cfg` with the machines of its launch in its plan."""
    workers = int(cfg.launch.nproc_per_node or 1)
    plan = dataclasses.replace(cfg.plan, gpus=cfg.launch.nnodes * workers, gpus_per_node=workers)
    return dataclasses.replace(cfg, plan=plan)


def _checked(
    stages: list[Stage],
    whole: Config,
    folder: Path,
    base: PretrainedConfig,
    target: Target,
    absent: list[str],
    check: Check,
) -> tuple[list[str], list[str]]:
    """Every problem of a start, at once; returns what there is to say about weights and data."""
    problems: list[str] = []
    try:
        check(stages, base, target.gpus, absent)
    except ConfigError as error:
        problems += error.problems
    problems += files.folder_problems(stages, whole, folder)
    weights, found = files.weights_lines(whole, base)
    problems += [line for line in found if line not in problems]
    data: list[str] = []
    try:
        data += files.data_lines(stages)
    except YarnTrainError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError(problems)
    return weights, data


def _title(target: Target, cfg: Config) -> str:
    return (
        f"dry run of {cfg.run.name}: {cfg.launch.nnodes} node(s) x {target.gpus_per_node} {target.machine.name} "
        f"= {target.gpus} ranks; nothing is written"
    )


def _alike(stages: Sequence[Stage], base: PretrainedConfig, world_size: int) -> Iterator[Alike]:
    """All ranks of each stage, verified; stages that do not differ in it share theirs."""
    found: dict[str, list[Stage]] = {}
    for stage in stages:
        cfg = stage.cfg
        shares = [(part.name, part.weight) for part in parts_of(cfg.data)]
        found.setdefault(repr((shape_of(cfg), shares, cfg.data.document_mask)), []).append(stage)
    for group in found.values():
        begun, cfg = time.monotonic(), group[0].cfg
        views = every_rank(cfg, base, world_size)
        verify(views, cfg, base)
        yield Alike([stage.name for stage in group], cfg, views, time.monotonic() - begun)


def _rank_lines(group: Alike, target: Target) -> Iterator[str]:
    views, cfg = group.views, group.cfg
    yield f"ranks of stage {', '.join(group.names)}: all {len(views)} tried one by one, {group.seconds:.1f} s"
    yield f"  mesh       {layout.mesh_line(views)}"
    for spread in layout.spreads(views, target.gpus_per_node):
        yield f"             {spread.text}"
    steps, batch = len(views[0].reads), cfg.train.global_batch_size
    tokens = steps * batch * cfg.data.seq_len
    yield f"  data       steps 1-{steps}: {batch} sequences per step, {tokens:,} tokens, each read exactly once"
    width = MASTER[cfg.optim.state] + MOMENTS[cfg.optim.state]
    least, most = min(view.elements for view in views), max(view.elements for view in views)
    rule = "FSDP2's rows" if cfg.engine.name == "fsdp2" else f"ZeRO-{cfg.engine.stage}'s rule"
    yield (
        f"  state      {width * least / GIB:,.2f} to {width * most / GIB:,.2f} GiB of weights and moments per rank, by "
        f"{rule}; each of {len(views[0].pieces)} parameters is whole over the ranks of a copy"
    )
    tensors, ranks = without(views)
    if tensors:
        yield f"             {ranks} ranks keep nothing of some of {tensors} parameters with fewer rows than ranks need"


def _say_plans(plans: Sequence[StagePlan], target: Target, sizes: Sizes) -> bool:
    """Print all stages' plans; whether they fit."""
    for plan in plans:
        say(*(line for line in show.stage_lines(plan, target, sizes) if line.startswith(SHOWN)))
    whole = sum(plan.seconds for plan in plans)
    say(f"all stages: {whole / 3600:,.1f} h, {whole * target.gpus / 3600:,.0f} GPU hours, at kernel ceilings")
    return all(plan.estimate.runs for plan in plans)


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def say(*lines: str) -> None:
    """Lines for the user, at once even when the output is a file."""
    for line in lines:
        print(line, flush=True)
