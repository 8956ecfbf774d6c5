"""What a run would find and write: weights, data, its own folder, checkpoints. Nothing is fetched and nothing made."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import huggingface_hub
from huggingface_hub import constants
from transformers import PretrainedConfig

from ..checkpoint.manager import complete_checkpoints
from ..checkpoint.state import TrainState
from ..config import Config, DataConfig, parts_of
from ..data.hub import is_hub_id
from ..data.manifest import MANIFEST, manifest
from ..data.store import find_parts
from ..data.tokenize import load_tokenizer
from ..dist.failure import existing
from ..errors import DataError, YarnTrainError
from ..model.folder import find_model
from ..model.weights import INDEX, SINGLE
from ..plan.disk import Stored, at_most
from ..plan.estimate import StagePlan
from ..plan.machines import GIB
from ..rope import hf as rope_hf
from ..stages import Stage
from ..train import run_folder, same_run
from ..train.init_from import check_weights


@contextmanager
def offline() -> Iterator[None]:
    """Inside, the hub is not asked: what its cache on this machine has is all there is."""
    with mock.patch.object(constants, "HF_HUB_OFFLINE", True):
        yield


def folder_problems(stages: Sequence[Stage], whole: Config, folder: Path) -> list[str]:
    """Why the run folder that exists would refuse these options."""
    found = []
    checks: list[Callable[[], object]] = [lambda: same_run.check_options(folder, whole, stages)]
    checks += [lambda: run_folder.refuse_existing(folder)] if whole.run.resume == "never" else []
    for check in checks:
        try:
            check()
        except YarnTrainError as error:
            found.append(str(error))
    return found


def folder_line(stages: Sequence[Stage], folder: Path, world_size: int) -> str:
    """Where a run in this folder would begin."""
    if not (folder / "run.json").is_file():
        return f"{folder}: new here"
    for stage in stages:
        if stage.finished:
            continue
        checkpoints = complete_checkpoints(stage.folder / "checkpoints")
        if not checkpoints:
            return f"{folder}: goes on with stage {stage.name} from its start"
        state = TrainState.load(checkpoints[-1])
        ranks = "" if state.world_size == world_size else f", saved by {state.world_size} ranks and sharded anew"
        return f"{folder}: goes on with stage {stage.name} after step {state.step}{ranks}"
    return f"{folder}: every stage is complete, nothing would be trained"


def weights_lines(cfg: Config, base: PretrainedConfig) -> tuple[list[str], list[str]]:
    """(lines about the first weights and the tokenizer, problems)."""
    lines, problems, tokenizer = [], [], None
    try:
        tokenizer = load_tokenizer(cfg.model.path)
    except DataError as error:
        if Path(cfg.model.path).expanduser().is_dir():
            problems.append(str(error))
        else:
            lines.append(f"{cfg.model.path}: its tokenizer is not in this machine's cache of the hub")
    if cfg.run.init_from is not None:
        line, found = _init_from(cfg, base, tokenizer)
        lines.append(line)
        problems += found
    elif cfg.model.init == "random":
        lines.append(f"{cfg.model.path}: architecture and tokenizer only (model.init=random)")
    else:
        lines.append(_place(cfg.model.path))
    return lines, problems


def _init_from(cfg: Config, base: PretrainedConfig, tokenizer: Any) -> tuple[str, list[str]]:
    path = str(cfg.run.init_from)
    local = path.startswith((".", "/", "~", "outputs/")) or path.count("/") > 1
    if local and not Path(path).expanduser().exists():
        return f"run.init_from={path}: not on this machine; every node of the run must see it", []
    try:
        source = find_model(path)
        compared = Path(source).is_dir() and tokenizer is not None
        if compared:
            length = cfg.rope.original_max_position_embeddings or rope_hf.base_rope(base).original_length
            check_weights(source, base, tokenizer, length or 0)
    except YarnTrainError as error:
        return "", getattr(error, "problems", [str(error)])
    return f"run.init_from: {_place(source)}{'' if compared else '; not compared with model.path here'}", []


def _place(path: str) -> str:
    """Where a model's weights are."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return f"{path}: a folder here, {size / GIB:,.2f} GiB of safetensors; every node of the run must see it"
    cached = any(isinstance(huggingface_hub.try_to_load_from_cache(path, file), str) for file in (INDEX, SINGLE))
    return f"{path}: {'in' if cached else 'not in'} this machine's cache of the hub; nodes use theirs, or fetch it"


def data_lines(stages: Sequence[Stage]) -> Iterator[str]:
    """Per stage of other data than the one before: the folder, or what has to be prepared."""
    seen: list[object] = []
    for stage in stages:
        key = stage.cfg.data, stage.cfg.model.path
        if key not in seen:
            seen.append(key)
            yield from _data_lines(stage.cfg)


def _data_lines(cfg: Config) -> Iterator[str]:
    needed = cfg.train.steps * cfg.train.global_batch_size
    for part in parts_of(cfg.data):
        data = part.data
        yield f"{part.name}: {data.source}, {_source(data)}"
    reachable = all(part.data.path is None or Path(part.data.path).exists() for part in parts_of(cfg.data))
    if not reachable and cfg.data.cache is None:
        yield f"to be prepared by data/prepare.py, or by the run before it starts: {needed:,} segments make one pass"
        return
    try:
        for found in find_parts(cfg.data, cfg.model.path):
            held = manifest(found.folder)["segments"]
            passes = float(needed * found.weight) / held
            yield f"prepared: {found.folder}, {held:,} segments of {cfg.data.seq_len:,} tokens = {passes:.2f} passes"
    except DataError as error:
        if cfg.data.cache is not None and (Path(cfg.data.cache) / MANIFEST).exists():
            raise  # it is there, and the run would refuse it
        yield f"not prepared here ({str(error).splitlines()[0]})"


def _source(data: DataConfig) -> str:
    if data.path is None:
        return "of the nodes' own Python"
    if Path(data.path).exists():
        return f"{data.path}, here; every node must see it"
    if is_hub_id(data.path):
        return f"{data.path} of the hub, {data.revision or 'its newest commit'}"
    return f"{data.path}, not on this machine; every node must see it"


def disk_lines(plans: Sequence[StagePlan], sizes: Mapping[str, tuple[float, float]], folder: Path) -> Iterator[str]:
    """Checkpoints and models of all stages, and the room there is."""
    stored = []
    for plan in plans:
        whole, rank = sizes[plan.name]
        stored.append(Stored.of(plan.name, plan.estimate.cfg, whole, plan.export))
        beside = ", one more while one is written" if stored[-1].beside else ""
        yield (
            f"{plan.name}: {whole / GIB:,.2f} GiB per checkpoint, {rank / GIB:,.2f} GiB of it by one rank; "
            f"x {stored[-1].kept} kept{beside}; {plan.export / GIB:,.2f} GiB exported model"
        )
    total, most = at_most(stored)
    there = existing(folder)
    free = shutil.disk_usage(there).free
    short = "" if free >= most else "; NOT ENOUGH if the run is to write there"
    room = f"{free / GIB:,.1f} GiB free on this machine at {there}{short}"
    yield f"whole run: {total / GIB:,.2f} GiB at its end, {most / GIB:,.2f} GiB at most; {room}"
