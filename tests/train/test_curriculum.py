"""Stages: s=4, then s=8 from its weights, in one run or in two; what must match is checked, what is done is kept."""

from __future__ import annotations

import json

import pytest
from support import course, metrics, same_weights
from transformers import AutoConfig

from yarn_train.errors import CheckpointError, ConfigError

STAGES = (
    "train.steps=4",
    "+curriculum.stages.s4.rope.factor=4",
    "+curriculum.stages.s8.rope.factor=8",
    "+curriculum.stages.s8.train.steps=3",
    "+curriculum.stages.s8.run.seed=31337",
)


@pytest.fixture
def chain(tiny_args) -> list[str]:
    return [a for a in tiny_args if not a.startswith(("rope.factor", "train.steps"))] + list(STAGES)


def test_both_stages_run_on_the_same_segment_length_with_absolute_factors(train, chain, tmp_path):
    run = train(tmp_path / "run", *chain)
    first, second = (AutoConfig.from_pretrained(run / s / "model") for s in ("01_s4", "02_s8"))
    for config, factor in ((first, 4), (second, 8)):
        assert config.rope_parameters["factor"] == factor
        assert config.rope_parameters["original_max_position_embeddings"] == 32
        assert config.max_position_embeddings == 32 * factor
    one, two = metrics(run / "01_s4"), metrics(run / "02_s8")
    assert [len(one), len(two)] == [4, 3]
    assert one[0]["step_tokens"] == two[0]["step_tokens"]
    assert two[0]["step"] == 1
    assert two[0]["lr"] == one[0]["lr"]  # a schedule of its own, from its own warmup
    assert one[0]["segments"] != two[0]["segments"]  # its own seed


def test_stage_two_of_one_run_equals_a_second_run_started_from_the_first(train, chain, tiny_args, tmp_path):
    run = train(tmp_path / "chain", *chain)
    first = train(tmp_path / "first", *tiny_args, "train.steps=4")
    second = [a for a in tiny_args if not a.startswith("rope.factor")]
    options = [*second, "rope.factor=8", "train.steps=3", "run.seed=31337", f"run.init_from={first}"]
    second = train(tmp_path / "second", *options)
    assert course(run / "02_s8") == course(second / "01_s8")
    assert same_weights(run / "02_s8/model", second / "01_s8/model")
    for source in (first / "01_s4", first / "01_s4/model"):
        again = train(tmp_path / source.name, *options[:-1], f"run.init_from={source}", "train.stop_after=1")
        assert course(again / "01_s8") == course(run / "02_s8")[:1]


def test_a_finished_stage_is_not_run_again(train, chain, tmp_path, capsys):
    run = train(tmp_path / "run", *chain, "train.stop_after=4")  # stage 1 has 4 steps, stage 2 only 3
    stamp = (run / "01_s4/metrics.jsonl").stat().st_mtime_ns
    capsys.readouterr()
    train(run, *chain)
    assert capsys.readouterr().out.count("already complete") == 2
    assert (run / "01_s4/metrics.jsonl").stat().st_mtime_ns == stamp
    assert json.loads((run / "run.json").read_text())["exit_reason"] == "complete"


def test_resume_inside_the_second_stage(train, chain, tmp_path):
    whole = train(tmp_path / "whole", *chain)
    train(tmp_path / "parts", *chain, "train.stop_after=2")
    train(tmp_path / "parts", *chain, "train.stop_after=2")  # the stop is per stage and already reached: no progress
    assert not (tmp_path / "parts/02_s8").exists()
    parts = train(tmp_path / "parts", *chain)
    for stage in ("01_s4", "02_s8"):
        assert course(whole / stage) == course(parts / stage)


def test_resume_with_other_options_is_refused_and_changes_nothing(train, tiny_args, tmp_path):
    run = train(tmp_path / "run", *tiny_args, "train.stop_after=2")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(CheckpointError, match=r"optim\.lr: was 0\.0003, now 0\.1"):
        train(run, *tiny_args, "optim.lr=0.1")
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_resume_never_refuses_a_used_folder(train, tiny_args, tmp_path):
    run = train(tmp_path / "run", *tiny_args, "train.stop_after=2")
    with pytest.raises(ConfigError, match=r"run\.resume"):
        train(run, *tiny_args, "run.resume=never")


def test_init_from_refuses_another_architecture_tokenizer_and_length(train, tiny_args, tiny_model, tmp_path):
    run = train(tmp_path / "run", *tiny_args, "train.steps=2")
    config_file = run / "01_s4/model/config.json"
    config = json.loads(config_file.read_text())
    config["num_attention_heads"] = 8
    for spelling in ("rope_parameters", "rope_scaling"):
        config[spelling]["original_max_position_embeddings"] = 16
    config_file.write_text(json.dumps(config))
    tokenizer_file = run / "01_s4/model/tokenizer.json"
    tokenizer_file.write_text(tokenizer_file.read_text().replace('"</s>"', '"</t>"'))
    (run / "01_s4/model/tokenizer_config.json").unlink()
    with pytest.raises(ConfigError) as error:
        train(tmp_path / "next", *tiny_args, f"run.init_from={run}")
    text = str(error.value)
    assert "num_attention_heads" in text
    assert "original length: got 16; allowed: 32" in text
    assert "tokenizer" in text
    assert not (tmp_path / "next/01_s4").exists()


def test_init_from_an_unfinished_run_says_so(train, tiny_args, tmp_path):
    run = train(tmp_path / "run", *tiny_args, "train.stop_after=2")
    with pytest.raises(CheckpointError, match="no finished model"):
        train(tmp_path / "next", *tiny_args, f"run.init_from={run}")


def test_an_extended_model_goes_on_or_is_refused_before_anything_is_written(train, tiny_args, tmp_path, capsys):
    """A finished model as the base of another run: as with run.init_from, factors count from the original length."""
    run = train(tmp_path / "run", *tiny_args, "train.steps=2")
    other = [a for a in tiny_args if not a.startswith("model.path")]
    base = f"model.path={run / '01_s4/model'}"
    with pytest.raises(ConfigError, match="unscaled"):
        train(tmp_path / "next", *other, base, "model.base_rope=refuse")
    assert not (tmp_path / "next").exists()
    train(tmp_path / "next", *other, base, "rope.factor=8", "train.steps=2")
    train(tmp_path / "from", *tiny_args, f"run.init_from={run}", "rope.factor=8", "train.steps=2")
    assert same_weights(tmp_path / "next/01_s8/model", tmp_path / "from/01_s8/model")
    assert "the base came with yarn, factor 4 of original 32 = 128 tokens" in capsys.readouterr().out


def test_all_problems_are_listed_at_once(train, tiny_args, tmp_path):
    bad = ["model.attention=flash_attention_2", "train.global_batch_size=3", "train.micro_batch_size=2"]
    with pytest.raises(ConfigError) as error:
        train(tmp_path / "run", *tiny_args, *bad, "rope.original_max_position_embeddings=77")
    assert len(error.value.problems) == 3
