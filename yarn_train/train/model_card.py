"""README.md of an exported model: what it was made of and how, and what a program that serves it must know.

The base's licence travels along: what its own card says of it. Nothing is guessed; what is not known is not written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..checkpoint.base_files import CARD, base_files, carry, licences
from ..config import Config
from ..data.manifest import MANIFEST
from ..dist import environment
from ..redact import redacted
from ..rope.frequencies import attention_factor
from .run_folder import git_hash, is_record, versions

CARRIED = ("license", "license_name", "license_link", "language")  # of the base's card
RESULTS, EVALUATED = "## Results\n", "### Perplexity of held-out documents\n"


def write(folder: Path, cfg: Config, stage: Path, original_length: int, data: Sequence[Path] = ()) -> None:
    """Write the card into an exported model's folder, and beside it what :mod:`checkpoint.base_files` carries over.

    Args:
        cfg: the stage's own configuration.
        stage: its folder, with metrics.jsonl; run.json lies above it.
        original_length: L in tokens.
        data: prepared data folders, whose manifests are told.
    """
    theirs = base_files(cfg.model.path)
    carry(folder, theirs)
    head = front_matter(cfg, theirs)
    run = _record(stage.parent)
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n",
        _title(cfg, original_length),
        "## Recipe\n\n" + _rows(_recipe(cfg, original_length)),
        "## Data\n\n" + _rows(_data(cfg, stage, data)),
        RESULTS + "\n" + _rows(_training(stage)),
        "## How it was made\n\n" + _made(run),
        _use(cfg, original_length),
    ]
    text = "\n".join(part.rstrip("\n") + "\n" for part in parts)
    (folder / CARD).write_text(redacted(text, environment.secrets()), encoding="utf-8")


def add_results(folder: Path, rows: Iterable[Mapping[str, Any]], stage: str) -> None:
    """Put an evaluation's perplexities of this stage into a card that is there already.

    Args:
        rows: those of eval/perplexity.json.
    """
    path = folder / CARD
    found = [row for row in rows if row.get("stage") == stage]
    if not found or not path.is_file():
        return
    lines = [f"| {row['window']:,} | {row['stride']:,} | {row['mode']} | {row['perplexity']:.4g} |" for row in found]
    table = ["| window | stride | mode | perplexity |", "| --- | --- | --- | --- |", *lines]
    made = "\n".join([EVALUATED, *table]) + "\n"
    before, mark, after = path.read_text(encoding="utf-8").partition("## How it was made\n")
    before = before.partition(EVALUATED)[0]
    aside = path.with_name(f".{CARD}.incomplete")
    aside.write_text(f"{before.rstrip()}\n\n{made}\n{mark}{after}", encoding="utf-8")
    os.replace(aside, path)


def front_matter(cfg: Config, files: dict[str, Path]) -> dict[str, Any]:
    """The card's head, as the hub reads it; `files` are the base's."""
    theirs = _head_of(files[CARD]) if CARD in files else {}
    head: dict[str, Any] = {key: theirs[key] for key in CARRIED if key in theirs}
    if "license" not in head and (names := licences(files)):
        head |= {"license": "other", "license_name": "of-the-base", "license_link": names[0]}
    if not Path(cfg.model.path).expanduser().is_dir():
        head["base_model"] = cfg.model.path
    elif "base_model" in theirs:
        head["base_model"] = theirs["base_model"]
    if cfg.data.path and cfg.data.path.count("/") == 1 and not Path(cfg.data.path).exists():
        head["datasets"] = [cfg.data.path]
    return {**head, "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["yarn", "long-context"]}


def _title(cfg: Config, length: int) -> str:
    window = round(cfg.rope.factor * length)
    base = Path(cfg.model.path).name if Path(cfg.model.path).is_dir() else cfg.model.path
    name = {"yarn": "YaRN", "pi": "position interpolation", "ntk": "NTK-aware RoPE", "none": "unscaled RoPE"}
    how = name.get(cfg.rope.method, "NTK-by-parts RoPE")
    return (
        f"# {cfg.run.name}: {window:,} tokens\n\n{base}, pretrained at {length:,} tokens, trained on with {how} "
        f"(arXiv:2309.00071) for a context of {window:,}.\n"
    )


def _recipe(cfg: Config, length: int) -> list[tuple[str, str]]:
    rope, train = cfg.rope, cfg.train
    rows = [
        ("method", rope.method),
        ("factor s", f"{rope.factor:g}, absolute: {length:,} -> {round(rope.factor * length):,} tokens"),
        ("attention factor", f"{attention_factor(rope.method, rope.factor, rope.temperature):.6f} on cos and sin"),
    ]
    if rope.method in ("yarn", "ntk_by_parts"):
        rows.append(("alpha, beta", f"{rope.alpha:g}, {rope.beta:g}, ramp {rope.ramp}"))
    tokens = train.global_batch_size * cfg.data.seq_len
    return [
        *rows,
        ("steps", f"{train.steps} of {train.global_batch_size} x {cfg.data.seq_len:,} = {tokens:,} tokens"),
        ("learning rate", f"{cfg.optim.lr:g}, {cfg.schedule.name} after {cfg.schedule.warmup_steps} steps of warmup"),
        ("AdamW", f"betas {cfg.optim.betas}, weight decay {cfg.optim.weight_decay:g}, clip {cfg.optim.grad_clip:g}"),
        ("compute", f"{cfg.model.dtype}, {cfg.engine.name}, seed {cfg.run.seed}"),
    ]


def _data(cfg: Config, stage: Path, folders: Sequence[Path]) -> list[tuple[str, str]]:
    last = _rows_of(stage)[-1:]
    path = f" {cfg.data.path}" if cfg.data.path and not Path(cfg.data.path).exists() else ""
    rows = [("source", f"{cfg.data.source}{path}"), ("document mask", cfg.data.document_mask)]
    rows += [("tokens read", f"{row['tokens']:,}") for row in last]
    for folder in folders:
        manifest = json.loads((folder / MANIFEST).read_text())
        rows.append(("prepared", f"{manifest['tokens_in']:,} tokens, content sha256 {manifest['content_sha256']}"))
    return rows


def _training(stage: Path) -> list[tuple[str, str]]:
    rows = _rows_of(stage)
    losses = [row["loss"] for row in rows if row.get("loss") is not None]
    if not losses:
        return [("training", "none")]
    few = losses[-10:]
    return [("training loss", f"{losses[0]:.4f} at the first step, {sum(few) / len(few):.4f} over the last {len(few)}")]


def _made(run: Mapping[str, Any]) -> str:
    command = run.get("command")
    text = f"```bash\n{command}\n```\n\n" if command else ""
    model = run.get("model") or {}
    rows = [("base commit", str(model["commit"]))] if model.get("commit") else []
    rows += [(name, version) for name, version in (run.get("versions") or versions()).items()]
    commit = run.get("git") or git_hash()
    return text + _rows([*rows, *([("yarn-train", commit)] if commit else [])])


def _use(cfg: Config, length: int) -> str:
    window = round(cfg.rope.factor * length)
    served = (
        ""
        if cfg.rope.ramp == "by_index" and cfg.rope.method in ("yarn", "pi", "none")
        else (
            "\nIts frequencies are written as `longrope`, one factor per pair; `python -m yarn_train.export --check` "
            "says which programs read that.\n"
        )
    )
    return f"""## Use

The configuration says all that is needed, in both spellings; give no option for RoPE on a command line.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="bfloat16")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

```bash
vllm serve FOLDER --max-model-len {window}
python -m sglang.launch_server --model-path FOLDER --context-length {window}
```
{served}
The scaling is static: it is applied to short texts too. Compare short-context quality with the base's.
"""


def _rows(rows: Sequence[tuple[str, str]]) -> str:
    return "| | |\n| --- | --- |\n" + "".join(f"| {name} | {value} |\n" for name, value in rows)


def _rows_of(stage: Path) -> list[dict[str, Any]]:
    file = stage / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def _record(run: Path) -> dict[str, Any]:
    path = run / "run.json"
    return json.loads(path.read_text()) if is_record(path) else {}


def _head_of(card: Path) -> dict[str, Any]:
    """The YAML between the first two lines of dashes; nothing where there is none that can be read."""
    text = card.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---\n"):
        return {}
    try:
        found = yaml.safe_load(text[4:].partition("\n---")[0])
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
