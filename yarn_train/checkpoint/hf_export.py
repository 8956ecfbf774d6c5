"""Export to a Hugging Face folder that plain transformers loads, compared with the trained model before it counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import remote_code
from ..dist.failure import storage_error
from ..errors import CheckpointError
from ..rope import hf as rope_hf
from ..rope.frequencies import RopeTable
from .reload import differences, fresh_logits, load, probed
from .reload import probe as probe

# Relative L2 difference of the probe's logits that the trained model's compute dtype explains. Weights and RoPE table
# are compared exactly; this last check is for anything else in the saved config.
LOGITS_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def write_model(
    folder: Path,
    model: PreTrainedModel,
    weights: dict[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    table: RopeTable,
    probe_logits: torch.Tensor,
    compute_dtype: torch.dtype,
    finish: Callable[[Path], None] = lambda folder: None,
    fresh: bool = False,
) -> None:
    """Write config, weights and tokenizer aside, reload them in plain transformers, compare, then rename.

    Args:
        folder: where the model goes; must not exist.
        model: the trained transformers module (its config is exported; its weights may be sharded and are not read).
        weights: complete weights on the CPU.
        dtype: dtype of the exported weights.
        table: the RoPE table the model was trained with; the reloaded model must compute the same.
        probe_logits: the trained model's logits on :func:`probe`, computed in `compute_dtype`.
        finish: adds what else belongs into the folder, before it is reloaded.
        fresh: reload it in a process of its own too, which takes seconds to import what it needs.

    Raises:
        CheckpointError: the reloaded model has other weights, another RoPE table or other logits.
        StorageError: it could not be written.
    """
    aside = folder.with_name(f".{folder.name}.incomplete")
    shutil.rmtree(aside, ignore_errors=True)
    exported = {name: tensor.to(dtype) for name, tensor in weights.items()}
    try:
        _save(aside, model, exported, tokenizer, dtype)
        finish(aside)
        _compare(aside, model, exported, dtype, table, probe_logits, compute_dtype, fresh)
        aside.rename(folder)
    except BaseException as error:
        told = None
        if isinstance(error, Exception):  # before the space is given back
            told = storage_error(error, aside, sum(tensor.nbytes for tensor in exported.values()))
        shutil.rmtree(aside, ignore_errors=True)
        if told is not None:
            raise told from error
        raise


def _compare(
    aside: Path,
    model: PreTrainedModel,
    exported: dict[str, torch.Tensor],
    dtype: torch.dtype,
    table: RopeTable,
    probe_logits: torch.Tensor,
    compute_dtype: torch.dtype,
    fresh: bool,
) -> None:
    trust = remote_code.flag(model.config)
    reloaded = load(aside, dtype, trust)
    rope_hf.verify_tables(reloaded, table)
    _compare_weights(exported, reloaded.state_dict())
    limit = LOGITS_TOLERANCE[compute_dtype]
    _compare_logits(probe_logits, probed(reloaded), limit)
    if fresh:
        del reloaded
        _compare_logits(probe_logits, fresh_logits(aside, trust), limit)


def _compare_weights(expected: dict[str, torch.Tensor], got: dict[str, torch.Tensor]) -> None:
    for name, tensor in expected.items():
        if name not in got or not torch.equal(tensor, got[name]):
            raise CheckpointError(f"the exported model differs from the trained one in {name}; nothing was published")


def _compare_logits(expected: torch.Tensor, got: torch.Tensor, tolerance: float) -> None:
    found = differences(expected, got)
    if not all(error <= tolerance for error in found.values()):
        said = ", ".join(f"{error:.3g} in the {part} part" for part, error in found.items())
        raise CheckpointError(
            f"the exported model differs from the trained one: relative logit difference {said} of the window, "
            f"allowed {tolerance:.3g}; nothing was published and the checkpoint is intact"
        )


def _save(
    folder: Path,
    model: PreTrainedModel,
    weights: dict[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
) -> None:
    head = model.get_output_embeddings()
    if head is not None and head.weight is model.get_input_embeddings().weight:
        weights = {k: v for k, v in weights.items() if not k.startswith("lm_head.")}  # tied: one copy on disk
    # A fresh, unsharded module of the same config: save_pretrained knows its naming rules and shard sizes.
    with torch.device("meta"):
        shell = type(model)(model.config)
    shell.save_pretrained(folder, state_dict=weights, max_shard_size="5GB")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["use_cache"] = True
    config["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(rope_hf.write_both_spellings(config), indent=2, sort_keys=True) + "\n")
    _edit_json(folder / "generation_config.json", use_cache=True)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    if tokenizer.is_fast and type(tokenizer).__name__ == "TokenizersBackend":
        # transformers 5's name for a tokenizer.json without a model-specific class; transformers 4 knows it as this.
        _edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def _edit_json(path: Path, **changes: object) -> None:
    if path.is_file():
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}, indent=2) + "\n")
