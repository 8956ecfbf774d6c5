"""Stages: what each one inherits, overrides and may not change."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from yarn_train.config import defaults
from yarn_train.errors import ConfigError
from yarn_train.stages import STAGE_SECTIONS, Stage, resolve

RUN = Path("outputs") / "run"
TWO = {
    "s16": {"rope": {"factor": 16}, "train": {"steps": 40}},
    "s32": {"rope": {"factor": 32}, "train": {"steps": 20}, "run": {"seed": 31337}},
}


def raw(stages: Any = None, **sections: dict[str, Any]) -> dict[str, Any]:
    """Composed options: the defaults, these sections on top, and stages."""
    base = defaults()
    for section, options in sections.items():
        base[section].update(options)
    base["curriculum"]["stages"] = copy.deepcopy(stages or {})
    return base


def problems_of(options: dict[str, Any], typed: Collection[str] = ()) -> list[str]:
    with pytest.raises(ConfigError) as error:
        resolve(options, RUN, typed)
    return error.value.problems


@pytest.mark.parametrize(("factor", "name"), [(16, "s16"), (2.5, "s2.5"), (1, "s1")])
def test_without_stages_there_is_one_named_after_the_factor(factor: float, name: str) -> None:
    (stage,) = resolve(raw(rope={"factor": factor}), RUN)
    assert (stage.name, stage.folder) == (name, RUN / f"01_{name}")
    assert stage.cfg.rope.factor == factor


def test_stages_keep_their_order_and_number_their_folders() -> None:
    stages = resolve(raw(dict(reversed(TWO.items()))), RUN)
    assert [(s.name, s.folder) for s in stages] == [("s32", RUN / "01_s32"), ("s16", RUN / "02_s16")]


def test_ten_stages_sort_by_their_folder_names() -> None:
    folders = [s.folder for s in resolve(raw({f"x{i}": {} for i in range(11)}), RUN)]
    assert folders == sorted(folders)


def test_a_stage_is_the_whole_config_with_its_own_options_on_top() -> None:
    s16, s32 = resolve(raw(TWO, optim={"lr": 1e-3}, rope={"alpha": 2.0}), RUN)
    assert (s16.cfg.rope.factor, s16.cfg.train.steps, s16.cfg.run.seed) == (16.0, 40, 0)
    assert (s32.cfg.rope.factor, s32.cfg.train.steps, s32.cfg.run.seed) == (32.0, 20, 31337)
    assert s16.cfg.optim == s32.cfg.optim
    assert (s32.cfg.optim.lr, s32.cfg.rope.alpha) == (1e-3, 2.0)
    assert s16.cfg.curriculum.stages == {}


def test_a_stage_equals_the_single_run_with_the_same_options() -> None:
    staged = resolve(raw(TWO), RUN)[1]
    (single,) = resolve(raw(rope={"factor": 32}, train={"steps": 20}, run={"seed": 31337}), RUN)
    assert staged.cfg == single.cfg


def test_resolving_does_not_change_the_composed_options() -> None:
    options = raw(TWO)
    before = copy.deepcopy(options)
    resolve(options, RUN, {"train.steps"})
    assert options == before


@pytest.mark.parametrize(
    ("typed", "steps"),
    [
        (set(), [40, 20]),
        ({"train.steps"}, [5, 5]),
        ({"train"}, [40, 20]),  # a config group is not an option
        ({"train.steps", "curriculum.stages.s32.train.steps"}, [5, 20]),
    ],
)
def test_an_option_typed_on_the_command_line_wins_over_a_stages_own(typed: set[str], steps: list[int]) -> None:
    stages = resolve(raw(TWO, train={"steps": 5}, schedule={"warmup_steps": 2}), RUN, typed)
    assert [s.cfg.train.steps for s in stages] == steps


def test_a_typed_seed_wins_over_a_stages_own() -> None:
    assert [s.cfg.run.seed for s in resolve(raw(TWO, run={"seed": 7}), RUN, {"run.seed"})] == [7, 7]


def test_a_typed_factor_with_stages_is_refused_and_names_the_stages() -> None:
    (problem,) = problems_of(raw(TWO, rope={"factor": 4}), {"rope.factor"})
    assert problem.startswith("rope.factor: got 4.0; ")
    assert "s16, s32" in problem
    assert "curriculum.stages.<stage>.rope.factor" in problem
    resolve(raw(rope={"factor": 4}), RUN, {"rope.factor"})  # without stages it is the normal thing to do


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({"trian": {"steps": 3}}, "stage a: trian: got "),
        ({"model": {"path": "x"}}, "stage a: model: got "),
        ({"eval": {"enabled": False}}, "stage a: eval: got "),
        ({"model": {"path": "elsewhere"}}, "stage a: model: got "),
        ({"curriculum": {"stages": {}}}, "stage a: curriculum: got "),
        ({"train": 3}, "stage a: train: got 3"),
        ({"run": {"name": "x"}}, "stage a: run.name: got 'x'; allowed: run.seed only"),
        ({"train": {"stpes": 3}}, "stage a: train.stpes: unknown option; did you mean train.steps?"),
        ({"train": {"steps": -1}}, "stage a: train.steps: got -1; "),
        ({"rope": {"alpha": 40}}, "stage a: rope.beta: got 32.0; "),
        (16, "stage a: curriculum.stages.a: got 16; "),
        (None, "stage a: curriculum.stages.a: got None; "),
    ],
)
def test_what_a_stage_may_not_say_is_refused(options: Any, start: str) -> None:
    (problem,) = problems_of(raw({"a": options}))
    assert problem.startswith(start)


def test_a_section_of_a_stage_that_is_refused_lists_those_that_are_allowed() -> None:
    (problem,) = problems_of(raw({"a": {"model": {"path": "x"}}}))
    assert " | ".join(("run", *STAGE_SECTIONS)) in problem


def test_the_problems_of_all_stages_are_listed_at_once() -> None:
    stages = {
        "a": {"train": {"steps": -1}, "optim": {"lr": -1}},
        "good": {"train": {"steps": 30}},
        "b": {"model": {}, "run": {"name": "x"}},
    }
    problems = problems_of(raw(stages), {"rope.factor"})
    starts = [p.partition(": got")[0] for p in problems]
    assert starts == [
        "rope.factor",
        "stage a: train.steps",
        "stage a: optim.lr",
        "stage b: model",
        "stage b: run.name",
    ]


def test_a_stage_is_finished_when_its_exported_model_is_there(tmp_path: Path) -> None:
    (stage,) = resolve(raw(), tmp_path)
    assert stage.model_folder == tmp_path / "01_s16" / "model"
    assert not stage.finished
    stage.model_folder.mkdir(parents=True)
    assert not stage.finished
    (stage.model_folder / "config.json").touch()
    assert stage.finished


def test_the_composed_quickstart_resolves_and_typed_options_reach_both_stages(
    compose: Callable[..., dict[str, Any]],
) -> None:
    stages = resolve(compose("train.steps=6", "rope.alpha=2"), RUN, {"train.steps", "rope.alpha"})
    assert [type(s) for s in stages] == [Stage, Stage]
    assert [(s.cfg.rope.factor, s.cfg.rope.alpha, s.cfg.train.steps) for s in stages] == [(16, 2, 6), (32, 2, 6)]
    assert dataclasses.replace(stages[1].cfg, rope=stages[0].cfg.rope, run=stages[0].cfg.run) == stages[0].cfg


def test_a_stage_name_that_would_leave_the_run_folder_is_refused(tmp_path: Path) -> None:
    raw = copy.deepcopy(defaults())
    raw["curriculum"]["stages"] = {"../evil": {"rope": {"factor": 2.0}}}
    with pytest.raises(ConfigError, match=r"curriculum\.stages: got '\.\./evil'"):
        resolve(raw, tmp_path)
