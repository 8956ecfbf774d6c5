"""transformers' Trainer, with or without gradient checkpointing and Liger's kernels, as people start it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from bench.gpu import peer
from bench.gpu.outcome import Missing
from bench.gpu.timing import Steps, rows
from bench.gpu.worker import Save
from bench.peers.in_order import InOrder, Rows


def measure(task: dict[str, Any], save: Save) -> dict[str, Any]:
    """As :func:`bench.gpu.ours.measure`."""
    for package in ("accelerate", *(["liger_kernel"] if task["liger"] else [])):
        if importlib.util.find_spec(package) is None:
            raise Missing(f"the package {package.replace('_', '-')} is not installed")
    if task["liger"] and task["device"] != "cuda":
        raise Missing("Liger's kernels need a GPU")
    device = torch.device(task["device"])
    model = peer.model(task, torch.float32)
    per_token = peer.flops_per_token(model, task["tokens"])
    steps = Steps(rows(model.config.vocab_size, task), device, task["deadline"])
    about = {"kernel": peer.attention_of(model, task)}
    timer = Timer(steps, lambda: save({**about, **steps.result()}))
    trainer = InOrder(model, arguments(task), train_dataset=Rows(steps.rows), callbacks=[timer])
    timer.trainer = trainer
    trainer.train()
    return peer.with_mfu({**about, **steps.result()}, per_token, device)


def arguments(task: dict[str, Any]) -> TrainingArguments:
    """bf16 autocast over fp32 weights, fused AdamW; every block recomputed, or none."""
    cuda = task["device"] == "cuda"
    return TrainingArguments(
        output_dir=str(Path(task["models"]) / "hf_trainer"),
        max_steps=task["steps"] + 1,
        per_device_train_batch_size=1,
        learning_rate=task["lr"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        adam_beta1=0.9,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=cuda,
        use_cpu=not cuda,
        gradient_checkpointing=task["checkpoint"],
        gradient_checkpointing_kwargs={"use_reentrant": False},
        use_liger_kernel=task["liger"],
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=cuda,
    )


class Timer(TrainerCallback):
    """Times each step from its batch to its update, and stops when there is no more time."""

    def __init__(self, steps: Steps, seen: Any):
        self.steps, self.seen = steps, seen
        self.trainer: InOrder | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The batch was read already, which is no part of the step."""
        self.steps.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the optimizer's update."""
        assert self.trainer is not None
        self.steps.stop(self.trainer.last.item)
        self.seen()
        control.should_training_stop = not self.steps.more()
