"""The only wiring: turns one stage's configuration into a Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from transformers import PretrainedConfig

from ..checkpoint.manager import CheckpointManager
from ..checkpoint.state import TrainState, refuse_other_data
from ..config import Config, accumulation_steps
from ..data.loader import Loader
from ..data.stream import Part, SourceState, Stream, open_stream
from ..dist.collectives import from_all
from ..dist.mesh import Mesh, ulysses_size
from ..dist.runtime import Runtime, seed_everything
from ..engine.base import Engine
from ..engine.deepspeed import DeepSpeedEngine
from ..engine.fsdp2 import FSDP2Engine
from ..errors import DataError, problem
from ..metrics.sinks import ConsoleSink, Epoch, FanOut, JsonlSink
from ..model import flops
from ..model.attention import Kernel, choose_kernel
from ..model.causal_lm import CausalLM
from ..model.load import DTYPES, build_model, build_skeleton, streamable
from ..model.weights import WeightFiles, move_buffers
from ..parallel.context import ContextParallel
from ..parallel.plan import parallelize
from ..rope import hf as rope_hf
from ..stages import Stage
from .loop import Trainer

Say = Callable[[str], None]
ENGINES: dict[str, Callable[[CausalLM, Config, Mesh], Engine]] = {"fsdp2": FSDP2Engine, "deepspeed": DeepSpeedEngine}


def build_trainer(
    stage: Stage,
    base: PretrainedConfig,
    weights: str | None,
    data: Sequence[Part],
    runtime: Runtime,
    say: Say,
) -> Trainer:
    """Model, engine, data and checkpoints of one stage, resumed from its newest checkpoint if there is one.

    Args:
        base: the unscaled config of model.path.
        weights: model folder or hub id of the first weights; None builds them at random.
        data: prepared sources.
        say: prints a line on the main process.

    Raises:
        CheckpointError: the checkpoint to resume from was trained on other data; found before weights load.
        DataError: ranks hold different data.
    """
    cfg = stage.cfg
    seed_everything(cfg.run.seed)
    stream = open_stream(data, cfg.run.seed)
    refuse_unequal_data(stream, data)
    if cfg.data.document_mask == "block":
        refuse_unmarked(stream)
    checkpoints = CheckpointManager(stage.folder / "checkpoints", cfg.checkpoint.keep, runtime)
    newest = checkpoints.newest()
    if newest is not None:
        refuse_other_data(newest, stream.state(0))
    mesh = make_mesh(cfg, base, runtime)
    context = ContextParallel(mesh)
    kernel = context.attention(choose_kernel(cfg.model.attention, runtime.device, DTYPES[cfg.model.dtype]))
    say(f"attention: {kernel.name} ({kernel.reason})")
    engine, matmul = build_engine(cfg, base, weights, kernel, mesh, runtime.device, say)
    module = engine.module
    table = rope_hf.table_for(base, cfg.rope)
    rope_hf.verify_tables(module.model, table)
    say(rope_line(stage, base))
    state = TrainState(0, 0, 0, cfg.run.seed, runtime.world_size, stream.state(0))
    if newest is not None:
        state = checkpoints.load(engine, newest)
        rope_hf.verify_tables(module.model, table)
        say(f"resumed from {newest} at step {state.step}")
    loader = Loader(
        stream,
        global_batch_size=cfg.train.global_batch_size,
        micro_batch_size=cfg.train.micro_batch_size,
        rank=mesh.data_rank,
        ranks=mesh.data_size,
        document_mask=cfg.data.document_mask == "block",
    )
    say(batch_line(stage, runtime.world_size, len(stream)))
    if len(stream.sources) > 1:
        say(mixture_line(stream, cfg.train.steps * cfg.train.global_batch_size))
    config = module.model.config
    width = config.num_attention_heads * flops.head_dim(config)
    return Trainer(
        cfg=cfg,
        runtime=runtime,
        engine=engine,
        mesh=mesh,
        context=context,
        loader=loader,
        checkpoints=checkpoints,
        sinks=_sinks(stage, runtime, state.step, stream.epochs(state.samples)),
        state=state,
        flops_per_token=partial(flops.flops_per_token, matmul, config.num_hidden_layers, width),
        peak_flops=flops.peak_flops(runtime.device),
    )


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


def build_engine(
    cfg: Config,
    base: PretrainedConfig,
    weights: str | None,
    kernel: Kernel,
    mesh: Mesh,
    device: torch.device,
    say: Say,
) -> tuple[Engine, int]:
    """The transformed, sharded model with its weights and optimizer, and its number of matmul parameters.

    Weights stream from their files into each rank's shards, where the files allow it.
    """
    skeleton = build_skeleton(base, cfg.rope, kernel) if weights is not None else None
    streams = skeleton is not None and weights is not None and streamable(skeleton, weights)
    model = skeleton if skeleton is not None and streams else build_model(weights, base, cfg.rope, kernel)
    module = CausalLM(model, cfg.memory.loss)
    matmul = flops.matmul_parameters(module)
    if cfg.optim.state == "bfloat16":
        for parameter in module.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    if weights is not None and not streams:
        say("weights: renamed or merged by transformers while loading, so each rank holds all of them on the host")
    if not streams and cfg.engine.name != "fsdp2" and cfg.engine.offload != "all":
        module.to(device)  # FSDP2 moves one block at a time, when it shards it
    for line in parallelize(module, cfg, mesh):
        say(line)
    move_buffers(module, device)
    engine: Engine = ENGINES[cfg.engine.name](module, cfg, mesh)
    if weights is not None and streams:
        with WeightFiles(weights) as files:
            engine.read_weights(files)
    return engine, matmul


def rope_line(stage: Stage, base: PretrainedConfig) -> str:
    """One line that says what RoPE the stage trains with."""
    rope = stage.cfg.rope
    table = rope_hf.table_for(base, rope)
    length = rope.original_max_position_embeddings or rope_hf.base_rope(base).original_length or 0
    return (
        f"rope: {rope.method}, factor {rope.factor:g} x original {length} = {rope.factor * length:g} tokens, "
        f"attention factor {table.attention_factor:.6f}; table verified in fp32 on every rank"
    )


def batch_line(stage: Stage, world_size: int, segments: int) -> str:
    """One line of batch arithmetic."""
    train, seq_len = stage.cfg.train, stage.cfg.data.seq_len
    accumulation = accumulation_steps(stage.cfg, world_size)
    tokens = train.global_batch_size * seq_len
    context = stage.cfg.parallel.context
    ranks = f"{world_size} rank(s)" if context == 1 else f"{world_size // context} group(s) of {context} ranks"
    return (
        f"batch: {train.global_batch_size} sequences x {seq_len} tokens = {tokens:,} per step = "
        f"{train.micro_batch_size} x {accumulation} accumulation x {ranks}; "
        f"{train.steps} steps = {tokens * train.steps:,} tokens of {segments * seq_len:,} prepared"
    )


def mixture_line(stream: Stream, samples: int) -> str:
    """One line of what a stage of ``samples`` sequences reads from each source."""
    passes = stream.epochs(samples)
    assert isinstance(passes, dict)
    shares = (f"{float(s.weight):.4g} {s.name} ({passes[s.name]:.2f} epochs)" for s in stream.sources)
    return f"mixture: {' + '.join(shares)}"


def _sinks(stage: Stage, runtime: Runtime, step: int, epoch: Epoch) -> FanOut:
    if not runtime.is_main:
        return FanOut([])
    tokens_per_step = stage.cfg.train.global_batch_size * stage.cfg.data.seq_len
    console = ConsoleSink(stage.folder.name, step, stage.cfg.train.steps, tokens_per_step, epoch)
    return FanOut([JsonlSink(stage.folder / "metrics.jsonl", step), console])
