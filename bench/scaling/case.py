"""The model whose steps are timed: our engine around a Llama of any size, on any number of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig

from bench.gpu.kernel import available
from yarn_train import config as schema
from yarn_train.config import Config
from yarn_train.dist import runtime as dist_runtime
from yarn_train.dist.runtime import Runtime
from yarn_train.engine.base import Engine
from yarn_train.model.load import DTYPES
from yarn_train.model.registry import Kernel
from yarn_train.parallel.context import ContextParallel
from yarn_train.train.setup import build_engine, make_mesh


@dataclass(frozen=True)
class Case:
    """Sizes of the model and how it runs.

    Attributes:
        activation: memory.activation of all steps.
    """

    hidden: int = 128
    layers: int = 1
    heads: int = 2
    kv_heads: int = 2
    vocab: int = 256
    dtype: str = "float32"
    activation: str = "none"

    @property
    def llama(self) -> LlamaConfig:
        """With Llama 2's ratio of widths."""
        return LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=11 * self.hidden // 4,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            vocab_size=self.vocab,
            max_position_embeddings=2**20,
            use_cache=False,
        )

    def options(self, **sections: dict[str, Any]) -> Config:
        """Options of ours, with `sections` added."""
        made: dict[str, dict[str, Any]] = {
            "model": {"dtype": self.dtype},
            "rope": {"method": "none", "factor": 1.0},
            "memory": {"activation": self.activation},
        }
        return schema.build(made | sections)


@dataclass(frozen=True)
class Built:
    """An engine and where it stands.

    Attributes:
        matmul, recomputed: weights that every token is multiplied with, and those again in backward.
    """

    engine: Engine
    runtime: Runtime
    context: ContextParallel
    kernel: Kernel
    matmul: int
    recomputed: int


def build(case: Case, **sections: dict[str, Any]) -> Built:
    """The engine over all ranks of this process's group; the same weights on any number of them."""
    runtime = dist_runtime.start()
    dist_runtime.seed_everything(0)
    cfg, llama = case.options(**sections), case.llama
    mesh = make_mesh(cfg, llama, runtime)
    context = ContextParallel(mesh)
    kernel = available("auto", runtime.device, DTYPES[case.dtype], case.hidden // case.heads)
    engine, size = build_engine(cfg, llama, None, context.attention(kernel), mesh, runtime.device)
    again = 0 if case.activation == "none" else size.matmul - case.hidden * case.vocab
    return Built(engine, runtime, context, kernel, size.matmul, again)


def step(built: Built, batch: Any, tokens: float) -> torch.Tensor:
    """Forward and backward of one batch, gradients dropped; returns the loss, over `tokens` of all ranks."""
    count = torch.tensor(tokens, device=built.runtime.device)
    loss: torch.Tensor = built.engine.module(batch.input_ids, batch.position_ids, batch.labels)
    built.engine.backward(loss, count)
    built.engine.skip()
    return loss.detach() / count
