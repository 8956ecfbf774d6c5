"""What a model's blocks do with attention, seen before any weights load: a forward of the meta skeleton, recorded.

Kernels and document masks sit behind transformers' attention interface. Whether an architecture uses the interface, and
hands on what it is given, is declared nowhere: some layers drop keywords, some compute attention themselves.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AutoModelForCausalLM, PretrainedConfig

from .. import remote_code
from ..config import Config
from ..errors import problem
from ..rope import hf as rope_hf
from ..rope.base import FULL
from .attention import refuse_ignored
from .availability import width_limits
from .causal_lm import CausalLM
from .local import LOCAL, windows

PROBE = "yarn_train_probe"
DOCUMENTS = ((0, 2),)  # of four tokens


@dataclass(frozen=True)
class Call:
    """One call of the attention function.

    Attributes:
        documents: whether they arrived.
        widths: of a head of q, k and v.
        ignored: what else was given that is not applied, as an error; "" if nothing.
    """

    documents: bool
    widths: tuple[int, int, int]
    ignored: str


@dataclass(frozen=True)
class Probe:
    """What a forward of a model showed.

    Attributes:
        blocks: per decoder block, its calls of the attention function.
        convolutions: class names of the blocks that also mix neighbouring tokens by a convolution.
        rotated: per decoder block, whether a rotary module's cos and sin reach its tensors.
        failure: why the forward did not reach its end, "" if it did; nothing else is known then.
        unknown: whether the failure is that the architecture looks its attention up in a list of its own.
    """

    blocks: tuple[tuple[Call, ...], ...] = ()
    rotated: tuple[bool, ...] = ()
    convolutions: tuple[str, ...] = ()
    failure: str = ""
    unknown: bool = False


class _Recorder:
    """Stands in for an attention function: computes nothing, books its calls under the block that runs."""

    def __init__(self) -> None:
        self.blocks: list[list[Call]] = []

    def enter(self, *_: object) -> None:
        """A block begins; a forward pre-hook."""
        self.blocks.append([])

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        dropout: float = 0.0,
        documents: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        widths, ignored = (query.shape[3], key.shape[3], value.shape[3]), ""
        try:
            refuse_ignored(query, key, attention_mask, dropout, kwargs)
        except ValueError as error:
            ignored = str(error)
        self.blocks[-1].append(Call(documents is not None, widths, ignored))
        return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None


class _Rotations(TorchFunctionMode):
    """Follows cos and sin from rotary modules to the first operation that joins them with anything else."""

    def __init__(self, recorder: _Recorder):
        super().__init__()
        self._recorder = recorder
        self._angles: dict[int, Tensor] = {}  # tensors made of cos or sin alone; held, as an id may be used again
        self.blocks: set[int] = set()  # numbers of the blocks in which they were used

    def made(self, _module: nn.Module, _arguments: object, output: Any) -> None:
        """A rotary module gave `output`; a forward hook."""
        for tensor in _tensors(output):
            self._angles[id(tensor)] = tensor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = _tensors((args, kwargs))
        own = [tensor for tensor in given if id(tensor) in self._angles]
        if own and len(own) < len(given):
            self.blocks.add(len(self._recorder.blocks) - 1)
        elif own:
            self.made(nn.Identity(), (), result)
        return result


def probe(base: PretrainedConfig) -> Probe:
    """Run every block of `base` on four tokens that have no memory; tenths of a second. `base` is not touched."""
    recorder = _Recorder()
    AttentionInterface.register(PROBE, recorder)
    try:
        module = skeleton(base)
        blocks = list(module.blocks)
        for block in blocks:
            block.register_forward_pre_hook(recorder.enter)
        ids = torch.zeros(1, 4, dtype=torch.int64, device="meta")
        rotations = _Rotations(recorder)
        for name in {rotary.name for rotary in rope_hf.rotary_tables(module)}:
            module.get_submodule(name).register_forward_hook(rotations.made)
        with torch.no_grad(), rotations:
            module(ids, ids, None, DOCUMENTS)
    except Exception as error:  # what an architecture's own code raises without memory can be anything
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        return Probe(failure=why, unknown=isinstance(error, KeyError) and PROBE in error.args)
    convolved = {type(block).__name__ for block in blocks if any(isinstance(m, nn.Conv1d) for m in block.modules())}
    turned = tuple(number in rotations.blocks for number in range(len(blocks)))
    return Probe(tuple(map(tuple, recorder.blocks)), turned, tuple(sorted(convolved)))


def attention_problems(base: PretrainedConfig, primitive: str | None = None) -> list[str]:
    """Problems of an architecture whose attention would not be computed by us, or cannot be by the chosen kernel.

    Nothing is said about one whose forward cannot be tried without memory.

    Args:
        primitive: the kernel's, of ``primitives.PRIMITIVES``; without it, what no kernel can compute is found.
    """
    seen = probe(base)
    if seen.unknown or (seen.blocks and not any(seen.blocks)):
        allowed = "architectures that compute attention through transformers' attention interface"
        got = f"{base.model_type}: attention that only its own code computes"
        return [problem("model.path", got, allowed, "use another base model")]
    calls = [call for block in seen.blocks for call in block]
    given = sorted({call.ignored for call in calls} - {""})
    found = [problem("model.path", base.model_type, "plain causal attention", error) for error in given]
    found += _position_problems(base, seen)
    return found + [line for widths in sorted({c.widths for c in calls}) for line in _width_problems(widths, primitive)]


def mask_problems(cfg: Config, base: PretrainedConfig) -> list[str]:
    """Problems of a model that would not keep documents apart; none unless data.document_mask=block."""
    if cfg.data.document_mask != "block":
        return []
    got = _not_apart(base)
    if not got:
        return []
    fix = "set data.document_mask=none, or use another base model"
    allowed = "models whose blocks mix tokens by attention inside of documents only"
    return [problem("data.document_mask", f"block, and {base.model_type}: {got}", allowed, fix)]


def other_mixers(base: PretrainedConfig) -> list[str]:
    """Kinds of layers that a config names and that mix tokens by something else than causal attention."""
    return sorted(set(getattr(base, "layer_types", None) or []) - {FULL, LOCAL})


def _not_apart(base: PretrainedConfig) -> str:
    """Why documents would not stay apart, in words; "" if they do, or if the model has no attention of ours at all."""
    if kinds := other_mixers(base):
        return f"layers of {', '.join(kinds)}"
    seen = probe(base)
    if seen.unknown:
        return ""  # attention_problems says so
    if seen.failure:
        return f"cannot be tried before weights load ({seen.failure})"
    if seen.convolutions:
        return f"convolutions in {', '.join(seen.convolutions)}"
    deaf = sum(not calls or not all(call.documents for call in calls) for calls in seen.blocks)
    return f"documents do not reach the attention of {deaf} of {len(seen.blocks)} blocks" if deaf else ""


def _position_problems(base: PretrainedConfig, seen: Probe) -> list[str]:
    """Layers that see everything must be the ones that RoPE turns: only there does a longer distance exist."""
    if seen.failure or len(seen.rotated) != base.num_hidden_layers:
        return []
    spans = windows(base)
    whole = [turned for turned, span in zip(seen.rotated, spans, strict=True) if not span] or seen.rotated
    if any(whole):
        return []
    got = f"{base.model_type}: no RoPE in the layers that see the whole sequence"
    return [problem("model.path", got, "models that RoPE gives their long distances", "use another base model")]


def _tensors(given: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]


def _width_problems(widths: tuple[int, int, int], primitive: str | None) -> list[str]:
    query, _, value = widths
    if len(set(widths)) > 1:
        got = f"heads of {query} dimensions with values of {value}"
        return [problem("model.path", got, "queries, keys and values of one width", "use another base model")]
    allowed = width_limits(primitive or "cpu", query)
    if allowed is None:
        return []
    fits = width_limits("efficient", query) is None and primitive != "efficient"
    fix = "set model.dtype=float32 and model.attention=sdpa" if fits else "use another base model"
    return [problem("model.path", f"heads of {query} dimensions", f"{allowed} with this kernel", fix)]


def skeleton(base: PretrainedConfig) -> CausalLM:
    """The model of `base` without memory, its attention function the recorder's."""
    config: Any = copy.deepcopy(base)
    config.use_cache = False
    config.dtype = torch.bfloat16  # the only one in which experts' grouped products can be tried on meta
    with torch.device("meta"):
        trust = remote_code.flag(config)
        built = AutoModelForCausalLM.from_config(config, attn_implementation=PROBE, trust_remote_code=trust)
        return CausalLM(built.eval())
