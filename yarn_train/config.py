"""The configuration schema: frozen dataclasses whose defaults, choices and meanings live here and nowhere else.

``build`` turns the plain dict that Hydra composed into a :class:`Config` and reports every unknown key, wrong type and
forbidden value at once; ``validate`` adds the rules that span several keys. Neither touches files, devices or the
network, so a bad option is reported before anything expensive starts.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from .errors import ConfigError, problem


def option(
    default: Any,
    doc: str,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    above: float | None = None,
) -> Any:
    """A dataclass field with its meaning, its choices and its lower bound (`minimum` inclusive, `above` exclusive)."""
    metadata = {"doc": doc, "choices": choices, "minimum": minimum, "above": above}
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class RunConfig:
    name: str = option("run", "name of the run; its folder is outputs/<name>")
    dir: str = option("", "run folder; empty means outputs/<run.name>")
    seed: int = option(0, "seed of initialisation and sample order", minimum=0)
    resume: str = option(
        "auto",
        "auto: continue what the run folder holds; never: refuse a folder that holds a run already",
        choices=("auto", "never"),
    )
    init_from: str | None = option(
        None, "start from these weights: a run folder, a stage folder, a model folder or a hub id"
    )


@dataclass(frozen=True)
class ModelConfig:
    path: str = option("data/base", "base model: a Hugging Face folder or hub id")
    init: str = option(
        "pretrained",
        "pretrained: load the weights; random: build the architecture of model.path untrained (pretraining)",
        choices=("pretrained", "random"),
    )
    dtype: str = option(
        "bfloat16",
        "compute dtype; what is stored between steps is float32 unless optim.state says otherwise",
        choices=("bfloat16", "float32"),
    )
    attention: str = option(
        "auto",
        "attention kernel; auto takes flash_attention_2 where it can run, else sdpa",
        choices=("auto", "flash_attention_2", "sdpa"),
    )


@dataclass(frozen=True)
class RopeConfig:
    method: str = option(
        "yarn", "how RoPE frequencies are scaled", choices=("none", "pi", "ntk", "ntk_by_parts", "yarn")
    )
    factor: float = option(16.0, "s: extended length / ORIGINAL length, absolute in every stage", minimum=1.0)
    original_max_position_embeddings: int | None = option(
        None, "L: the length the base was pretrained at; null takes it from an unscaled base config", minimum=1
    )
    alpha: float = option(1.0, "pairs with fewer than alpha rotations in L are interpolated fully", above=0.0)
    beta: float = option(32.0, "pairs with more than beta rotations in L keep their frequency", above=0.0)
    temperature: float | str = option(
        "auto", "t: attention logits are divided by t; auto is sqrt(1/t) = 0.1 ln s + 1 for yarn, 1 otherwise"
    )
    ramp: str = option(
        "by_index",
        "ramp between alpha and beta: linear in the pair index (every server) or in the rotations (paper, Eq. 18)",
        choices=("by_index", "by_rotations"),
    )
    truncate: bool = option(True, "by_index only: round the ramp's ends to whole pairs, as the reference does")


DOCUMENT_SOURCES = ("stdlib", "pg19", "stdlib+pg19", "text")  # sources of texts; evaluation reads these only
SOURCES = (*DOCUMENT_SOURCES, "pretokenized", "mixture")


@dataclass(frozen=True)
class DataConfig:
    source: str = option(
        "stdlib",
        "what to train on: stdlib: the interpreter's own library; pg19: books, as a folder of texts or a hub id; both "
        "as stdlib+pg19; text: any data set with a column of texts; pretokenized: rows of input_ids, used as they are; "
        "mixture: several of these, see data.mixture",
        choices=SOURCES,
    )
    path: str | None = option(None, "folder, file or hub id of the source (of the pg19 part of stdlib+pg19)")
    revision: str | None = option(
        None, "commit, tag or branch of a hub id; null takes its newest commit, and the manifest records which"
    )
    column: str = option("text", "text, and pg19 from tables: the column that holds the texts")
    cache: str | None = option(None, "prepared data folder; null chooses one below data/cache/ by content")
    seq_len: int = option(4096, "tokens per training segment", minimum=2)
    workers: int = option(0, "processes that tokenise; 0 means one per CPU core", minimum=0)
    held_out: float = option(
        0.1,
        "share of documents never trained on, chosen by hash of the name, of sources that bring no split of their own",
        minimum=0.0,
    )
    document_mask: str = option(
        "none",
        "none: tokens attend to all earlier tokens of their segment, over document boundaries, as the paper's do; "
        "block: only to their own document's, whose positions start at 0",
        choices=("none", "block"),
    )
    prefetch: int = option(
        2, "optimizer steps whose batches are read ahead in the background; 0 reads when needed", minimum=0
    )
    mixture: dict[str, Any] = option(
        {},
        "source=mixture only: name -> {weight, and this section's source, path, revision, column, held_out}; of every "
        "run of segments as long as the weights' common denominator, exactly the weights' shares come from each",
    )

    @property
    def parts(self) -> list[MixturePart]:
        """The sources of the training data with weights that add up to 1; a single one unless source=mixture.

        Raises:
            ConfigError: listing all problems of data.mixture.
        """
        return mixture_parts(self, self.mixture) if self.source == "mixture" else [_only(self)]


@dataclass(frozen=True)
class TrainConfig:
    steps: int = option(400, "optimizer steps of the stage", minimum=1)
    global_batch_size: int = option(64, "sequences per optimizer step over all ranks and accumulation", minimum=1)
    micro_batch_size: int = option(1, "sequences per forward pass on one rank", minimum=1)
    stop_after: int | None = option(
        None, "save a checkpoint and stop cleanly after this step, to be resumed later", minimum=1
    )


@dataclass(frozen=True)
class OptimConfig:
    lr: float = option(2e-5, "peak learning rate", above=0.0)
    betas: list[float] = option([0.9, 0.95], "AdamW's two decay rates")
    eps: float = option(1e-8, "AdamW's epsilon", above=0.0)
    weight_decay: float = option(0.0, "decoupled weight decay of matrices; vectors are never decayed", minimum=0.0)
    grad_clip: float = option(1.0, "largest global gradient norm", above=0.0)
    state: str = option(
        "float32",
        "bytes per parameter with its weights: float32: all of AdamW in float32, 12; 8bit: both moments in blocks of "
        "8 bits, 6; bfloat16: weights, moments and accumulated gradients in bfloat16, rounded stochastically, 6 "
        "(the last two need torchao)",
        choices=("float32", "8bit", "bfloat16"),
    )


@dataclass(frozen=True)
class ScheduleConfig:
    name: str = option("linear", "shape after the warmup", choices=("linear", "cosine", "constant"))
    warmup_steps: int = option(20, "steps of linear warmup from 0", minimum=0)


@dataclass(frozen=True)
class EngineConfig:
    name: str = option("fsdp2", "sharding engine", choices=("fsdp2", "deepspeed"))
    zero_stage: int | None = option(
        None,
        "deepspeed only: 0 replicates, 1 shards optimizer state, 2 gradients too, 3 parameters too; null is 3",
        minimum=0,
    )
    offload: str = option(
        "none",
        "what lives in host memory between uses: none; optimizer: its state, and its update for deepspeed; "
        "all: parameters, gradients and optimizer",
        choices=("none", "optimizer", "all"),
    )
    reshard_after_forward: bool = option(
        True, "fsdp2 only: free a block's gathered parameters after its forward; false saves one all-gather per block"
    )
    prefetch: int = option(
        1, "fsdp2 only: blocks gathered ahead of the one that computes, forward and backward", minimum=1
    )

    @property
    def stage(self) -> int:
        """ZeRO stage of engine.name=deepspeed."""
        return 3 if self.zero_stage is None else self.zero_stage


@dataclass(frozen=True)
class ParallelConfig:
    replicate: int = option(1, "copies of the sharded model (HSDP): gradients are summed over them", minimum=1)
    shard: int | None = option(
        None, "data-parallel ranks that share one copy; null takes ranks / (replicate * context)", minimum=1
    )
    context: int = option(1, "ranks that share each sequence", minimum=1)
    context_method: str = option(
        "auto",
        "ulysses: exchange sequence for heads; ring: pass keys and values around; auto: ulysses for as many ranks as "
        "divide the heads, ring for the rest",
        choices=("auto", "ulysses", "ring"),
    )
    ulysses: int | None = option(
        None, "with context_method=auto: ranks of parallel.context that exchange heads; null chooses", minimum=1
    )


@dataclass(frozen=True)
class MemoryConfig:
    activation: str = option(
        "none",
        "none: keep all activations; full: recompute each block in backward; attention: recompute all but the "
        "attention output; offload: full, with the block inputs in host memory",
        choices=("none", "full", "attention", "offload"),
    )
    offload: bool = option(
        False, "keep in host memory what memory.activation=full or attention keeps of each block (offload implies it)"
    )
    loss: str = option(
        "chunked",
        "full: build all logits; chunked: never more than one chunk of them; fused: Liger's kernel (GPU)",
        choices=("full", "chunked", "fused"),
    )
    tiled_mlp: bool = option(False, "run each MLP over tiles of tokens, so that its intermediate never exists whole")

    @property
    def recompute(self) -> str:
        """What is recomputed in backward: none | full | attention (everything but attention)."""
        return "full" if self.activation == "offload" else self.activation

    @property
    def offloads(self) -> bool:
        """Whether what is kept for recomputation moves to host memory."""
        return self.offload or self.activation == "offload"


@dataclass(frozen=True)
class CompileConfig:
    enabled: bool = option(False, "torch.compile every decoder block (one graph for all of them)")


@dataclass(frozen=True)
class CheckpointConfig:
    every: int = option(50, "steps between checkpoints; the last step of a stage always makes one", minimum=1)
    keep: int = option(2, "newest complete checkpoints kept per stage", minimum=1)
    export_dtype: str = option(
        "float32", "dtype of the weights in the exported model/", choices=("float32", "bfloat16")
    )


@dataclass(frozen=True)
class EvalConfig:
    enabled: bool = option(True, "evaluate sliding-window perplexity when the last stage is done")
    windows: list[int] = option([], "context windows in tokens; empty means L, 2L, 4L ... largest factor * L")
    stride: int = option(256, "tokens a window moves by, and tokens it scores", minimum=1)
    documents: int = option(12, "held-out documents, each longer than the largest window", minimum=1)
    windows_per_document: int | None = option(
        2,
        "score the SAME windows_per_document * stride tokens of each document at every window size; "
        "null scores whole documents from their first token, as the reference implementation does",
        minimum=1,
    )
    max_tokens: int | None = option(
        None, "with windows_per_document=null: tokens of each document that are used; null uses all", minimum=1
    )
    baselines: bool = option(True, "also evaluate the untouched base and every method at the first factor, untrained")
    bos: bool = option(True, "begin every window with BOS, as the reference does")
    source: str | None = option(None, "documents to evaluate on; null takes data.source", choices=DOCUMENT_SOURCES)
    path: str | None = option(None, "folder, file or hub id of eval.source; null takes data.path and data.revision")
    revision: str | None = option(None, "commit, tag or branch of eval.path, as data.revision")
    split: str = option("test", "held-out split", choices=("validation", "test"))


@dataclass(frozen=True)
class PlanConfig:
    gpu: str = option(
        "h100",
        "python -m yarn_train.plan: the GPU to plan for",
        choices=("h100", "h200", "a100-80", "a100-40", "b200"),
    )
    gpus: int = option(8, "python -m yarn_train.plan: GPUs of the whole run", minimum=1)
    gpus_per_node: int = option(8, "python -m yarn_train.plan: GPUs that share a machine's fast links", minimum=1)
    memory_gib: float | None = option(
        None, "memory per GPU (on CPU: of the host) in GiB; null takes what is there, or plan.gpu's", above=0.0
    )
    check: str = option(
        "refuse",
        "before weights load, a run that cannot fit its memory is: refuse: not started; warn: started with a warning; "
        "off: not looked at",
        choices=("refuse", "warn", "off"),
    )
    output: str | None = option(None, "python -m yarn_train.plan: also write the plan to this JSON file")


@dataclass(frozen=True)
class CurriculumConfig:
    stages: dict[str, Any] = option(
        {}, "stage name -> options that differ in that stage; empty trains one stage from the options above"
    )


@dataclass(frozen=True)
class Config:
    """The whole configuration of one run; one field per folder of ``conf/``."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    rope: RopeConfig = field(default_factory=RopeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    compile: CompileConfig = field(default_factory=CompileConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)


SECTIONS: dict[str, type] = {f.name: typing.get_type_hints(Config)[f.name] for f in dataclasses.fields(Config)}
FREE_FORM = {"curriculum.stages", "data.mixture"}  # keys below these are the user's own names


def keys() -> list[str]:
    """Every option as ``section.key``, in schema order."""
    return [f"{section}.{f.name}" for section, cls in SECTIONS.items() for f in dataclasses.fields(cls)]


def defaults() -> dict[str, dict[str, Any]]:
    """The schema's defaults as a plain nested dict: what Hydra composes experiments on top of."""
    return dataclasses.asdict(Config())


def build(raw: Mapping[str, Any]) -> Config:
    """Make a typed :class:`Config` of a plain nested dict; missing keys take their default.

    Raises:
        ConfigError: listing ALL unknown keys, wrong types and forbidden values.
    """
    problems: list[str] = []
    sections = {}
    for name, values in raw.items():
        if name not in SECTIONS:
            problems.append(unknown_key(name, SECTIONS))
        elif not isinstance(values, Mapping):
            problems.append(problem(name, values, "a section of options", f"write {name}.<option>=..."))
        else:
            sections[name] = _build_section(name, values, problems)
    config = Config(**sections)
    named = {p.partition(":")[0] for p in problems}  # already reported, so not again for the default in its place
    problems += [p for p in _cross_checks(config) if p.partition(":")[0] not in named]
    if problems:
        raise ConfigError(problems)
    return config


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The problem line of a key that does not exist, with the nearest one that does."""
    names = list(known)
    elsewhere = [k for k in names if k.rpartition(".")[2] == key.rpartition(".")[2]]  # the right name, another section
    near = elsewhere or difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else "see the options in yarn_train/config.py"
    return f"{key}: unknown option; {hint}"


def _build_section(section: str, values: Mapping[str, Any], problems: list[str]) -> Any:
    cls = SECTIONS[section]
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    kept = {}
    for name, value in values.items():
        key = f"{section}.{name}"
        if name not in fields:
            problems.append(unknown_key(key, keys()))
            continue
        converted, ok = _convert(value, hints[name])
        if not ok:
            problems.append(problem(key, value, _type_name(hints[name]), fields[name].metadata["doc"]))
            continue
        wrong = _bounds(key, converted, fields[name].metadata)
        problems += wrong
        if not wrong:
            kept[name] = converted
    return cls(**kept)


def _convert(value: Any, hint: Any) -> tuple[Any, bool]:
    """Value as `hint` says (an int is accepted where a float is asked for), and whether it could be."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        for choice in typing.get_args(hint):
            converted, ok = _convert(value, choice)
            if ok:
                return converted, True
        return value, False
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value), True
    if hint in (int, float) and isinstance(value, bool):
        return value, False
    if origin is list:
        (item,) = typing.get_args(hint)
        if not isinstance(value, list | tuple):
            return value, False
        pairs = [_convert(v, item) for v in value]
        return [v for v, _ in pairs], all(ok for _, ok in pairs)
    if origin is dict:
        return (dict(value), True) if isinstance(value, Mapping) else (value, False)
    return value, isinstance(value, hint)


def _type_name(hint: Any) -> str:
    return str(hint).replace("<class '", "").replace("'>", "").replace("typing.Any", "any")


def _bounds(key: str, value: Any, metadata: Mapping[str, Any]) -> list[str]:
    if metadata["choices"] and value is not None and value not in metadata["choices"]:
        near = difflib.get_close_matches(str(value), metadata["choices"], n=1)
        fix = f"did you mean {near[0]}?" if near else "choose one of these"
        return [problem(key, value, " | ".join(metadata["choices"]), fix)]
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            return [problem(key, value, "a finite number", metadata["doc"])]
        if metadata["minimum"] is not None and not value >= metadata["minimum"]:
            return [problem(key, value, f">= {metadata['minimum']:g}", metadata["doc"])]
        if metadata["above"] is not None and not value > metadata["above"]:
            return [problem(key, value, f"> {metadata['above']:g}", metadata["doc"])]
    return []


def _cross_checks(c: Config) -> list[str]:
    """Rules between keys that need neither a model nor a world size."""
    found = []
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
    if c.rope.ramp == "by_rotations" and not c.rope.truncate:
        found.append(
            problem("rope.truncate", False, "true for rope.ramp=by_rotations", "truncate only rounds the by_index ramp")
        )
    if len(c.optim.betas) != 2 or not all(0.0 <= b < 1.0 for b in c.optim.betas):
        found.append(problem("optim.betas", c.optim.betas, "two numbers in [0, 1)", "the paper uses [0.9, 0.95]"))
    if c.schedule.warmup_steps > c.train.steps:
        found.append(
            problem(
                "schedule.warmup_steps",
                c.schedule.warmup_steps,
                f"<= train.steps ({c.train.steps})",
                "shorten the warmup or train longer",
            )
        )
    found += _engine_checks(c)
    found += _data_checks(c)
    return found


def _data_checks(c: Config) -> list[str]:
    """Rules between the keys of data and eval."""
    path_is_evals = c.eval.source not in (None, "stdlib") and c.eval.path is None
    found = _source_checks("data", c.data, path_is_evals)
    mixed = c.data.source == "mixture"
    if mixed != bool(c.data.mixture):
        allowed = "name -> {weight, source, ...} with data.source=mixture, and with it only"
        fix = "set data.source=mixture and data.mixture together, or neither"
        found.append(problem("data.mixture", c.data.mixture, allowed, fix))
    elif mixed:
        try:
            for part in c.data.parts:
                found += _source_checks(f"data.mixture.{part.name}", part.data)
        except ConfigError as error:
            found += error.problems
    evaluates = c.eval.enabled and (c.eval.source or c.data.source)
    if evaluates and evaluates not in DOCUMENT_SOURCES:
        allowed, fix = " | ".join(DOCUMENT_SOURCES), "set eval.source (and eval.path), or eval.enabled=false"
        found.append(problem("eval.source", c.eval.source, f"{allowed} for data.source={c.data.source}", fix))
    if c.eval.source == "stdlib" and c.eval.path is not None:
        found.append(problem("eval.path", c.eval.path, "null for eval.source=stdlib", "set eval.source to use it"))
    if c.eval.revision is not None and c.eval.path is None:
        fix = "set eval.path too, or data.revision for both"
        found.append(problem("eval.revision", c.eval.revision, "null without eval.path", fix))
    if c.eval.enabled and c.eval.source not in (None, "stdlib") and not (c.eval.path or c.data.path):
        fix = f"eval.source={c.eval.source} needs eval.path=..."
        found.append(problem("eval.path", None, "a folder, file or hub id", fix))
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


@dataclass(frozen=True)
class MixturePart:
    """One source of the training data, what share of the segments comes from it, and where it is described."""

    name: str
    weight: Fraction
    data: DataConfig


PART_KEYS = ("source", "path", "revision", "column", "held_out")
MAX_DENOMINATOR = 10_000


def _only(data: DataConfig) -> MixturePart:
    return MixturePart(data.source, Fraction(1), data)


def mixture_parts(data: DataConfig, mixture: Mapping[str, Any]) -> list[MixturePart]:
    """The entries of data.mixture; see :attr:`DataConfig.parts`."""
    problems: list[str] = []
    parts = [part for name, given in mixture.items() if (part := _part(data, str(name), given, problems))]
    total = sum(part.weight for part in parts)
    shares = [dataclasses.replace(part, weight=part.weight / total) for part in parts]
    period = math.lcm(*(part.weight.denominator for part in shares))
    if not problems and period > MAX_DENOMINATOR:
        got = ", ".join(f"{part.name}: {part.weight}" for part in shares)
        allowed = f"shares with a common denominator up to {MAX_DENOMINATOR}"
        problems.append(problem("data.mixture", got, allowed, "use rounder weights, such as 0.7 and 0.3"))
    if problems:
        raise ConfigError(problems)
    return shares


def _part(data: DataConfig, name: str, given: Any, problems: list[str]) -> MixturePart | None:
    key = f"data.mixture.{name}"
    if not re.fullmatch(r"[\w.-]+", name):
        fix = "its prepared folder is named after it"
        problems.append(problem("data.mixture", name, "names of letters, digits, '_', '-' and '.'", fix))
        return None
    if not isinstance(given, Mapping) or "weight" not in given or "source" not in given:
        problems.append(problem(key, given, "a section with at least weight and source", "see data/README.md"))
        return None
    weight = given["weight"]
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        problems.append(problem(f"{key}.weight", weight, "a number > 0", "shares are weights over their sum"))
        return None
    wrong = sorted(set(given) - {"weight", *PART_KEYS})
    if wrong:
        allowed = " | ".join(("weight", *PART_KEYS))
        problems.append(problem(key, ", ".join(wrong), allowed, "all else is the same for every part: set it in data"))
        return None
    if given["source"] == "mixture":
        problems.append(problem(f"{key}.source", "mixture", "a single source", "list its parts here"))
        return None
    options = {k: v for k, v in given.items() if k != "weight"}
    found: list[str] = []
    built = _build_section("data", options, found)
    problems += [line.replace("data.", f"{key}.", 1) for line in found]
    if found:
        return None
    shared = {k: getattr(data, k) for k in ("seq_len", "workers", "document_mask", "prefetch")}
    return MixturePart(name, Fraction(str(weight)), dataclasses.replace(built, **shared))


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


def validate(config: Config, world_size: int) -> None:
    """Check the rules that need the number of ranks.

    Raises:
        ConfigError: listing all of them that are broken.
    """
    parallel = config.parallel
    group = parallel.replicate * parallel.context * (parallel.shard or 1)
    if world_size % group or (parallel.shard is not None and world_size != group):
        sizes = f"replicate * shard * context = {parallel.replicate} * {parallel.shard or 1} * {parallel.context}"
        allowed = f"{sizes} {'equal to' if parallel.shard else 'a divisor of'} the number of ranks ({world_size})"
        raise ConfigError(problem("parallel", group, allowed, "start another number of ranks, or change a size"))
    ranks = data_ranks(config, world_size)
    per_pass = config.train.micro_batch_size * ranks
    if config.train.global_batch_size % per_pass:
        raise ConfigError(
            problem(
                "train.global_batch_size",
                config.train.global_batch_size,
                f"a multiple of train.micro_batch_size * data-parallel ranks = "
                f"{config.train.micro_batch_size} * {ranks}",
                f"use {-(-config.train.global_batch_size // per_pass) * per_pass}, or another number of ranks",
            )
        )


def data_ranks(config: Config, world_size: int) -> int:
    """Ranks, or groups of `parallel.context` ranks, that read different sequences."""
    return world_size // config.parallel.context


def accumulation_steps(config: Config, world_size: int) -> int:
    """Forward/backward passes per optimizer step on one rank."""
    return config.train.global_batch_size // (config.train.micro_batch_size * data_ranks(config, world_size))
