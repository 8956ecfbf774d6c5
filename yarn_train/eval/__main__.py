"""``python -m yarn_train.eval eval=perplexity model.path=FOLDER``: evaluate any model as its config reads.

Takes the options of ``train.py``. The model is read with whatever RoPE its own config says; nothing is rescaled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .. import cli
from .. import config as schema
from ..data.tokenize import load_tokenizer
from ..dist import runtime as dist_runtime
from ..errors import ConfigError, problem
from ..model.attention import choose_kernel
from ..model.load import DTYPES, is_language_model, load_config, unsupported
from ..model.probe import attention_problems
from ..parallel.context import context_problems
from ..rope import hf as rope_hf
from . import suite


def evaluate_model(raw: Mapping[str, Any], typed: Collection[str], run_folder: Path) -> None:
    """Sliding-window perplexity of ``model.path``; rows go to ``outputs/eval/<model>/eval/perplexity.json``.

    Raises:
        ConfigError: the evaluation was switched off, or the model's head is not supported.
    """
    cfg = schema.build(raw)
    if not cfg.eval.enabled:
        raise ConfigError(problem("eval", "none", "perplexity", "leave eval=none out"))
    base = load_config(cfg.model.path)
    problems = unsupported(base)
    if not is_language_model(base):
        raise ConfigError(problems or problem("model.path", base.model_type, "causal language models", "use one"))
    problems += context_problems(cfg.parallel, base)
    problems += [] if problems else attention_problems(base)
    world_size = dist_runtime.world_size()
    if world_size % cfg.parallel.context:
        allowed = f"a divisor of the number of ranks ({world_size})"
        problems.append(problem("parallel.context", cfg.parallel.context, allowed, "start another number of ranks"))
    if problems:
        raise ConfigError(problems)
    choose_kernel(cfg.model.attention, dist_runtime.device(), DTYPES[cfg.model.dtype])
    method, factor = rope_hf.method_of(base)
    length = rope_hf.pretrained_length(base)
    if length is None and not cfg.eval.windows:
        fix = "its config does not say how long it was pretrained: eval.windows=[4096,8192]"
        raise ConfigError(problem("eval.windows", [], "explicit windows for this model", fix))
    scoring = suite.plan(cfg, suite.evaluated(cfg), load_tokenizer(cfg.model.path), length or 0, factor)
    runtime = dist_runtime.start()
    say = print if runtime.is_main else (lambda text: None)
    label = f"{Path(cfg.model.path).name} ({method} s={factor:g})"
    variant = suite.Variant(label, method, None, factor, None, cfg.model.path, rope=None)
    out = output_folder(cfg.model.path) / "eval" / "perplexity.json"
    rows = suite.evaluate([variant], base, scoring, cfg, out, runtime, say)
    for row in rows:
        if row["mode"] == "token_mean":
            say(f"window {row['window']:>8}  perplexity {row['perplexity']:.4f}  ({row['tokens']} tokens)")
    say(f"wrote {out}")


def output_folder(model_path: str) -> Path:
    """A folder of the model's own: its last names, and a short hash so that two models never share one."""
    digest = hashlib.sha256(str(Path(model_path).absolute()).encode()).hexdigest()[:8]
    return Path("outputs") / "eval" / f"{'-'.join(Path(model_path).parts[-3:]).strip('/-.')}-{digest}"


if __name__ == "__main__":
    cli.run(evaluate_model)
