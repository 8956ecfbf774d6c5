"""``frequencies.json``: the RoPE tables behind the curves of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import PretrainedConfig

from ..rope import hf as rope_hf
from .variants import Variant


def write_frequencies(path: Path, chosen: Sequence[Variant], base: PretrainedConfig, original_length: int) -> None:
    """Write every variant's RoPE table for the report, which never imports torch."""
    plain = rope_hf.base_rope(base)
    tables = []
    for variant in chosen:
        if variant.rope is None:
            continue
        table = rope_hf.table_for(base, variant.rope)
        tables.append(
            {
                "label": variant.label,
                "method": variant.method,
                "ramp": variant.ramp,
                "factor": variant.factor,
                "inv_freq": table.inv_freq.tolist(),
                "attention_factor": table.attention_factor,
            }
        )
    content = {"head_dim": plain.rotary_dim, "theta": plain.theta, "original_length": original_length, "tables": tables}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) + "\n")
