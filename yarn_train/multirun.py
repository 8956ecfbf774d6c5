"""A sweep under Hydra: what is swept, and its task for one job, which looks after a process that does the job.

Hydra's sweeper and launcher decide which jobs run when and in which process; see :mod:`yarn_train.sweep`.
"""

from __future__ import annotations

import itertools
import os
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.main import get_args_parser
from omegaconf import DictConfig, OmegaConf

from . import config as schema
from . import redact, stages
from .dist import environment
from .dist.streams import never_fail
from .errors import ConfigError, problem
from .overrides import groups, may_add, typed_options
from .sweep import launchers, study
from .sweep.decisive import decides
from .sweep.job import Order, look_after
from .sweep.names import job_name
from .sweep.record import Sweep
from .sweep.settings import Settings
from .sweep.start import Axis, begin, check_names

PARENTS = ("hydra.mode", "hydra.run", "hydra.sweep", "hydra.sweeper", "hydra.launcher")  # no business of a job
TRIED = 100  # combinations that are looked at for one without a problem

Compose = Callable[[list[str]], DictConfig]
Look = Callable[[dict[str, Any], dict[str, str], Path], object]


@dataclass(frozen=True)
class Multirun:
    """What the jobs of one sweep share; it goes with the task into other processes and to other machines.

    Attributes:
        folder: the sweep's, absolute.
        words: the command line for Hydra.
        script: what Python is given to run the program.
        flags: of the command line, that jobs need too.
        swept: options that differ between jobs.
        names: of its jobs; None where a study decides.
        launcher: Hydra's name of it.
        at_once: jobs that run on this machine at once; 0 where a scheduler decides.
        process: id of the process that was started by the user.
    """

    folder: Path
    words: list[str]
    script: list[str]
    flags: list[str]
    swept: tuple[str, ...]
    names: tuple[str, ...] | None
    launcher: str
    at_once: int
    process: int


def asked_for(words: Sequence[str]) -> bool:
    """Whether a command line asks for a sweep."""
    return bool(flags_of_sweep(words))


def flags_of_sweep(words: Sequence[str]) -> list[str]:
    """The words that ask for one."""
    return [w for w in words if w == "-m" or (len(w) > 2 and "--multirun".startswith(w)) or _is_mode(w)]


def flags_first(words: Sequence[str]) -> list[str]:
    """The command line with ``-m`` in front, as Hydra reads no option before it and after it both."""
    flags = [word for word in flags_of_sweep(words) if word.startswith("-")]
    return [*flags, *(word for word in words if word not in flags)]


def refuse_below_torchrun(arguments: Sequence[str], entry: Sequence[str]) -> None:
    """A sweep belongs above the launcher: below it, every rank would go through the sweep's jobs by itself.

    Raises:
        ConfigError: with the command that works.
    """
    flags = flags_of_sweep(arguments)
    if flags and environment.under_launcher():
        rest = [a for a in arguments if a not in flags and not a.startswith("launch.nproc_per_node=")]
        workers = f"launch.nproc_per_node={environment.local_world_size()}"
        command = shlex.join(["python", *entry, "-m", workers, *rest])
        raise ConfigError(problem(flags[0], "a sweep below torchrun", "a sweep that starts its own workers", command))


def _is_mode(word: str) -> bool:
    key, _, value = word.partition("=")
    return key.lstrip("+") == "hydra.mode" and value.strip("'\"").upper() == "MULTIRUN"


def prepared(words: list[str], script: list[str], command: str, compose: Compose, look: Look | None = None) -> Multirun:
    """Find out what a sweep is, check it, and write its record.

    Args:
        words: the command line.
        script: what Python is given to run the program.
        command: what was typed, for the record.
        compose: the configuration, Hydra's own included, of a list of overrides.
        look: finds what is wrong with a job, given its options, what was typed, and its folder; fast.

    Raises:
        ConfigError: nothing is swept, no job could start, or the folder holds something else.
        DataError: the folder's record is damaged.
    """
    typed = get_args_parser().parse_args(words)
    parsed = OverridesParser.create().parse_overrides(typed.overrides)
    if any(_key(one.key_or_group or "") == "hydra.sweep.subdir" for one in parsed):
        fix = "leave it out; hydra.sweep.dir or run.name names the sweep"
        raise ConfigError(problem("hydra.sweep.subdir", "a folder", "folders named by what is swept", fix))
    named_twice = next((one for one in parsed if _is_axis(one) and one.key_or_group in ("run.name", "run.dir")), None)
    if named_twice is not None:
        fix = "give one; jobs get folders named by what is swept, and run.seed=0,1 repeats a job"
        raise ConfigError(problem(str(named_twice.key_or_group), "several", "one name for the sweep", fix))
    fixed = [word for word, one in zip(typed.overrides, parsed, strict=True) if not one.is_sweep_override()]
    config = compose(fixed)
    named = {one.key_or_group for one in parsed}
    params = _params(config)
    ready = [may_add(f"{key}={value}") for key, value in params.items() if key not in named]
    swept = [one for one in [*OverridesParser.create().parse_overrides(ready), *parsed] if _is_axis(one)]
    axes = sorted(map(axis_of, swept), key=place)  # in whatever order it is typed, a job has one name
    choices, folder = config.hydra.runtime.choices, Path(str(config.hydra.sweep.dir)).absolute()
    sweeper, launcher = str(choices["hydra/sweeper"]), str(choices["hydra/launcher"])
    _check_hydras(config, swept)
    _check_jobs(axes, fixed, folder, compose, look)
    names = tuple(check_names(axes)) if sweeper == "basic" else None
    begin(
        folder,
        Sweep(folder.name, command, "grid" if sweeper == "basic" else sweeper, launcher, {}, _decisive(fixed)),
        axes,
    )
    wanted = {"--config-path": typed.config_path, "--config-name": typed.config_name, "--config-dir": typed.config_dir}
    return Multirun(
        folder=folder,
        # the ready-made axes are words like any other: one that is typed replaces it
        words=[*words, *ready, *(["hydra.sweeper.params=null"] if params else [])],
        script=script if script[0] == "-m" else [str(Path(script[0]).absolute())],
        flags=[word for flag, value in wanted.items() if value is not None for word in (flag, value)],
        swept=tuple(axis.key for axis in axes),
        names=names,
        launcher=launcher,
        at_once=_at_once(config.hydra.launcher, launcher, len(names) if names else None),
        process=os.getpid(),
    )


def task_of(many: Multirun, pinned: Callable[[Path], str]) -> Callable[[DictConfig], float]:
    """What Hydra calls for each job, in whatever process its launcher chooses."""

    def entry(cfg: DictConfig) -> float:
        return run_job(many, cfg, pinned)

    return entry


def run_job(many: Multirun, cfg: DictConfig, pinned: Callable[[Path], str]) -> float:
    """Look after the job that Hydra composed; its objective, NaN where it has none."""
    if os.getpid() != many.process:
        never_fail()
        redact.guard_streams(environment.secrets())
        if many.launcher == "joblib" and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's; the sweep's own process passes it on
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hydra, options = HydraConfig.get(), OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(options, dict)
    words = list(hydra.overrides.task)
    values = {one.key_or_group: one.value() for one in OverridesParser.create().parse_overrides(words)}
    swept = {key: values[key] for key in many.swept}
    name = job_name(swept)
    kept = [text for text in hydra.overrides.hydra if not text.lstrip("+~").replace("/", ".").startswith(PARENTS)]
    order = Order(
        sweep=many.folder,
        name=name,
        number=int(hydra.job.num),
        total=len(many.names) if many.names is not None else None,
        swept=swept,
        overrides=[word for word in words if not _key(word).startswith("hydra")],
        script=many.script,
        words=[*many.flags, *words, *kept, f"run.name='{name}'", pinned(many.folder / name)],
        options={str(key): value for key, value in options.items()},
        at_once=many.at_once,
        live=os.getpid() == many.process,
    )
    return look_after(order, _print)


def axis_of(word: Override) -> Axis:
    """What is swept by one override; a glob over a group's options stands for their names."""
    assert word.key_or_group is not None
    text, value = (word.input_line or "").partition("=")[2], word.value()
    if isinstance(value, Glob):
        texts = value.filter(groups().get(word.key_or_group, []))
    elif word.is_discrete_sweep():
        texts = list(word.sweep_string_iterator())
    else:
        return Axis(word.key_or_group, None, text)
    parsed = OverridesParser.create().parse_overrides([f"{word.key_or_group}={one}" for one in texts])
    return Axis(word.key_or_group, tuple(one.value() for one in parsed), text, tuple(texts))


def values_alone(words: Sequence[str]) -> list[str]:
    """The problems of options with several values on a command line without -m."""
    parsed = OverridesParser.create().parse_overrides(list(words))
    fix = "the same command with -m runs a job for each"
    return [
        problem(str(one.key_or_group), word.partition("=")[2], "one value without -m", fix)
        for word, one in zip(words, parsed, strict=True)
        if one.is_sweep_override()
    ]


def check_alone(words: Sequence[str], compose: Compose) -> None:
    """A ready-made sweep without -m is a slip; with a value for each of its options it is one job of it.

    Raises:
        ConfigError: with the command that works.
    """
    chosen = [word for word in words if word.lstrip("+").startswith("sweep=")]
    if not chosen:
        return
    named = {word.partition("=")[0].lstrip("+") for word in words}
    missing = [key for key in _params(compose(list(words))) if key not in named]
    if missing:
        fix = f"python train.py -m {' '.join(words)}; for one job of it give a value to {', '.join(missing)}"
        raise ConfigError(problem(chosen[0], "a sweep without -m", "a sweep with -m", fix))


def _params(config: DictConfig) -> dict[str, str]:
    """What the configuration sweeps by itself."""
    return {str(key): str(value) for key, value in (config.hydra.sweeper.get("params") or {}).items()}


def _is_axis(word: Override) -> bool:
    return word.is_sweep_override() and not _key(word.key_or_group or "").startswith("hydra")


def place(axis: Axis) -> tuple[int, str]:
    """What swept options are sorted by: their order in the schema, groups first."""
    known = schema.keys()
    return known.index(axis.key) if axis.key in known else -1, axis.key


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~").replace("/", ".")


def _decisive(words: Sequence[str]) -> list[str]:
    """The words that decide what the jobs compute."""
    kept = [may_add(word) for word in words if decides(_key(word))]
    return sorted(redact.redacted_command(kept, environment.secrets()))


def _check_jobs(axes: Sequence[Axis], fixed: list[str], folder: Path, compose: Compose, look: Look | None) -> None:
    """Refuse a sweep none of whose jobs could start: what is wrong with all of them is told once.

    Raises:
        ConfigError: the problems of the first one.
    """
    if not axes:
        allowed = "options with several values, such as rope.alpha=1,2, or a ready-made sweep, such as +sweep=methods"
        raise ConfigError(problem("-m", "nothing to sweep", allowed, "add one, or leave -m out"))
    first: ConfigError | None = None
    for chosen in itertools.islice(_combined(axes), TRIED):
        words = [*fixed, *chosen]
        try:
            options = OmegaConf.to_container(compose(words), resolve=False)
            assert isinstance(options, dict)
            plain = {str(key): value for key, value in options.items() if key != "hydra"}
            _check_windows(axes, plain)
            if plain["launch"]["dry_run"]:
                fix = "try one of its jobs, without -m"
                raise ConfigError(problem("launch.dry_run", True, "false in a sweep", fix))
            typed = typed_options(words)
            stages.examine(plain, folder / "job", typed)[1].refuse()
            if look is not None:
                look(plain, typed, folder / "job")
            return
        except ConfigError as error:
            first = first or error
    if first is not None:
        raise first


def _check_hydras(config: DictConfig, swept: Sequence[Override]) -> None:
    """Refuse what the launcher or the sweeper would refuse when the sweep has begun.

    Raises:
        ConfigError: listing what is wrong with the launcher's settings, or with the study's.
    """
    choices = config.hydra.runtime.choices
    found = launchers.problems(str(choices["hydra/launcher"]), config.hydra.launcher)
    if found:
        raise ConfigError(found)
    if swept and choices["hydra/sweeper"] == "optuna":
        from hydra_plugins.yarn_train import optuna_sweeper

        chosen = optuna_sweeper.axes(optuna_sweeper.parsed({}, [str(word.input_line) for word in swept]))
        names = {field.name for field in fields(Settings)}
        study.check(Settings(**{str(k): v for k, v in config.hydra.sweeper.items() if k in names}), chosen)


def _check_windows(axes: Sequence[Axis], options: Mapping[str, Any]) -> None:
    """Perplexities compare at the same window, and windows that nobody named follow the scale.

    Raises:
        ConfigError: jobs would be compared by other windows.
    """
    scale = ("rope.factor", "rope.original_max_position_embeddings", "curriculum.stages", "experiment", "model")
    moved = [axis.key for axis in axes if axis.key.startswith(scale)]
    scored = options["eval"]["enabled"] and options["sweep"]["objective"] != "loss"
    if moved and scored and not options["eval"]["windows"]:
        fix = "name them: eval.windows=[1024,4096], or take sweep.objective=loss"
        raise ConfigError(problem("eval.windows", [], f"the same windows for all values of {', '.join(moved)}", fix))


def _combined(axes: Sequence[Axis]) -> Iterator[list[str]]:
    words = [[may_add(f"{axis.key}={text}") for text in axis.texts] for axis in axes if axis.texts]
    return (list(chosen) for chosen in itertools.product(*words))


def _at_once(launcher: Any, name: str, total: int | None) -> int:
    """Jobs that this machine runs at once; 0 where a scheduler decides."""
    if name == "submitit_slurm":
        return 0
    cores = environment.usable_cores()
    wanted = {"joblib": int(launcher.get("n_jobs") or 1), "submitit_local": cores}.get(name, 1)
    wanted = cores if wanted < 0 else wanted
    return max(1, min(wanted, total or wanted))


def _print(text: str) -> None:
    print(f"{text}\n", end="", flush=True)  # one write, so that lines of several processes stay whole
