"""A plan as text for a terminal and as plain data for JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..config import accumulation_steps, data_ranks
from .advice import Advice
from .estimate import Estimate, StagePlan, Target
from .ledger import CATEGORIES
from .machines import GIB, RESERVE
from .memory import FIXED
from .sizes import Sizes

TERA = 1e12
SHOWN = 0.005 * GIB  # less is 0.00
MIB = 2**20


def stage_lines(plan: StagePlan, target: Target, sizes: Sizes) -> Iterator[str]:
    """One stage."""
    cfg, time = plan.estimate.cfg, plan.estimate.time
    train, parallel = cfg.train, cfg.parallel
    passes, ranks = accumulation_steps(cfg, target.gpus), data_ranks(cfg, target.gpus)
    tokens = train.global_batch_size * cfg.data.seq_len
    yield f"stage {plan.name}: {target.gpus} x {target.machine.name}, {cfg.engine.name}"
    yield (
        f"  batch      {train.global_batch_size} sequences x {cfg.data.seq_len:,} tokens = {tokens:,} per step = "
        f"{train.micro_batch_size} x {passes} accumulation x {ranks} data-parallel"
        + (f" (each {parallel.context} GPUs)" if parallel.context > 1 else "")
    )
    yield from _memory_lines(plan.estimate, target)
    if cfg.data.document_mask == "block":
        yield (
            f"             not counted: {document_bytes(sizes) / MIB:.1f} MiB (512 x heads x head_dim) while flash "
            "attention's backward runs, per document of a micro-batch"
        )
    yield (
        f"  FLOPs      {time.model_flops / TERA:,.0f} T per step and GPU, {time.attention_share:.0%} of it attention "
        f"(causal); {time.hardware_flops / TERA:,.0f} T with recomputation"
    )
    if cfg.data.document_mask == "block":
        yield "             data.document_mask=block: counted as one document per sequence; shorter ones need less"
    yield (
        f"  step       {time.seconds:,.1f} s = linear {time.linear:.1f} + attention {time.attention:.1f} + pointwise "
        f"{time.pointwise:.1f} + all-to-all {time.exposed:.1f} + optimizer {time.optimizer:.1f}; "
        f"beside it: transfers {time.hidden:.1f}"
    )
    if cfg.model.dtype != "bfloat16":
        yield f"             at the rates of bfloat16: {cfg.model.dtype} takes several times as long"
    yield f"  speed      {time.tokens_per_second:,.0f} tokens/s/GPU, causal MFU {time.mfu:.1%}"
    yield f"  total      {train.steps} steps, {tokens * train.steps:,} tokens, {plan.seconds / 3600:,.1f} h"
    disk = f"{plan.checkpoint / GIB:,.1f} GiB per checkpoint (x {cfg.checkpoint.keep} kept)"
    yield f"  disk       {disk}, {plan.export / GIB:,.1f} GiB exported model"


def document_bytes(sizes: Sizes) -> int:
    """What flash kernels' backward takes for each document beyond its tokens: 128 rows of float32 dQ; its upper bound.

    Ranks that share heads take their share of it.
    """
    return 128 * 4 * sizes.attention_width


def _memory_lines(estimate: Estimate, target: Target) -> Iterator[str]:
    memory = estimate.memory
    verdict = "FITS" if memory.fits else "DOES NOT FIT"
    yield (
        f"  memory     {memory.total / GIB:.1f} GiB per GPU of {memory.usable / GIB:.1f} usable "
        f"({memory.capacity / GIB:.1f} less {RESERVE:.0%}): {verdict}"
    )
    for category in (*CATEGORIES, FIXED):
        if (size := memory.device.get(category, 0.0)) >= SHOWN:
            note = "  (by arithmetic)" if category in memory.by_arithmetic else ""
            yield f"    {category:<18} {size / GIB:7.2f}{note}"
    yield f"    fullest in the {memory.part}"
    if estimate.refused:
        yield f"  REFUSED    memory.loss={estimate.cfg.memory.loss}: {estimate.refused}"
    if memory.host:
        whole, parts = sum(memory.host.values()), ", ".join(f"{k} {v / GIB:.1f}" for k, v in memory.host.items())
        node = min(target.gpus, target.gpus_per_node)
        yield f"  host       {whole / GIB:.1f} GiB per GPU ({parts}), {node * whole / GIB:.0f} GiB per node of {node}"


def advice_lines(advice: Sequence[Advice], now: Estimate) -> Iterator[str]:
    """A table of changes."""
    wide = max(len(a.text) for a in advice)
    for a in advice:
        memory, time = a.estimate.memory, a.estimate.time
        host = f", host {sum(memory.host.values()) / GIB:.0f} GiB/GPU" if memory.host else ""
        yield (
            f"  {a.text:<{wide}}  {memory.total / GIB:6.1f} GiB  {time.seconds:8.1f} s/step "
            f"({time.seconds / now.time.seconds - 1:+.0%}){host}"
        )


def as_data(plan: StagePlan, target: Target) -> dict[str, Any]:
    """A stage for machines; bytes, seconds, FLOPs."""
    estimate = plan.estimate
    node = min(target.gpus, target.gpus_per_node)
    return {
        "stage": plan.name,
        **_numbers(estimate),
        "host_bytes_per_node": node * sum(estimate.memory.host.values()),
        "steps": estimate.cfg.train.steps,
        "total_seconds": plan.seconds,
        "checkpoint_bytes": plan.checkpoint,
        "export_bytes": plan.export,
    }


def advice_data(advice: Sequence[Advice]) -> list[dict[str, Any]]:
    """Changes for machines."""
    return [{"change": dict(a.change), **_numbers(a.estimate)} for a in advice]


def _numbers(estimate: Estimate) -> dict[str, Any]:
    memory, time = estimate.memory, estimate.time
    return {
        "gpus": estimate.gpus,
        "fits": estimate.runs,
        "refused": estimate.refused,
        "peak_bytes": memory.total,
        "usable_bytes": memory.usable,
        "device_bytes": dict(memory.device),
        "host_bytes": dict(memory.host),
        "by_arithmetic": list(memory.by_arithmetic),
        "fullest_in": memory.part,
        "model_flops": time.model_flops,
        "hardware_flops": time.hardware_flops,
        "step_seconds": time.seconds,
        "tokens_per_second": time.tokens_per_second,
        "mfu": time.mfu,
    }
