"""What a stage is, in rows for a person: pure functions of what its parts say about themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from ..checkpoint.state import TrainState
from ..config import Config
from ..console.banner import Row
from ..console.lines import duration
from ..data.stream import Stream
from ..dist import environment
from ..dist.mesh import ulysses_size
from ..rope import hf as rope_hf
from ..stages import Stage

AFTER_FIRST_STEPS = "known after the first steps"
Expected = tuple[float, str] | None  # seconds of a step, and how that is known


@dataclass(frozen=True)
class Outlook:
    """What a stage cannot know by itself: how long its steps may take, and what comes after it, in words."""

    expected: Expected = None
    then: str = ""


def head_rows(folder: Path, lines: Sequence[str]) -> tuple[list[Row], list[str]]:
    """(what is told of a run as a whole, what is told before): of `lines`, those that have a label go into rows."""
    rows, events = [Row("run folder", str(folder))], []
    for line in lines:
        label, _, text = line.partition(": ")
        if label in ("memory", "disk", "base rope"):
            rows.append(Row(label, text))
        else:
            events.append(line)
    return rows, events


def model_row(path: str, base: PretrainedConfig, parameters: int, original_length: int) -> Row:
    """The architecture; `parameters` counts a tied one once."""
    heads = base.num_attention_heads
    kv = getattr(base, "num_key_value_heads", None) or heads
    shape = f"{base.num_hidden_layers} layers x {base.hidden_size}, {heads} heads / {kv} kv"
    return Row("model", f"{path}: {base.model_type}, {_count(parameters)} parameters, {shape}, L = {original_length}")


def original_length(cfg: Config, base: PretrainedConfig) -> int:
    """L in tokens; 0 where nobody knows."""
    return cfg.rope.original_max_position_embeddings or rope_hf.base_rope(base).original_length or 0


def rope_row(stage: Stage, base: PretrainedConfig) -> Row:
    """What RoPE the stage trains with, its table compared with the built model's."""
    rope, length = stage.cfg.rope, original_length(stage.cfg, base)
    ramp = ""
    if rope.method in ("yarn", "ntk_by_parts"):
        exact = ", not truncated" if rope.ramp == "by_index" and not rope.truncate else ""
        ramp = f", alpha {rope.alpha:g}, beta {rope.beta:g} {rope.ramp}{exact}"
    given = "" if rope.temperature == "auto" else f", temperature {rope.temperature:g}"
    return Row(
        "rope",
        f"{rope.method}, factor {rope.factor:g} x original {length} = {rope.factor * length:g} tokens{ramp}{given}, "
        f"attention factor {rope_hf.table_for(base, rope).attention_factor:.6f}; "
        "table verified in fp32 on every rank",
    )


def data_rows(stage: Stage, stream: Stream, folders: list[Path]) -> list[Row]:
    """What the stage reads, of a mixture also how much of each source."""
    cfg = stage.cfg
    passes = stream.epochs(cfg.train.steps * cfg.train.global_batch_size)
    row = data_row(cfg, len(stream), folders, passes)
    return [row, mixture_row(stream, passes)] if isinstance(passes, dict) else [row]


def data_row(cfg: Config, segments: int, folders: list[Path], passes: float | dict[str, float]) -> Row:
    """What the stage reads; `passes` of it over each source."""
    where = near(folders[0] if len(folders) == 1 else folders[0].parent)
    mask = f"document mask {cfg.data.document_mask}"
    read = f"{passes:.3g} epochs, " if isinstance(passes, float | int) else ""
    source = f"{cfg.data.source} {cfg.data.path}" if cfg.data.path else cfg.data.source
    return Row("data", f"{source}: {segments:,} segments x {cfg.data.seq_len} tokens in {where}; {read}{mask}")


def mixture_row(stream: Stream, passes: dict[str, float]) -> Row:
    """The sources' shares, and the passes over each."""
    shares = (f"{float(s.weight):.4g} {s.name} ({passes[s.name]:.3g} epochs)" for s in stream.sources)
    return Row("mixture", " + ".join(shares))


def batch_row(stage: Stage, state: TrainState, segments: int) -> Row:
    """Batch arithmetic, from where the state stands: earlier steps may have had other batches."""
    train, seq_len = stage.cfg.train, stage.cfg.data.seq_len
    tokens = train.global_batch_size * seq_len
    whole = state.tokens + tokens * (train.steps - state.step)
    context = stage.cfg.parallel.context
    world_size = state.world_size
    ranks = f"{world_size} rank(s)" if context == 1 else f"{world_size // context} group(s) of {context} ranks"
    return Row(
        "batch",
        f"{train.global_batch_size} sequences x {seq_len} tokens = {tokens:,} per step = "
        f"{train.micro_batch_size} x {state.accumulation} accumulation x {ranks}; "
        f"{train.steps} steps = {whole:,} tokens of {segments * seq_len:,} prepared",
    )


def optimizer_row(cfg: Config) -> Row:
    """Optimizer and learning rate."""
    decay = f", weight decay {cfg.optim.weight_decay:g}" if cfg.optim.weight_decay else ""
    warmup = f"after {cfg.schedule.warmup_steps} steps of warmup"
    return Row(
        "optimizer",
        f"AdamW ({cfg.optim.state}), lr {cfg.optim.lr:g}, {cfg.schedule.name} {warmup}, clip {cfg.optim.grad_clip:g}"
        f"{decay}",
    )


def ranks_row(cfg: Config, base: PretrainedConfig, world_size: int, device: str) -> Row:
    """Who computes, and who works together, see ``dist.mesh``; empty for one rank, of which other rows say all."""
    if world_size == 1:
        return Row("ranks", "")
    nodes = max(1, world_size // environment.local_world_size())
    parallel = cfg.parallel
    ulysses = ulysses_size(parallel, base.num_attention_heads)
    shard = parallel.shard or world_size // (parallel.replicate * parallel.context)
    layout = f"replicate {parallel.replicate} x shard {shard} x ring {parallel.context // ulysses} x ulysses {ulysses}"
    return Row("ranks", f"{world_size} on {nodes} machine(s), {device.partition(':')[0]}: {layout}")


def checkpoints_row(stage: Stage) -> Row:
    """When checkpoints are made, which are kept, and where."""
    options = stage.cfg.checkpoint
    good = f" and every {options.keep_every}th step's for good" if options.keep_every else ""
    aside = ", written beside training" if options.async_save else ""
    kept = f"newest {options.keep} kept{good}"
    return Row("checkpoints", f"every {options.every} steps, {kept}{aside}, in {stage.folder.name}/checkpoints")


def time_row(steps: int, expected: Expected) -> Row:
    """How long the stage's other steps will take, and how that is known; never a guess."""
    if expected is None:
        return Row("time", AFTER_FIRST_STEPS)
    seconds, known = expected
    return Row("time", f"about {duration(steps * seconds)} for {steps} steps of {seconds:.2f} s, {known}")


def start_row(weights: str | None, resumed: str | None) -> Row:
    """Where training starts from: weights, or a checkpoint."""
    return Row("start", resumed or f"from {weights or 'random weights'}")


def built_rows(done: list[str]) -> list[Row]:
    """What was done to the model, of which the last is how it is sharded."""
    return [Row("blocks", "; ".join(done[:-1])), Row("engine", done[-1])]


def near(path: Path) -> Path:
    """A path as it is shorter to read: from the working directory, where it is below that."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _count(number: int) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return str(number)
