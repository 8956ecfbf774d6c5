"""AdamW: its groups, and its steps against the formula in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from yarn_train.config import OptimConfig
from yarn_train.optim.adamw import build_adamw


class Tiny(nn.Module):
    """Tied embedding and head, a norm and a bias: every kind of parameter there is."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.linear = nn.Linear(4, 4)
        self.norm = nn.RMSNorm(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


def test_the_papers_betas_and_epsilon_are_the_defaults() -> None:
    for group in build_adamw(Tiny(), OptimConfig()).param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (2e-5, (0.9, 0.95), 1e-8)
        assert group["weight_decay"] == 0.0
        assert group["fused"] is True


def test_options_reach_every_group() -> None:
    cfg = OptimConfig(lr=0.5, betas=[0.8, 0.7], eps=1e-3)
    for group in build_adamw(Tiny(), cfg).param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.5, (0.8, 0.7), 1e-3)


def test_matrices_decay_and_vectors_do_not() -> None:
    module = Tiny()
    by_decay = {g["weight_decay"]: g["params"] for g in build_adamw(module, OptimConfig(weight_decay=0.1)).param_groups}
    assert {id(p) for p in by_decay[0.1]} == {id(module.embed.weight), id(module.linear.weight)}
    assert {id(p) for p in by_decay[0.0]} == {id(module.linear.bias), id(module.norm.weight)}


def test_a_tied_parameter_appears_once() -> None:
    module = Tiny()
    given = [id(p) for group in build_adamw(module, OptimConfig()).param_groups for p in group["params"]]
    assert len(given) == len(set(given)) == 4


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    module = Tiny()
    for parameter in (module.linear.bias, module.norm.weight, module.linear.weight):
        parameter.requires_grad_(False)
    (group,) = build_adamw(module, OptimConfig()).param_groups
    assert [id(p) for p in group["params"]] == [id(module.embed.weight)]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_follow_the_formula(weight_decay: float) -> None:
    torch.manual_seed(0)
    cfg = OptimConfig(lr=0.01, betas=[0.9, 0.6], eps=1e-2, weight_decay=weight_decay)
    module = nn.Linear(3, 2)
    optimizer = build_adamw(module, cfg)
    expected = {name: p.detach().double().clone() for name, p in module.named_parameters()}
    first = {name: torch.zeros_like(p) for name, p in expected.items()}
    second = {name: torch.zeros_like(p) for name, p in expected.items()}
    for step in range(1, 4):
        for name, parameter in module.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            grad = parameter.grad.double()
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.6 * second[name] + 0.4 * grad**2
            root = (second[name] / (1 - 0.6**step)).sqrt()
            decay = weight_decay if name == "weight" else 0.0
            expected[name] -= 0.01 * (decay * expected[name] + first[name] / (1 - 0.9**step) / (root + 1e-2))
        optimizer.step()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), expected[name], rtol=1e-5, atol=1e-6)


def test_the_fused_kernel_is_torchs_plain_adamw_to_rounding() -> None:
    """A hundred steps, with decay: one loop over the parameters on every device, the default for each parameter."""
    torch.manual_seed(1)
    ours, theirs = nn.Linear(33, 17), nn.Linear(33, 17)
    theirs.load_state_dict(ours.state_dict())
    fused = build_adamw(ours, OptimConfig(lr=1e-2, weight_decay=0.1))
    groups = [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}]
    plain = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, fused=False, foreach=False)
    for _ in range(100):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        fused.step()
        plain.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
