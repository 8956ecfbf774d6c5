"""Options of the training itself: model, RoPE, data, optimizer, engine, memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .option_field import SOURCES, option


@dataclass(frozen=True)
class ModelConfig:
    path: str = option("data/base", "base model: a Hugging Face folder or hub id")
    revision: str | None = option(
        None, "branch, tag or commit of a hub id; null is its default branch; run.json records the commit it meant"
    )
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
        "attention kernel; auto takes the fastest that is right for the GPU, dtype and model, and says why; sdpa is "
        "torch's own, pinned by device and dtype; sdpa_cudnn and flex are for comparison, eager is plain matrices, to "
        "debug",
        choices=(
            *("auto", "flash_attention_2", "flash_attention_3", "flash_attention_4"),
            *("sdpa_cudnn", "sdpa_flash", "sdpa", "flex", "eager"),
        ),
    )
    base_rope: str = option(
        "auto",
        "a base whose RoPE is scaled already; auto: one of YaRN, PI or our own NTK goes on from its original length, "
        "any other is refused; undo: llama3, longrope and dynamic are undone too, and a stated "
        "rope.original_max_position_embeddings takes the place of an unscaled config's length; refuse: none is taken",
        choices=("auto", "undo", "refuse"),
    )
    rope_theta: float | None = option(
        None,
        "b of the base before an NTK-aware change of theta, which its config does not tell; null takes its config's",
        above=1.0,
    )
    trust_remote_code: bool = option(
        False, "run Python code that lies in the model's own folder or repository; without it such models are refused"
    )


@dataclass(frozen=True)
class AdapterConfig:
    name: str = option(
        "none",
        "none: all weights are trained; lora: low-rank updates beside frozen ones (peft)",
        choices=("none", "lora"),
    )
    rank: int = option(8, "r, the rank of the updates", minimum=1)
    alpha: float = option(16.0, "updates are multiplied by alpha / r", above=0.0)
    targets: list[str] = option(
        [], "names of the linear layers that get an update; empty: those of attention; [all]: every one but the head"
    )
    embeddings: bool = option(
        True, "train embeddings and output head in full, as LongLoRA found a longer context to need"
    )
    norms: bool = option(True, "train norms in full, as LongLoRA does")


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
    sliding_window: int | str | None = option(
        None,
        "tokens that layers with a sliding window see: a number, off (all of them) or keep; null keeps it where other "
        "layers see everything, and asks where none does",
    )
    truncate: bool = option(True, "by_index only: round the ramp's ends to whole pairs, as the reference does")


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


@dataclass(frozen=True)
class TrainConfig:
    steps: int = option(
        400, "optimizer steps of the stage; 0: none, its model is what it starts from, read with its RoPE", minimum=0
    )
    global_batch_size: int = option(64, "sequences per optimizer step over all ranks and accumulation", minimum=1)
    micro_batch_size: int = option(1, "sequences per forward pass on one rank", minimum=1)
    stop_after: int | None = option(
        None, "save a checkpoint and stop cleanly after this step, to be resumed later", minimum=1
    )
    max_skipped: int = option(
        3, "steps in a row that are skipped (loss or gradient not finite, or a spike) before the run stops", minimum=0
    )
    spike_factor: float | None = option(
        None, "skip a step whose loss exceeds this many times the mean of the last 50 steps; null never does", above=1.0
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
