"""Rules between options that need neither a model nor the number of ranks."""

from __future__ import annotations

import re
from dataclasses import fields

from .data_parts import parts_of
from .errors import ConfigError, problem
from .option_rules_eval import evaluation_rules
from .options import AdapterConfig, Config, DataConfig, EngineConfig, LaunchConfig


def broken_rules(c: Config) -> list[str]:
    """Rules between keys that need neither a model nor a world size."""
    found = []
    if not re.fullmatch(r"\w[\w.,=@+-]*", c.run.name):
        fix = "it names the folder outputs/<run.name>; for a folder elsewhere set run.dir"
        found.append(problem("run.name", c.run.name, "letters, digits and _ - . , = @ +, no path", fix))
    if c.rope.beta <= c.rope.alpha:
        found.append(
            problem("rope.beta", c.rope.beta, f"> rope.alpha ({c.rope.alpha:g})", "beta is the fast end: paper 1, 32")
        )
    if isinstance(c.rope.temperature, str) and c.rope.temperature != "auto":
        found.append(problem("rope.temperature", c.rope.temperature, "auto | a number > 0", "use auto or t itself"))
    if isinstance(c.rope.temperature, float) and c.rope.temperature <= 0:
        found.append(problem("rope.temperature", c.rope.temperature, "auto | a number > 0", "use auto or t itself"))
    if isinstance(c.rope.temperature, float) and c.rope.method != "yarn" and c.rope.temperature != 1.0:
        found.append(
            problem("rope.temperature", c.rope.temperature, f"auto | 1.0 for {c.rope.method}", "use rope.method=yarn")
        )
    if c.rope.method == "none" and c.rope.factor != 1.0:
        found.append(problem("rope.factor", c.rope.factor, "1 for rope.method=none", "set rope.factor=1 or a method"))
    window = c.rope.sliding_window
    if not (window in (None, "off", "keep") or (isinstance(window, int) and 1 <= window <= 10**9)):
        found.append(problem("rope.sliding_window", window, "null | off | keep | tokens", "give a number from 1 on"))
    if c.rope.ramp == "by_rotations" and not c.rope.truncate:
        found.append(
            problem("rope.truncate", False, "true for rope.ramp=by_rotations", "truncate only rounds the by_index ramp")
        )
    if len(c.optim.betas) != 2 or not all(0.0 <= b < 1.0 for b in c.optim.betas):
        found.append(problem("optim.betas", c.optim.betas, "two numbers in [0, 1)", "the paper uses [0.9, 0.95]"))
    if c.train.steps == 0 and c.model.init == "random" and c.run.init_from is None:
        found.append(
            problem("train.steps", 0, ">= 1 for model.init=random", "random weights without training are no model")
        )
    if c.schedule.warmup_steps > c.train.steps > 0:
        found.append(
            problem(
                "schedule.warmup_steps",
                c.schedule.warmup_steps,
                f"<= train.steps ({c.train.steps})",
                "shorten the warmup or train longer",
            )
        )
    found += _profile_checks(c)
    if c.run.deterministic and c.model.attention == "sdpa_cudnn":
        allowed = "kernels with one order of sums for run.deterministic=true"
        found.append(problem("model.attention", "sdpa_cudnn", allowed, "set model.attention=auto"))
    found += _size_checks(c)
    found += _engine_checks(c)
    found += _adapter_checks(c)
    found += _data_checks(c)
    found += evaluation_rules(c)
    found += _launch_checks(c.launch)
    return found


def _size_checks(c: Config) -> list[str]:
    """Numbers so large that nothing can come of them."""
    found = []
    for key, value, most in (
        ("run.seed", c.run.seed, 2**63 - 1),
        ("rope.factor", c.rope.factor, 1e6),
        ("train.steps", c.train.steps, 10**7),
        ("train.global_batch_size", c.train.global_batch_size, 10**9),
        ("train.micro_batch_size", c.train.micro_batch_size, 10**9),
        ("data.seq_len", c.data.seq_len, 10**9),
        ("data.workers", c.data.workers, 10**4),
        ("data.prefetch", c.data.prefetch, 10**4),
        ("profile.steps", c.profile.steps, 100),
    ):
        if value > most:
            found.append(problem(key, value, f"<= {most:,}", "give a smaller one"))
    return found


def _profile_checks(c: Config) -> list[str]:
    """Rules of what is profiled; none where nothing is."""
    found = []
    steps, last = c.profile.steps, c.profile.start + c.profile.steps - 1
    if steps and not c.profile.ranks:
        found.append(problem("profile.ranks", [], "ranks, counted from 0", "name at least one: profile.ranks=[0]"))
    if steps and 0 < c.train.steps < last:
        got = f"{c.profile.start}, for {steps} steps"
        allowed = f"so that the last one, {last}, is at most train.steps ({c.train.steps})"
        found.append(problem("profile.start", got, allowed, "start earlier, or profile fewer steps"))
    return found


def _launch_checks(launch: LaunchConfig) -> list[str]:
    """Rules between the keys of launch."""
    found = []
    workers = launch.nproc_per_node
    if not (workers is None or workers == "gpu" or (isinstance(workers, int) and workers >= 1)):
        found.append(problem("launch.nproc_per_node", workers, "null | gpu | a number >= 1", "gpu takes all there are"))
    if workers is None and launch.nnodes > 1:
        fix = "set launch.nproc_per_node too, or start torchrun on each machine instead"
        found.append(problem("launch.nnodes", launch.nnodes, "1 without launch.nproc_per_node", fix))
    if workers is None and launch.max_restarts:
        fix = "set launch.nproc_per_node, or give --max-restarts to torchrun"
        found.append(problem("launch.max_restarts", launch.max_restarts, "0 without launch.nproc_per_node", fix))
    if launch.nnodes > 1 and launch.rendezvous is None and not launch.dry_run:
        fix = "name one of the machines: launch.rendezvous=node1:29500"
        found.append(problem("launch.rendezvous", None, "host:port", fix))
    if launch.rendezvous is not None and not re.fullmatch(
        r"[^:\s]+:\d{1,5}|\[[0-9a-fA-F:.]+\]:\d{1,5}", launch.rendezvous
    ):
        found.append(problem("launch.rendezvous", launch.rendezvous, "host:port", "such as node1:29500"))
    if launch.rendezvous is not None and launch.nnodes == 1:
        fix = "set launch.nnodes, or leave launch.rendezvous out"
        found.append(problem("launch.rendezvous", launch.rendezvous, "null for launch.nnodes=1", fix))
    if launch.dry_run and workers is None:
        fix = "say for how many GPUs: launch.nproc_per_node=8 launch.nnodes=8"
        found.append(problem("launch.dry_run", True, "false without launch.nproc_per_node", fix))
    if launch.dry_run and workers == "gpu":
        fix = "say how many GPUs a machine has: launch.nproc_per_node=8"
        found.append(problem("launch.nproc_per_node", "gpu", "a number for launch.dry_run=true", fix))
    return found


def _data_checks(c: Config) -> list[str]:
    """Rules between the keys of data."""
    path_is_evals = c.eval.source not in (None, "stdlib") and c.eval.path is None
    found = _source_checks("data", c.data, path_is_evals)
    mixed = c.data.source == "mixture"
    if mixed != bool(c.data.mixture):
        allowed = "name -> {weight, source, ...} with data.source=mixture, and with it only"
        fix = "set data.source=mixture and data.mixture together, or neither"
        found.append(problem("data.mixture", c.data.mixture, allowed, fix))
    elif mixed:
        try:
            for part in parts_of(c.data):
                found += _source_checks(f"data.mixture.{part.name}", part.data)
        except ConfigError as error:
            found += error.problems
    return found


def _source_checks(key: str, data: DataConfig, path_is_used: bool = False) -> list[str]:
    """Rules between the keys of one source, `data` itself or a part of its mixture."""
    found = []
    if data.cache == "":
        found.append(problem(f"{key}.cache", "", "null or the name of a folder", "leave it out to have one chosen"))
    if data.held_out >= 1.0:
        found.append(problem(f"{key}.held_out", data.held_out, "in [0, 1)", "0.1 keeps a tenth for evaluation"))
    reads_path = data.source not in ("stdlib", "mixture")
    if reads_path and data.path is None:
        allowed, fix = "a folder, file or hub id", f"{key}.source={data.source} needs {key}.path=..."
        found.append(problem(f"{key}.path", None, allowed, fix))
    if not reads_path and not path_is_used and data.path is not None:
        allowed, fix = f"null for {key}.source={data.source}", f"set {key}.source=pg19 or text to use it"
        found.append(problem(f"{key}.path", data.path, allowed, fix))
    if not reads_path and data.revision is not None:
        fix = "leave it out; it is the commit of a hub id"
        found.append(problem(f"{key}.revision", data.revision, f"null for {key}.source={data.source}", fix))
    if data.column != DataConfig.column and data.source in ("stdlib", "pretokenized", "mixture"):
        fix = "leave it out" if data.source != "pretokenized" else "pretokenized rows are always in input_ids"
        found.append(problem(f"{key}.column", data.column, f"text for {key}.source={data.source}", fix))
    return found


def _adapter_checks(c: Config) -> list[str]:
    """What adapters go with; nothing where none are asked for."""
    if c.adapter.name == "none":
        default = AdapterConfig()
        changed = [f.name for f in fields(c.adapter) if getattr(c.adapter, f.name) != getattr(default, f.name)]
        fix = "set adapter.name=lora, or leave it out"
        return [problem(f"adapter.{key}", getattr(c.adapter, key), "nothing without adapters", fix) for key in changed]
    found = []
    for key, got, allowed in (
        ("engine.name", c.engine.name, "fsdp2"),
        ("optim.state", c.optim.state, "float32"),
        ("model.init", c.model.init, "pretrained"),
    ):
        if got != allowed:
            fix = f"set {key}={allowed}, or adapter.name=none"
            found.append(problem(key, got, f"{allowed} for adapter.name=lora", fix))
    if c.memory.tiled_mlp and (
        c.adapter.targets == ["all"] or {*c.adapter.targets} & {"gate_proj", "up_proj", "down_proj"}
    ):
        fix = "set memory.tiled_mlp=false, or target attention"
        found.append(problem("memory.tiled_mlp", True, "false for adapters in MLPs", fix))
    return found


def _engine_checks(c: Config) -> list[str]:
    """Rules between engine, parallel, memory and optim."""
    found = []
    deepspeed = c.engine.name == "deepspeed"
    if not deepspeed and c.engine.zero_stage is not None:
        got, fix = c.engine.zero_stage, "set engine.name=deepspeed, or leave engine.zero_stage out"
        found.append(problem("engine.zero_stage", got, "null for engine.name=fsdp2", fix))
    if deepspeed and (c.engine.zero_stage or 0) > 3:
        found.append(problem("engine.zero_stage", c.engine.zero_stage, "0 | 1 | 2 | 3", "3 shards the most"))
    if deepspeed and c.engine.zero_stage == 0 and c.engine.offload != "none":
        fix = "set engine.zero_stage=1, 2 or 3"
        found.append(problem("engine.offload", c.engine.offload, "none for engine.zero_stage=0", fix))
    if deepspeed and c.engine.zero_stage in (1, 2) and c.engine.offload == "all":
        fix = "set engine.zero_stage=3 or engine.offload=optimizer"
        found.append(problem("engine.offload", "all", "none | optimizer for engine.zero_stage=1 or 2", fix))
    if deepspeed and c.parallel.replicate > 1:
        fix = "set parallel.replicate=1, or engine.name=fsdp2"
        found.append(problem("parallel.replicate", c.parallel.replicate, "1 for engine.name=deepspeed", fix))
    for key in ("reshard_after_forward", "prefetch"):
        value, default = getattr(c.engine, key), getattr(EngineConfig(), key)
        if deepspeed and value != default:
            fix = "set engine.name=fsdp2, or leave it out"
            found.append(problem(f"engine.{key}", value, f"{default} for engine.name=deepspeed", fix))
    if deepspeed and c.optim.state != "float32":
        fix = "set engine.offload=optimizer to save memory, or engine.name=fsdp2"
        found.append(problem("optim.state", c.optim.state, "float32 for engine.name=deepspeed", fix))
    if deepspeed and c.engine.stage == 3 and c.compile.enabled:
        fix = "set compile.enabled=false, engine.zero_stage=1 or 2, or engine.name=fsdp2"
        found.append(problem("compile.enabled", True, "false for ZeRO-3, whose hooks break every graph", fix))
    if c.optim.state == "bfloat16" and c.parallel.replicate > 1:
        # They stay equal in one start, whose ranks draw alike. On resume each rank gets the random states of its own
        # number in the checkpoint: on another mesh, two copies of one shard may get those of different shards.
        fix = "set optim.state=8bit or float32: copies that round at random need not stay equal"
        found.append(problem("optim.state", "bfloat16", "float32 | 8bit for parallel.replicate > 1", fix))
    if c.optim.state != "float32" and c.engine.offload == "optimizer":
        fix = "set optim.state=float32"
        found.append(problem("engine.offload", "optimizer", f"none | all for optim.state={c.optim.state}", fix))
    if c.memory.offload and c.memory.activation == "none":
        fix = "set memory.activation=full or attention"
        found.append(problem("memory.offload", True, "false for memory.activation=none", fix))
    if c.parallel.ulysses is not None and c.parallel.context_method != "auto":
        fix = "set parallel.context_method=auto, or leave parallel.ulysses out"
        allowed = f"null for parallel.context_method={c.parallel.context_method}"
        found.append(problem("parallel.ulysses", c.parallel.ulysses, allowed, fix))
    if c.parallel.ulysses is not None and c.parallel.context % c.parallel.ulysses:
        allowed = f"a divisor of parallel.context ({c.parallel.context})"
        found.append(problem("parallel.ulysses", c.parallel.ulysses, allowed, "the other factor is the ring"))
    return found
