"""lm-evaluation-harness itself: its tasks by name, their data, its evaluator."""

from __future__ import annotations

import io
import logging
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import numpy as np
from datasets.exceptions import DatasetsError
from lm_eval import evaluator
from lm_eval.tasks import TaskManager

from ...errors import DataError, problem
from .selection import Wanted, unknown_problem

VERSION: str = lm_eval.__version__
RESAMPLES = 1000  # of the questions, for the standard error of a metric that has no formula for it
OFFLINE = (
    "fetch it once where there is internet and copy the cache (HF_HOME), see docs/harness.md; or leave the task out"
)


@dataclass(frozen=True)
class Selected:
    """A wanted task with its data.

    Attributes:
        loaded: what ``TaskManager.load`` gave.
        shots: examples in front of each question, by task.
    """

    name: str
    loaded: Any
    shots: Mapping[str, int]


def name_problems(wanted: Sequence[Wanted], include_path: str | None) -> list[str]:
    """Names that no task has."""
    manager = _manager(include_path, tuple(task.name for task in wanted))
    known = manager.all_tasks
    return [unknown_problem(task.name, known) for task in wanted if task.name not in manager.task_index]


def data_problems(wanted: Sequence[Wanted], include_path: str | None) -> list[str]:
    """Data sets that cannot be found, one line for each; only what says what they are is fetched."""
    index = _manager(include_path, tuple(task.name for task in wanted)).task_index
    found: dict[str, str] = {}
    for task in wanted:
        for entry in (index[name] for name in sorted(_members(index, task.name)) if name in index):
            source = (entry.cfg or {}).get("dataset_path")
            if source and source not in found and "custom_dataset" not in (entry.cfg or {}):
                error = _unreachable(entry.cfg or {})
                found[source] = "" if error is None else _unreadable(task.name, source, error)
                if isinstance(error, ConnectionError) and not datasets.config.HF_HUB_OFFLINE:
                    return [line for line in found.values() if line]  # each other one would be tried for half a minute
    return [line for line in found.values() if line]


def expanded(wanted: Sequence[Wanted], include_path: str | None) -> list[Wanted]:
    """Tags as the tasks that carry them; groups stay, for they have values of their own."""
    index = _manager(include_path, tuple(task.name for task in wanted)).task_index
    found: list[Wanted] = []
    for task in wanted:
        entry = index[task.name]
        names = sorted(entry.tags) if entry.kind.name == "TAG" else [task.name]
        found += [Wanted(name, task.shots) for name in names]
    return list(dict.fromkeys(found))


def load(wanted: Sequence[Wanted], include_path: str | None, length: int, tokenizer: Any, seed: int) -> list[Selected]:
    """Tasks with their data.

    Args:
        length: tokens that tasks which make their own data (RULER) make it for.
        tokenizer: what they count tokens with.

    Raises:
        DataError: naming the task whose data cannot be read, or that cannot be asked.
    """
    manager = _manager(include_path, tuple(task.name for task in wanted))
    with tempfile.TemporaryDirectory() as folder:
        # its files, not the model's name: such tasks open it with remote code allowed
        tokenizer.save_pretrained(folder)
        manager.metadata.update(max_seq_lengths=[length], tokenizer=folder)
        return [_load(manager, task, seed) for task in wanted]


def evaluate(selected: Selected, model: Any, limit: int | None, seed: int) -> Mapping[str, Any]:
    """The harness's results of one wanted task; the same prompts whatever was asked before.

    Args:
        model: a ``lm_eval.api.model.LM`` that gets all requests.
        limit: questions per task; None is all.
        seed: of the examples in front of each question.
    """
    for task in selected.loaded["tasks"].values():
        task.set_fewshot_seed(seed=seed)
    with quiet(), redirect_stderr(io.StringIO()):  # its bars; the caller draws one of its own
        results: Mapping[str, Any] = evaluator.evaluate(
            lm=model, task_dict=selected.loaded, limit=limit, bootstrap_iters=RESAMPLES, log_samples=False
        )
    return results


@contextmanager
def quiet() -> Iterator[None]:
    """No remarks of the harness on defaults of its own task files."""
    log = logging.getLogger("lm_eval")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


@lru_cache(maxsize=4)
def _manager(include_path: str | None, names: tuple[str, ...]) -> TaskManager:
    """Where tasks are looked up. The harness's own fifteen thousand are read only if the user's do not suffice."""
    metadata = {"max_seq_lengths": [], "tokenizer": ""}
    with quiet():
        if include_path is not None:
            own = TaskManager(include_path=include_path, include_defaults=False, metadata=metadata)
            if all(member in own.task_index for name in names for member in _members(own.task_index, name)):
                return own
        return _complete(include_path)


@lru_cache(maxsize=2)
def _complete(include_path: str | None) -> TaskManager:
    return TaskManager(include_path=include_path, metadata={"max_seq_lengths": [], "tokenizer": ""})


def _members(index: Mapping[str, Any], name: str) -> set[str]:
    """A task, or everything that a group or tag leads to."""
    found, waiting = set(), [name]
    while waiting:
        current = waiting.pop()
        if current in found:
            continue
        found.add(current)
        entry = index.get(current)
        if entry is None:
            continue
        waiting += sorted(entry.tags) if entry.kind.name == "TAG" else []
        waiting += _named((entry.cfg or {}).get("task")) if entry.kind.name == "GROUP" else []
    return found


def _named(members: Any) -> list[str]:
    """Names in a group's list, which has strings, changed tasks and groups written out on the spot."""
    if isinstance(members, str):
        return [members]
    if isinstance(members, list):
        return [name for member in members for name in _named(member)]
    if isinstance(members, dict):
        return _named(members.get("task")) if "group" not in members or "task" in members else [members["group"]]
    return []


def _load(manager: TaskManager, wanted: Wanted, seed: int) -> Selected:
    state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        with quiet():
            loaded = manager.load([wanted.name])
    except Exception as error:  # whatever a task file's functions, a hub or a missing package raise
        source = (manager.task_index[wanted.name].cfg or {}).get("dataset_path") or "its data"
        raise DataError(_unreadable(wanted.name, source, error)) from error
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
    shots = {name: _set_shots(task, wanted.shots) for name, task in loaded["tasks"].items()}
    for name, task in loaded["tasks"].items():
        _check(name, task, shots[name], seed)
    return Selected(wanted.name, loaded, shots)


def _set_shots(task: Any, shots: int | None) -> int:
    """As the harness does: a task that says 0 means it."""
    own = task.get_config("num_fewshot")
    if own is None or (shots is not None and own != 0):
        task.set_config(key="num_fewshot", value=shots or 0)
    return int(task.get_config("num_fewshot"))


def _check(name: str, task: Any, shots: int, seed: int) -> None:
    if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
        got = f"{name}, which " + ("runs what the model writes" if task.UNSAFE_CODE else "shows pictures or sound")
        raise DataError(problem("harness.tasks", got, "tasks of text that is only compared", "leave it out"))
    task.set_fewshot_seed(seed=seed)
    try:
        if shots:
            task.fewshot_context(next(iter(task.eval_docs)), num_fewshot=shots)
    except (AssertionError, ValueError) as error:
        pool = len(getattr(getattr(task, "sampler", None), "df", []))
        allowed = f"what the {pool} examples of {name} can give ({error})"
        raise DataError(problem("harness.shots", shots, allowed, "fewer, or null: the task's own number")) from error


def _unreachable(cfg: Mapping[str, Any]) -> Exception | None:
    options = {key: value for key, value in (cfg.get("dataset_kwargs") or {}).items() if key != "trust_remote_code"}
    try:
        datasets.load_dataset_builder(cfg["dataset_path"], cfg.get("dataset_name"), **options)
    except (OSError, DatasetsError) as error:
        return error
    except Exception:  # not for this look to judge: loading will say what is wrong
        return None
    return None


def _unreadable(task: str, source: str, error: Exception) -> str:
    said = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0]}"
    fix = "install what it needs" if isinstance(error, ImportError) else OFFLINE
    return problem("harness.tasks", task, f"tasks whose data can be read; {source}: {said}", fix)


def own_files(include_path: str | None) -> list[Path]:
    """The user's task files, in a fixed order."""
    root = Path(include_path) if include_path is not None else None
    return [] if root is None else sorted(p for p in root.rglob("*") if p.suffix in (".yaml", ".py"))
