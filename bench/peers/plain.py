"""A plain accelerate loop with all logits, the shape of the reference's script (jquesnelle/yarn, finetune.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import get_constant_schedule

from bench.peers.case import Case
from bench.peers.in_order import Rows
from bench.peers.turns import Turns


def train(case: Case, turns: Turns) -> None:
    """Until there are no more turns."""
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if case.dtype == "bfloat16" else "no")
    model = case.peer_model()
    if case.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=case.lr, betas=(0.9, 0.95), weight_decay=0.0)
    parts: Any = accelerator.prepare(model, optimizer, DataLoader(Rows(case.rows()), batch_size=1))
    model, optimizer, loader = parts
    scheduler = accelerator.prepare(get_constant_schedule(optimizer))
    model.train()
    batches = iter(loader)
    while turns.wait():
        with accelerator.accumulate(model):
            loss = model(**next(batches)).loss
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        turns.done(float(np.float32(loss.item())))
