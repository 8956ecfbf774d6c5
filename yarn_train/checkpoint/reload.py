"""An exported folder as a stranger's process reads it: python -m yarn_train.checkpoint.reload FOLDER OUT [trust]

The process that trained has patched kernels, caches and modules of its own; a server has not. So what a fresh process
computes from the files is compared by the process that knows what is right.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..errors import CheckpointError

PROBE_TOKENS = 96
PARTS = ("first", "middle", "last")  # thirds of the probe, whose positions rise over the whole extended window


def probe(vocab_size: int, span: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A short sequence whose positions reach over the whole extended window, so wrong frequencies cannot hide.

    Returns:
        input_ids [1, PROBE_TOKENS], position_ids [1, PROBE_TOKENS] rising from 0 to span - 1.
    """
    tokens = min(PROBE_TOKENS, span)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(0, vocab_size, (1, tokens), generator=generator)
    position_ids = torch.linspace(0, span - 1, tokens, dtype=torch.float64).long().unsqueeze(0)
    return input_ids, position_ids


def load(folder: Path, dtype: torch.dtype | str, trust: bool) -> PreTrainedModel:
    """An exported folder in plain transformers, by its own SDPA."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa", trust_remote_code=trust
    )
    return model.eval()


def probed(model: PreTrainedModel) -> Tensor:
    """Logits [1, PROBE_TOKENS, vocabulary] of :func:`probe`, float32."""
    input_ids, position_ids = probe(model.config.vocab_size, model.config.max_position_embeddings)
    # The mask of ones keeps transformers from taking the probe's jumping positions for packed documents.
    mask = torch.ones_like(input_ids)
    with torch.inference_mode():
        logits = model(input_ids=input_ids, attention_mask=mask, position_ids=position_ids, use_cache=False).logits
    return logits.float()


def fresh_logits(folder: Path, trust: bool = False) -> Tensor:
    """:func:`probed` of a folder by a process of its own, in the dtype that its config names.

    Raises:
        CheckpointError: it could not load the folder.
    """
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "logits.pt"
        command = [sys.executable, "-m", __name__, str(folder), str(out), *(["trust"] if trust else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not out.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise CheckpointError(f"{folder} cannot be loaded by a fresh process: {last}")
        logits: Tensor = torch.load(out, weights_only=True)
    return logits


def differences(expected: Tensor, got: Tensor) -> dict[str, float]:
    """Relative L2 difference of logits in each of :data:`PARTS`."""
    pairs = zip(expected.tensor_split(len(PARTS), dim=1), got.tensor_split(len(PARTS), dim=1), strict=True)
    return {part: ((a - b).norm() / a.norm()).item() for part, (a, b) in zip(PARTS, pairs, strict=True)}


if __name__ == "__main__":
    torch.save(probed(load(Path(sys.argv[1]), "auto", sys.argv[3:] == ["trust"])).clone(), sys.argv[2])
