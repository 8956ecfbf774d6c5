"""Where AdamW keeps its state: the moments in host memory give the same bits, the low-bit ones come close."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from yarn_train.config import OptimConfig
from yarn_train.optim import adamw
from yarn_train.optim.adamw import build_adamw, set_lr


def train(
    state: str = "float32", host_moments: bool = False, dtype: torch.dtype = torch.float32, steps: int = 12
) -> tuple[nn.Module, list[float]]:
    """A small regression, so that a wrong update shows in the loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 64)).to(dtype)
    cfg = OptimConfig(lr=3e-3, weight_decay=0.1, state=state)
    optimizer = build_adamw(model, cfg, host_moments)
    x, y = torch.randn(256, 64, dtype=dtype), torch.randn(256, 64, dtype=dtype)
    losses = []
    for step in range(steps):
        set_lr(optimizer, 3e-3 * (1 + step) / steps)
        loss = F.mse_loss(model(x).float(), y.float())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, losses


def test_moments_in_host_memory_change_no_bit():
    plain, losses = train()
    host, host_losses = train(host_moments=True)
    assert losses == host_losses
    assert losses[-1] < 0.9 * losses[0]
    for a, b in zip(plain.parameters(), host.parameters(), strict=True):
        assert torch.equal(a, b)


def test_moments_in_host_memory_survive_a_state_dict():
    model = nn.Linear(8, 8)
    optimizer, other = (build_adamw(model, OptimConfig(), host_moments=True) for _ in range(2))
    model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    other.load_state_dict(optimizer.state_dict())
    for key in ("step", "exp_avg", "exp_avg_sq"):
        assert torch.equal(other.state[model.weight][key], optimizer.state[model.weight][key])
    assert other.state[model.weight]["step"].item() == 1


def test_a_loaded_state_is_back_in_host_memory():
    """Parameters on meta stand for those of a GPU: torch's own loading would put the moments beside them."""
    model = nn.Linear(8, 8)
    optimizer = build_adamw(model, OptimConfig(), host_moments=True)
    model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    elsewhere = build_adamw(nn.Linear(8, 8, device="meta"), OptimConfig(), host_moments=True)
    with pytest.MonkeyPatch.context() as patch:
        # what torch's loading makes of the moments cannot be read back from meta: look at where they end up
        patch.setattr(torch.Tensor, "copy_", lambda self, other: self)
        elsewhere.load_state_dict(optimizer.state_dict())
    devices = {state[key].device.type for state in elsewhere.state.values() for key in ("exp_avg", "exp_avg_sq")}
    assert devices == {"cpu"}


@pytest.mark.parametrize(("state", "dtype"), [("8bit", torch.float32), ("bfloat16", torch.bfloat16)])
def test_low_bit_states_follow_fp32(state, dtype):
    pytest.importorskip("torchao")
    _, exact = train()
    model, losses = train(state, dtype=dtype)
    assert next(model.parameters()).dtype == dtype
    assert losses[-1] == pytest.approx(exact[-1], rel=0.02)


def test_a_missing_library_is_named_before_anything_starts(monkeypatch):
    monkeypatch.setattr(adamw.importlib.util, "find_spec", lambda name: None)
    assert adamw.missing(OptimConfig()) == []
    (found,) = adamw.missing(OptimConfig(state="8bit"))
    assert "yarn-train[lowbit]" in found
