"""Models that are evaluated in parts: equal to whole ones, and no rank holds all of one."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import loading_ranks
import pytest
import torch
import torch.multiprocessing as mp
from transformers import AutoConfig, AutoModelForCausalLM

from yarn_train.config import RopeConfig, build
from yarn_train.dist.runtime import start
from yarn_train.eval import loading
from yarn_train.eval.loading import loaded, ranks_of
from yarn_train.eval.variants import Variant
from yarn_train.model.load import load_config
from yarn_train.rope.hf import RopeTableError


@pytest.fixture(scope="module")
def untied(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with an output head of its own."""
    folder = tmp_path_factory.mktemp("untied")
    config = AutoConfig.from_pretrained(tiny_model, tie_word_embeddings=False)
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reports(
    tiny_model: Path, untied: Path, books: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each rank found: one start of processes for all cases."""
    out = tmp_path_factory.mktemp("ranks")
    folders = {"tied": str(tiny_model), "untied": str(untied)}
    mp.spawn(loading_ranks.main, (folders, str(books), str(out)), nprocs=loading_ranks.WORLD)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(loading_ranks.WORLD)]


def test_a_sharded_model_answers_as_a_whole_one_though_ranks_have_work_of_different_length(
    reports: list[dict[str, Any]],
) -> None:
    assert len(reports) == 2
    for report in reports:
        assert len(report) == 4
        for name, found in report.items():
            assert len(found["errors"]) == found["passes"]
            assert all(error <= 1e-6 for error in found["errors"]), (name, found)  # written so that NaN fails
    assert [report["tied, context=1"]["passes"] for report in reports] == [2, 0]


def test_the_rows_of_perplexity_are_those_of_whole_models_also_where_a_rank_has_no_document(
    reports: list[dict[str, Any]],
) -> None:
    for context in (1, 2):
        whole, shard = reports[0][f"tied, context={context}"]["rows"]
        assert [row["tokens"] for row in whole] == [row["tokens"] for row in shard]
        assert {row["documents"] for row in whole} == {1}
        for ours, theirs in zip(shard, whole, strict=True):
            assert ours["perplexity"] == pytest.approx(theirs["perplexity"], rel=1e-6), (context, ours)
    whole, shared = (reports[0][f"tied, context={context}"]["rows"][0] for context in (1, 2))
    assert [row["perplexity"] for row in shared] == pytest.approx([row["perplexity"] for row in whole], rel=1e-5)


def test_no_rank_holds_more_than_the_head_and_its_share_of_the_rest(reports: list[dict[str, Any]]) -> None:
    for name in reports[0]:
        assert [report[name]["left"] for report in reports] == [0, 0], "memory that is not given back"
        held = [report[name]["held"] for report in reports]
        whole, head = reports[0][name]["whole"], reports[0][name]["head"]
        assert sum(held) == whole + head, name  # the head is held twice, everything else once
        assert max(held) <= head + (whole - head) // 2 + 32 * 8, name


def test_the_memory_of_a_model_is_free_before_the_next_one_loads(tiny_model: Path) -> None:
    """Although the caller's name for it lives on, as that of a ``with`` does."""
    cfg = build({"model": {"path": str(tiny_model), "dtype": "float32"}})
    base = load_config(str(tiny_model))
    variant = Variant("one", "none", None, 1.0, None, str(tiny_model), None)
    with loaded(variant, base, cfg, ranks_of(base, cfg, start())) as model:
        weights = [weakref.ref(parameter) for parameter in model.parameters()]
        assert all(weight() is not None for weight in weights)
    assert model is not None
    assert [weight() for weight in weights] == [None] * len(weights)


@pytest.mark.parametrize("rope", [RopeConfig(factor=2.0), None], ids=["asked for", "its own"])
def test_a_rotary_table_that_loading_changed_is_no_silent_number(
    rope: RopeConfig | None, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``model.to(torch.bfloat16)`` would."""
    cfg = build({"model": {"path": str(tiny_model), "dtype": "float32"}})
    base = load_config(str(tiny_model))
    variant = Variant("one", "none", None, 1.0, None, str(tiny_model), rope)
    ranks = ranks_of(base, cfg, start())
    with loaded(variant, base, cfg, ranks) as model:
        assert model.model.rotary_emb.inv_freq.dtype == torch.float32

    def rounding(module: torch.nn.Module, device: torch.device) -> None:
        for part in module.modules():
            for name, buffer in part._buffers.items():
                part._buffers[name] = buffer.bfloat16() if buffer is not None else None

    monkeypatch.setattr(loading, "move_buffers", rounding)
    with pytest.raises(RopeTableError, match="inv_freq"), loaded(variant, base, cfg, ranks):
        pass
