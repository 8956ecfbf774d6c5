"""``python -m yarn_train.export CHECKPOINT OUT``: make a Hugging Face folder of any checkpoint, verified.

CHECKPOINT is a ``step_…`` folder, or a stage folder (its newest intact checkpoint). Works without the other ranks:
sharded tensors are read into one complete copy in host memory.

``python -m yarn_train.export --check FOLDER`` writes nothing: it judges any Hugging Face folder, or its config.json,
by what transformers 4 and 5, vLLM, SGLang, llama.cpp and TensorRT-LLM would each compute from it. Exit status 0: no
fault, 1: faults, 2: it cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml

from . import config as schema
from . import model_revision, remote_code
from .checkpoint import hf_export, index
from .checkpoint.complete import COMPLETE, complete_checkpoints, problems_of
from .config import Config
from .data.tokenize import load_tokenizer
from .dist import environment
from .engine.fsdp2 import PREFIX
from .errors import CheckpointError, YarnTrainError
from .interop import given, judge, show
from .model import adapters
from .model.causal_lm import CausalLM
from .model.load import DTYPES, build_model, load_base
from .model.registry import choose_kernel
from .redact import guard_streams
from .rope import hf as rope_hf
from .train import model_card
from .train.overview import original_length
from .train.run_folder import model_commit


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, export, say what was checked; exit status 2 for anything a user can fix."""
    parser = argparse.ArgumentParser(prog="python -m yarn_train.export", description=__doc__)
    parser.add_argument(
        "checkpoint", type=Path, nargs="?", help="step_… folder, or a stage folder: its newest intact one"
    )
    parser.add_argument("out", type=Path, nargs="?", help="Hugging Face folder to write; must not exist")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="dtype of the weights (default: the run's own)")
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="judge this Hugging Face folder; writes nothing")
    parser.add_argument("--json", action="store_true", help="with --check: the judgement as JSON, frequencies included")
    options = parser.parse_args(arguments)
    named = [options.checkpoint, options.out]
    if options.check is not None and (any(named) or options.dtype):
        parser.error("--check takes a folder and nothing else to export")
    if options.check is None and (not all(named) or options.json):
        parser.error("name CHECKPOINT and OUT, or --check FOLDER (with --json if you like)")
    try:
        if options.check is not None:
            return check(options.check, options.json)
        checkpoint = find_checkpoint(options.checkpoint)
        if options.out.exists():
            raise CheckpointError(f"{options.out} exists; name a folder that does not, nothing is overwritten")
        export_checkpoint(checkpoint, options.out, options.dtype)
    except YarnTrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    compared = "same weights, RoPE table and logits in plain transformers, here and in a fresh process"
    print(f"exported {checkpoint} to {options.out}: {compared}")
    return 0


def check(folder: Path, as_json: bool = False, say: Callable[[str], None] = print) -> int:
    """Judge a Hugging Face folder or config.json; 1 if there are faults, else 0.

    Raises:
        CheckpointError: it cannot be read.
    """
    found = judge.judge(given.load(folder))
    for line in [json.dumps(judge.as_data(found), indent=1)] if as_json else show.lines(found):
        say(line)
    return 1 if found.faults else 0


def find_checkpoint(path: Path, say: Callable[[str], None] = print) -> Path:
    """The intact checkpoint a path means; of a stage folder the newest one.

    Raises:
        CheckpointError: there is none, or the one that is named is damaged.
    """
    named = (path / COMPLETE).is_file()
    found = [path] if named else complete_checkpoints(path / "checkpoints")
    for checkpoint in reversed(found):
        problems = problems_of(checkpoint)
        if not problems:
            return checkpoint
        say(f"{checkpoint} is damaged and not used: {'; '.join(problems)}")
    if named:
        raise CheckpointError(f"{path} is damaged; export another one, or give its stage folder for the newest intact")
    if found:
        raise CheckpointError(f"{path}: none of its {len(found)} checkpoints is intact")
    raise CheckpointError(f"{path}: no complete checkpoint; give a stage folder or a step_… folder with {COMPLETE}")


def export_checkpoint(checkpoint: Path, out: Path, dtype: str | None = None) -> None:
    """Write `checkpoint` to `out` as its stage's configuration says."""
    cfg = stage_config(checkpoint)
    run = checkpoint.resolve().parent.parent.parent  # of the stage that the checkpoint is in
    pinned = model_revision.pinned(cfg.model.path, cfg.model.revision, model_commit(run, cfg))
    with remote_code.allowed(cfg.model.trust_remote_code), pinned:
        _export(cfg, checkpoint, out, dtype)


def _export(cfg: Config, checkpoint: Path, out: Path, dtype: str | None) -> None:
    stage = checkpoint.resolve().parent.parent
    base = load_base(cfg)
    kernel = choose_kernel("sdpa", torch.device("cpu"), torch.float32)
    model = build_model(None, base, cfg.rope, kernel)
    if cfg.adapter.name == "lora":
        adapters.inject(model, cfg.adapter)
    module = CausalLM(model).eval()
    stored = torch.bfloat16 if cfg.optim.state == "bfloat16" else torch.float32
    for parameter in module.parameters():
        parameter.data = parameter.data.to(stored)
    index.read(checkpoint, {"weights": dict(module.named_parameters())})
    for parameter in module.parameters():
        parameter.data = parameter.data.float()
    tensors = module.state_dict()
    ids, positions = hf_export.probe(module.model.config.vocab_size, module.model.config.max_position_embeddings)
    name = dtype or cfg.checkpoint.export_dtype
    with torch.no_grad():
        logits = module(ids, positions)
    hf_export.write_model(
        out,
        module.model,
        adapters.merged({key.removeprefix(PREFIX): value for key, value in tensors.items()}, cfg.adapter),
        load_tokenizer(cfg.model.path),
        dtype=DTYPES[name],
        table=rope_hf.table_for(base, cfg.rope),
        probe_logits=logits,
        compute_dtype=DTYPES[name],
        fresh=True,
        finish=lambda folder: model_card.write(folder, cfg, stage, original_length(cfg, base)),
    )


def stage_config(checkpoint: Path) -> Config:
    """The configuration frozen in the checkpoint's stage folder."""
    path = checkpoint.resolve().parent.parent / "config.yaml"
    if not path.is_file():
        raise CheckpointError(f"{checkpoint}: {path} is missing; a checkpoint is exported from inside its stage folder")
    return schema.build(yaml.safe_load(path.read_text()))


if __name__ == "__main__":
    guard_streams(environment.secrets())
    sys.exit(main())
