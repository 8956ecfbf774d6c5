"""Shared by the entries: compose with Hydra, turn user errors into one message without a traceback."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.main import get_args_parser
from omegaconf import DictConfig, OmegaConf

from . import multirun, redact
from .composition import composed, composed_with_hydra, register_schema
from .console import crash, help
from .dist import environment
from .dist.failure import explained
from .dist.orphans import die_with_launcher
from .dist.stop import (
    INTERRUPTED,
    StopRequested,
    ignore_from_now_on,
    leave_error_code,
    requests,
    worker_exit_code,
)
from .dist.streams import never_fail
from .errors import ConfigError, YarnTrainError, problem
from .overrides import CONF, examine, may_add, typed_options
from .sweep import child
from .sweep.asked import ctrl_c_for_this_process_alone, passed_on
from .sweep.summary import finish

ON_INTERRUPT = (
    "the same command goes on: preparation from the units that are complete, training from its newest "
    "checkpoint (with run.resume=auto)"
)

PATIENCE = 5.0  # seconds that other ranks leave to rank 0 to say what is wrong, once for all

Task = Callable[[dict[str, Any], dict[str, str], Path], None]
Check = Callable[[dict[str, Any], dict[str, str], Path], object]
StartWorkers = Callable[[dict[str, Any], dict[str, str], Path, list[str]], int | None]


def run(
    task: Task, start_workers: StartWorkers | None = None, check: Check | None = None, look: Check | None = None
) -> None:
    """Compose the command line's configuration and call ``task(options, typed, run folder)``.

    Where words of the command line are wrong, ``check(options, typed, run folder)`` is called instead, with what the
    others make, so that its problems are told together with theirs.

    Before a sweep ``look(options, typed, a job's folder)`` is called, a check that is fast.

    With ``launch.nproc_per_node`` it calls ``start_workers(options, typed, run folder, words)`` first, where
    ``python *words`` runs the same job: it returns the job's exit code, or None where the task is to run here.
    A user error is printed as one message on stderr and exits with its code; the traceback of another exception goes
    into the run folder, see :mod:`console.crash`.
    """
    never_fail()
    redact.guard_streams(environment.secrets())
    die_with_launcher()
    try:
        if help.show(sys.argv[1:], " ".join(entry_words()), _about()):
            raise SystemExit(0)
        sys.argv[1:] = multirun.flags_first(sys.argv[1:])
        requests.watch()
        multirun.refuse_below_torchrun(sys.argv[1:], entry_words())
        check_words(sys.argv[1:], check)
        sys.argv[1:] = [may_add(word) for word in sys.argv[1:]]
        register_schema()
        if multirun.asked_for(sys.argv[1:]):
            sweep(look)
    except YarnTrainError as error:
        fail(error)
    except KeyboardInterrupt as interrupt:
        leave(interrupt)
    except Exception as error:
        leave_for_agent(error)
        crash.tell(error, None, _rank(), _speaker())
        raise SystemExit(1) from None

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def entry(cfg: DictConfig) -> None:
        composed = OmegaConf.to_container(cfg, resolve=True)
        assert isinstance(composed, dict)
        requests.job_begins()
        options = {str(k): v for k, v in composed.items()}
        folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            code = None
            if start_workers and options["launch"]["nproc_per_node"] is not None and not options["launch"]["dry_run"]:
                code = start_workers(options, typed_words(), folder, worker_words(folder))
            if code is None:
                task(options, typed_words(), folder)
            elif code:
                raise SystemExit(code)
        except YarnTrainError as error:
            fail(error)
        except KeyboardInterrupt as interrupt:
            leave(interrupt)
        except Exception as error:
            told = explained(error)
            if isinstance(told, YarnTrainError):
                fail(told, error)
            leave_for_agent(error)
            if environment.full_errors():
                raise
            crash.tell(error, folder, _rank(), _speaker())
            raise SystemExit(1) from None
        finally:
            with suppress(OSError):  # not empty, or another rank was first
                folder.rmdir()  # Hydra makes it before anything is checked

    try:
        entry()
    except KeyboardInterrupt as interrupt:
        leave(interrupt)


def sweep(look: Check | None = None) -> NoReturn:
    """Run the command line's jobs, each in a process of its own, report them, and leave.

    Raises:
        ConfigError, DataError: found before the first job.
    """
    from .report.terminal import show_report  # its plots take a second to import

    command = shlex.join(["python", *entry_words(), *redact.redacted_command(sys.argv[1:], environment.secrets())])
    if not any(word.startswith("hydra/launcher=") for word in sys.argv):  # others have processes of their own
        child.warm()
    many = multirun.prepared(sys.argv[1:], entry_words(), command, composed_with_hydra, look)
    sys.argv[1:] = many.words
    entry = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(multirun.task_of(many, pinned))
    interrupt, code = None, 0
    try:
        with ExitStack() as inside:
            inside.enter_context(requests.deferred())
            inside.enter_context(passed_on(many.folder, lambda: requests.noted))
            if many.launcher == "submitit_local":
                inside.enter_context(ctrl_c_for_this_process_alone(requests.hear))
            entry()
    except KeyboardInterrupt as asked:
        interrupt = asked
    except SystemExit as left:  # Hydra's way to end after an error that it has printed
        code = left.code if isinstance(left.code, int) else 1
    except Exception as error:  # of the launcher: what its jobs have done is listed all the same
        crash.tell(error, many.folder, 0, "")
        code = 1
    finally:
        (many.folder / "multirun.yaml").unlink(missing_ok=True)  # Hydra's; sweep.json says the same without secrets
    code = finish(many.folder, many.names, command, show_report, print) or code
    if interrupt is not None:
        leave(interrupt)
    raise SystemExit(code)


def check_words(words: list[str], check: Check | None = None) -> None:
    """Report everything that is wrong with a command line and, where that is something, what `check` finds besides.

    Raises:
        ConfigError: listing all problems.
    """
    problems, kept, meant = examine(words)
    problems.add(environment.launcher_problems())
    typed = get_args_parser().parse_known_args(kept)[0]
    foreign = typed.config_path or typed.config_name or typed.config_dir or typed.hydra_help
    if not (foreign or typed.help or typed.cfg or typed.info or multirun.asked_for(words)):
        several = multirun.values_alone(typed.overrides)
        problems.add_options(several)
        if several:
            problems.refuse()
        with problems.collecting():
            options = composed([may_add(word) for word in typed.overrides])
            folder = Path(str(options["run"]["dir"])) if isinstance(options["run"], dict) else Path()
            if not any(word.startswith("hydra.run.dir=") for word in words):  # typed by a person
                problems.add_options(_folder_problems(folder))
                multirun.check_alone(typed.overrides, composed_with_hydra)
            if problems.lines and meant and check is not None:
                check(options, typed_options(typed.overrides), folder)
    problems.refuse()


def _folder_problems(folder: Path) -> list[str]:
    """Why Hydra could not make the run folder, which it does before anything else."""
    there = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if os.path.lexists(parent))
    if not there.is_dir():
        return [problem("run.dir", str(folder), "a folder", f"{there} is no folder; choose another run.name")]
    if there != folder.absolute() and not os.access(there, os.W_OK | os.X_OK):
        fix = f"{there} cannot be written: give permission, or choose another run.dir"
        return [problem("run.dir", str(folder), "a folder that can be made", fix)]
    return []


def compose(overrides: list[str]) -> dict[str, Any]:
    """The options that ``train.py`` would get from these overrides, for programs that are not Hydra applications.

    Raises:
        ConfigError: misspelt options, or a group without the option named.
    """
    problems, kept, _ = examine(overrides)
    problems.refuse()
    return composed([may_add(word) for word in kept])


def fail(error: YarnTrainError, origin: Exception | None = None) -> None:
    """Print a user error and leave; rank 0 does first, as most errors are those of all ranks: it is told once.

    Args:
        origin: the error that this one explains.
    """
    leave_for_agent(error)
    if environment.under_elastic_agent() and _rank() > 0 and error.exit_code != 1:
        _let_rank_0_speak(error.exit_code)
    if environment.full_errors():
        traceback.print_exception(origin or error)
    print("\n".join([f"{_speaker()}error: {error}", *crash.notes(origin or error)]), file=sys.stderr, flush=True)
    leave_error_code(error.exit_code, redact.redacted(str(error), environment.secrets()))
    raise SystemExit(error.exit_code)


def _let_rank_0_speak(code: int) -> None:
    try:
        time.sleep(PATIENCE)
    except KeyboardInterrupt:  # rank 0 has, and the launcher ends the others
        raise SystemExit(code) from None


def leave_for_agent(error: Exception) -> None:
    """Leave the error where a launcher of ours looks for the first one of a job, in the format of torch's agent.

    Not for torchrun, which would print all of it a second time.
    """
    file = environment.error_file()
    if file is not None and environment.launcher_pid() is not None and not file.exists():
        told = {"message": f"{type(error).__name__}: {error}", "extraInfo": {"timestamp": str(int(time.time()))}}
        file.write_text(json.dumps({"message": told}))


def leave(interrupt: KeyboardInterrupt) -> None:
    """Leave as somebody asked, with a line that says what is kept."""
    ignore_from_now_on()
    if _rank() == 0:
        lines = [f"{interrupt or 'interrupted'}; {ON_INTERRUPT}", *crash.notes(interrupt)]
        print("\n".join(lines), file=sys.stderr, flush=True)
    code = interrupt.exit_code if isinstance(interrupt, StopRequested) else INTERRUPTED
    raise SystemExit(worker_exit_code(code)) from None


def entry_words() -> list[str]:
    """What Python is given to run this program: a script, or ``-m`` and a module."""
    spec = sys.modules["__main__"].__spec__
    return ["-m", spec.name.removesuffix(".__main__")] if spec else [sys.argv[0]]


def _about() -> str:
    """What this program does, for its help; nothing for train.py, of which there is more to say."""
    if Path(entry_words()[-1]).name == "train.py":
        return ""
    return (sys.modules["__main__"].__doc__ or "").replace("``", "")


def worker_words(folder: Path) -> list[str]:
    """What Python is given to run this job, of a sweep this one of it, in ``folder``."""
    typed = get_args_parser().parse_args(sys.argv[1:])
    flags = {"--config-path": typed.config_path, "--config-name": typed.config_name, "--config-dir": typed.config_dir}
    overrides = HydraConfig.get().overrides
    kept = [text for text in overrides.hydra if not text.lstrip("+~").replace("/", ".").startswith(multirun.PARENTS)]
    set_flags = [word for flag, value in flags.items() if value is not None for word in (flag, value)]
    return [*entry_words(), *set_flags, *overrides.task, *kept, pinned(folder)]


def pinned(folder: Path) -> str:
    """The override that makes ``folder`` the run folder, whatever characters are in its name."""
    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", str(folder))  # OmegaConf would look up ${...}
    return f"hydra.run.dir={QuotedString(literal, Quote.single).with_quotes()}"


def _speaker() -> str:
    with suppress(ConfigError):
        return f"[rank {environment.rank()}] " if environment.world_size() > 1 else ""
    return ""


def _rank() -> int:
    """This process's rank; 0 where the launcher's variables are what is wrong."""
    with suppress(ConfigError):
        return environment.rank()
    return 0


def typed_words() -> dict[str, str]:
    """What the user typed on the command line for this job, by option (config groups included)."""
    return typed_options(list(HydraConfig.get().overrides.task))
