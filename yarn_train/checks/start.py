"""Everything that is checked before a run starts, in one pass: a user sees all problems at once.

Nothing is written and no weight is read. What depends on an option that is wrong is checked with its default, and
problems that name such an option are left out: they may only follow from it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from .. import config as schema
from .. import model_revision, remote_code
from ..config import Config, parts_of
from ..data.local import list_files
from ..dist import environment
from ..dist import runtime as dist_runtime
from ..errors import ConfigError
from ..eval.documents import evaluated
from ..eval.passkey.task import passkey_books
from ..eval.perplexity.plan import plan as plan_perplexity
from ..model.folder import find_model
from ..model.load import base_notes, is_language_model, load_base
from ..option_rules_eval import reads_documents
from ..plan.architectures import architecture
from ..problem_list import ProblemList
from ..rope import hf as rope_hf
from ..stages import Stage, examine
from ..train.init_from import check_weights
from ..train.tracking import tracking_problems
from . import data, evaluation, folder, machine, model, options
from .ranks import rank_problems, ranks


@dataclass(frozen=True)
class Checked:
    """What the checks have opened.

    Attributes:
        base: the unscaled config of model.path.
        weights: where the first stage's weights come from; None for a random initialisation.
        notes: lines for the user.
    """

    base: PretrainedConfig
    tokenizer: Any
    weights: str | None
    notes: list[str]


def check_start(raw: Mapping[str, Any], typed: Collection[str], where: Path) -> Checked:
    """Check a composed configuration.

    Args:
        where: the run folder.

    Raises:
        ConfigError: listing all problems.
        YarnTrainError: the only problem, as another class of error.
    """
    stages, problems = examine(raw, where, typed)
    whole = schema.examine(raw)[0]
    configs = [stage.cfg for stage in stages]
    dry, options_are_right = whole.launch.dry_run, not problems.lines
    with remote_code.allowed(whole.model.trust_remote_code):
        if not dry:
            problems.add(machine.worker_problems(whole.launch))
            problems.run(lambda: machine.dtype_problems(configs))
            problems.run(lambda: tracking_problems(whole.tracking))
        problems.add(model_revision.problems(whole.model.path, whole.model.revision))
        base: PretrainedConfig | None = None
        broken = ProblemList()
        with broken.collecting():
            base = architecture(configs[0])[0] if dry else load_base(configs[0])
        problems.run(lambda: run_problems(stages, base, ranks(whole), [] if dry else None))
        problems.add(broken.lines)
        sound = base if base is not None and is_language_model(base) else None
        problems.run(lambda: evaluation.problems_at_the_end(whole, sound))
        tokenizer = weights = None
        if not dry:
            with problems.collecting():
                tokenizer = model.open_tokenizer(whole.model.path, base) if base is not None else None
            fits = not any(line.startswith("model.path") for line in problems.lines)
            with problems.collecting():
                weights = first_weights(configs[0], base if fits else None, tokenizer)
        problems.run(lambda: data.data_problems([stage.cfg for stage in stages if not stage.finished]))
        if options_are_right:
            for error in folder.folder_errors(whole, stages, where):
                with problems.collecting():
                    raise error
        if not problems.lines and not dry and base is not None:
            with problems.collecting():
                look_for_documents(whole, stages, base, tokenizer)
        problems.refuse()
        assert base is not None
        notes = remote_code.notes(base, tokenizer) + base_notes(configs[0])
    return Checked(base, tokenizer, weights, notes)


def look_for_documents(whole: Config, stages: Sequence[Stage], base: PretrainedConfig, tokenizer: Any) -> None:
    """Find the documents of the evaluation now: that there are none is no news for the end of a training.

    Not those of the hub: nothing is fetched before the ranks have met.

    Raises:
        DataError: too few that are long enough.
    """
    here = all(part.data.path is None or list_files(part.data.path) for part in parts_of(evaluated(whole)))
    ahead = reads_documents(whole) and not all(stage.finished for stage in stages)
    if not (ahead and here and environment.rank() == 0):
        return
    length = whole.rope.original_max_position_embeddings or rope_hf.base_rope(base).original_length or 0
    factor = max(stage.cfg.rope.factor for stage in stages)
    if "perplexity" in whole.eval.tasks:
        plan_perplexity(whole, evaluated(whole), tokenizer, length, factor)
    if "passkey" in whole.eval.tasks and whole.passkey.variant == "book":
        passkey_books(whole, evaluated(whole), tokenizer, length, factor)


def first_weights(cfg: Config, base: PretrainedConfig | None, tokenizer: Any) -> str | None:
    """Where the first stage's weights come from: None for a random initialisation.

    Raises:
        YarnTrainError: they are not here, or not weights of `base`.
    """
    if cfg.run.init_from is not None:
        source = find_model(cfg.run.init_from)
        if base is not None and tokenizer is not None:
            length = cfg.rope.original_max_position_embeddings or rope_hf.base_rope(base).original_length
            check_weights(source, base, tokenizer, length or 0)
            refuse(model.weight_problems(source, base, "run.init_from"))
        return source
    if cfg.model.init == "random":
        return None
    if base is not None:
        refuse(model.weight_problems(cfg.model.path, base))
    return cfg.model.path


def refuse(problems: list[str]) -> None:
    """Raise a list of problems if it has any.

    Raises:
        ConfigError: listing them.
    """
    if problems:
        raise ConfigError(problems)


def check_run(
    stages: list[Stage],
    base: PretrainedConfig | None = None,
    world_size: int | None = None,
    absent: list[str] | None = None,
) -> PretrainedConfig:
    """Every check of :func:`run_problems`, for a model that is read here if `base` is None.

    Returns:
        The unscaled base config.

    Raises:
        ConfigError: listing all problems.
    """
    base = base if base is not None else load_base(stages[0].cfg)
    refuse(run_problems(stages, base, world_size or environment.world_size(), absent))
    return base


def run_problems(
    stages: Sequence[Stage], base: PretrainedConfig | None, world_size: int, absent: list[str] | None = None
) -> list[str]:
    """Batch arithmetic, kernel, packages, architecture and RoPE of all stages.

    Args:
        base: the unscaled config of model.path; None where it cannot be read, and only the rest is looked at.
        absent: for a run on other machines, each rank with a GPU of its own: gets the lines of packages that are
            missing here, which are problems of a run that is to start here.
    """
    elsewhere, configs = absent is not None, [stage.cfg for stage in stages]
    device = torch.device("cuda") if elsewhere else dist_runtime.device()
    problems, lacking = ProblemList(), ProblemList()
    if base is not None:
        found, packages = model.architecture_problems(
            configs, base, device, lambda cfg: options.kernel(cfg, device, elsewhere, base)[0]
        )
        problems.add(found)
        lacking.add(packages)
    else:
        problems.add(line for cfg in configs for line in model.loss_problems(cfg, None, device))
    for cfg in configs:
        problems.add(rank_problems(cfg, world_size))
        problems.add(options.kernel(cfg, device, elsewhere)[1])
        problems.add(options.engine_problems(cfg))
        lacking.add(options.missing_packages(cfg))
    if absent is None:
        problems.add(lacking.lines)
    else:
        absent += [line for line in lacking.lines if line not in absent]
    return problems.lines
