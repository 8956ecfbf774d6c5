"""One list of everything that is wrong: what is on it, what only follows and is not, and that it is told once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yarn_train import config as schema
from yarn_train.errors import CheckpointError, ConfigError
from yarn_train.problem_list import ProblemList


def listed(options: list[str], *others: str) -> list[str]:
    problems = ProblemList()
    problems.add_options(options)
    problems.add(others)
    return problems.lines[len(options) :]


@pytest.mark.parametrize(
    ("option", "other", "follows"),
    [
        ("train.steps: got 'many'; ...", "schedule.warmup_steps: got 9; allowed: <= train.steps (4)", True),
        ("train.steps: got 'many'; ...", "train.steps: got 400; allowed: less", True),
        ("train.steps: got 'many'; ...", "model.path: got 'x'; allowed: a folder", False),
        ("train.steps: got 'many'; ...", "model.path: got 'my_train.steps_2'; allowed: a folder", False),
        ("data.sorce: unknown option; did you mean data.source?", "data.path: allowed: null for data.source=a", True),
        ("optim.lrr: unknown option; did you mean optim.lr?", "optim.lr: got -1; allowed: > 0", False),
        ("stage s2: optim.lr: got 0; ...", "optim.state: needs optim.lr", True),
    ],
)
def test_what_names_an_option_that_is_wrong_may_only_follow_from_it(option: str, other: str, follows: bool) -> None:
    assert listed([option], other) == ([] if follows else [other])


def test_problems_of_options_never_hide_each_other() -> None:
    lines = ["rope.fcator: unknown option; did you mean rope.factor?", "rope.factor: got 0; allowed: >= 1"]
    problems = ProblemList()
    problems.add_options(lines[:1])
    problems.add_options(lines)
    assert problems.lines == lines


def test_an_error_that_is_alone_stays_what_it_is() -> None:
    problems = ProblemList()
    problems.run(lambda: (_ for _ in ()).throw(CheckpointError("gone")))
    with pytest.raises(CheckpointError, match="gone"):
        problems.refuse()
    problems.add(["a: wrong"])
    with pytest.raises(ConfigError) as error:
        problems.refuse()
    assert error.value.problems == ["gone", "a: wrong"]


def test_a_wrong_value_leaves_its_default_for_later_checks() -> None:
    config, problems = schema.examine({"train": {"steps": "many"}, "optim": {"lr": 1e-3}})
    assert (config.train.steps, config.optim.lr) == (400, 1e-3)
    assert [line.partition(":")[0] for line in problems] == ["train.steps"]


def test_two_ranks_tell_the_list_once_and_both_leave_with_its_code(
    launch: Callable[..., Any], tiny_args: list[str], tmp_path: Path
) -> None:
    wrong = ["train.stpes=3", "train.global_batch_size=3", f"run.dir={tmp_path / 'run'}"]
    words = [word for word in tiny_args if not word.startswith("model.path")]
    done = launch(*words, *wrong, "model.path=/nothing/here", ranks=2, check=False)
    for key in ("train.stpes: unknown", "train.global_batch_size: got 3", "model.path: got '/nothing/here'"):
        assert done.stderr.count(key) == 1, done.stderr
    assert done.stderr.count("exitcode  : 2 ") == 2, done.stderr
    assert not (tmp_path / "run").exists()
