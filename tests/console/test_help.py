"""--help lists everything there is to type, its examples work, and it comes at once."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import ROOT

from yarn_train import cli
from yarn_train.console import help
from yarn_train.console.groups import about, groups
from yarn_train.errors import ConfigError
from yarn_train.options import SECTIONS, keys
from yarn_train.overrides import CONF

TWO_SCREENS = 2 * 30


def composed(words: list[str]) -> dict[str, object]:
    """The first job of a command line."""
    return cli.compose([word.partition(",")[0] for word in words if "=" in word])


@pytest.mark.parametrize("example", [words for _, words in help.EXAMPLES])
def test_the_examples_compose(example: str) -> None:
    words = example.split()
    program = [words[0]] if words[0] == "train.py" else words[:2]
    assert program in (["train.py"], ["-m", "yarn_train.plan"])
    options = composed(words[len(program) :])
    assert set(options) == set(SECTIONS)


def test_every_group_option_and_section_is_listed_on_two_screens() -> None:
    text = help.text([], "train.py")
    lines = text.splitlines()
    assert len(lines) <= TWO_SCREENS
    assert max(map(len, lines)) <= 100
    for group, options in groups().items():
        assert all(option in text.split() for option in options), group
    for section, cls in SECTIONS.items():
        assert f"{section} {len(dataclasses.fields(cls))}" in text.replace("\n ", "")
    assert {folder.name for folder in CONF.iterdir() if any(folder.glob("*.yaml"))} - {"hydra"} == set(groups())


def test_a_section_has_every_option_with_its_default_choices_and_meaning() -> None:
    for section, cls in SECTIONS.items():
        text = help.text([section], "train.py")
        told = " ".join(text.split())
        for field in dataclasses.fields(cls):
            assert f"  {section}.{field.name} = " in text
            assert " ".join(field.metadata["doc"].split()) in told
            assert " | ".join(field.metadata["choices"]) in told


@pytest.mark.parametrize(
    ("option", "head"),
    [
        ("rope.alpha", "rope.alpha = 1   (number > 0)"),
        ("rope.temperature", "rope.temperature = auto   (number or text)"),
        ("run.resume", "run.resume = auto   (auto | never)"),
        ("run.max_hours", "run.max_hours = null   (number > 0 or null)"),
        ("launch.nproc_per_node", "launch.nproc_per_node = null   (whole number or text or null)"),
        ("optim.betas", "optim.betas = [0.9,0.95]   (a list)"),
        ("run.dir", 'run.dir = ""   (text)'),
        ("eval.bos", "eval.bos = true   (true or false)"),
    ],
)
def test_one_option(option: str, head: str) -> None:
    assert option in keys()
    assert help.text([option], "train.py").splitlines()[0].strip() == head


def test_a_group_has_its_options_and_what_they_are() -> None:
    text = help.text(["experiment"], "train.py")
    assert "  smoke\n      One short stage on the shipped base: does everything work on this machine?" in text
    assert "method: none, factor: 1" in help.text(["rope"], "train.py")  # a file that says nothing is shown


def test_a_misspelt_topic_is_corrected() -> None:
    with pytest.raises(ConfigError, match=r"did you mean rope\.alpha"):
        help.text(["rope.alpa"], "train.py")


@pytest.mark.parametrize(
    ("words", "topics"),
    [
        ([], None),
        (["experiment=smoke"], None),
        (["--hydra-help"], None),
        (["--help"], []),
        (["experiment=smoke", "-h"], []),
        (["--help", "rope", "data.path"], ["rope", "data.path"]),
        (["--help=rope"], ["rope"]),
    ],
)
def test_what_is_asked(words: list[str], topics: list[str] | None) -> None:
    assert help.asked(words) == topics


def test_the_first_sentence_of_a_groups_file(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("# @package _global_\n# One thing\n# on two lines. And more.\nrun:\n  a: 1 # no\n")
    assert about(tmp_path / "x.yaml") == "One thing on two lines."


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train.py", "--help"], "usage: python train.py"),
        (["train.py", "--help", "rope"], "rope.alpha = 1"),
        (["data/prepare.py", "--help"], "shard=0/4"),
    ],
)
def test_it_comes_at_once_and_without_torch(words: list[str], told: str) -> None:
    began = time.monotonic()
    command = [sys.executable, "-X", "importtime", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr[-500:]
    assert told in done.stdout
    if words[0] == "train.py":
        assert "| torch" not in done.stderr
        assert seconds < 5.0  # 0.5 s on a quiet machine


def test_an_entry_says_what_it_does_and_where_the_options_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "yarn_train.plan", "-h"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "will it fit, how long" in done.stdout
    assert "usage: python -m yarn_train.plan" in done.stdout
    assert "python train.py --help lists" in done.stdout
