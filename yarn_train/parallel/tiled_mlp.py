"""Runs each block's MLP over tiles of tokens, so that its intermediates never exist whole, forward or backward.

Two autograd functions, so that nothing runs three times under recomputation. ``_Backward`` comes first: it saves the
MLP's input and its backward does all the work. ``_Forward`` follows: it runs the tiles without a graph, saves nothing,
and hands the output's gradient on unchanged, which works because an MLP maps hidden states to hidden states. In a
pre-norm block the input saved by ``_Backward`` is then the last tensor that autograd saves, so that a recomputed block
stops before its MLP: the MLP's forward runs twice per step, once in forward and once, tile by tile, in backward. (A
norm behind the MLP, as in Gemma 2, saves its input: there the recomputation goes on and the forward runs three times.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import ConfigError, problem

MIN_TILE_TOKENS = 1024  # below this a tile's matrix products no longer fill a GPU
Run = Callable[[Tensor], Tensor]


def tile_mlps(
    blocks: nn.ModuleList | Sequence[nn.Module], hidden_size: int, min_tokens: int = MIN_TILE_TOKENS
) -> list[str]:
    """Replace the forward of every ``block.mlp``; parameter names stay.

    Args:
        hidden_size: width of the hidden states.
        min_tokens: tokens of the smallest tile.

    Returns:
        What was done, a line.

    Raises:
        ConfigError: a block without an MLP of linear layers that maps hidden states to hidden states.
    """
    tiles = [tile_count(_mlp(block, hidden_size), hidden_size) for block in blocks]
    for block, count in zip(blocks, tiles, strict=True):
        mlp = block.mlp
        assert isinstance(mlp, nn.Module)
        mlp.forward = functools.partial(_tiled, mlp, mlp.forward, count, min_tokens)
        # What deepspeed.utils.set_z3_leaf_module does: ZeRO-3 then gathers the whole MLP around its forward and
        # backward. Layer by layer, a tile's graph would be cut off from parameters that are empty between layers.
        mlp.__dict__["_z3_leaf"] = True
    return [f"tiled MLP: {len(tiles)} blocks, {max(tiles)} tiles of at least {min_tokens} tokens"]


def tile_count(mlp: nn.Module, hidden_size: int) -> int:
    """Tiles such that what one tile needs in backward is about two hidden states of the whole sequence.

    A gated MLP has up and gate (`width` = 2 * intermediate_size), their activation, their product and the gradients of
    all of these: 4 * width per token.
    """
    outputs = sum(m.out_features for m in mlp.modules() if isinstance(m, nn.Linear))
    width = outputs - hidden_size  # the last layer gives hidden states
    return max(1, math.ceil(4 * width / (2 * hidden_size)))


def _mlp(block: nn.Module, hidden_size: int) -> nn.Module:
    """The block's MLP, checked."""
    mlp = getattr(block, "mlp", None)
    found = "no module named mlp" if not isinstance(mlp, nn.Module) else _unfit(mlp, hidden_size)
    if not isinstance(mlp, nn.Module) or found:
        got = f"{type(block).__name__} with {found}"
        allowed = f"blocks whose mlp is made of linear layers and maps {hidden_size} to {hidden_size}"
        raise ConfigError(problem("memory.tiled_mlp", got, allowed, "set memory.tiled_mlp=false"))
    return mlp


def _unfit(mlp: nn.Module, hidden_size: int) -> str | None:
    """Why `mlp` cannot be tiled, in words, or None."""
    for name, part in mlp.named_modules():
        if isinstance(part, nn.Dropout) and part.p > 0:
            return f"dropout in {type(mlp).__name__}.{name}"  # another mask when a tile runs again
        if list(part.parameters(recurse=False)) and not isinstance(part, nn.Linear):
            return f"{type(part).__name__} in {type(mlp).__name__}"  # routers and experts look at several tokens
    weights = {name: p.to("meta") for name, p in (*mlp.named_parameters(), *mlp.named_buffers())}
    dtype = next(iter(weights.values())).dtype
    try:
        output = functional_call(mlp, weights, (torch.empty(3, hidden_size, device="meta", dtype=dtype),))
    except (RuntimeError, TypeError, ValueError) as error:
        return f"{type(mlp).__name__}, which fails on [tokens, {hidden_size}]: {str(error).splitlines()[0]}"
    if not isinstance(output, Tensor) or output.shape != (3, hidden_size):
        return f"{type(mlp).__name__}, which does not return one tensor of its input's shape"
    return None


@torch.compiler.disable  # a compiled block leaves its graph here once, not in every tile
def _tiled(mlp: nn.Module, run: Run, tiles: int, min_tokens: int, hidden_states: Tensor) -> Tensor:
    """What replaces the MLP's forward; `run` is the original."""
    size = max(min_tokens, math.ceil(hidden_states.numel() // hidden_states.shape[-1] / tiles))
    if not torch.is_grad_enabled():
        return _run_tiles(run, hidden_states, size)
    after = _Backward.apply(hidden_states, mlp, run, size, *_learned(mlp))
    return _Forward.apply(after, run, size)


def _learned(mlp: nn.Module) -> list[nn.Parameter]:
    """The parameters that get gradients, as the module holds them at this moment: engines gather them when needed."""
    return [p for p in mlp.parameters() if p.requires_grad]


def _run_tiles(run: Run, x: Tensor, size: int) -> Tensor:
    """The MLP without a graph."""
    output = torch.empty_like(x, memory_format=torch.contiguous_format)
    for part, target in zip(_tokens(x, size), _tokens(output, size), strict=True):
        target.copy_(run(part))
    return output


def _tokens(x: Tensor, size: int) -> Iterator[Tensor]:
    """Tiles of `x` [..., hidden], each [1, at most `size` tokens, hidden]."""
    return (part.unsqueeze(0) for part in x.reshape(-1, x.shape[-1]).split(size))


class _Backward(torch.autograd.Function):
    """Returns its input; its backward is the backward of the MLP, given the gradient of the MLP's OUTPUT."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mlp: nn.Module, run: Run, size: int, *learned: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.mlp, ctx.run, ctx.size = mlp, run, size
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, dy = ctx.saved_tensors[0], grad_outputs[0].contiguous()
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        # fp32 sums: tiles added up in bf16 would round once per tile, one whole matrix product rounds once
        sums: list[Tensor] = []
        tiles = zip(_tokens(x, ctx.size), _tokens(dy, ctx.size), _tokens(dx, ctx.size), strict=True)
        for part, part_dy, part_dx in tiles:
            part = part.detach().requires_grad_()
            with torch.enable_grad():
                output = ctx.run(part)
            # asked for after the tile ran: an engine may gather a layer's parameters when that layer is called
            learned = _learned(ctx.mlp)
            grad, *grads = torch.autograd.grad(output, [part, *learned], part_dy)
            part_dx.copy_(grad)
            sums = [total.add_(one) for total, one in zip(sums, grads, strict=True)] if sums else _fp32(grads)
        return dx, None, None, None, *(total.to(one.dtype) for total, one in zip(sums, grads, strict=True))


def _fp32(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.to(torch.float32, copy=True) for t in tensors]


class _Forward(torch.autograd.Function):
    """Runs the MLP without a graph; the gradient of its output passes through to :class:`_Backward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Run, size: int) -> Tensor:
        return _run_tiles(run, x, size)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None]:
        return grad_outputs[0], None, None
