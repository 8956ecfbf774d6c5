"""What the ranks of the test of evaluation's loading do: two processes, whole and sharded models, one file each."""

from __future__ import annotations

import dataclasses
import json
import os
import weakref
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from yarn_train.config import Config, build
from yarn_train.data.batch import unlabelled
from yarn_train.data.tokenize import load_tokenizer
from yarn_train.dist.runtime import Runtime
from yarn_train.eval.documents import evaluated
from yarn_train.eval.job import Job
from yarn_train.eval.loading import Ranks, loaded, ranks_of
from yarn_train.eval.tasks import run_tasks
from yarn_train.eval.variants import Variant
from yarn_train.model.load import load_config

WORLD = 2
TOKENS = 48


def hidden(model: Any, ranks: Ranks, ids: torch.Tensor) -> torch.Tensor:
    """[batch, tokens, hidden] of the decoder alone, as an evaluation calls it."""
    part = ranks.context.shard(unlabelled(ids, torch.arange(ids.shape[1]).expand(ids.shape)))
    local = model.get_decoder()(input_ids=part.input_ids, position_ids=part.position_ids, use_cache=False)
    return ranks.context.gather(local.last_hidden_state, ids.shape[1])


def logits(folder: str, cfg: Config, ranks: Ranks, passes: int) -> tuple[list[torch.Tensor], dict[str, int]]:
    """Logits of `passes` batches, all of them after each other and in step, and what the rank held."""
    base = load_config(folder)
    variant = Variant.of("one", cfg.rope, None, folder)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 300, (2, TOKENS), generator=generator) for _ in range(passes)]
    found = []
    with loaded(variant, base, cfg, ranks) as model, torch.inference_mode():
        for ids in ranks.in_step(batches):
            if ids is None:
                ranks.join(model)
            else:
                found.append(model.get_output_embeddings()(hidden(model, ranks, ids)))
        held = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in model.parameters())
        whole = sum(p.numel() for p in model.parameters())
        head = model.get_output_embeddings().weight.numel()
        weights = [weakref.ref(parameter) for parameter in model.parameters()]
    left = sum(weight() is not None for weight in weights)
    return found, {"held": held, "whole": whole, "head": head, "left": left}


def perplexities(cfg: Config, runtime: Runtime, folder: Path) -> list[dict[str, Any]]:
    """Rows of the evaluation itself; the documents do not divide among the ranks."""
    base, tokenizer = load_config(cfg.model.path), load_tokenizer(cfg.model.path)
    variant = Variant.of("one", cfg.rope, None, cfg.model.path)
    run_tasks(Job(cfg, [variant], base, tokenizer, 32, 2.0, evaluated(cfg), folder, runtime, lambda text: None))
    return json.loads((folder / "perplexity.json").read_text())


def main(rank: int, folders: dict[str, str], books: str, out: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(out, "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    runtime = Runtime(rank, rank, WORLD, torch.device("cpu"))
    report: dict[str, Any] = {}
    options = {"windows": [32, 64], "stride": 16, "documents": 1, "source": "pg19", "path": books, "bootstrap": 0}
    for name, folder in folders.items():
        for context in (1, 2):
            raw = {"model": {"path": folder, "dtype": "float32"}, "rope": {"factor": 2.0}, "eval": options}
            whole = build({**raw, "parallel": {"context": context}})
            shard = dataclasses.replace(whole, eval=dataclasses.replace(whole.eval, shard=True))
            base = load_config(folder)
            # ranks of one sequence do the same; others have work of different length, this one none at all
            passes = 2 if context == 2 or rank == 0 else 0
            expected, _ = logits(folder, whole, ranks_of(base, whole, runtime), passes)
            got, held = logits(folder, shard, ranks_of(base, shard, runtime), passes)
            errors = [(a - b).abs().max().item() for a, b in zip(got, expected, strict=True)]
            report[f"{name}, context={context}"] = {"errors": errors, "passes": passes, **held}
            if name == "tied":
                rows = [
                    perplexities(cfg, runtime, Path(out, f"{kind}{context}"))
                    for kind, cfg in (("whole", whole), ("shard", shard))
                ]
                report[f"{name}, context={context}"]["rows"] = rows
    Path(out, f"{rank}.json").write_text(json.dumps(report))
    dist.destroy_process_group()
