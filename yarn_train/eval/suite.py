"""The evaluation of a run: the base, every method untrained, and every trained stage, on the same held-out tokens."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm
from transformers import PretrainedConfig, PreTrainedModel

from ..config import Config, DataConfig, EvalConfig, RopeConfig
from ..data.documents import read_all
from ..data.sources import open_documents
from ..data.tokenize import encode_document
from ..dist.collectives import barrier, from_main
from ..dist.mesh import Mesh, ulysses_size
from ..dist.runtime import Runtime
from ..model.attention import choose_kernel
from ..model.load import DTYPES, build_model
from ..parallel.context import ContextParallel
from ..rope import hf as rope_hf
from ..stages import Stage
from .perplexity import Scores, choose_documents, rows, score, write_rows
from .windows import default_windows, shared_targets

Say = Callable[[str], None]
RAMP_NAMES = {"by_index": "", "by_rotations": ", Eq. 18 ramp"}
METHOD_NAMES = {"none": "base", "pi": "PI", "ntk": "NTK-aware", "ntk_by_parts": "NTK-by-parts", "yarn": "YaRN"}


@dataclass(frozen=True)
class Variant:
    """One curve of the evaluation: which weights, read with which RoPE (None: as their own config says)."""

    label: str
    method: str
    ramp: str | None
    factor: float
    stage: str | None
    weights: str
    rope: RopeConfig | None

    @classmethod
    def of(cls, label: str, rope: RopeConfig, stage: str | None, weights: str) -> Variant:
        """A variant whose names are those of its RoPE options."""
        ramp = rope.ramp if rope.method in ("yarn", "ntk_by_parts") else None
        return cls(label, rope.method, ramp, rope.factor, stage, weights, rope)


def variants(stages: Sequence[Stage], weights: str | None) -> list[Variant]:
    """The base, each method untrained at the first stage's factor, then the model after each stage.

    Args:
        weights: what the first stage started from; None (random) leaves the untrained curves out.
    """
    first = stages[0].cfg
    found = []
    if weights is not None and first.eval.baselines:
        plain = dataclasses.replace(first.rope, method="none", factor=1.0, temperature="auto")
        found.append(Variant.of("base", plain, None, weights))
        if first.rope.method != "none":
            found += [_untrained(first.rope, method, ramp, weights) for method, ramp in _baselines()]
    for stage in stages:
        name = f"{_title(stage.cfg.rope)}, after {stage.folder.name}"
        found.append(Variant.of(name, stage.cfg.rope, stage.folder.name, str(stage.model_folder)))
    return found


def _baselines() -> list[tuple[str, str]]:
    return [
        ("pi", "by_index"),
        ("ntk", "by_index"),
        ("ntk_by_parts", "by_index"),
        ("yarn", "by_rotations"),
        ("yarn", "by_index"),
    ]


def _untrained(rope: RopeConfig, method: str, ramp: str, weights: str) -> Variant:
    changed = dataclasses.replace(rope, method=method, ramp=ramp)
    if method != "yarn":
        changed = dataclasses.replace(changed, temperature="auto")
    if ramp == "by_rotations":
        changed = dataclasses.replace(changed, truncate=True)
    return Variant.of(f"{_title(changed)}, untrained", changed, None, weights)


def _title(rope: RopeConfig) -> str:
    if rope.method == "none":
        return METHOD_NAMES["none"]
    return f"{METHOD_NAMES[rope.method]}{RAMP_NAMES[rope.ramp]} s={rope.factor:g}"


@dataclass(frozen=True)
class Plan:
    """What is scored: documents (already cut), windows and where scoring begins."""

    documents: list[torch.Tensor]
    names: list[str]
    windows: list[int]
    stride: int
    score_from: int | None
    bos_id: int | None

    def settings(self) -> dict[str, Any]:
        """Everything beside the model that decides the numbers; rows of other settings are never mixed with these."""
        digest = hashlib.sha256(b"".join(d.numpy().tobytes() for d in self.documents)).hexdigest()
        return {
            "documents": self.names,
            "content_sha256": digest,
            "windows": self.windows,
            "stride": self.stride,
            "score_from": self.score_from,
            "bos": self.bos_id,
        }


def plan(cfg: Config, data: DataConfig, tokenizer: Any, original_length: int, largest_factor: float) -> Plan:
    """Choose windows and held-out documents.

    Args:
        data: where documents come from: :func:`evaluated`, its revision perhaps pinned.

    Raises:
        DataError: no held-out document is longer than the largest window.
    """
    options: EvalConfig = cfg.eval
    windows = options.windows or default_windows(original_length, largest_factor)
    bos = tokenizer.bos_token_id if options.bos else None
    # A window that slides by its whole length would have no context; BOS takes one of its positions.
    stride = min(options.stride, min(windows) - (bos is not None and options.windows_per_document is None))
    if options.windows_per_document is None:
        score_from, num_tokens = None, options.max_tokens
    else:
        score_from, num_tokens = shared_targets(max(windows), stride, options.windows_per_document)
    needed = num_tokens or max(windows) + 1
    listed = open_documents(data, options.split)
    encoded = ((name, encode_document(tokenizer, text)) for name, text in read_all(listed))
    chosen = choose_documents(encoded, options.documents, needed)
    return Plan(
        documents=[tokens[:num_tokens] for _, tokens in chosen],
        names=[name for name, _ in chosen],
        windows=windows,
        stride=stride,
        score_from=score_from,
        bos_id=bos,
    )


def evaluated(cfg: Config) -> DataConfig:
    """Where held-out documents come from: data's options with eval's source and path."""
    options, source = cfg.eval, cfg.eval.source or cfg.data.source
    data = dataclasses.replace(cfg.data, source=source, cache=None)
    if options.path is None:
        return data
    # a commit belongs to the data set that it was given for
    revision = options.revision or (data.revision if options.path == data.path else None)
    return dataclasses.replace(data, path=options.path, revision=revision)


def evaluate(
    chosen: Sequence[Variant], base: PretrainedConfig, scoring: Plan, cfg: Config, out: Path, runtime: Runtime, say: Say
) -> list[dict[str, Any]]:
    """Score every variant at every window and write ``out`` (rows as in DESIGN) after each variant.

    Rows that are there already, made with the same settings, are kept and not computed again. Ranks share the
    documents; every rank returns all rows.
    """
    done = from_main(_earlier_rows(out, scoring.settings(), say) if runtime.is_main else [])
    scored = {(row["label"], row["window"]) for row in done}
    missing = [v for v in chosen if any((v.label, window) not in scored for window in scoring.windows)]
    done = [row for row in done if row["label"] not in {v.label for v in missing}]
    cost = sum(scoring.windows) * _blocks(scoring)
    mesh = _mesh(base, cfg, runtime)
    context = ContextParallel(mesh)
    bar = tqdm(
        total=cost * len(missing),
        desc="evaluate",
        unit="tok",
        unit_scale=True,
        disable=not runtime.is_main or not missing,
        mininterval=0.5 if sys.stderr.isatty() else 15,
        dynamic_ncols=True,
    )
    for variant in missing:
        bar.set_postfix_str(variant.label)
        model = _model(variant, base, cfg, runtime, context)
        for window in scoring.windows:
            scores = _scores(model, window, scoring, runtime, mesh, context)
            done += rows(variant.label, variant.method, variant.ramp, variant.factor, variant.stage, scores)
            bar.update(window * _blocks(scoring))
        del model
        if runtime.is_main:
            write_rows(out, done)
    bar.close()
    barrier()
    return done


def _mesh(base: PretrainedConfig, cfg: Config, runtime: Runtime) -> Mesh:
    """The ranks that share a window; nothing is sharded here, so the rest of `parallel` does not matter."""
    parallel = dataclasses.replace(cfg.parallel, replicate=1, shard=None)
    ulysses = ulysses_size(parallel, base.num_attention_heads)
    return Mesh.create(runtime.device.type, runtime.world_size, parallel, ulysses)


def _model(
    variant: Variant, base: PretrainedConfig, cfg: Config, runtime: Runtime, context: ContextParallel
) -> PreTrainedModel:
    kernel = context.attention(choose_kernel(cfg.model.attention, runtime.device, DTYPES[cfg.model.dtype]))
    model = build_model(variant.weights, base, variant.rope, kernel).eval()
    for parameter in model.parameters():  # as the training engine computes; buffers (RoPE) stay float32
        parameter.data = parameter.data.to(DTYPES[cfg.model.dtype])
    torch.nn.Module.to(model, runtime.device)
    return model


def _scores(
    model: PreTrainedModel, window: int, scoring: Plan, runtime: Runtime, mesh: Mesh, context: ContextParallel
) -> Scores:
    """Scores of all documents: each group of ranks that shares windows takes every so manieth one."""
    mine = scoring.documents[mesh.data_rank :: mesh.data_size]
    part = None
    if mine:
        part = score(
            model,
            mine,
            window,
            scoring.stride,
            scoring.score_from,
            device=runtime.device,
            bos_id=scoring.bos_id,
            context=context if mesh.context > 1 else None,
        )
    parts: list[Scores | None] = [None] * runtime.world_size
    dist.all_gather_object(parts, part if mesh.context_rank == 0 else None)
    found = [p for p in parts if p is not None]
    return Scores(
        window,
        scoring.stride,
        [nll for p in found for nll in p.nll_per_window],
        [tokens for p in found for tokens in p.tokens_per_window],
        sum(p.documents for p in found),
        scoring.score_from,
    )


def _blocks(scoring: Plan) -> int:
    return sum(max(1, (len(d) - (scoring.score_from or 0)) // scoring.stride) for d in scoring.documents)


def _earlier_rows(out: Path, settings: dict[str, Any], say: Say) -> list[dict[str, Any]]:
    """Rows of an interrupted or repeated evaluation; a file made with other settings is kept under another name."""
    settings_file = out.with_name(f"{out.stem}_settings.json")
    if out.is_file() and settings_file.is_file() and json.loads(settings_file.read_text()) == settings:
        rows_there: list[dict[str, Any]] = json.loads(out.read_text())
        return rows_there
    if out.is_file():
        kept = next(p for p in _numbered(out) if not p.exists())
        out.rename(kept)
        say(f"{out.name} was made with other evaluation options; kept as {kept.name}")
    out.parent.mkdir(parents=True, exist_ok=True)
    settings_file.write_text(json.dumps(settings, indent=1) + "\n")
    return []


def _numbered(path: Path) -> Iterator[Path]:
    number = 1
    while True:
        yield path.with_name(f"{path.stem}.{number}.json")
        number += 1


def write_frequencies(path: Path, chosen: Sequence[Variant], base: PretrainedConfig, original_length: int) -> None:
    """Write every variant's RoPE table for the report, which never imports torch."""
    plain = rope_hf.base_rope(base)
    tables = []
    for variant in chosen:
        if variant.rope is None:
            continue
        table = rope_hf.table_for(base, variant.rope)
        tables.append(
            {
                "label": variant.label,
                "method": variant.method,
                "ramp": variant.ramp,
                "factor": variant.factor,
                "inv_freq": table.inv_freq.tolist(),
                "attention_factor": table.attention_factor,
            }
        )
    content = {"head_dim": plain.rotary_dim, "theta": plain.theta, "original_length": original_length, "tables": tables}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) + "\n")
