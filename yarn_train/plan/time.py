"""Time of a step from counted FLOPs and bytes, and the rates of :mod:`plan.machines`."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import Config, accumulation_steps
from ..model.flops import flops_per_token, hardware_work
from .ledger import HOST
from .machines import Machine
from .memory import MOMENTS
from .sizes import Sizes
from .trace import Trace

HBM_SHARE = 0.8  # of the data sheet's bandwidth that pointwise kernels reach
LINK_SHARE = 0.7  # of the link's that collectives reach
HOST_OPTIMIZER = 20e9  # bytes/s per GPU at which the host's cores update AdamW's state, est.
EXPOSED = "all_to_all"  # what the step waits for; all other transfers run beside compute


@dataclass(frozen=True)
class StepTime:
    """One optimizer step, seconds on every GPU; the parts of a micro-batch that run side by side are not added up.

    Attributes:
        model_flops, hardware_flops: of the step on one GPU, without and with recomputation.
        attention_share: of the model's FLOPs.
        linear, attention, pointwise, exposed: seconds of compute, and of collectives in its way.
        hidden: seconds of collectives and of copies to the host, which run beside compute.
        optimizer: seconds of the update.
    """

    model_flops: float
    hardware_flops: float
    attention_share: float
    linear: float
    attention: float
    pointwise: float
    exposed: float
    hidden: float
    optimizer: float
    tokens: float
    peak: float

    @property
    def seconds(self) -> float:
        """The step."""
        compute = self.linear + self.attention + self.pointwise + self.exposed
        return max(compute, self.hidden) + self.optimizer

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second and GPU."""
        return self.tokens / self.seconds

    @property
    def mfu(self) -> float:
        """Causal model FLOPs over the peak."""
        return self.model_flops / self.seconds / self.peak


def step_time(
    cfg: Config, traced: Trace, sizes: Sizes, machine: Machine, world_size: int, gpus_per_node: int
) -> StepTime:
    """Estimate a step at the machine's ceilings: no input waits, no imbalance, no checkpoint."""
    passes = accumulation_steps(cfg, world_size)
    tokens = cfg.train.global_batch_size * cfg.data.seq_len / world_size
    again = sizes.matmul - sizes.head if cfg.memory.recompute != "none" else sizes.mlp * cfg.memory.tiled_mlp
    work = hardware_work(
        *(sizes.matmul, again, sizes.layers, sizes.attention_width, cfg.data.seq_len),
        cfg.memory.recompute == "full",
        sizes.windows,
    )
    model = flops_per_token(sizes.matmul, sizes.layers, sizes.attention_width, cfg.data.seq_len, sizes.windows)
    seconds = {name: size / _speed(cfg, name, machine, world_size, gpus_per_node) for name, size in traced.sent.items()}
    exposed = seconds.pop(EXPOSED, 0.0)
    aside = sum(seconds.values())
    copied = 2.0 * max(moment.live.get(HOST, 0) for moment in traced.moments)
    if cfg.engine.offload == "all":  # float32 shards in for forward and for backward, gradients out
        copied += 12.0 * sizes.parameters * cfg.parallel.replicate / world_size
    return StepTime(
        model_flops=model * tokens,
        hardware_flops=work.total * tokens,
        attention_share=1.0 - 6.0 * sizes.matmul / model,
        linear=work.linear * tokens / machine.linear,
        attention=tokens
        * (work.attention_forward / machine.attention_forward + work.attention_backward / machine.attention_backward),
        pointwise=passes * traced.moved / (HBM_SHARE * machine.hbm),
        exposed=passes * exposed,
        hidden=passes * max(aside, copied / machine.host_link),
        optimizer=_optimizer(cfg, sizes, machine, world_size),
        tokens=tokens,
        peak=machine.peak,
    )


def _speed(cfg: Config, operator: str, machine: Machine, world_size: int, gpus_per_node: int) -> float:
    """Bytes/s among the ranks that an operator joins: on a node's links where all of them are on one."""
    if operator.startswith(("all_to_all", "ring_")):
        ranks = cfg.parallel.context
    elif operator.startswith("allreduce"):  # of gradients, over the copies of the model
        ranks = world_size
    else:
        ranks = world_size // cfg.parallel.replicate
    return LINK_SHARE * (machine.link if ranks <= gpus_per_node else machine.network)


def _optimizer(cfg: Config, sizes: Sizes, machine: Machine, world_size: int) -> float:
    count = sizes.parameters * cfg.parallel.replicate / world_size
    traffic = (3 * 4.0 + 2 * MOMENTS[cfg.optim.state]) * count  # weights and moments read and written, gradients read
    if cfg.engine.offload == "none":
        return traffic / (HBM_SHARE * machine.hbm)
    if cfg.engine.offload == "optimizer" and cfg.engine.name == "fsdp2":  # moments visit the device
        return 2 * MOMENTS[cfg.optim.state] * count / machine.host_link
    return traffic / HOST_OPTIMIZER
