"""Sliding-window perplexity of every variant at every window, on the same held-out tokens."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

from ... import remote_code
from ...config import Config
from ...console.work import Work
from ...dist.collectives import barrier
from ...dist.heartbeat import heartbeat
from ...dist.runtime import Runtime
from ...model.flops import head_dim
from ...model.load import DTYPES
from ...model.registry import choose_kernel
from ...rope import hf as rope_hf
from ...sweep.record import sweep_of
from .. import made_by
from ..job import Job
from ..loading import Ranks, loaded, ranks_of
from ..variants import Variant
from . import shared
from .gathered import positions_of, scores
from .plan import Plan, plan
from .positions import edges
from .prefixes import grows, prefixes
from .results import Found, Results, rows_of
from .scores import Scores

Say = Callable[[str], None]


def problems(cfg: Config, base: PretrainedConfig) -> list[str]:
    """Nothing beside what the options' own rules say."""
    return []


def run(job: Job) -> None:
    """Write ``perplexity.json``, ``perplexity_documents.json`` and, with eval.positions, ``positions.json``."""
    scoring = plan(job.cfg, job.data, job.tokenizer, job.length, job.factor, job.say)
    evaluate(job.variants, job.base, scoring, job.cfg, job.folder, job.runtime, job.say)


def evaluate(
    chosen: Sequence[Variant],
    base: PretrainedConfig,
    scoring: Plan,
    cfg: Config,
    folder: Path,
    runtime: Runtime,
    say: Say,
) -> None:
    """Score every variant at every window, and write the files (see :mod:`results`) after each window.

    Rows that are there already, made with the same settings, are kept and not computed again. Ranks share the
    documents. What no job trained is computed once per sweep, see :mod:`shared`.
    """
    options = made_by.options_of(cfg, runtime.device, base)
    results = Results.open(folder, scoring, chosen, options, runtime.is_main, say)
    missing = [(variant, windows) for variant in chosen if (windows := results.missing(variant.label))]
    sweep = sweep_of(folder.absolute().parent)
    ranks = ranks_of(base, cfg, runtime)
    cost = sum(positions_of(scoring, window) for _, windows in missing for window in windows)
    work = Work("evaluate", cost, "tok", shown=runtime.is_main and bool(missing))
    for number, (variant, windows) in enumerate(missing, start=1):
        work.at(f"{number}/{len(missing)} {variant.label}")
        with shared.claimed(sweep, _decisive(variant, base, scoring, cfg, ranks), variant.label, say) as claim:
            if claim.rows is not None:
                results.add(variant, claim.rows)
                work.add(sum(positions_of(scoring, window) for window in windows))
                continue
            with loaded(variant, base, cfg, ranks) as model:
                for part in _scored(model, variant.label, windows, scoring, ranks):
                    found = rows_of(part, scoring)
                    results.add(variant, found)
                    work.add(positions_of(scoring, part.window))
                    if len(chosen) == 1:
                        say(_line(found))
            claim.publish(results.of(variant.label))
    work.close()
    barrier()


def _scored(
    model: PreTrainedModel, label: str, windows: Sequence[int], scoring: Plan, ranks: Ranks
) -> Iterator[Scores]:
    """Scores at each window; with `truncate` all of them from one pass over the largest."""
    at_once = scoring.truncate and not grows(model)
    for window in windows[-1:] if at_once else windows:
        curves = at_once or scoring.wants_curve(window)
        alive = partial(heartbeat.at, f"evaluate {label} at {window}")
        alive()
        part = scores(model, window, scoring, ranks, curves=curves, on_batch=alive)
        yield from prefixes(part, windows, scoring.bos_id is not None) if at_once else [part]


def _line(found: Found) -> str:
    """What one window gave, for a person."""
    first = found["perplexity"][0]
    value = "not finite" if first["perplexity"] is None else f"{first['perplexity']:.4f}"
    between = "" if first["low"] is None else f" ({first['low']:.4f} to {first['high']:.4f})"
    tokens = f"{first['tokens']:,} tokens of {first['documents']} documents"
    return f"window {first['window']:,}: perplexity {value}{between}, {first['mode']}, {tokens}"


def _decisive(
    variant: Variant, base: PretrainedConfig, scoring: Plan, cfg: Config, ranks: Ranks
) -> shared.Decisive | None:
    """What decides the rows of weights that nobody trained here; None for others, which no other job has."""
    if variant.stage is not None or variant.rope is None or remote_code.flag(base):
        return None
    device = ranks.runtime.device
    kernel = choose_kernel(cfg.model.attention, device, DTYPES[cfg.model.dtype], head_dim(base))
    table = rope_hf.table_for(base, variant.rope)
    cuda = device.type == "cuda"
    largest = max(scoring.windows)
    numbers = {
        "inv_freq": [value.hex() for value in table.inv_freq.double().tolist()],
        "attention_factor": float(table.attention_factor).hex(),
        "model": {key: value for key, value in base.to_dict().items() if key not in ("_name_or_path", "dtype")},
        "scoring": {**scoring.settings(), "positions": scoring.positions},
        "dtype": cfg.model.dtype,
        "kernel": [kernel.implementation, kernel.primitive],
        "ranks": [ranks.mesh.data_size, ranks.mesh.context],
        "device": torch.cuda.get_device_name(device) if cuda else platform.machine(),
        "deterministic": cfg.run.deterministic,
        "versions": [torch.__version__, transformers.__version__],
    }
    wanted: shared.Wanted = {
        "perplexity": [(window, mode) for window in scoring.windows for mode in scoring.modes],
        "perplexity_documents": [(window, name) for window in scoring.windows for name in scoring.names],
        "positions": [(largest, b) for b in edges(largest)[:-1]] if scoring.wants_curve(largest) else [],
    }
    return shared.Decisive(variant.weights, numbers, wanted)
