"""DeepSpeed's configuration, made of ours in one visible place: no JSON file and no "auto".

What it would do by default and is switched off here: average gradients over ranks, divide by an accumulation count,
reduce and accumulate bfloat16 gradients in bfloat16, insist on an Adam of its own that is compiled at the first step.
"""

from __future__ import annotations

from typing import Any

from ..config import Config
from ..errors import ConfigError, problem

REDUCE_ELEMENTS = 50_000_000  # gradient elements per reduction: 200 MB in fp32
GATHER_ELEMENTS = 200_000_000  # stages 1 and 2: updated weights per all-gather
UPDATE_ELEMENTS = 100_000_000  # stage 3: parameters updated at once; their gradients exist twice meanwhile
PREFETCH_ELEMENTS = 50_000_000  # stage 3: parameters gathered ahead of the computation


def unsupported(cfg: Config) -> list[str]:
    """Problems of options that DeepSpeed cannot honour exactly."""
    if cfg.engine.stage == 0 and cfg.model.dtype == "bfloat16":
        fix = "set engine.zero_stage=1, or model.dtype=float32: stage 0 would add bfloat16 gradients in bfloat16"
        return [problem("engine.zero_stage", 0, "1 | 2 | 3 for model.dtype=bfloat16", fix)]
    return []


def settings(cfg: Config, largest_vector: int) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Args:
        largest_vector: elements of the largest one-dimensional parameter. Vectors are never partitioned: a gather
            for each would cost more than they weigh.

    Raises:
        ConfigError: see :func:`unsupported`.
    """
    if problems := unsupported(cfg):
        raise ConfigError(problems)
    stage = cfg.engine.stage
    return {
        # Only names for DeepSpeed's own statistics: our loop forms the batches and says when to step.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        # Stage 3 knows no sum; DeepSpeedEngine.backward multiplies by the number of ranks instead.
        "gradient_allreduce_op": "mean" if stage == 3 else "sum",
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "bf16": {"enabled": cfg.model.dtype == "bfloat16", "check_grad_overflow": True},
        # Stage 0 clips by a function that does not tell the norm; DeepSpeedEngine does it there.
        "gradient_clipping": cfg.optim.grad_clip if stage else 0.0,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "zero_optimization": _zero(cfg, stage, largest_vector),
    }


def _zero(cfg: Config, stage: int, largest_vector: int) -> dict[str, Any]:
    on_host = {"device": "cpu", "pin_memory": True}
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": REDUCE_ELEMENTS,
        "allgather_bucket_size": GATHER_ELEMENTS,
        "sub_group_size": UPDATE_ELEMENTS,
        "stage3_prefetch_bucket_size": PREFETCH_ELEMENTS,
        "stage3_param_persistence_threshold": largest_vector,
    }
    if cfg.engine.offload != "none":
        zero["offload_optimizer"] = dict(on_host)
    if cfg.engine.offload == "all":
        zero["offload_param"] = dict(on_host)
    return zero
