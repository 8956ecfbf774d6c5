"""The only wiring: turns one stage's configuration into a Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PretrainedConfig

from ..checkpoint.manager import CheckpointManager
from ..checkpoint.state import TrainState
from ..config import Config, accumulation_steps
from ..console.banner import Row
from ..console.lines import say as print_line
from ..data.loader import Loader
from ..data.stream import Part, SourceState, Stream, open_stream
from ..dist.collectives import from_all
from ..dist.deterministic import seed_shard
from ..dist.mesh import Mesh, ulysses_size
from ..dist.runtime import Runtime, seed_everything
from ..engine.base import Engine
from ..engine.deepspeed import DeepSpeedEngine
from ..engine.fsdp2 import FSDP2Engine
from ..errors import DataError, problem
from ..metrics import pace
from ..metrics.console import ConsoleSink, Epoch
from ..metrics.sinks import FanOut, JsonlSink
from ..model import adapters, flops
from ..model.backends import cpu_backward
from ..model.causal_lm import CausalLM
from ..model.load import DTYPES, build_model, build_streaming
from ..model.local import windows
from ..model.registry import Kernel, choose_kernel
from ..model.weights import WeightFiles, move_buffers
from ..parallel.context import ContextParallel
from ..parallel.plan import parallelize
from ..rope import hf as rope_hf
from ..stages import Stage
from . import overview
from .loop import Trainer
from .overview import Expected, Outlook
from .profile import Profile
from .resume import check_resume, continued, resume_line

Say = Callable[[str], None]
ENGINES: dict[str, Callable[[CausalLM, Config, Mesh], Engine]] = {"fsdp2": FSDP2Engine, "deepspeed": DeepSpeedEngine}


@dataclass(frozen=True)
class Built:
    """A model before it was sharded: matmul parameters, all parameters, and what was done to it, in lines."""

    matmul: int
    parameters: int
    done: list[str]


def build_trainer(
    stage: Stage,
    base: PretrainedConfig,
    weights: str | None,
    data: Sequence[Part],
    runtime: Runtime,
    say: Say,
    outlook: Outlook,
) -> Trainer:
    """Model, engine, data and checkpoints of one stage, resumed from its newest checkpoint if there is one.

    Args:
        base: the unscaled config of model.path.
        weights: model folder or hub id of the first weights; None builds them at random.
        data: prepared sources.
        say: prints a line on the main process.
        outlook: what is known of the time that the stage takes, and of what comes after it.

    Raises:
        CheckpointError: the checkpoint to resume from does not fit this data or schedule; found before weights load.
        DataError: ranks hold different data.
    """
    cfg = stage.cfg
    seed_everything(cfg.run.seed)
    stream = open_stream(data, cfg.run.seed)
    refuse_unequal_data(stream, data)
    if cfg.data.document_mask == "block":
        refuse_unmarked(stream)
    checkpoints = CheckpointManager(stage.folder / "checkpoints", cfg.checkpoint, runtime, say)
    newest = checkpoints.newest()
    if newest is not None:
        check_resume(newest, cfg, stream, say)
    mesh = make_mesh(cfg, base, runtime)
    context = ContextParallel(mesh)
    chosen = choose_kernel(cfg.model.attention, runtime.device, DTYPES[cfg.model.dtype], flops.head_dim(base))
    kernel = context.attention(chosen)
    engine, size = build_engine(cfg, base, weights, kernel, mesh, runtime.device)
    seed_shard(cfg.run.seed, mesh.sharding.get_local_rank(mesh.sharding.ndim - 1))
    module = engine.module
    table = rope_hf.table_for(base, cfg.rope)
    rope_hf.verify_tables(module.model, table)
    accumulation = accumulation_steps(cfg, runtime.world_size)
    state = TrainState(0, 0, 0, cfg.run.seed, runtime.world_size, stream.state(0), accumulation)
    resumed, expected = None, outlook.expected
    if newest is not None:
        stored = checkpoints.load(engine, newest)
        rope_hf.verify_tables(module.model, table)
        state = continued(stored, state)
        resumed = resume_line(newest, stored, state)
        expected = last_pace(stage, stored, state) or expected
        checkpoints.remove_old()
    loader = make_loader(cfg, stream, mesh)
    config = module.model.config
    width = config.num_attention_heads * flops.head_dim(config)
    profile = Profile(cfg, stage.folder, runtime, state.step, print_line)
    return Trainer(
        cfg=cfg,
        runtime=runtime,
        engine=engine,
        mesh=mesh,
        context=context,
        loader=loader,
        checkpoints=checkpoints,
        sinks=_sinks(stage, runtime, state.step, stream.epochs(state.samples), outlook.then),
        state=state,
        flops_per_token=partial(
            flops.flops_per_token, size.matmul, config.num_hidden_layers, width, windows=windows(config)
        ),
        peak_flops=flops.peak_flops(runtime.device),
        profile=profile,
        facts=[
            overview.model_row(cfg.model.path, base, size.parameters, overview.original_length(cfg, base)),
            overview.start_row(weights, resumed),
            overview.rope_row(stage, base),
            *overview.data_rows(stage, stream, [part.folder for part in data]),
            overview.batch_row(stage, state, len(stream)),
            overview.optimizer_row(cfg),
            overview.ranks_row(cfg, base, runtime.world_size, str(runtime.device)),
            *overview.built_rows(size.done),
            Row("attention", f"{kernel.name} ({kernel.reason})"),
            overview.checkpoints_row(stage),
            Row("profile", profile.about),
            overview.time_row(cfg.train.steps - state.step, expected),
        ],
    )


def last_pace(stage: Stage, stored: TrainState, now: TrainState) -> Expected:
    """How fast the stage's last start was, where it had as many ranks and the same batches."""
    if (stored.world_size, stored.accumulation) != (now.world_size, now.accumulation):
        return None
    seconds = pace.of_file(stage.folder / "metrics.jsonl")
    return None if seconds is None else (seconds, "as before")


def refuse_unequal_data(stream: Stream, data: Sequence[Part]) -> None:
    """Compare what ranks hold; collective.

    Raises:
        DataError: the same on every rank, naming those that differ from rank 0.
    """
    held = from_all((stream.state(0), [str(part.folder) for part in data]))
    different = [rank for rank, (state, _) in enumerate(held) if state != held[0][0]]
    if different:
        got = "; ".join(f"rank {rank}: {_held(*held[rank])}" for rank in [0, *different[:3]])
        fix = f"{len(different)} of {len(held)} ranks differ from rank 0: prepare once and copy the folders"
        raise DataError(problem("data", got, "the same segments on every rank", fix))


def refuse_unmarked(stream: Stream) -> None:
    """Check that there are documents to keep apart.

    Raises:
        DataError: if a source of several segments is a single document: rows that were tokenised without BOS and EOS.
    """
    for source in stream.sources:
        if source.segments.described["source"] == "pretokenized" and len(source.segments.starts) == 1 < len(stream):
            got = f"no BOS or EOS in {source.segments.folder}"
            fix = "use data.document_mask=none, or rows with marks"
            raise DataError(problem("data.document_mask", f"block, and {got}", "rows that mark their documents", fix))


def _held(state: tuple[SourceState, ...], folders: list[str]) -> str:
    pairs = zip(state, folders, strict=True)
    return ", ".join(f"{s.content_sha256[:12]}, documents {s.documents_sha256[:12]} in {at}" for s, at in pairs)


def make_mesh(cfg: Config, base: PretrainedConfig, runtime: Runtime) -> Mesh:
    """The process groups of a stage; collective."""
    ulysses = ulysses_size(cfg.parallel, base.num_attention_heads)
    return Mesh.create(runtime.device.type, runtime.world_size, cfg.parallel, ulysses)


def make_loader(cfg: Config, stream: Stream, mesh: Mesh) -> Loader:
    """What this rank reads of the stream."""
    return Loader(
        stream,
        global_batch_size=cfg.train.global_batch_size,
        micro_batch_size=cfg.train.micro_batch_size,
        rank=mesh.data_rank,
        ranks=mesh.data_size,
        document_mask=cfg.data.document_mask == "block",
    )


def build_engine(
    cfg: Config,
    base: PretrainedConfig,
    weights: str | None,
    kernel: Kernel,
    mesh: Mesh,
    device: torch.device,
) -> tuple[Engine, Built]:
    """The transformed, sharded model with its weights and optimizer, and what is known of the model as a whole.

    Weights stream from their files into each rank's shards, where the files allow it.
    """
    if weights is None:
        model, streams = build_model(None, base, cfg.rope, kernel), False
    else:
        model, streams = build_streaming(weights, base, cfg.rope, kernel)
    done = [adapters.inject(model, cfg.adapter)] if cfg.adapter.name == "lora" else []
    module = CausalLM(model, cfg.memory.loss)
    matmul, parameters = flops.trained_products(module), sum(p.numel() for p in module.parameters())
    if cfg.optim.state == "bfloat16":
        for parameter in module.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    if weights is not None and not streams:
        done.append("weights renamed or merged by transformers while loading: each rank holds all of them on the host")
    if not streams and cfg.engine.name != "fsdp2" and cfg.engine.offload != "all":
        module.to(device)  # FSDP2 moves one block at a time, when it shards it
    done += parallelize(module, cfg, mesh)
    if device.type == "cpu":
        chosen = cpu_backward.use(cfg.compile.enabled)
        done[-1:-1] = [f"attention's backward: {chosen}"] if cfg.compile.enabled else []
    move_buffers(module, device)
    engine: Engine = ENGINES[cfg.engine.name](module, cfg, mesh)
    if weights is not None and streams:
        with WeightFiles(weights) as files:
            engine.read_weights(files)
    if cfg.adapter.name == "lora":
        adapters.initialise(module.model, cfg.run.seed)
    return engine, Built(matmul, parameters, done)


def _sinks(stage: Stage, runtime: Runtime, step: int, epoch: Epoch, then: str) -> FanOut:
    if not runtime.is_main:
        return FanOut([])
    console = ConsoleSink(stage.folder.name, step, stage.cfg.train.steps, stage.cfg.checkpoint.every, epoch, then)
    return FanOut([JsonlSink(stage.folder / "metrics.jsonl", step), console])
