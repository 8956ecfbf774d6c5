"""Other options on resume: refused with the words that allow them, allowed by those words, recorded; some never."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from support import course, metrics

from yarn_train import config as schema
from yarn_train.errors import CheckpointError, ConfigError
from yarn_train.free_options import FREE_ON_RESUME
from yarn_train.stages import resolve
from yarn_train.train.run_folder import freeze_config
from yarn_train.train.same_run import FIXED, check_options


@pytest.fixture
def begun(train, tiny_args, tmp_path):
    """A run stopped after step 4 of 8."""
    return train(tmp_path / "run", *tiny_args, "train.stop_after=4")


def test_the_words_that_a_refusal_gives_allow_it(train, tiny_args, begun, capsys):
    other = ["train.global_batch_size=8", "optim.lr=1e-4"]
    with pytest.raises(CheckpointError) as error:
        train(begun, *tiny_args, *other)
    text = str(error.value)
    assert "optim.lr: was 0.0003, now 0.0001" in text
    assert "train.global_batch_size: was 4, now 8" in text
    (words,) = [line.rpartition(" ")[2] for line in text.splitlines() if "run.allow_change=[" in line]
    with pytest.raises(CheckpointError, match=r"optim\.lr: was"):
        train(begun, *tiny_args, *other, "run.allow_change=[train.global_batch_size]")
    assert json.loads((begun / "run.json").read_text())["changes"] == []
    capsys.readouterr()

    train(begun, *tiny_args, *other, words)
    rows = metrics(begun / "01_s4")
    assert [len(row["segments"]) for row in rows] == [4] * 4 + [8] * 4
    assert [row["tokens"] for row in rows] == [256 * n for n in (1, 2, 3, 4, 6, 8, 10, 12)]
    assert rows[4]["lr"] == pytest.approx(1e-4 * 4 / 6)
    assert len({i for row in rows for i in row["segments"]}) == 4 * 4 + 4 * 8  # none is skipped or read twice
    said = capsys.readouterr().out
    assert "run.allow_change: optim.lr: was 0.0003, now 0.0001; from step 4 of 01_s4 on" in said
    changes = json.loads((begun / "run.json").read_text())["changes"]
    keys = ("key", "was", "now", "stage", "step")
    assert sorted([change[key] for key in keys] for change in changes) == [
        ["optim.lr", 0.0003, 0.0001, "01_s4", 4],
        ["train.global_batch_size", 4, 8, "01_s4", 4],
    ]
    assert all(change["time"] for change in changes)
    for folder in (begun, begun / "01_s4"):
        assert yaml.safe_load((folder / "config.yaml").read_text())["optim"]["lr"] == 1e-4
    train(begun, *tiny_args, *other, words)  # the same command again: nothing differs any more
    assert len(json.loads((begun / "run.json").read_text())["changes"]) == 2


def test_a_change_of_nothing_is_harmless_and_a_name_of_nothing_is_not(train, tiny_args, tmp_path):
    whole = train(tmp_path / "whole", *tiny_args)
    train(tmp_path / "run", *tiny_args, "train.stop_after=4")
    train(tmp_path / "run", *tiny_args, "run.allow_change=[optim.lr,train.stop_after,data.path]")
    assert course(tmp_path / "run/01_s4") == course(whole / "01_s4")
    with pytest.raises(ConfigError, match=r"run\.allow_change: optim\.lrr: unknown option; did you mean optim\.lr\?"):
        train(tmp_path / "new", *tiny_args, "run.allow_change=[optim.lrr]")


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (["optim.state=8bit"], "optim.state"),
        (["adapter.name=lora"], "adapter.name"),
        (["model.init=random"], "model.init"),
        (["rope.factor=8"], "rope.factor"),
    ],
)
def test_some_options_never_change(compose, begun, tiny_args, options, key):
    raw = compose(*tiny_args, "train.stop_after=4", *options, f"run.allow_change=[{key}]")
    with pytest.raises(CheckpointError) as error:
        check_options(begun, schema.build(raw), resolve(raw, begun, {}))
    assert f"{key}: was" in str(error.value)
    assert "cannot change: " + FIXED.get(key, "a stage that has begun keeps its name") in str(error.value)
    assert "run.allow_change=[" not in str(error.value)


def test_other_data_goes_on_after_as_many_sequences(train, tiny_args, books, tmp_path, capsys):
    own = shutil.copytree(books, tmp_path / "books")
    args = [*(a for a in tiny_args if not a.startswith(("data.path", "data.cache"))), f"data.path={own}"]
    run = train(tmp_path / "run", *args, f"data.cache={tmp_path / 'before'}", "train.stop_after=3")
    with (own / "train/train0.txt").open("a") as book:
        book.write("one more chapter\n" * 50)
    changed = [*args, f"data.cache={tmp_path / 'after'}"]
    with pytest.raises(CheckpointError, match=r"(?s)other data.*run\.allow_change=\[data\.path\]"):
        train(run, *changed)
    train(run, *changed, "run.allow_change=[data.path]")
    assert "training goes on after 12 sequences, counted in the new data" in capsys.readouterr().out
    fresh = train(tmp_path / "fresh", *changed)
    rows, whole = metrics(run / "01_s4"), metrics(fresh / "01_s4")
    assert [row["segments"] for row in rows[3:]] == [row["segments"] for row in whole[3:]]
    assert [row["segments"] for row in rows[:3]] != [row["segments"] for row in whole[:3]]


def test_longer_segments_count_tokens_on(train, tiny_args, begun, tmp_path):
    args = [a for a in tiny_args if not a.startswith(("data.seq_len", "data.cache"))]
    train(begun, *args, "data.seq_len=96", f"data.cache={tmp_path / 'long'}", "run.allow_change=[data.seq_len]")
    assert [row["tokens"] for row in metrics(begun / "01_s4")] == [256 * n for n in (1, 2, 3, 4)] + [
        1024 + 384 * n for n in (1, 2, 3, 4)
    ]


def test_options_of_evaluations_are_free_and_no_changes_of_the_run(train, tiny_args, begun):
    """They do not change what is trained, and a finished run may be evaluated in other ways."""
    others = ("passkey.trials=1", "harness.limit=3", "study.factors=[2]", "eval.documents=1", "eval.shard=true")
    train(begun, *tiny_args, *others)
    assert json.loads((begun / "run.json").read_text())["changes"] == []


def test_fewer_steps_than_are_done_are_refused(train, tiny_args, begun):
    with pytest.raises(CheckpointError, match=r"train\.steps: got 3; allowed: >= 4"):
        train(
            begun, *(a for a in tiny_args if "train.steps" not in a), "train.steps=3", "run.allow_change=[train.steps]"
        )


def test_shares_of_a_batch_are_free_and_said(train, tiny_args, begun, capsys):
    train(begun, *tiny_args, "train.micro_batch_size=2")
    said = capsys.readouterr().out
    assert "at step 4, written by 1 rank(s) x 4 accumulation, on 1 rank(s) x 2 accumulation now" in said
    assert {"engine.name", "engine.zero_stage", "train.micro_batch_size"} <= FREE_ON_RESUME


STAGES = ("train.steps=4", "+curriculum.stages.s4.rope.factor=4", "+curriculum.stages.s8.rope.factor=8")


def test_a_finished_stage_keeps_its_options_and_one_ahead_may_change(train, tiny_args, tmp_path, capsys):
    chain = [a for a in tiny_args if not a.startswith(("rope.factor", "train.steps"))] + list(STAGES)
    run = train(tmp_path / "run", *chain, "train.stop_after=4", "+curriculum.stages.s8.train.steps=6")
    assert (run / "01_s4/model").exists()
    kept = (run / "01_s4/config.yaml").read_bytes()
    other = [*chain, "+curriculum.stages.s8.train.steps=6", "optim.lr=1e-4"]
    with pytest.raises(CheckpointError, match=r"run\.allow_change=\[optim\.lr\]"):
        train(run, *other)
    train(run, *other, "run.allow_change=[optim.lr]", "train.stop_after=5")
    assert (run / "01_s4/config.yaml").read_bytes() == kept
    assert yaml.safe_load((run / "02_s8/config.yaml").read_text())["optim"]["lr"] == 1e-4
    said = capsys.readouterr().out
    assert "optim.lr: was 0.0003, now 0.0001; from step 4 of 02_s8 on" in said
    assert "finished stages keep the options they were trained with: 01_s4" in said


def test_the_list_of_stages_may_grow_but_not_lose_what_has_begun(compose, tiny_args, tmp_path):
    def check(*options: str):
        raw = compose(*base, *options)
        return check_options(tmp_path, schema.build(raw), resolve(raw, tmp_path, {}))

    base = [a for a in tiny_args if not a.startswith("rope.factor")] + list(STAGES)
    raw = compose(*base)
    freeze_config(tmp_path, schema.build(raw))
    first = resolve(raw, tmp_path, {})[0]
    freeze_config(first.folder, first.cfg)
    longer = "+curriculum.stages.s16.rope.factor=16"
    with pytest.raises(CheckpointError, match=r"(?s)curriculum\.stages: was .*allow_change=\[curriculum\.stages\]"):
        check(longer)
    (change,) = check(longer, "run.allow_change=[curriculum.stages]")
    assert list(change.now) == ["s8", "s16"]
    base = [a for a in base if "stages.s4" not in a]
    with pytest.raises(CheckpointError, match=r"curriculum\.stages: was \['s4', 's8'\], now \['s8'\]; cannot change"):
        check("run.allow_change=[curriculum.stages]")
