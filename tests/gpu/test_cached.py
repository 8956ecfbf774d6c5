"""Generation with a cache on a GPU: every kernel with few queries and many keys, and scales that change."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from yarn_train.config import RopeConfig
from yarn_train.eval.generate import greedy
from yarn_train.model.availability import missing
from yarn_train.model.cached import attend_cached
from yarn_train.model.registry import IMPLEMENTATIONS
from yarn_train.model.unrotated import dynamic, unrotated

pytestmark = pytest.mark.gpu

KERNELS = [(kernel, torch.bfloat16) for kernel in IMPLEMENTATIONS] + [("sdpa", torch.float32), ("eager", torch.float32)]
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-5}


def needs_its_package(kernel: str, dtype: torch.dtype) -> None:
    if why := missing(kernel, torch.device("cuda", 0), dtype):
        pytest.skip(f"{kernel}: {why}")


@pytest.mark.parametrize(("kernel", "dtype"), KERNELS)
@pytest.mark.parametrize(("new", "total"), [(1, 1), (1, 777), (5, 777), (300, 300), (130, 777)])
def test_the_last_positions_see_all_keys_up_to_their_own(kernel: str, dtype: torch.dtype, new: int, total: int):
    needs_its_package(kernel, dtype)
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, h, t, 64, generator=g).to(dtype) for h, t in ((8, new), (2, total), (2, total)))
    room = torch.empty(2, 2, total + 100, 64, dtype=dtype, device="cuda")  # keys as a buffer with room ahead has them
    room[:, :, :total] = k
    out = attend_cached(kernel, q.cuda(), room[:, :, :total], v.cuda(), 0.2).double().cpu()
    q, k, v = q.double(), k.double().repeat_interleave(4, 1), v.double().repeat_interleave(4, 1)
    hidden = torch.arange(total) > torch.arange(total - new, total)[:, None]
    expected = (q @ k.transpose(2, 3) * 0.2).masked_fill(hidden, -torch.inf).softmax(-1) @ v
    assert torch.allclose(out, expected, atol=TOLERANCE[dtype])


@pytest.mark.parametrize(("kernel", "dtype"), KERNELS)
def test_a_prompt_in_pieces_and_a_scale_that_changes(kernel: str, dtype: torch.dtype):
    needs_its_package(kernel, dtype)
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
    config.max_position_embeddings = 64
    model = (
        AutoModelForCausalLM.from_config(config, attn_implementation=IMPLEMENTATIONS[kernel], dtype=dtype).cuda().eval()
    )
    prompts = torch.randint(0, 1000, (2, 60))
    answers: list[list[torch.Tensor]] = [[], []]
    with unrotated(model, dynamic(model.config, RopeConfig(method="yarn"))):
        for seen, chunk in zip(answers, (None, 13), strict=True):
            hook = model.lm_head.register_forward_hook(lambda m, i, out, seen=seen: seen.append(out[:, -1].float()))
            assert greedy(model, prompts, 10, chunk=chunk).device == prompts.device
            hook.remove()
    whole, pieces = answers
    assert torch.allclose(whole[0], pieces[-10], atol=1e-4 if dtype == torch.float32 else 5e-2)
