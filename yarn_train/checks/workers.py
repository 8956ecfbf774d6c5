"""What can be known before workers are started, without the libraries that only they need.

A process that only starts workers imports no transformers: nothing slow is looked at unless something is wrong already,
and then everything is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import config as schema
from ..config import Config
from ..dist import environment
from ..model.folder import folder_problems
from ..problem_list import ProblemList
from ..stages import examine
from .data import data_problems
from .ranks import rank_problems, ranks, workers


def check_before_workers(raw: Mapping[str, Any], typed: Collection[str], where: Path) -> None:
    """Check a composed configuration whose workers are to be started by this process.

    Args:
        where: the run folder.

    Raises:
        ConfigError: listing all problems.
        YarnTrainError: the only problem, as another class of error.
    """
    stages, problems = examine(raw, where, typed)
    whole = schema.examine(raw)[0]
    problems.add(first_look(whole, [stage.cfg for stage in stages], [s.cfg for s in stages if not s.finished]))
    if problems.lines:
        from .start import check_start

        check_start(raw, typed, where)
    problems.refuse()


def first_look(whole: Config, configs: Sequence[Config], unfinished: Sequence[Config]) -> list[str]:
    """Problems of the number of workers, the model's folder and the data's paths."""
    problems = ProblemList()
    if not environment.under_launcher():  # else the workers are there, and look at everything
        with problems.collecting():
            workers(whole.launch)
        world_size = ranks(whole)
        for cfg in configs:
            problems.add(rank_problems(cfg, world_size))
        problems.add(folder_problems(whole.model.path))
        problems.run(lambda: data_problems(unfinished))
    return problems.lines
