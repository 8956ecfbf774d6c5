"""``python -m yarn_train.plan experiment=yarn_llama2_7b_64k plan.gpu=h100 plan.gpus=8``: will it fit, how long.

Takes the options of ``train.py``; reads no weights and no data, and needs no GPU. Exit codes: 0 every stage fits, 3 one
does not, 2 the options are wrong.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from .. import cli
from .. import config as schema
from ..errors import ConfigError, problem
from ..model.load import DTYPES, is_language_model, unsupported
from ..model.primitives import primitive_for
from ..model.probe import attention_problems, mask_problems
from ..parallel.context import context_problems
from ..rope import hf as rope_hf
from ..stages import Stage, resolve
from . import show
from .advice import Adviser
from .architectures import architecture
from .estimate import Target, plan_stages
from .jobs import Tracer
from .sizes import Sizes

DOES_NOT_FIT = 3


def plan_run(raw: Mapping[str, Any], typed: Collection[str], run_folder: Path) -> None:
    """Print the plan of a composed configuration; exits with ``DOES_NOT_FIT`` when a stage does not.

    Raises:
        ConfigError: the options are wrong, or the architecture of ``model.path`` is not to be had.
    """
    stages = resolve(raw, run_folder, typed)
    cfg = stages[0].cfg
    base, note = architecture(cfg.model.path)
    if note:
        say(note)
    check(stages, base)
    target, sizes = Target.of(cfg), Sizes.of(base)
    with Tracer(base) as tracer:
        plans = plan_stages(stages, tracer, sizes, target)
        data: dict[str, Any] = {"gpu": target.machine.name, "stages": [show.as_data(plan, target) for plan in plans]}
        for plan in plans:
            say(*show.stage_lines(plan, target, sizes))
        whole = sum(plan.seconds for plan in plans)
        say(f"all stages: {whole / 3600:,.1f} h, {whole * target.gpus / 3600:,.0f} GPU hours, at kernel ceilings")
        worst = max(plans, key=lambda plan: (not plan.estimate.runs, plan.estimate.memory.total))
        fits = worst.estimate.runs
        adviser = Adviser(worst.estimate.cfg, tracer, sizes, target)
        advice = adviser.faster(worst.estimate) if fits else adviser.to_fit()
        if advice:
            say("faster, and fits too:" if fits else "to make it fit, cheapest in time first:")
            say(*show.advice_lines(advice, worst.estimate))
        elif not fits:
            say("no three changes make it fit")
    if cfg.plan.output is not None:
        data |= {"fits": fits, "advice": show.advice_data(advice)}
        Path(cfg.plan.output).write_text(json.dumps(data, indent=1) + "\n")
    if not fits:
        sys.exit(DOES_NOT_FIT)


def check(stages: list[Stage], base: PretrainedConfig) -> None:
    """The checks of a run that concern a plan.

    Raises:
        ConfigError: listing all problems.
    """
    found = unsupported(base)
    for stage in stages:
        found += rope_hf.check_base(base, stage.cfg.rope)
    language = is_language_model(base)
    if not language and not found:
        found.append(problem("model.path", base.model_type, "causal language models", "use another base"))
    for stage in stages:
        try:
            schema.validate(stage.cfg, stage.cfg.plan.gpus)
        except ConfigError as error:
            found += error.problems
        if language:  # others have no heads to look at
            found += context_problems(stage.cfg.parallel, base)
            found += attention_problems(base, primitive_for("sdpa", "cuda", DTYPES[stage.cfg.model.dtype]))
            found += mask_problems(stage.cfg, base)
    if found:
        raise ConfigError(list(dict.fromkeys(found)))


def say(*lines: str) -> None:
    """Lines for the user, at once even when the output is a file."""
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    cli.run(plan_run)
