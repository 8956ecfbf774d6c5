"""Where AdamW keeps its state: the moments in host memory give the same bits, the low-bit ones come close."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from yarn_train.config import OptimConfig
from yarn_train.optim import adamw
from yarn_train.optim.adamw import build_adamw, set_lr
from yarn_train.optim.state import counts, materialize_state, set_counts


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


@pytest.mark.parametrize("kind", ["float32", "host", "8bit", "bfloat16"])
def test_a_state_made_before_the_first_step_changes_no_bit(kind):
    """Large enough that 8 bits are used; the count begins at none."""
    if kind in ("8bit", "bfloat16"):
        pytest.importorskip("torchao")
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    torch.manual_seed(0)
    models = [nn.Linear(64, 64).to(dtype) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    state = kind if kind != "host" else "float32"
    optimizers = [build_adamw(model, OptimConfig(state=state), kind == "host") for model in models]
    materialize_state(optimizers[0])
    states = [list(optimizer.state.values()) for optimizer in optimizers]
    assert len(states[0]) == 2
    assert states[1] == []
    assert counts(states[0]).tolist() == [0, 0]
    for model, optimizer in zip(models, optimizers, strict=True):
        torch.manual_seed(1)  # bfloat16 rounds at random
        for _ in range(3):
            model(torch.ones(1, 64, dtype=dtype)).sum().backward()
            optimizer.step()
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)
        made, lazy = optimizers[0].state[ours], optimizers[1].state[theirs]
        assert made.keys() == lazy.keys()
        for key in made:
            assert type(made[key]) is type(lazy[key])
            assert made[key].dtype == lazy[key].dtype
    assert counts(list(optimizers[0].state.values())).tolist() == [3, 3]


def test_counts_are_taken_over_in_place():
    states = [{"step": torch.zeros(())}, {"step": torch.zeros(())}]
    held = states[1]["step"]
    set_counts(states, torch.tensor([3, 70_000_000]))
    assert counts(states).tolist() == [3, 70_000_000]
    assert states[1]["step"] is held


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
