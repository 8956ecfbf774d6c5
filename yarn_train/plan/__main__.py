"""``python -m yarn_train.plan experiment=yarn_llama2_7b_64k plan.gpu=h100 plan.gpus=8``: will it fit, how long.

Takes the options of ``train.py``; reads no weights and no data, and needs no GPU. Exit codes: 0 every stage fits, 3 one
does not, 2 the options are wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from .. import cli, model_revision, remote_code
from .. import config as schema
from ..dry_run.kernels import gpu_primitive
from ..errors import problem
from ..model.load import DTYPES, is_language_model, unsupported
from ..model.local import window_problems, with_window
from ..model.matrices import matrix_problems
from ..model.probe import attention_problems, mask_problems
from ..parallel.context import context_problems
from ..rope import hf as rope_hf
from ..stages import Stage, examine
from . import show
from .advice import Adviser
from .architectures import KNOWN, architecture
from .estimate import DOES_NOT_FIT, Target, plan_stages
from .jobs import Tracer
from .output import write_plan
from .sizes import Sizes


def plan_run(raw: Mapping[str, Any], typed: Collection[str], run_folder: Path) -> None:
    """Print the plan of a composed configuration; exits with ``DOES_NOT_FIT`` when a stage does not.

    Raises:
        ConfigError: the options are wrong, or the architecture of ``model.path`` is not to be had.
    """
    stages, base, note = check_plan(raw, typed, run_folder)
    if note:
        say(note)
    with remote_code.allowed(stages[0].cfg.model.trust_remote_code):
        _plan(stages, base)


def _plan(stages: list[Stage], base: PretrainedConfig) -> None:
    cfg = stages[0].cfg
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
        write_plan(cfg.plan.output, data)
    if not fits:
        sys.exit(DOES_NOT_FIT)


def check_plan(
    raw: Mapping[str, Any], typed: Collection[str], run_folder: Path
) -> tuple[list[Stage], PretrainedConfig, str]:
    """The checks of a run that concern a plan; returns the stages, the model's config, and a note on it.

    Raises:
        ConfigError: listing all problems.
    """
    stages, problems = examine(raw, run_folder, typed)
    model = stages[0].cfg.model
    problems.add(model_revision.problems(model.path, model.revision))
    pinned = model_revision.pinned(model.path, model.revision, ask=model.path not in KNOWN)
    with problems.collecting(), remote_code.allowed(model.trust_remote_code), pinned:
        base, note = architecture(stages[0].cfg)
        problems.add(_model_problems(stages, base))
    for stage in stages:
        with problems.collecting():
            schema.validate(stage.cfg, stage.cfg.plan.gpus)
    problems.refuse()
    return stages, base, note


def _model_problems(stages: list[Stage], base: PretrainedConfig) -> list[str]:
    found = unsupported(base)
    if (name := stages[0].cfg.adapter.name) != "none":
        fix = "leave adapters out: they need less than the plan of full fine-tuning says"
        found.append(problem("adapter.name", name, "none in a plan", fix))
    for stage in stages:
        found += rope_hf.check_base(base, stage.cfg.rope)
        found += window_problems(base, stage.cfg.rope.sliding_window, rope_hf.reach(base, stage.cfg.rope))
    if not is_language_model(base):  # it has no heads to look at
        return found or [problem("model.path", base.model_type, "causal language models", "use another base")]
    for stage in stages:
        found += context_problems(stage.cfg.parallel, with_window(base, stage.cfg.rope.sliding_window))
        primitive = gpu_primitive(stage.cfg.model.attention, DTYPES[stage.cfg.model.dtype])
        found += attention_problems(base, primitive) + matrix_problems(stage.cfg, base, primitive)
        found += mask_problems(stage.cfg, base)
    return found


def say(*lines: str) -> None:
    """Lines for the user, at once even when the output is a file."""
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    cli.run(plan_run, check=check_plan)
