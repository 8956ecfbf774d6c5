"""``python -m yarn_train.export CHECKPOINT OUT``: make a Hugging Face folder of any checkpoint, verified.

CHECKPOINT is a ``step_…`` folder, or a stage folder (its newest complete checkpoint). Works without the other ranks:
sharded tensors are read into one complete copy in host memory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from . import config as schema
from .checkpoint import dcp, hf_export
from .checkpoint.manager import COMPLETE, complete_checkpoints
from .config import Config
from .data.tokenize import load_tokenizer
from .dist import runtime as dist_runtime
from .engine.fsdp2 import PREFIX
from .errors import CheckpointError, YarnTrainError
from .model.attention import choose_kernel
from .model.causal_lm import CausalLM
from .model.load import DTYPES, build_model, load_config
from .rope import hf as rope_hf


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, export, say what was checked; exit status 2 for anything a user can fix."""
    parser = argparse.ArgumentParser(prog="python -m yarn_train.export", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="step_… folder, or a stage folder for its newest checkpoint")
    parser.add_argument("out", type=Path, help="Hugging Face folder to write; must not exist")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="dtype of the weights (default: the run's own)")
    options = parser.parse_args(arguments)
    try:
        checkpoint = find_checkpoint(options.checkpoint)
        if options.out.exists():
            raise CheckpointError(f"{options.out} exists; name a folder that does not, nothing is overwritten")
        export_checkpoint(checkpoint, options.out, options.dtype)
    except YarnTrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"exported {checkpoint} to {options.out}: same weights, RoPE table and logits in plain transformers")
    return 0


def find_checkpoint(path: Path) -> Path:
    """The checkpoint a path means.

    Raises:
        CheckpointError: there is no complete checkpoint.
    """
    if (path / COMPLETE).is_file():
        return path
    found = complete_checkpoints(path / "checkpoints")
    if not found:
        raise CheckpointError(f"{path}: no complete checkpoint; give a stage folder or a step_… folder with {COMPLETE}")
    return found[-1]


def export_checkpoint(checkpoint: Path, out: Path, dtype: str | None = None) -> None:
    """Write `checkpoint` to `out` as its stage's configuration says."""
    cfg = stage_config(checkpoint)
    base = load_config(cfg.model.path)
    kernel = choose_kernel("sdpa", torch.device("cpu"), torch.float32)
    module = CausalLM(build_model(None, base, cfg.rope, kernel)).eval()
    dist_runtime.start()
    tensors = module.state_dict()
    if cfg.engine.name == "deepspeed":  # masters are saved flat, and a tied one once; views fill the module in place
        dcp.load({"master": {name: p.detach().view(-1) for name, p in module.named_parameters()}}, checkpoint)
    else:
        dcp.load({"model": tensors}, checkpoint)
        module.load_state_dict(tensors)
    ids, positions = hf_export.probe(module.model.config.vocab_size, module.model.config.max_position_embeddings)
    name = dtype or cfg.checkpoint.export_dtype
    with torch.no_grad():
        logits = module(ids, positions)
    hf_export.write_model(
        out,
        module.model,
        {key.removeprefix(PREFIX): value for key, value in tensors.items()},
        load_tokenizer(cfg.model.path),
        dtype=DTYPES[name],
        table=rope_hf.table_for(base, cfg.rope),
        probe_logits=logits,
        compute_dtype=DTYPES[name],
    )


def stage_config(checkpoint: Path) -> Config:
    """The configuration frozen in the checkpoint's stage folder."""
    path = checkpoint.resolve().parent.parent / "config.yaml"
    if not path.is_file():
        raise CheckpointError(f"{checkpoint}: {path} is missing; a checkpoint is exported from inside its stage folder")
    return schema.build(yaml.safe_load(path.read_text()))


if __name__ == "__main__":
    sys.exit(main())
