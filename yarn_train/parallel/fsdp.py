"""FSDP2 wrapping: one shard group per decoder block and one for the rest, gradients SUMMED over ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from transformers import PreTrainedModel

from ..config import EngineConfig
from ..model.causal_lm import CausalLM


def shard(module: CausalLM, mesh: DeviceMesh, compute_dtype: torch.dtype, cfg: EngineConfig) -> FSDPModule:
    """Shard `module` in place over `mesh`: fp32 master weights, `compute_dtype` compute, fp32 gradient reduction.

    Embeddings, final norm and head stay in the root's group: a tied embedding is one parameter and torch >= 2.13
    refuses to split it over two groups. FSDP's division by the number of ranks is switched off, because the loss is
    already divided by the global number of valid tokens; a plain SUM also works on gloo, which knows no AVG.

    Args:
        mesh: [ranks], or [copies, ranks of a copy] (HSDP); parameters may be on meta.
        cfg: what is offloaded, whether blocks are resharded after their forward, and how far ahead they are gathered.
    """
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if cfg.offload == "all" else OffloadPolicy()
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    blocks = [
        fully_shard(
            block, mesh=mesh, mp_policy=policy, reshard_after_forward=cfg.reshard_after_forward, offload_policy=offload
        )
        for block in module.blocks
    ]
    top = MixedPrecisionPolicy(compute_dtype, torch.float32, torch.float32)
    root = fully_shard(module, mesh=mesh, mp_policy=top, offload_policy=offload)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_force_sum_reduction_for_comms(True)
            part.set_gradient_divide_factor(1.0)
    if cfg.prefetch > 1:
        _prefetch(root, blocks, cfg.prefetch)
    return root


def shard_decoder(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Shard a model that is only evaluated, in place: blocks, and the embedding and final norm with the decoder.

    Decoder and output head may then be called on their own, as an evaluation does that never builds all logits. The
    head stays whole on every rank (and the embedding that is tied to it): gathered for every few thousand logits it
    would cost more than it saves. Parameters keep their dtype, and may be on meta.
    """
    module, whole = CausalLM(model), set(model.get_output_embeddings().parameters())
    for block in module.blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(module.decoder, mesh=mesh, reshard_after_forward=True, ignored_params=whole)


def _prefetch(root: FSDPModule, blocks: Sequence[FSDPModule], ahead: int) -> None:
    """Gather `ahead` blocks before they are needed; one ahead is what FSDP2 does by itself.

    Forward and backward each begin in the root, whose embedding and head are there first.
    """
    root.set_modules_to_forward_prefetch(list(blocks[:ahead]))
    root.set_modules_to_backward_prefetch(list(reversed(blocks[-ahead:])))
    for number, block in enumerate(blocks):
        block.set_modules_to_forward_prefetch(list(blocks[number + 1 : number + 1 + ahead]))
        block.set_modules_to_backward_prefetch(list(reversed(blocks[max(0, number - ahead) : number])))
