"""Two ranks give the scores of one: documents shared out, windows shared, weights in parts."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import perplexity_ranks
import pytest
import torch
import torch.multiprocessing as mp

from yarn_train.config import build
from yarn_train.eval.perplexity.score import score
from yarn_train.model.load import build_model, load_config
from yarn_train.model.registry import choose_kernel


@pytest.fixture(scope="module")
def reports(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found: one start of processes for all cases."""
    out = tmp_path_factory.mktemp("ranks")
    mp.spawn(perplexity_ranks.main, (str(tiny_model), str(out)), nprocs=perplexity_ranks.WORLD)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(perplexity_ranks.WORLD)]


@pytest.mark.parametrize("case", perplexity_ranks.CASES)
def test_scores_are_those_of_one_rank_in_the_order_of_documents(reports, tiny_model, case):
    _, _, documents = perplexity_ranks.CASES[case]
    scoring = perplexity_ranks.plan_of(documents)
    kernel = choose_kernel("sdpa", torch.device("cpu"), torch.float32)
    model = build_model(str(tiny_model), load_config(str(tiny_model)), build({}).rope, kernel)
    alone = score(model, scoring.documents, perplexity_ranks.WINDOW, 8, 40, bos_id=0, curves=True)
    assert len({len(windows) for windows in alone.nll}) == min(documents, 3)
    for report in reports:
        found = report[case]
        assert found["counts"] == alone.counts
        assert list(chain(*found["nll"])) == pytest.approx(alone.nll_per_window, rel=1e-6)
        assert len(found["curves"]) == documents
        for curve, expected in zip(found["curves"], alone.curves, strict=True):
            assert curve == pytest.approx(expected.tolist(), rel=1e-5)
