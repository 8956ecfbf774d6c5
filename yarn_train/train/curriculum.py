"""Runs the stages of a run one after the other; a finished stage is never run again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from ..checkpoint import hf_export
from ..console.banner import Row
from ..data.batch import unlabelled
from ..data.stream import Part
from ..dist.collectives import on_main
from ..dist.heartbeat import heartbeat
from ..dist.runtime import Runtime, free_memory
from ..metrics.tracking import Trackers
from ..model import adapters
from ..model.load import DTYPES
from ..rope import hf as rope_hf
from ..stages import Stage
from . import model_card, overview, run_folder
from .introduction import Introduction
from .loop import Trainer, fit
from .overview import Outlook
from .phases import phases
from .rescale import rescale
from .setup import Say, build_trainer


def run_stages(
    stages: Sequence[Stage],
    base: PretrainedConfig,
    tokenizer: Any,
    first_weights: str | None,
    prepared: Callable[[Stage], Sequence[Part]],
    runtime: Runtime,
    say: Say,
    head: Sequence[Row] = (),
    planned: Mapping[str, float] | None = None,
    trackers: Trackers | None = None,
) -> bool:
    """Train every stage that is not finished, each from the weights of the one before it.

    Args:
        stages: in order; their factors are absolute against the base's original length.
        base: unscaled config of model.path.
        first_weights: model folder or hub id stage 1 starts from; None builds random weights.
        prepared: the prepared sources of a stage's data.
        head: what is to be told of the run as a whole, before its first stage.
        planned: stage name -> seconds of a step, as far as there is a plan for this machine.
        trackers: the run's; on the other ranks none.

    Returns:
        False when ``train.stop_after`` stopped a stage before its end.
    """
    weights, introduced = first_weights, Introduction(stages, head, planned or {}, say)
    for stage in stages:
        if stage.finished:
            say(f"stage {stage.folder.name}: already complete, not run again")
        elif not stage.trains:
            assert weights is not None  # the options' rules refuse random ones
            rescale(stage, base, tokenizer, weights)
            say(f"stage {stage.folder.name}: train.steps=0, so {weights} with another RoPE; exported and compared")
        else:
            say(f"starting: stage {stage.folder.name} from {weights or 'random weights'}")
            if not run_stage(stage, base, tokenizer, weights, prepared(stage), runtime, say, introduced, trackers):
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
    introduced: Introduction,
    trackers: Trackers | None = None,
) -> bool:
    """Train one stage to its end and export its model; False when ``train.stop_after`` stopped it earlier."""
    heartbeat.at("load")
    on_main(lambda: run_folder.freeze_config(stage.folder, stage.cfg))
    outlook = introduced.outlook(stage) if runtime.is_main else Outlook()
    trainer = build_trainer(stage, base, weights, data, runtime, say, outlook)
    if runtime.is_main:
        run_folder.stage_began(stage.folder.parent, stage.folder.name, trainer.state.step)
        introduced.show(stage, trainer.facts)
        if trackers is not None:
            trainer.sinks.sinks.append(trackers.stage(stage.folder.name, trainer.state.step))
    try:
        with phases.timed("train"):
            done = fit(trainer)
    finally:
        trainer.sinks.close()
    if done:
        export(trainer, stage, base, tokenizer, say, [part.folder for part in data], weights or stage.cfg.model.path)
    else:
        say(f"stopped after step {trainer.state.step} as train.stop_after says; the same command without it resumes")
    return done


def write_adapter(stage: Stage, model: Any, weights: dict[str, torch.Tensor], source: str) -> None:
    """The updates by themselves, beside the merged model; written anew where an earlier end was cut off."""
    folder = stage.folder / adapters.FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    adapters.write(folder, model, weights, stage.cfg.adapter, source)


def export(
    trainer: Trainer, stage: Stage, base: PretrainedConfig, tokenizer: Any, say: Say, data: Sequence[Path], source: str
) -> None:
    """Write the stage's Hugging Face folder; collective, because gathering weights and the probe's forward are."""
    module, runtime = trainer.engine.module, trainer.runtime
    config = module.model.config
    input_ids, position_ids = hf_export.probe(config.vocab_size, config.max_position_embeddings)
    heartbeat.at("gather the model", trainer.state.step)
    module.eval()
    with torch.no_grad():
        part = trainer.context.shard(unlabelled(input_ids, position_ids)).to(runtime.device)
        logits = trainer.context.gather(module(part.input_ids, part.position_ids), input_ids.shape[1]).float().cpu()
    weights = trainer.engine.full_weights()
    given = stage.cfg.adapter
    heartbeat.at("export", trainer.state.step)
    on_main(
        lambda: hf_export.write_model(
            stage.model_folder,
            module.model,
            adapters.merged(weights, given),
            tokenizer,
            dtype=DTYPES[stage.cfg.checkpoint.export_dtype],
            table=rope_hf.table_for(base, stage.cfg.rope),
            probe_logits=logits,
            compute_dtype=DTYPES[stage.cfg.model.dtype],
            finish=lambda folder: model_card.write(
                folder, stage.cfg, stage.folder, overview.original_length(stage.cfg, base), data
            ),
        )
    )
    if given.name != "none":
        on_main(lambda: write_adapter(stage, module.model, weights, source))
        say(f"exported {stage.folder / adapters.FOLDER}: the updates alone, for peft")
    say(f"exported {stage.model_folder}: reloaded in plain transformers, same weights, RoPE table and logits")
