"""Memory of a step per GPU and node: the trace, and by arithmetic what fake tensors cannot show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..config import Config, accumulation_steps
from ..engine.deepspeed_settings import PREFETCH_ELEMENTS, REDUCE_ELEMENTS
from .ledger import COMMUNICATION, GRADIENTS, HOST, LOSS, OPTIMIZER, WEIGHTS
from .machines import fixed_bytes, usable_bytes
from .sizes import Sizes
from .trace import Trace, off_device

FIXED = "CUDA and NCCL"
COPY = "checkpoint copy"  # in host memory, while a checkpoint is written in the background
# Bytes per parameter of AdamW's two moments; 8bit: one byte each and a float32 scale per block of 256.
MOMENTS = {"float32": 8.0, "8bit": 2.0 + 2 * 4 / 256, "bfloat16": 4.0}
MASTER = {"float32": 4.0, "8bit": 4.0, "bfloat16": 2.0}


@dataclass(frozen=True)
class Memory:
    """What one GPU holds at its fullest instant.

    Attributes:
        device: bytes by category.
        part: the part of the step in which that instant lies.
        capacity: the device's memory in bytes.
        host: bytes in host memory per GPU, by category.
        by_arithmetic: categories that were not traced.
    """

    device: Mapping[str, float]
    part: str
    capacity: float
    host: Mapping[str, float]
    by_arithmetic: tuple[str, ...]

    @property
    def total(self) -> float:
        """Bytes on the device."""
        return sum(self.device.values())

    @property
    def usable(self) -> float:
        """Bytes that may be filled."""
        return usable_bytes(self.capacity)

    @property
    def fits(self) -> bool:
        """Whether the fullest instant leaves the reserve free."""
        return self.total <= self.usable


def memory_of(cfg: Config, traced: Trace, sizes: Sizes, world_size: int, capacity: float) -> Memory:
    """Memory of rank 0, on which no other rank holds more."""
    absent = off_device(cfg)
    peak = max(traced.moments, key=lambda moment: moment.total(absent))
    arithmetic, shares = [FIXED], {}
    if cfg.memory.loss == "fused":
        arithmetic.append(LOSS)
    if cfg.optim.state == "8bit":
        arithmetic.append(OPTIMIZER)
        shares = {OPTIMIZER: MOMENTS["8bit"] / MOMENTS["float32"]}
    live = {category: size * shares.get(category, 1) for category, size in peak.live.items()}
    # The host's fullest instant is not the device's. Its buffers stay with the mover for the next step, and gradients
    # are complete when the optimizer steps: the most that was ever there of each counts.
    most = {c: shares.get(c, 1) * max(moment.live.get(c, 0) for moment in traced.moments) for c in absent}
    host = {"activations": most.pop(HOST)}
    device = {category: size for category, size in live.items() if category not in absent and size}
    if cfg.engine.name == "deepspeed":
        state, away = zero_state(cfg, sizes, world_size)
        arithmetic += list(state)
        device |= state
        host |= away
    else:
        host |= most
    device[FIXED] = fixed_bytes(world_size)
    host[COPY] = copied_state(cfg, sizes, world_size)
    kept = {category: size for category, size in host.items() if size}
    return Memory(device, peak.part, capacity, kept, tuple(arithmetic))


def zero_state(cfg: Config, sizes: Sizes, world_size: int) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes of DeepSpeed's state (on the device, in host memory) per rank, after the ZeRO paper (arXiv 1910.02054).

    Master weights and moments are float32 and gradients are reduced in float32; with a low-precision compute dtype
    there is a second copy of the weights in it.
    """
    count, stage = sizes.parameters, cfg.engine.stage
    shared = {level: count / (world_size if stage >= level else 1) for level in (1, 2, 3)}
    low = 2.0 if cfg.model.dtype == "bfloat16" else 0.0
    weights, master = low * shared[3], 4.0 * shared[1]
    optimizer, gradients = MOMENTS["float32"] * shared[1], 4.0 * shared[2]
    # Gathered: the block that computes, what is fetched ahead, the head. A gradient bucket, and one on its way.
    gathered = (low or 4.0) * (sizes.block + PREFETCH_ELEMENTS + sizes.head) if stage == 3 else 0.0
    communication = gathered + 2 * 4.0 * REDUCE_ELEMENTS
    device = {WEIGHTS: weights + master, GRADIENTS: gradients, OPTIMIZER: optimizer, COMMUNICATION: communication}
    if cfg.engine.offload == "none":
        return device, {}
    # The update runs on the host, so the gradients of a rank's own share go there with the state.
    away = {"master weights": master, OPTIMIZER: optimizer, GRADIENTS: 4.0 * shared[1]}
    device |= {WEIGHTS: weights, OPTIMIZER: 0.0, GRADIENTS: gradients if stage == 1 else 0.0}
    if cfg.engine.offload == "all":
        away |= {WEIGHTS: weights}
        device |= {WEIGHTS: 0.0}
    return {k: v for k, v in device.items() if v}, away


def checkpoint_bytes(cfg: Config, sizes: Sizes) -> float:
    """Bytes of one checkpoint: weights and the optimizer's state."""
    return (MASTER[cfg.optim.state] + MOMENTS[cfg.optim.state]) * sizes.parameters


def copied_state(cfg: Config, sizes: Sizes, world_size: int) -> float:
    """Bytes per rank of what ``checkpoint.async_save`` copies to host memory; ranks share a checkpoint out evenly."""
    return checkpoint_bytes(cfg, sizes) / world_size if cfg.checkpoint.async_save else 0.0


def offloaded_state(cfg: Config, sizes: Sizes, world_size: int) -> float:
    """Bytes per rank of weights, gradients and moments that ``engine.offload`` keeps in host memory."""
    if cfg.engine.name == "deepspeed":
        return sum(zero_state(cfg, sizes, world_size)[1].values())
    master, moments = MASTER[cfg.optim.state], MOMENTS[cfg.optim.state]
    widths = {"none": 0.0, "optimizer": moments, "all": master + master + moments}  # a gradient is as wide as a master
    return widths[cfg.engine.offload] * sizes.parameters * cfg.parallel.replicate / world_size


def lower_bound(cfg: Config, sizes: Sizes, world_size: int) -> float:
    """Bytes per rank that a step of `cfg` needs at least: sharded state, kept inputs of blocks, one block's tensors.

    Costs nothing, and is right to within a factor of three: enough to tell a run that cannot fit, or that easily does.
    """
    width = 2 if cfg.model.dtype == "bfloat16" else 4
    tokens = cfg.train.micro_batch_size * cfg.data.seq_len / cfg.parallel.context
    kept = 0.0 if cfg.memory.offloads else kept_bytes(cfg, sizes)
    block = 0.0 if cfg.memory.recompute == "none" else _block_width(cfg, sizes) * width * tokens
    logits = 8.0 * sizes.vocab * tokens if cfg.memory.loss == "full" else 0.0
    hidden = 2.0 * sizes.hidden * width * tokens  # of the last block, and its gradient
    moving = kept + hidden + max(block, logits)
    if cfg.engine.name == "deepspeed":
        device, _ = zero_state(cfg, sizes, world_size)
        gradients = device.pop(GRADIENTS, 0.0)
        return sum(device.values()) - device.get(COMMUNICATION, 0.0) + max(gradients, moving)
    moving += width * (sizes.block + sizes.head)  # gathered
    if cfg.engine.offload == "all":
        return moving
    count = sizes.parameters * cfg.parallel.replicate / world_size
    moments = MOMENTS[cfg.optim.state] * (cfg.engine.offload == "none")
    gradients = MASTER[cfg.optim.state] * count
    held = (MASTER[cfg.optim.state] + moments) * count
    # With one micro-batch per step, gradients appear while what was kept for them goes.
    return held + (gradients + moving if accumulation_steps(cfg, world_size) > 1 else max(gradients, moving))


def kept_bytes(cfg: Config, sizes: Sizes) -> float:
    """Bytes per rank that all blocks keep for backward at least, wherever they are kept."""
    widths = {
        "none": _block_width(cfg, sizes),
        "full": sizes.hidden,
        "attention": sizes.hidden + sizes.attention_width,
    }
    tokens = cfg.train.micro_batch_size * cfg.data.seq_len / cfg.parallel.context
    width = 2 if cfg.model.dtype == "bfloat16" else 4
    return float(widths[cfg.memory.recompute] * width * tokens * sizes.layers)


def _block_width(cfg: Config, sizes: Sizes) -> float:
    """Elements per token that the backward of one block reads at least: of norms, attention and MLP."""
    intermediates = 0.0 if cfg.memory.tiled_mlp else sizes.mlp / (sizes.layers * sizes.hidden)
    return 4 * sizes.hidden + 2 * sizes.attention_width + intermediates
