"""A stage of no steps (train.steps=0): the weights before it, read with the stage's RoPE, as a model of their own."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig

from ..checkpoint import hf_export
from ..dist.collectives import on_main
from ..dist.heartbeat import heartbeat
from ..model.load import DTYPES, build_model
from ..model.registry import choose_kernel
from ..rope import hf as rope_hf
from ..stages import Stage
from . import model_card, run_folder
from .overview import original_length


def rescale(stage: Stage, base: PretrainedConfig, tokenizer: Any, weights: str) -> None:
    """Write the stage's ``model/``, verified like a trained one; the main process does it, all wait.

    Args:
        base: unscaled config of model.path.
        weights: model folder or hub id.

    Raises:
        CheckpointError: the reloaded model has other weights, another RoPE table or other logits.
    """

    def write() -> None:
        run_folder.freeze_config(stage.folder, stage.cfg)
        run_folder.stage_began(stage.folder.parent, stage.folder.name, 0)
        heartbeat.at("load")
        compute = DTYPES[stage.cfg.model.dtype]
        model = build_model(weights, base, stage.cfg.rope, choose_kernel("sdpa", torch.device("cpu"), compute)).eval()
        whole = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        for parameter in model.parameters():  # as a training computes; `whole` keeps the weights in float32
            parameter.data = parameter.data.to(compute)
        input_ids, position_ids = hf_export.probe(model.config.vocab_size, model.config.max_position_embeddings)
        with torch.inference_mode():
            logits = model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits.float()
        heartbeat.at("export")
        hf_export.write_model(
            stage.model_folder,
            model,
            whole,
            tokenizer,
            dtype=DTYPES[stage.cfg.checkpoint.export_dtype],
            table=rope_hf.table_for(base, stage.cfg.rope),
            probe_logits=logits,
            compute_dtype=compute,
            finish=lambda folder: model_card.write(folder, stage.cfg, stage.folder, original_length(stage.cfg, base)),
        )

    on_main(write)
