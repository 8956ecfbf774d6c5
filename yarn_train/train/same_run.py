"""Whether a start continues the run that its folder holds: which options may differ, and which must not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..checkpoint.manager import complete_checkpoints
from ..config import Config, defaults, keys, unknown_key
from ..errors import CheckpointError, ConfigError
from ..free_options import FREE_ON_RESUME, FREE_SECTIONS
from ..stages import Stage
from . import run_folder

# Options that no run can change, whatever run.allow_change says, and why.
FIXED = {
    "model.path": "the checkpoint's weights and the tokens of its data are this model's; keep the path, or link it",
    "model.init": "it says where the first weights came from, which is past",
    "run.init_from": "it says where the first weights came from, which is past",
    "optim.state": "the checkpoint holds the optimizer's state in that form",
    **dict.fromkeys(
        ("adapter.name", "adapter.rank", "adapter.targets", "adapter.embeddings", "adapter.norms"),
        "the checkpoint holds these weights and no others",
    ),
}
STAGES = "curriculum.stages"
STARTED = "a stage that has begun keeps its name and place; its folder is named by them"


@dataclass(frozen=True)
class Change:
    """An option that is not what a folder was started with.

    Attributes:
        stage: name of the stage's folder, None for the run's own.
        fixed: why it may not change; empty where run.allow_change can allow it.
    """

    key: str
    was: Any
    now: Any
    stage: str | None = None
    fixed: str = ""

    def __str__(self) -> str:
        where = f" (in {self.stage})" if self.stage else ""
        return f"{self.key}: was {self.was!r}, now {self.now!r}{where}"


def check_options(folder: Path, whole: Config, stages: Sequence[Stage]) -> list[Change]:
    """Refuse to continue a run with options that would change what its earlier steps mean; writes nothing.

    Args:
        whole: what all stages have in common, as the folder's config.yaml has it.

    Returns:
        The changes that run.allow_change allows.

    Raises:
        CheckpointError: listing every other option that differs, and the words that allow those which may.
        ConfigError: run.allow_change names what is no option.
    """
    allowed = whole.run.allow_change
    if unknown := [unknown_key(name, keys()) for name in allowed if name not in keys()]:
        raise ConfigError([f"run.allow_change: {line}" for line in unknown])
    found = _changes(folder, whole, stages)
    refused = [change for change in found if change.fixed or change.key not in allowed]
    if refused:
        raise CheckpointError(_refusal(folder, refused, allowed))
    return found


def _changes(folder: Path, whole: Config, stages: Sequence[Stage]) -> list[Change]:
    """What differs in the run's own options and in those of stages that have begun, each key of the run once."""
    found = _stage_list(folder, whole)
    fixed = {change.key for change in found if change.fixed}
    found += [change for change in _differences(folder, whole) if change.key not in fixed]
    seen = {(change.key, repr(change.was), repr(change.now)) for change in found}
    for stage in stages:
        for change in _differences(stage.folder, stage.cfg, stage.folder.name):
            if (change.key, repr(change.was), repr(change.now)) not in seen:
                found.append(change)
    return found


def _stage_list(folder: Path, whole: Config) -> list[Change]:
    """The list of stages, as far as they have begun; options inside of those are compared stage by stage."""
    then = _stored(folder)
    if then is None:
        return []
    key = STAGES if whole.curriculum.stages or "curriculum" in then else "rope.factor"
    was, now = _entries(then), _entries(run_folder.plain(whole))
    begun = sorted(stage.name for stage in folder.glob("[0-9]*_*") if (stage / "config.yaml").is_file())
    kept = {f"{number:02d}_{name}" for number, name in enumerate(now, start=1)}
    if lost := [name for name in begun if name not in kept]:
        return [Change(key, list(was), list(now), fixed=f"{STARTED} ({', '.join(lost)})")]
    names = {name.partition("_")[2] for name in begun}
    before, after = ({name: own for name, own in entries.items() if name not in names} for entries in (was, now))
    return [Change(key, before, after)] if key == STAGES and before != after else []


def _entries(plain: dict[str, Any]) -> dict[str, Any]:
    """Stage name -> its own options."""
    stages: dict[str, Any] | None = plain.get("curriculum", {}).get("stages")
    return stages or {f"s{plain['rope']['factor']:g}": {}}


def _differences(folder: Path, cfg: Config, stage: str | None = None) -> list[Change]:
    """The binding options of one folder that are not what its config.yaml says."""
    then = _stored(folder)
    if then is None:
        return []
    now, default = run_folder.plain(cfg), defaults()
    found = []
    for key in filter(_binding, _flat(now)):
        # an option that did not exist yet when the folder was written had its default's effect
        was, is_now = _get(then if _known(then, key) else default, key), _get(now, key)
        if was != is_now:
            found.append(Change(key, was, is_now, stage, FIXED.get(key, "")))
    return found


def _refusal(folder: Path, refused: Sequence[Change], allowed: Sequence[str]) -> str:
    lines = [f"{folder} holds a run with other options, which resuming would mix:"]
    lines += [f"  - {change}" + (f"; cannot change: {change.fixed}" if change.fixed else "") for change in refused]
    lines += ["restore them to continue it, or choose another run.name for a new run; nothing was changed"]
    if all(not change.fixed for change in refused):
        names = dict.fromkeys([*allowed, *(change.key for change in refused)])
        lines += [f"to go on with the new values from the newest checkpoint on: run.allow_change=[{','.join(names)}]"]
    return "\n".join(lines)


def records(changes: Sequence[Change], stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """For run.json: what changes, and after which step of which unfinished stage."""
    stage, step = stands(stages)
    return [{"key": c.key, "was": c.was, "now": c.now, "stage": stage, "step": step} for c in changes]


def lines(changes: Sequence[Change], stages: Sequence[Stage]) -> list[str]:
    """For the user: the same, and that finished stages keep what they had."""
    stage, step = stands(stages)
    found = [f"run.allow_change: {change}; from step {step} of {stage} on" for change in changes]
    done = [one.folder.name for one in stages if one.finished]
    if changes and done:
        found.append(f"finished stages keep the options they were trained with: {', '.join(done)}")
    return found


def stands(stages: Sequence[Stage]) -> tuple[str | None, int]:
    """Folder name of the first unfinished stage and the step of its newest checkpoint; (None, 0) after the last."""
    for stage in stages:
        if not stage.finished:
            newest = complete_checkpoints(stage.folder / "checkpoints")
            return stage.folder.name, int(newest[-1].name.removeprefix("step_")) if newest else 0
    return None, 0


def other_data_allowed(cfg: Config) -> bool:
    """Whether a checkpoint may go on with other data: the user named one of its options."""
    return any(name.startswith("data.") for name in cfg.run.allow_change)


def _stored(folder: Path) -> dict[str, Any] | None:
    path = folder / "config.yaml"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({' '.join(str(error).split())[:200]}); restore it") from error
    if found is not None and not _is_config(found):
        raise CheckpointError(f"{path} is not what a run writes; restore it, or choose another run.name")
    return found


def _is_config(found: Any) -> bool:
    sections = isinstance(found, dict) and all(isinstance(values, dict) for values in found.values())
    return sections and "run" in found and isinstance(found.get("rope", {}).get("factor"), int | float)


def _flat(nested: dict[str, Any]) -> list[str]:
    return [f"{section}.{key}" for section, values in nested.items() for key in values]


def _binding(key: str) -> bool:
    return key not in FREE_ON_RESUME and key != STAGES and key.partition(".")[0] not in FREE_SECTIONS


def _known(nested: dict[str, Any], key: str) -> bool:
    """False for an option that did not exist yet when the folder was written."""
    section, _, name = key.partition(".")
    return name in nested.get(section, {})


def _get(nested: dict[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    return nested.get(section, {}).get(name)
