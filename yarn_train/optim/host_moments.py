"""AdamW whose two moments live in host memory and visit the device one parameter at a time.

Saves 8 bytes per parameter of device memory and gives the same bits as torch's fused AdamW, because the update itself
runs on the device. Parameters and gradients stay where they are; clipping works as ever.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


class HostMomentsAdamW(Optimizer):
    """Decoupled weight decay as in ``torch.optim.AdamW``; state names and shapes are the same."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._streams: tuple[torch.cuda.Stream, torch.cuda.Stream] | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Moments of parameter i + 1 are copied in and those of parameter i - 1 copied out while i is updated.
        """
        work = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p, _ in work:
            if not self.state[p]:
                self.state[p] = self.fresh_state(p)
        arriving = self._arrive(work[0][0]) if work else None
        for number, (p, group) in enumerate(work):
            moments = arriving
            arriving = self._arrive(work[number + 1][0]) if number + 1 < len(work) else None
            assert moments is not None
            self._update(p, group, *moments)
        if self._streams is not None:
            self._streams[1].synchronize()  # whoever reads the state next, a checkpoint say, must find it at home

    def fresh_state(self, p: Tensor) -> dict[str, Tensor]:
        """What a parameter starts with: zeros, the moments in host memory."""
        return {
            "step": torch.zeros((), dtype=torch.float32),
            "exp_avg": _host_zeros(p),
            "exp_avg_sq": _host_zeros(p),
        }

    def _arrive(self, p: Tensor) -> tuple[Tensor, Tensor, torch.cuda.Event | None]:
        """Start copying the moments of `p` to its device."""
        device = _local(p).device
        state = self.state[p]
        inward, _ = self._side_streams(device)
        with torch.cuda.stream(inward) if inward else nullcontext():
            first, second = (_local(state[k]).to(device, non_blocking=True) for k in ("exp_avg", "exp_avg_sq"))
            return first, second, inward.record_event() if inward else None

    def _update(
        self, p: Tensor, group: dict[str, Any], first: Tensor, second: Tensor, arrived: torch.cuda.Event | None
    ) -> None:
        state = self.state[p]
        state["step"] += 1
        local = _local(p)
        if arrived is not None:
            current = torch.cuda.current_stream(local.device)
            current.wait_event(arrived)
            first.record_stream(current)
            second.record_stream(current)
        if local.numel():
            torch._fused_adamw_(
                [local],
                [_local(p.grad).to(local.dtype)],
                [first],
                [second],
                [],
                [state["step"].to(local.device)],
                lr=float(group["lr"]),
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )
        self._depart(state, first, second)

    def _depart(self, state: dict[str, Tensor], first: Tensor, second: Tensor) -> None:
        """Copy updated moments back; on the CPU they never left."""
        home, home_sq = _local(state["exp_avg"]), _local(state["exp_avg_sq"])
        _, outward = self._side_streams(first.device)
        if outward is None:
            return
        outward.wait_stream(torch.cuda.current_stream(first.device))
        with torch.cuda.stream(outward):
            for target, source in ((home, first), (home_sq, second)):
                target.copy_(source, non_blocking=True)
                source.record_stream(outward)

    def _side_streams(self, device: torch.device) -> tuple[torch.cuda.Stream | None, torch.cuda.Stream | None]:
        if device.type != "cuda":
            return None, None
        if self._streams is None:
            self._streams = (torch.cuda.Stream(device), torch.cuda.Stream(device))
        return self._streams


def _local(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _host_zeros(p: Tensor) -> Tensor:
    """Zeros of `p`'s shape and sharding in (pinned) host memory."""
    local = _local(p)
    zeros = torch.zeros(local.shape, dtype=local.dtype, device="cpu", pin_memory=local.device.type == "cuda")
    if not isinstance(p, DTensor):
        return zeros
    return DTensor(zeros, p._spec, requires_grad=False)  # from_local() would move it to the mesh's device
