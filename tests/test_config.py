"""The schema: what it accepts, every way it refuses, and that each of its options does something."""

from __future__ import annotations

import ast
import dataclasses
import math
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from yarn_train import config as schema
from yarn_train.config import Config, accumulation_steps, build, validate
from yarn_train.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
FIELDS = [(section, f) for section, cls in schema.SECTIONS.items() for f in dataclasses.fields(cls)]
HINTS = {section: typing.get_type_hints(cls) for section, cls in schema.SECTIONS.items()}


def names(fields: list[tuple[str, Any]]) -> list[str]:
    return [f"{section}.{f.name}" for section, f in fields]


def nested(**options: Any) -> dict[str, dict[str, Any]]:
    """nested(rope__alpha=2) -> {"rope": {"alpha": 2}}."""
    raw: dict[str, dict[str, Any]] = {}
    for key, value in options.items():
        section, name = key.split("__")
        raw.setdefault(section, {})[name] = value
    return raw


def one_of(section: str, field: Any, value: Any) -> Any:
    """The value as the option takes it: a list's item in a list."""
    return [value] if typing.get_origin(HINTS[section][field.name]) is list else value


def problems_of(raw: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        build(raw)
    return error.value.problems


# ---- accepted ----


def test_the_defaults_are_valid_complete_and_documented() -> None:
    assert build({}) == build(schema.defaults()) == Config()
    assert schema.keys() == names(FIELDS)
    assert [f"{section}.{f.name}" for section, f in FIELDS if not f.metadata["doc"]] == []


def test_an_integer_is_accepted_where_a_float_is_asked_for() -> None:
    config = build(nested(rope__factor=16, optim__betas=[0, 0.95], rope__temperature=1))
    assert (config.rope.factor, config.optim.betas, config.rope.temperature) == (16.0, [0.0, 0.95], 1.0)
    assert all(isinstance(v, float) for v in (config.rope.factor, *config.optim.betas, config.rope.temperature))


def test_a_configuration_is_frozen_and_shares_no_list_with_another() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().rope.factor = 2.0  # type: ignore[misc]
    assert Config().optim.betas is not Config().optim.betas


# ---- refused, one by one ----


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (nested(rope__alhpa=2), "rope.alhpa: unknown option; did you mean rope.alpha?"),
        (nested(train__warmup_steps=2), "train.warmup_steps: unknown option; did you mean schedule.warmup_steps?"),
        ({"ropes": {}}, "ropes: unknown option; did you mean rope?"),
        (nested(run__xyzzyx=2), "run.xyzzyx: unknown option; see the options in yarn_train/options.py"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_one(raw: dict[str, Any], expected: str) -> None:
    assert problems_of(raw) == [expected]


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("train.steps", "many", "int"),
        ("train.steps", 1.5, "int"),
        ("train.steps", True, "int"),
        ("train.steps", None, "int"),
        ("train.stop_after", True, "int | None"),
        ("optim.lr", "2e-5", "float"),
        ("optim.lr", False, "float"),
        ("optim.betas", 0.9, "list[float]"),
        ("optim.betas", ["a", 0.9], "list[float]"),
        ("eval.windows", [1.5], "list[int]"),
        ("rope.truncate", 1, "bool"),
        ("rope.temperature", True, "float | str"),
        ("run.name", 3, "str"),
        ("run.name", None, "str"),
        ("curriculum.stages", ["s16"], "dict[str, any]"),
    ],
)
def test_a_wrong_type_says_what_it_got_and_what_is_allowed(key: str, value: Any, allowed: str) -> None:
    section, name = key.split(".")
    (problem,) = problems_of({section: {name: value}})
    assert problem.startswith(f"{key}: got {value!r}; allowed: {allowed}; fix: ")


@pytest.mark.parametrize(("key", "value"), [("eval.tasks", "passkey"), ("eval.windows", 4096), ("study.factors", 2)])
def test_one_item_in_the_place_of_a_list_is_refused_with_what_to_write(key: str, value: Any) -> None:
    section, name = key.split(".")
    (problem,) = problems_of({section: {name: value}})
    assert f"; fix: write a list, {key}=[{value}]; the option is: " in problem


def test_a_value_in_the_place_of_a_section_is_refused() -> None:
    (problem,) = problems_of({"rope": "yarn"})
    assert problem.startswith("rope: got 'yarn'; allowed: a section of options")


CHOSEN = [(s, f) for s, f in FIELDS if f.metadata["choices"]]


@pytest.mark.parametrize(("section", "field"), CHOSEN, ids=names(CHOSEN))
def test_a_choice_outside_the_list_is_refused_with_the_nearest_one(section: str, field: Any) -> None:
    wrong = field.metadata["choices"][0] + "x"
    (problem,) = problems_of({section: {field.name: one_of(section, field, wrong)}})
    assert problem.startswith(f"{section}.{field.name}: got {wrong!r}; allowed: ")
    assert all(choice in problem for choice in field.metadata["choices"])
    assert "did you mean" in problem


BOUNDED = [(s, f) for s, f in FIELDS if f.metadata["minimum"] is not None or f.metadata["above"] is not None]


@pytest.mark.parametrize(("section", "field"), BOUNDED, ids=names(BOUNDED))
def test_a_value_below_its_bound_is_refused(section: str, field: Any) -> None:
    minimum, above = field.metadata["minimum"], field.metadata["above"]
    wrong = minimum - 1 if minimum is not None else above
    expected = f">= {minimum:g}" if minimum is not None else f"> {above:g}"
    problems = problems_of({section: {field.name: one_of(section, field, wrong)}})
    assert [p.split("; fix")[0] for p in problems] == [f"{section}.{field.name}: got {wrong!r}; allowed: {expected}"]


NUMERIC = [(s, f) for s, f in FIELDS if float in (HINTS[s][f.name], *typing.get_args(HINTS[s][f.name]))]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("section", "field"), NUMERIC, ids=names(NUMERIC))
def test_a_number_that_is_not_finite_is_refused(section: str, field: Any, value: float) -> None:
    (problem,) = problems_of({section: {field.name: one_of(section, field, value)}})
    assert problem.startswith(f"{section}.{field.name}: got {value!r}; allowed: ")


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        (nested(rope__alpha=32), "rope.beta"),
        (nested(rope__temperature="warm"), "rope.temperature"),
        (nested(rope__temperature=0.0), "rope.temperature"),
        (nested(rope__method="pi", rope__temperature=0.5), "rope.temperature"),
        (nested(rope__method="none"), "rope.factor"),
        (nested(rope__ramp="by_rotations", rope__truncate=False), "rope.truncate"),
        (nested(optim__betas=[0.9]), "optim.betas"),
        (nested(optim__betas=[0.9, 1.0]), "optim.betas"),
        (nested(optim__betas=[-0.1, 0.9]), "optim.betas"),
        (nested(schedule__warmup_steps=11, train__steps=10), "schedule.warmup_steps"),
        (nested(run__deterministic=True, model__attention="sdpa_cudnn"), "model.attention"),
        (nested(data__held_out=1.0), "data.held_out"),
        (nested(data__source="pg19"), "data.path"),
        (nested(data__source="stdlib+pg19"), "data.path"),
        (nested(data__path="books"), "data.path"),
        (nested(eval__tasks=[]), "eval.tasks"),
        (nested(eval__tasks=["passkey", "passkey"]), "eval.tasks"),
        (nested(eval__windows=[64, 32, 64]), "eval.windows"),
        (nested(passkey__lengths=[64, 64]), "passkey.lengths"),
        (nested(harness__tasks=[]), "harness.tasks"),
        (nested(study__factors=[]), "study.factors"),
        (nested(study__methods=["pi", "pi"]), "study.methods"),
        (nested(eval__truncate=True), "eval.truncate"),
        (nested(eval__max_tokens=512), "eval.max_tokens"),
        (nested(eval__windows_per_document=None, eval__max_tokens=63, eval__windows=[32, 64]), "eval.max_tokens"),
        (nested(passkey__keys=3), "passkey.keys"),
        (nested(eval__column="input"), "eval.column"),
        (nested(eval__source="text"), "eval.path"),
        (nested(eval__tasks=["passkey"], passkey__variant="book", eval__source="text"), "eval.path"),
    ],
)
def test_options_that_contradict_each_other_are_refused(raw: dict[str, Any], key: str) -> None:
    (problem,) = problems_of(raw)
    assert problem.startswith(f"{key}: got ")


@pytest.mark.parametrize(
    "raw",
    [
        nested(rope__method="none", rope__factor=1, rope__temperature=1.0),
        nested(rope__temperature=0.5),
        nested(rope__method="ntk", rope__temperature=1.0),
        nested(rope__truncate=False),
        nested(schedule__warmup_steps=10, train__steps=10),
        nested(data__held_out=0.0),
        nested(data__source="pg19", data__path="books"),
        nested(eval__source="pg19", data__path="books"),
        nested(eval__windows_per_document=None, eval__truncate=True, eval__max_tokens=64, eval__windows=[32, 64]),
        nested(passkey__keys=3, passkey__variant="many_keys"),
        nested(eval__tasks=["passkey", "harness"], eval__source="text"),  # neither reads documents
        nested(data__source="pretokenized", data__path="rows", eval__tasks=["passkey"]),
    ],
)
def test_what_only_looks_like_a_contradiction_is_accepted(raw: dict[str, Any]) -> None:
    build(raw)


# ---- refused, all at once ----


def test_all_problems_of_all_kinds_are_listed_at_once() -> None:
    raw = nested(
        rope__alhpa=2,
        train__steps="many",
        model__dtype="bf16",
        optim__lr=0,
        optim__betas=[2.0, 0.9],
        data__source="pg19",
    )
    problems = problems_of(raw | {"ropes": {}})
    keys = [p.partition(":")[0] for p in problems]
    assert keys == [
        "rope.alhpa",
        "train.steps",
        "model.dtype",
        "optim.lr",
        "ropes",
        "optim.betas",
        "data.path",
    ]


def test_an_option_that_is_wrong_in_itself_is_listed_once() -> None:
    assert len(problems_of(nested(rope__method="yran", rope__temperature=0.5))) == 1
    assert len(problems_of(nested(optim__betas="0.9"))) == 1
    assert len(problems_of(nested(train__steps=-1))) == 1
    assert len(problems_of(nested(data__source="pg19", data__path=3))) == 1


def test_the_message_counts_and_lists_the_problems() -> None:
    text = str(ConfigError(["a: wrong", "b: wrong"]))
    assert text == "2 problems in the configuration:\n  - a: wrong\n  - b: wrong"
    assert str(ConfigError("a: wrong")).startswith("1 problem in")


# ---- the number of ranks ----


@pytest.mark.parametrize(("batch", "micro", "world", "passes"), [(64, 1, 8, 8), (64, 4, 8, 2), (6, 2, 3, 1)])
def test_a_batch_that_divides_gives_whole_accumulation_steps(batch: int, micro: int, world: int, passes: int) -> None:
    config = build(nested(train__global_batch_size=batch, train__micro_batch_size=micro))
    validate(config, world)
    assert accumulation_steps(config, world) == passes


@pytest.mark.parametrize(("batch", "micro", "world", "suggested"), [(64, 1, 3, 66), (4, 2, 4, 8), (1, 1, 2, 2)])
def test_a_batch_that_does_not_divide_is_refused_with_one_that_does(
    batch: int, micro: int, world: int, suggested: int
) -> None:
    config = build(nested(train__global_batch_size=batch, train__micro_batch_size=micro))
    with pytest.raises(ConfigError) as error:
        validate(config, world)
    (problem,) = error.value.problems
    assert problem.startswith(f"train.global_batch_size: got {batch}; ")
    assert f"= {micro} * {world}; fix: use {suggested}," in problem
    validate(build(nested(train__global_batch_size=suggested, train__micro_batch_size=micro)), world)


@pytest.mark.parametrize(
    ("sizes", "world"),
    [({"replicate": 2, "shard": 2, "context": 2}, 8), ({"context": 3}, 6), ({"replicate": 4}, 4), ({"shard": 2}, 2)],
)
def test_parallel_sizes_that_use_every_rank(sizes: dict[str, int], world: int) -> None:
    config = build({"parallel": sizes, "train": {"global_batch_size": 8, "micro_batch_size": 1}})
    validate(config, world)
    assert accumulation_steps(config, world) == 8 * sizes.get("context", 1) // world


def test_ranks_that_do_not_exist_cannot_profile() -> None:
    config = build({"profile": {"steps": 1, "ranks": [0, 2, 3]}})
    with pytest.raises(ConfigError, match=r"profile.ranks: got \[2, 3\]; allowed: numbers from 0 to 1; "):
        validate(config, 2)
    validate(config, 4)
    validate(build({"profile": {"ranks": [9]}}), 1)  # nothing is profiled


@pytest.mark.parametrize(
    ("sizes", "world"), [({"context": 3}, 4), ({"shard": 2}, 4), ({"replicate": 3, "shard": 1}, 2)]
)
def test_parallel_sizes_that_do_not_are_refused(sizes: dict[str, int], world: int) -> None:
    with pytest.raises(ConfigError, match=r"parallel: got .*number of ranks"):
        validate(build({"parallel": sizes}), world)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"engine": {"zero_stage": 2}}, "engine.zero_stage: got 2; "),
        ({"engine": {"name": "deepspeed", "zero_stage": 4}}, "engine.zero_stage: got 4; "),
        ({"engine": {"name": "deepspeed", "zero_stage": 0, "offload": "optimizer"}}, "engine.offload: got 'optimizer'"),
        ({"engine": {"name": "deepspeed", "zero_stage": 2, "offload": "all"}}, "engine.offload: got 'all'"),
        ({"engine": {"name": "deepspeed"}, "parallel": {"replicate": 2}}, "parallel.replicate: got 2; "),
        ({"engine": {"name": "deepspeed", "prefetch": 2}}, "engine.prefetch: got 2; "),
        (
            {"engine": {"name": "deepspeed", "reshard_after_forward": False}},
            "engine.reshard_after_forward: got False; ",
        ),
        ({"engine": {"name": "deepspeed"}, "optim": {"state": "8bit"}}, "optim.state: got '8bit'"),
        ({"engine": {"offload": "optimizer"}, "optim": {"state": "bfloat16"}}, "engine.offload: got 'optimizer'"),
        ({"engine": {"name": "deepspeed"}, "compile": {"enabled": True}}, "compile.enabled: got True; "),
        ({"parallel": {"replicate": 2}, "optim": {"state": "bfloat16"}}, "optim.state: got 'bfloat16'"),
        ({"memory": {"offload": True}}, "memory.offload: got True; "),
        ({"profile": {"steps": 1, "ranks": []}}, "profile.ranks: got []; "),
        ({"profile": {"steps": 3, "start": 399}}, "profile.start: got '399, for 3 steps'; "),
        ({"parallel": {"context": 4, "ulysses": 3}}, "parallel.ulysses: got 3; "),
        ({"parallel": {"context": 4, "ulysses": 2, "context_method": "ring"}}, "parallel.ulysses: got 2; "),
    ],
)
def test_options_that_contradict_each_other_are_one_named_problem(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(options)
    (problem,) = error.value.problems
    assert problem.startswith(named)


# ---- round trip ----

CROSS_CHECKED = {"rope", "data", "schedule", "train", "optim.betas", "curriculum.stages", "launch", "profile"}
CROSS_CHECKED |= {"eval.source", "eval.path", "eval.revision", "eval.column", "passkey.keys"}
CROSS_CHECKED |= {"eval.truncate", "eval.max_tokens", "eval.windows_per_document"}
CROSS_CHECKED |= {"adapter", "compile", "engine", "parallel", "memory.offload", "memory.activation", "optim.state"}
PARTNERS: list[dict[str, Any]] = [
    {"engine": {"offload": "optimizer"}, "parallel": {"context": 6, "ulysses": 3}},
    {"engine": {"offload": "all", "prefetch": 3}, "optim": {"state": "8bit"}, "memory": {"activation": "offload"}},
    {"engine": {"name": "deepspeed", "zero_stage": 1, "offload": "optimizer"}, "parallel": {"context_method": "ring"}},
    {"engine": {"name": "deepspeed"}, "memory": {"activation": "attention", "offload": True}},
    {"engine": {"reshard_after_forward": False}, "parallel": {"replicate": 2, "shard": 4}},
    {"launch": {"nproc_per_node": "gpu", "max_restarts": 3}},
    {"launch": {"nproc_per_node": 8, "nnodes": 2, "rendezvous": "[fe80::1]:29500", "timeout": 1.5}},
    {"launch": {"nproc_per_node": 8, "nnodes": 8, "dry_run": True}},
    {"adapter": {"name": "lora", "rank": 4, "targets": ["q_proj"], "norms": False}, "model": {"init": "pretrained"}},
    {"profile": {"steps": 1, "start": 1, "ranks": [1, 0], "shapes": True}},
]


def values(section: str, field: Any) -> st.SearchStrategy[Any]:
    """Valid values of one option, from its own metadata."""
    hint = HINTS[section][field.name]
    if typing.get_origin(hint) is list and section in ("eval", "passkey", "study"):
        return st.lists(items(field, typing.get_args(hint)), min_size=1, max_size=3, unique=True)
    if field.metadata["choices"]:
        valid: st.SearchStrategy[Any] = st.sampled_from(field.metadata["choices"])
    elif (section, field.name) == ("harness", "tasks"):
        valid = st.lists(st.sampled_from(("paper", "arc_challenge", "ruler")), min_size=1, unique=True)
    elif field.name == "allow_change":
        valid = st.lists(st.sampled_from(schema.keys()), max_size=3)
    elif field.name == "wandb_tags":
        valid = st.lists(st.text("ab-/:#' 1", min_size=1, max_size=8), max_size=3)
    elif (section, field.name) == ("run", "name"):  # a name, not a path
        valid = st.from_regex(r"[a-z1][a-z1_.,=@+-]{0,7}", fullmatch=True)
    else:
        valid = items(field, (hint, *typing.get_args(hint)))
    return valid | st.none() if type(None) in typing.get_args(HINTS[section][field.name]) else valid


def items(field: Any, hints: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    """Valid values of a type's first part, within the option's bounds."""
    if field.metadata["choices"]:
        return st.sampled_from(field.metadata["choices"])
    low = field.metadata["minimum"] if field.metadata["minimum"] is not None else (field.metadata["above"] or 0) + 1e-12
    return {
        bool: st.booleans(),
        int: st.integers(int(low), 10**9),
        float: st.floats(low, 1e9),
        str: st.text("ab-/:#' 1", min_size=1, max_size=8),
    }[next(kind for kind in (bool, int, float, str) if kind in hints)]


free = st.fixed_dictionaries(
    {
        section: st.fixed_dictionaries(
            {},
            optional={
                f.name: values(section, f)
                for f in dataclasses.fields(cls)
                if not {section, f"{section}.{f.name}"} & CROSS_CHECKED
            },
        )
        for section, cls in schema.SECTIONS.items()
        if section not in CROSS_CHECKED
    }
)
checked = st.builds(
    lambda method, factor, alpha, ramp, steps, warmup, betas, stages, partners: {
        **partners,
        "rope": {"method": method, "factor": 1 if method == "none" else factor, "alpha": alpha, "ramp": ramp},
        "train": {"steps": steps},
        "schedule": {"warmup_steps": min(warmup, steps)},
        "optim": {"betas": betas, **partners.get("optim", {})},
        "curriculum": {"stages": stages},
    },
    st.sampled_from(("none", "pi", "ntk", "ntk_by_parts", "yarn")),
    st.floats(1, 64),
    st.floats(0.01, 31),
    st.sampled_from(("by_index", "by_rotations")),
    st.integers(1, 1000),
    st.integers(0, 1000),
    st.lists(st.floats(0, 0.999), min_size=2, max_size=2),
    st.dictionaries(st.text("s12", min_size=1), st.just({"train": {"steps": 3}}), max_size=2),
    st.sampled_from(PARTNERS),
)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(free, checked)
def test_a_built_config_is_rebuilt_equal_from_its_dict_and_from_the_yaml_of_the_run_folder(
    options: dict[str, Any], cross_checked: dict[str, Any]
) -> None:
    together = {s: {**options.get(s, {}), **cross_checked.get(s, {})} for s in {*options, *cross_checked}}
    config = build(together)
    plain = dataclasses.asdict(config)
    assert build(plain) == config
    assert build(yaml.safe_load(yaml.safe_dump(plain))) == config
    assert all(getattr(getattr(config, s), k) == v for s, section in cross_checked.items() for k, v in section.items())


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=6),
    st.lists(st.one_of(st.none(), st.floats(), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), st.none() | st.floats(), max_size=2),
)
OPTION = st.sampled_from([*schema.keys(), "rope.alhpa", "launch.", "x.y"])


@settings(deadline=None, max_examples=400, derandomize=True)
@given(st.dictionaries(OPTION, ANYTHING, min_size=1, max_size=5))
def test_any_values_make_a_configuration_or_problems_that_name_their_options(given_options: dict[str, Any]) -> None:
    raw: dict[str, dict[str, Any]] = {}
    for key, value in given_options.items():
        section, _, name = key.partition(".")
        raw.setdefault(section, {})[name] = value
    _, problems = schema.examine(raw)
    assert all(line.startswith(PREFIXES) for line in problems), problems
    assert len(problems) == len(set(problems))
    if problems:
        assert problems_of(raw) == problems
    else:
        config = build(raw)
        numbers = [v for s in dataclasses.asdict(config).values() for v in s.values() if isinstance(v, float)]
        assert all(map(math.isfinite, numbers))


PREFIXES = (*schema.keys(), *schema.SECTIONS, "rope.alhpa", "launch.", "x")


@pytest.mark.parametrize(("section", "field"), FIELDS, ids=names(FIELDS))
@settings(deadline=None, max_examples=25, derandomize=True)
@given(value=ANYTHING)
def test_any_value_of_one_option_is_accepted_or_named(section: str, field: Any, value: Any) -> None:
    config, problems = schema.examine({section: {field.name: value}})
    assert isinstance(config, Config)
    assert all(line.startswith(PREFIXES) for line in problems)


# ---- no option is dead ----


SCHEMA_NAMES = ("option_field", "options_training", "options_eval", "options_job", "options")
SCHEMA_NAMES += ("option_values", "option_rules", "option_rules_eval", "config")
SCHEMA = [ROOT / "yarn_train" / f"{name}.py" for name in SCHEMA_NAMES]


def sources() -> Iterator[ast.Module]:
    """The package without the schema itself, whose own checks are no use of an option, and the scripts of data/."""
    files = [*ROOT.glob("yarn_train/**/*.py"), *ROOT.glob("data/*.py"), ROOT / "train.py"]
    for file in files:
        if file not in SCHEMA:
            yield ast.parse(file.read_text(encoding="utf-8"))


def tail(node: ast.expr) -> str:
    """The last name of `a.b.c` or `c`."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def names_of_sections(tree: ast.Module) -> dict[str, str]:
    """Name -> section, of arguments annotated with a section's class and of variables that were given a section."""
    by_class = {cls.__name__: section for section, cls in schema.SECTIONS.items()}
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation is not None:
            parts = {part.id for part in ast.walk(node.annotation) if isinstance(part, ast.Name)}
            found.update((node.arg, by_class[name]) for name in parts & by_class.keys())
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and tail(node.value) in HINTS:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found.update((tail(target), tail(node.value)) for target in targets)
    return found


def read_options(tree: ast.Module) -> set[str]:
    """Options read as `<section>.<field>`, by another name of the section, or as getattr(<section>, <names>)."""
    other, found = names_of_sections(tree), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            section = other.get(tail(node.value), tail(node.value))
            found.add(f"{section}.{node.attr}")
        if isinstance(node, ast.DictComp) and isinstance(node.value, ast.Call) and tail(node.value.func) == "getattr":
            section = other.get(tail(node.value.args[0]), tail(node.value.args[0]))
            found |= {f"{section}.{n.value}" for n in ast.walk(node) if isinstance(n, ast.Constant)}
    return found


def test_every_option_is_read_somewhere() -> None:
    used = set().union(*map(read_options, sources()))
    used |= set(re.findall(r"\$\{(\w+\.\w+)\}", (ROOT / "conf" / "config.yaml").read_text()))
    for section, cls in schema.SECTIONS.items():  # a property that is read reads its fields
        for name, member in vars(cls).items():
            if isinstance(member, property) and f"{section}.{name}" in used:
                used |= {f"{section}.{field}" for field in member.fget.__code__.co_names}
    assert sorted(set(schema.keys()) - used) == []
