"""ALST's recipe (arXiv 2506.13996) with DeepSpeed's own parts: ZeRO-3, Ulysses, tiled MLP and loss, recomputation.

On one GPU its Ulysses does nothing (DeepSpeed leaves transformers' attention as it is at a size of 1), and the others
are what makes long sequences fit.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama import modeling_llama

from bench.gpu import peer
from bench.gpu.outcome import Missing
from bench.gpu.timing import Steps, rows
from bench.gpu.worker import Save
from yarn_train.data.batch import IGNORE_INDEX, make_batch
from yarn_train.dist import runtime as dist_runtime
from yarn_train.engine.deepspeed import import_library

LOGIT_BYTES = 2**30  # of one tile of float32 logits, as in ALST's code


def measure(task: dict[str, Any], save: Save) -> dict[str, Any]:
    """As :func:`bench.gpu.ours.measure`."""
    if importlib.util.find_spec("deepspeed") is None:
        raise Missing("the package deepspeed is not installed")
    device = dist_runtime.start().device
    deepspeed = import_library()
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    model = peer.model(task, torch.bfloat16 if device.type == "cuda" else torch.float32)
    per_token, kernel = peer.flops_per_token(model, task["tokens"]), peer.attention_of(model, task)
    UlyssesSPAttentionHF.register_with_transformers(
        model, peer.attention(task["device"]), sequence_parallel_size=1, micro_batch_size=1, seq_length=task["tokens"]
    )
    modeling_llama.LlamaMLP.forward = _tiled_mlp  # type: ignore[method-assign]  # as its own example does
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=task["lr"], betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    engine, *_ = deepspeed.initialize(
        model=TiledLoss(model).to(device), optimizer=optimizer, config=settings(device), dist_init_required=False
    )
    steps = Steps(rows(model.config.vocab_size, task), device, task["deadline"])
    about = {"kernel": kernel, "parts": "ZeRO-3, tiled MLP, tiled loss, full recomputation"}
    while steps.more():
        _step(engine, steps, device)
        save({**about, **steps.result()})
    return peer.with_mfu({**about, **steps.result()}, per_token, device)


def settings(device: torch.device) -> dict[str, Any]:
    """DeepSpeed's configuration: bf16 with fp32 masters, everything on the device."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "bf16": {"enabled": device.type == "cuda"},
        "gradient_clipping": 1.0,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": 3},
    }


class TiledLoss(nn.Module):
    """The model with the mean loss over tiles of tokens."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, position_ids: Tensor, labels: Tensor) -> Tensor:
        """Labels are shifted already."""
        from deepspeed.runtime.sequence_parallel.ulysses_sp import TiledFusedLogitsLoss

        hidden = self.model.model(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
        tiles = max(2, math.ceil(4 * labels.numel() * self.model.config.vocab_size / LOGIT_BYTES))
        weight = self.model.lm_head.weight
        tied = self.model.config.tie_word_embeddings
        # The tiles' last gradient would be handed on, and a tied embedding's, later in the same step, once more: that
        # one is the last then.
        weight.ds_grad_is_ready = False
        count = (labels != IGNORE_INDEX).sum()

        def part(model: Any, hidden: Tensor, labels: Tensor) -> Tensor:
            """A tile's part of the mean. Its gradients are taken within forward: dividing later would miss the head."""
            logits = model.lm_head(hidden).float()
            return nn.functional.cross_entropy(logits, labels, reduction="sum") / count

        loss: Tensor = TiledFusedLogitsLoss.apply(
            part, self.model, hidden, labels, None, tiles, [] if tied else [weight], "sum"
        )
        weight.ds_grad_is_ready = True
        return loss


def _tiled_mlp(self: Any, x: Tensor) -> Tensor:
    """LlamaMLP.forward over ceil(tokens / hidden) tiles, ALST's own choice."""
    from deepspeed.runtime.sequence_parallel.ulysses_sp import TiledMLP

    def whole(self: Any, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return out

    weights = [self.down_proj.weight, self.gate_proj.weight, self.up_proj.weight]
    out: Tensor = TiledMLP.apply(whole, self, x, math.ceil(x.shape[1] / x.shape[2]), weights)
    return out


def _step(engine: Any, steps: Steps, device: torch.device) -> None:
    batch = make_batch(steps.rows[steps.taken].unsqueeze(0)).to(device)
    steps.start()
    loss = engine(batch.input_ids, batch.position_ids, batch.labels)
    engine.backward(loss)
    engine.step()
    steps.stop(loss.item)
