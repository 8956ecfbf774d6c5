"""FSDP2 wrapping: one shard group per decoder block and one for the rest, gradients SUMMED over ranks."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from ..model.causal_lm import CausalLM


def shard(module: CausalLM, mesh: DeviceMesh, compute_dtype: torch.dtype) -> FSDPModule:
    """Shard `module` in place over `mesh`: fp32 master weights, `compute_dtype` compute, fp32 gradient reduction.

    Embeddings, final norm and head stay in the root's group: a tied embedding is one parameter and torch >= 2.13
    refuses to split it over two groups. FSDP's division by the number of ranks is switched off, because the loss is
    already divided by the global number of valid tokens; a plain SUM also works on gloo, which knows no AVG.
    """
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    for block in module.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=mesh.size() > 1)
    root = fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(compute_dtype, torch.float32, torch.float32))
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_force_sum_reduction_for_comms(True)
            part.set_gradient_divide_factor(1.0)
    return root
