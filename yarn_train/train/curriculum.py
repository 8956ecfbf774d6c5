"""Runs the stages of a run one after the other; a finished stage is never run again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PretrainedConfig

from ..checkpoint import hf_export
from ..data.batch import unlabelled
from ..data.stream import Part
from ..dist.collectives import barrier, wait_for_main
from ..dist.runtime import Runtime, free_memory
from ..model.load import DTYPES
from ..rope import hf as rope_hf
from ..stages import Stage
from . import run_folder
from .loop import Trainer, fit
from .setup import Say, build_trainer


def run_stages(
    stages: Sequence[Stage],
    base: PretrainedConfig,
    tokenizer: Any,
    first_weights: str | None,
    prepared: Callable[[Stage], Sequence[Part]],
    runtime: Runtime,
    say: Say,
) -> bool:
    """Train every stage that is not finished, each from the weights of the one before it.

    Args:
        stages: in order; their factors are absolute against the base's original length.
        base: unscaled config of model.path.
        first_weights: model folder or hub id stage 1 starts from; None builds random weights.
        prepared: the prepared sources of a stage's data.

    Returns:
        False when ``train.stop_after`` stopped a stage before its end.
    """
    weights = first_weights
    for stage in stages:
        if stage.finished:
            say(f"stage {stage.folder.name}: already complete, not run again")
        else:
            say(f"stage {stage.folder.name}: starts from {weights or 'random weights'}")
            if not run_stage(stage, base, tokenizer, weights, prepared(stage), runtime, say):
                return False
            free_memory()  # two stages' models never share a device
        weights = str(stage.model_folder)
    return True


def run_stage(
    stage: Stage,
    base: PretrainedConfig,
    tokenizer: Any,
    weights: str | None,
    data: Sequence[Part],
    runtime: Runtime,
    say: Say,
) -> bool:
    """Train one stage to its end and export its model; False when ``train.stop_after`` stopped it earlier."""
    if runtime.is_main:
        run_folder.freeze_config(stage.folder, stage.cfg)
    barrier()
    trainer = build_trainer(stage, base, weights, data, runtime, say)
    try:
        done = fit(trainer)
    finally:
        trainer.sinks.close()
    if done:
        export(trainer, stage, base, tokenizer, say)
    else:
        say(f"stopped after step {trainer.state.step} as train.stop_after says; the same command resumes")
    return done


def export(trainer: Trainer, stage: Stage, base: PretrainedConfig, tokenizer: Any, say: Say) -> None:
    """Write the stage's Hugging Face folder; collective, because gathering weights and the probe's forward are."""
    module, runtime = trainer.engine.module, trainer.runtime
    config = module.model.config
    input_ids, position_ids = hf_export.probe(config.vocab_size, config.max_position_embeddings)
    module.eval()
    with torch.no_grad():
        part = trainer.context.shard(unlabelled(input_ids, position_ids)).to(runtime.device)
        logits = trainer.context.gather(module(part.input_ids, part.position_ids), input_ids.shape[1]).float().cpu()
    weights = trainer.engine.full_weights()
    if runtime.is_main:
        hf_export.write_model(
            stage.model_folder,
            module.model,
            weights,
            tokenizer,
            dtype=DTYPES[stage.cfg.checkpoint.export_dtype],
            table=rope_hf.table_for(base, stage.cfg.rope),
            probe_logits=logits,
            compute_dtype=DTYPES[stage.cfg.model.dtype],
        )
    wait_for_main()
    say(f"exported {stage.model_folder}: reloaded in plain transformers, same weights, RoPE table and logits")
