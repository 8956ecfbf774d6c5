"""Compiled blocks: one graph for all layers, steps, numbers of documents and stages whose shapes stay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import metrics
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_train.data.batch import Batch, make_batch
from yarn_train.model.causal_lm import CausalLM
from yarn_train.model.registry import SDPA
from yarn_train.parallel import activation, compiled
from yarn_train.train.untimed import COMPILATION, FIRST, SAVE, Watch

TOKENS = 32
DOCUMENTS = [((0,), (0,)), ((0, 3), (0, 9, 30)), ((0, 1, 2, 3), (0,)), ((0, 31), (0, 31))]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No graphs of earlier tests; dynamo and autograd as in a run, without minutes of a C++ compiler."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def model(factor: float = 4.0) -> CausalLM:
    """Three layers whose RoPE is scaled by `factor`, as another stage's is."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": 64}
    rope = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, rope_parameters=rope)
    return CausalLM(LlamaForCausalLM._from_config(config, attn_implementation=SDPA), "chunked")


def batch(documents: Any = None, length: int = TOKENS) -> Batch:
    return make_batch(torch.randint(0, 64, (2, length), generator=torch.Generator().manual_seed(length)), documents)


def train(module: CausalLM, given: Batch) -> list[torch.Tensor]:
    module.zero_grad()
    loss = module(given.input_ids, given.position_ids, given.labels, given.documents)
    loss.backward()
    return [loss.detach(), *(p.grad for p in module.parameters() if p.grad is not None)]


def built(policy: str, factor: float = 4.0) -> CausalLM:
    module = model(factor)
    compiled.compile_blocks(module.blocks)
    activation.apply(module.blocks, policy)
    return module


@pytest.mark.parametrize("policy", ["none", "full", "attention"])
@pytest.mark.parametrize("masked", [False, True])
def test_nothing_is_compiled_after_the_first_pass_not_even_in_the_next_stage(policy: str, masked: bool) -> None:
    before, plain, module = compiled.graphs(), model(), built(policy)
    batches = [batch(documents if masked else None) for documents in DOCUMENTS]
    train(module, batches[0])
    assert compiled.graphs() == before + 1
    with torch._dynamo.config.patch(error_on_recompile=True):
        for given in batches * 2:
            for ours, theirs in zip(train(module, given), train(plain, given), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        longer, scaled = built(policy, factor=8.0), model(8.0)
        for ours, theirs in zip(train(longer, batches[1]), train(scaled, batches[1]), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert compiled.graphs() == before + 1


def test_another_length_gets_a_graph_of_its_own_and_passes_without_gradients_none() -> None:
    module, before = built("none"), compiled.graphs()
    train(module, batch())
    train(module, batch(length=48))
    train(module, batch(length=80))  # with dynamic shapes two graphs would serve all three, with slower kernels
    assert compiled.graphs() == before + 3
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        module(*(getattr(batch(length=20), name) for name in ("input_ids", "position_ids", "labels")))
    assert compiled.graphs() == before + 3


def test_more_shapes_than_torchs_limit_stay_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    module, before = built("none"), compiled.graphs()
    for length in range(16, 16 + 10):
        train(module, batch(length=length))
    assert compiled.graphs() == before + 10


def test_kernels_are_kept_where_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert compiled.kept_in() == str(tmp_path)  # what somebody set stays
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert compiled.kept_in() == str(tmp_path / "cache/yarn_train/inductor")
    assert (tmp_path / "cache/yarn_train/inductor").is_dir()
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "torchinductor" in compiled.kept_in()
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")


def test_two_stages_of_a_run_compile_once_and_the_step_that_did_is_marked(
    train: Any, tiny_args: list[str], tmp_path: Path
) -> None:
    options = [a for a in tiny_args if not a.startswith(("rope.factor", "train.steps", "checkpoint.every"))]
    stages = ["+curriculum.stages.a.rope.factor=4", "+curriculum.stages.b.rope.factor=8", "train.steps=3"]
    before = compiled.graphs()
    more = ["compile.enabled=true", "checkpoint.every=2", "data.document_mask=block", "train.micro_batch_size=4"]
    run = train(tmp_path / "run", *options, *stages, *more)
    assert compiled.graphs() == before + 1
    for stage in ("01_a", "02_b"):
        assert [row["untimed"] for row in metrics(run / stage)] == [FIRST, None, SAVE]


def test_a_step_that_compiles_later_is_marked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    count = iter([5, 6, 6, 7, 7, 7])
    monkeypatch.setattr(compiled, "graphs", lambda: next(count))
    watch = Watch()
    reasons = [watch.reason(seconds, profiled=False) for seconds in (0.0, 0.0, 0.0, 1.5, 0.0)]
    assert reasons == [FIRST, None, COMPILATION, SAVE, None]


@pytest.mark.long
def test_kernels_of_an_earlier_run_are_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real compiler, twice with the same folder: the second time nothing is generated."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    found = []
    for _ in range(2):
        torch._dynamo.reset()
        counters.clear()
        train(built("none"), batch())
        found.append((counters["inductor"]["fxgraph_cache_miss"], counters["inductor"]["fxgraph_cache_hit"]))
    assert any(tmp_path.rglob("*"))
    assert found[0][0] > 0
    assert found[1][0] == 0
