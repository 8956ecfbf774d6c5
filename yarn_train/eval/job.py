"""What every evaluation is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from ..config import Config, DataConfig
from ..dist.runtime import Runtime
from .variants import Variant

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """Models to evaluate, on what, and where the rows go.

    Attributes:
        cfg: eval, passkey, harness, study, model and parallel count.
        variants: the models, in the order of tables and plots.
        base: config that each variant's own RoPE is written into.
        length: L, tokens that the base was pretrained at; 0 where nothing says it.
        factor: the largest s among the variants.
        data: where held-out documents come from, its revision pinned.
        folder: gets ``<task>.json``.
        say: prints a line on the main process.
    """

    cfg: Config
    variants: Sequence[Variant]
    base: PretrainedConfig
    tokenizer: Any
    length: int
    factor: float
    data: DataConfig
    folder: Path
    runtime: Runtime
    say: Say
