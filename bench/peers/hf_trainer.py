"""Hugging Face's Trainer as people start it: bf16, AdamW, gradient checkpointing or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from bench.peers.case import Case
from bench.peers.in_order import InOrder, Rows
from bench.peers.turns import Turns


class InTurns(TrainerCallback):
    """Waits for its turn before each step."""

    def __init__(self, turns: Turns):
        self.turns = turns
        self.trainer: InOrder | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the forward; the batch was read already, which is no part of the step."""
        if not self.turns.wait():
            raise SystemExit

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the optimizer's update."""
        assert self.trainer is not None
        self.turns.done(self.trainer.last.item())


def train(case: Case, turns: Turns, compiled: bool = False) -> None:
    """Until there are no more turns."""
    arguments = TrainingArguments(
        output_dir=str(Path(case.folder) / "hf_trainer"),
        max_steps=case.steps,
        per_device_train_batch_size=1,
        learning_rate=case.lr,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        adam_beta1=0.9,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        bf16=case.dtype == "bfloat16",
        use_cpu=True,
        gradient_checkpointing=case.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        torch_compile=compiled,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    callback = InTurns(turns)
    trainer = InOrder(case.peer_model(), arguments, train_dataset=Rows(case.rows()), callbacks=[callback])
    callback.trainer = trainer
    trainer.train()
