"""Every file of conf/ composes into something that can run, and the paper's experiments say the paper's numbers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yarn_train.config import Config, build, validate
from yarn_train.stages import Stage, resolve

CONF = Path(__file__).resolve().parent.parent / "conf"
EXPERIMENTS = sorted(p.stem for p in CONF.glob("experiment/*.yaml"))
OPTIONS = sorted((p.parent.name, p.stem) for p in CONF.glob("*/*.yaml") if p.parent.name != "experiment")
SINGLE = {"64k": (16.0, 400, 0), "128k": (32.0, 200, 31337)}  # factor, steps, seed

Compose = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def composed(compose: Compose) -> Compose:
    """compose, each composition made once."""
    return functools.cache(compose)


@pytest.fixture
def stages(composed: Compose) -> Callable[..., list[Stage]]:
    """stages("smoke", "train.steps=3") -> the resolved stages of that experiment."""
    return lambda name, *more: resolve(composed(f"experiment={name}", *more), Path("run"))


def same_but(config: Config, *changed: str) -> dict[str, Any]:
    """The options of a config without those named."""
    plain = dataclasses.asdict(config)
    for key in changed:
        section, name = key.split(".")
        del plain[section][name]
    return plain


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_resolves_and_runs_on_one_rank_under_its_own_name(
    name: str, composed: Compose, stages: Callable[..., list[Stage]]
) -> None:
    found = stages(name)
    assert found
    for stage in found:
        validate(stage.cfg, 1)
    assert build(composed(f"experiment={name}")).run.name == name
    assert composed(f"experiment={name}")["run"]["dir"] == f"outputs/{name}"


def test_the_experiments_that_the_documentation_promises_exist() -> None:
    promised = {"quickstart", "smoke", "pretrain_base", "extend"}
    promised |= {f"yarn_llama2_{size}_{kind}" for size in ("7b", "13b") for kind in ("64k", "128k", "chain")}
    assert promised <= set(EXPERIMENTS)


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=["/".join(o) for o in OPTIONS])
def test_every_option_of_every_group_composes_alone_and_is_taken(group: str, option: str, composed: Compose) -> None:
    if group == "sweep":  # an addition that chooses an experiment
        options = composed(f"+sweep={option}")
        resolve(options, Path("run"))
        assert (options["run"]["name"], options["curriculum"]["stages"]) == (option, {})
        return
    options, unchosen = composed("~experiment", f"{group}={option}"), composed("~experiment")
    resolve(options, Path("run"))
    said = {key: value for key, value in options[group].items() if value != unchosen[group][key]}
    default = {"model": "base", "rope": "yarn", "data": "stdlib", "eval": "perplexity"}[group]
    assert bool(said) == (option != default)


@pytest.mark.parametrize("method", sorted(o for g, o in OPTIONS if g == "rope"))
def test_a_rope_file_is_named_after_its_method(method: str, composed: Compose) -> None:
    rope = composed("~experiment", f"rope={method}")["rope"]
    ramp = "_by_rotations" if rope["ramp"] == "by_rotations" else ""
    assert f"{rope['method']}{ramp}" == method


# ---- on any laptop ----


def test_quickstart_is_what_runs_without_arguments(composed: Compose) -> None:
    assert composed() == composed("experiment=quickstart")


def test_quickstart_trains_s16_then_s32_on_segments_of_one_length_and_evaluates(
    stages: Callable[..., list[Stage]],
) -> None:
    first, second = stages("quickstart")
    assert [(s.name, s.cfg.rope.factor, s.cfg.train.steps) for s in (first, second)] == [
        ("s16", 16, 40),
        ("s32", 32, 20),
    ]
    assert first.cfg.data == second.cfg.data
    assert first.cfg.data.seq_len == 4096
    assert first.cfg.model.path == "data/base"
    assert first.cfg.data.source == "stdlib"
    assert first.cfg.eval.enabled


def test_smoke_is_one_short_stage_without_evaluation(stages: Callable[..., list[Stage]]) -> None:
    (stage,) = stages("smoke")
    cfg = stage.cfg
    assert (cfg.rope.factor, cfg.data.seq_len, cfg.train.steps, cfg.eval.enabled) == (16, 1024, 20, False)
    assert (cfg.model.path, cfg.data.source) == ("data/base", "stdlib")


def test_pretrain_base_trains_random_weights_without_scaling(stages: Callable[..., list[Stage]]) -> None:
    (stage,) = stages("pretrain_base")
    assert (stage.cfg.model.init, stage.cfg.rope.method, stage.cfg.rope.factor) == ("random", "none", 1.0)


def test_extend_takes_any_factor(stages: Callable[..., list[Stage]]) -> None:
    (stage,) = stages("extend", "rope.factor=4")
    assert (stage.name, stage.cfg.rope.factor) == ("s4", 4.0)


# ---- the paper ----


def assert_papers(cfg: Config, factor: float, steps: int, seed: int) -> None:
    """Section 4.1, and what its reference implementation adds."""
    rope, optim, train = cfg.rope, cfg.optim, cfg.train
    assert (rope.method, rope.factor, rope.original_max_position_embeddings) == ("yarn", factor, 4096)
    assert (rope.alpha, rope.beta, rope.temperature, rope.ramp, rope.truncate) == (1.0, 32.0, "auto", "by_index", True)
    assert (optim.lr, optim.betas, optim.weight_decay) == (2e-5, [0.9, 0.95], 0.0)
    assert (cfg.schedule.name, cfg.schedule.warmup_steps) == ("linear", 20)
    assert (train.steps, train.global_batch_size, cfg.run.seed) == (steps, 64, seed)
    assert (cfg.data.source, cfg.data.seq_len) == ("pg19", 65536)
    assert (cfg.model.dtype, cfg.model.init) == ("bfloat16", "pretrained")


@pytest.mark.parametrize("size", ["7b", "13b"])
@pytest.mark.parametrize("length", SINGLE)
def test_a_single_stage_says_the_papers_numbers(size: str, length: str, stages: Callable[..., list[Stage]]) -> None:
    (stage,) = stages(f"yarn_llama2_{size}_{length}")
    assert stage.cfg.model.path == f"meta-llama/Llama-2-{size}-hf"
    assert_papers(stage.cfg, *SINGLE[length])
    for world_size in (1, 2, 4, 8, 16, 32, 64):
        validate(stage.cfg, world_size)


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_the_chain_is_both_single_runs_one_after_the_other(size: str, stages: Callable[..., list[Stage]]) -> None:
    chain = stages(f"yarn_llama2_{size}_chain")
    assert [s.name for s in chain] == ["s16", "s32"]
    for stage, length in zip(chain, SINGLE, strict=True):
        assert_papers(stage.cfg, *SINGLE[length])
        (single,) = stages(f"yarn_llama2_{size}_{length}")
        assert same_but(stage.cfg, "run.name", "run.dir") == same_but(single.cfg, "run.name", "run.dir")
    assert chain[0].cfg.data == chain[1].cfg.data  # the paper trains both stages on the same 64k segments


@pytest.mark.parametrize("kind", ["64k", "128k", "chain"])
def test_13b_differs_from_7b_in_its_model_only(kind: str, stages: Callable[..., list[Stage]]) -> None:
    names = ("run.name", "run.dir", "model.path")
    small, large = (stages(f"yarn_llama2_{size}_{kind}") for size in ("7b", "13b"))
    assert [same_but(s.cfg, *names) for s in small] == [same_but(s.cfg, *names) for s in large]
