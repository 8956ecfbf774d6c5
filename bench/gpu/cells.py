"""Every cell of the table by name: what is measured in a process of its own. Never imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from yarn_train.config import ModelConfig

KI = 1024
LENGTHS = (64 * KI, 8 * KI, 32 * KI, 128 * KI, 256 * KI)  # 64k first: the length that counts most
KERNEL_LENGTHS = tuple(sorted(LENGTHS))
KERNEL_WIDTH = 2048  # heads * head_dim, of the published charts of attention kernels
WARM = 8 * KI  # tokens of a trainer's first step, which is never timed: it loads kernels and allocates
RATE, TINY_RATE = 1e-5, 1e-2  # of AdamW; the second so large that a wrong gradient shows in the next loss
GROUP = 4  # query heads per head of keys and values, in grouped-query attention

# What is kept for backward, from the fastest to the leanest; a cell takes the first that fits.
POLICIES: dict[str, dict[str, Any]] = {
    "none": {"memory": {"activation": "none"}},
    "attention": {"memory": {"activation": "attention"}},
    "attention, offload": {"memory": {"activation": "attention", "offload": True}},
    "attention, offload, tiled": {"memory": {"activation": "attention", "offload": True, "tiled_mlp": True}},
    "full, offload, tiled": {"memory": {"activation": "full", "offload": True, "tiled_mlp": True}},
}
LEANEST = "full, offload, tiled"
SHORT = 32 * KI  # up to here keeping everything may fit
COMPILED = {"compile": {"enabled": True}}
# name of a row of the table -> (architecture, options). An 8B with AdamW in float32 needs 128 GB.
TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "1b": ("1b", {}),
    "1b-compiled": ("1b", COMPILED),
    "1b-4layers": ("1b-4layers", {}),  # where a step of the whole model outlasts the limit
    "3b": ("3b", {}),
    "3b-compiled": ("3b", COMPILED),
    "3b-4layers": ("3b-4layers", {}),
    "8b-bfloat16": ("8b", {"optim": {"state": "bfloat16"}}),
    "8b-offload": ("8b", {"engine": {"offload": "optimizer"}}),
}
# Trainers of the same steps. transformers' "sdpa" may be cuDNN's kernel, which ours never is unless asked for.
TRAINERS = ("ours", "ours-cudnn", "hf", "hf-liger", "alst")
CUDNN = {"model": {"attention": "sdpa_cudnn"}}
# Of the Trainer, by the names that memory.activation has for the same: what is kept for backward.
CHECKPOINTING: dict[str, dict[str, Any]] = {"none": {"checkpoint": False}, "full": {"checkpoint": True}}


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        name: its file in the folder of results; ``kind/...``.
        kind: model | kernel | train | hf | alst | longest.
        spec: what it is, as JSON; two cells with the same name and another spec are not the same.
        variants: parts of `spec` to be tried in this order until one does not run out of memory; by name.
        needs: cells that must have run before.
    """

    name: str
    kind: str
    spec: dict[str, Any]
    variants: tuple[tuple[str, dict[str, Any]], ...] = (("", {}),)
    needs: tuple[str, ...] = ()


def kernels() -> tuple[str, ...]:
    """Attention kernels that the trainer knows by name; sdpa_flash is left out, which is sdpa here (bfloat16)."""
    (attention,) = (field for field in fields(ModelConfig) if field.name == "attention")
    return tuple(name for name in attention.metadata["choices"] if name not in ("auto", "sdpa_flash"))


def catalogue(tiny: bool) -> list[Cell]:
    """All cells in the order in which they run; `tiny` ones are for a CPU and give no figures."""
    return list(_tiny() if tiny else _full())


def _full() -> Iterator[Cell]:
    for head_dim in (128, 64):
        for grouped in (False, True):
            for kernel in kernels():
                yield kernel_cell(kernel, KERNEL_WIDTH // head_dim, head_dim, grouped, KERNEL_LENGTHS)
    for size in ("1b", "3b"):
        yield model_cell(size)
        for tokens in (64 * KI, 8 * KI) if size == "1b" else (64 * KI,):
            yield from side_by_side(size, tokens)
        for tokens in LENGTHS:
            yield train_cell(size, tokens)
        yield train_cell(f"{size}-compiled", 64 * KI)
        yield model_cell(f"{size}-4layers")
        for tokens in (128 * KI, 256 * KI):
            yield train_cell(f"{size}-4layers", tokens)
        yield longest_cell(f"{size}-4layers", size, 16 * KI, 2048 * KI)
    yield model_cell("8b")
    for row in ("8b-bfloat16", "8b-offload"):
        for tokens in LENGTHS:
            yield train_cell(row, tokens)


def _tiny() -> Iterator[Cell]:
    for kernel in kernels():
        yield kernel_cell(kernel, 2, 16, True, (64, 128))
    yield model_cell("tiny")
    yield train_cell("tiny", 64, row=("tiny", {}))
    yield longest_cell("tiny", "tiny", 32, 128)
    yield from side_by_side("tiny", 64, row=("tiny", {}))


def model_cell(size: str) -> Cell:
    """Random weights on the disk, for all trainers to load."""
    return Cell(f"model/{size}", "model", {"size": size})


def kernel_cell(kernel: str, heads: int, head_dim: int, grouped: bool, lengths: tuple[int, ...]) -> Cell:
    """Forward and backward of one attention kernel at several lengths."""
    kv_heads = max(1, heads // GROUP) if grouped else heads
    spec = {"kernel": kernel, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "lengths": list(lengths)}
    return Cell(f"kernel/{kernel}/{head_dim}-{'gqa' if grouped else 'mha'}", "kernel", spec)


def train_cell(name: str, tokens: int, row: tuple[str, dict[str, Any]] | None = None, steps: int = 6) -> Cell:
    """Optimizer steps by our own trainer."""
    return _ours(f"train/{name}/{tokens}", name, tokens, row, steps)


def side_by_side(
    name: str, tokens: int, row: tuple[str, dict[str, Any]] | None = None, steps: int = 6
) -> Iterator[Cell]:
    """The same steps on the same tokens with the same weights by each trainer."""
    size, options = row or TRAINED[name]
    spec = _spec(size, tokens, steps)
    checkpointing = tuple((kept, part) for kept, part in CHECKPOINTING.items() if kept != "none" or tokens <= SHORT)
    for trainer in TRAINERS:
        at = f"side/{name}/{tokens}/{trainer}"
        if trainer == "ours":
            yield _ours(at, name, tokens, row, steps)
        elif trainer == "ours-cudnn":
            yield _ours(at, name, tokens, (size, options | CUDNN), steps)
        elif trainer == "alst":  # its recipe is to recompute
            yield Cell(at, "alst", spec, (("full", {}),), (f"model/{size}",))
        else:
            liger = {"liger": trainer.endswith("liger")}
            yield Cell(at, "hf", {**spec, **liger}, checkpointing, (f"model/{size}",))


def longest_cell(name: str, whole: str, start: int, most: int) -> Cell:
    """The longest sequence of which one step fits; its probes are cells of their own, see :func:`probe_cell`.

    Args:
        whole: the size about which a prediction is made from these probes; it may have more layers.
    """
    spec = {"row": name, "whole": whole, "start": start, "most": most}
    return Cell(f"longest/{name}", "longest", spec, needs=(f"model/{_row(name)[0]}",))


def probe_cell(name: str, tokens: int) -> Cell:
    """One step by the leanest policy."""
    size, options = _row(name)
    spec = {**_spec(size, tokens, 1), "options": options}
    return Cell(f"longest/{name}/{tokens}", "train", spec, ((LEANEST, {"policy": POLICIES[LEANEST]}),))


def _ours(at: str, name: str, tokens: int, row: tuple[str, dict[str, Any]] | None, steps: int) -> Cell:
    size, options = row or TRAINED[name]
    spec = {**_spec(size, tokens, steps), "options": options}
    if options == COMPILED:
        spec["warm"] = tokens  # every length has a graph of its own
    policies = [policy for policy in POLICIES if policy != "none" or tokens <= SHORT]
    variants = tuple((policy, {"policy": POLICIES[policy], **_warmer(POLICIES[policy], tokens)}) for policy in policies)
    return Cell(at, "train", spec, variants, (f"model/{size}",))


def _spec(size: str, tokens: int, steps: int) -> dict[str, Any]:
    rate = TINY_RATE if size == "tiny" else RATE
    return {"size": size, "tokens": tokens, "warm": min(WARM, tokens), "steps": steps, "lr": rate}


def _warmer(policy: dict[str, Any], tokens: int) -> dict[str, Any]:
    """The first step that offloads makes the pinned buffers of its length, which takes longer than many steps."""
    return {"warm": tokens} if policy["memory"].get("offload") else {}


def _row(name: str) -> tuple[str, dict[str, Any]]:
    return TRAINED.get(name, (name, {}))
