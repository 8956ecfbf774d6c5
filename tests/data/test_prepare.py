"""The two commands in ``data/``, run as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from yarn_train.errors import ConfigError
from yarn_train.prepare import Arguments, own_arguments

REPOSITORY = Path(__file__).resolve().parents[2]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=REPOSITORY, capture_output=True, text=True, timeout=240)


def test_prepare_command(books: Callable[..., str], plain: str, tmp_path: Path):
    root = books(train=["The whale is a beast of the sea.\n" * 30])
    command = ["data/prepare.py", f"run.dir={tmp_path}/outputs", "data.source=pg19", f"model.path={plain}"]
    command += ["data.workers=1", "data.seq_len=64"]
    first = run(*command, f"data.path={root}", f"data.cache={tmp_path}/cache")
    assert first.returncode == 0, first.stderr
    assert all(word in first.stdout for word in ("prepared in ", "content_sha256", "MB/s", "remainder"))
    assert first.stdout.count("segments ") == 1  # two stages, one folder
    assert not (tmp_path / "outputs").exists()
    second = run(*command, f"data.path={root}", f"data.cache={tmp_path}/cache")
    assert f"already prepared, nothing to do: {tmp_path}/cache" in second.stdout
    verified = run(*command, f"data.path={root}", f"data.cache={tmp_path}/cache", "--verify")
    assert verified.returncode == 0, verified.stderr
    assert "verified in " in verified.stdout
    arrow = tmp_path / "cache" / "data-00000-of-00001.arrow"
    content = bytearray(arrow.read_bytes())
    content[len(content) // 2] ^= 1
    arrow.write_bytes(content)
    spoiled = run(*command, f"data.path={root}", f"data.cache={tmp_path}/cache", "--verify")
    assert spoiled.returncode == 2
    assert "content_sha256 is" in spoiled.stderr


@pytest.mark.long
def test_shards_in_commands_of_their_own(books: Callable[..., str], plain: str, tmp_path: Path):
    root = books(train=["The whale is a beast of the sea.\n" * 30] * 3)
    command = ["data/prepare.py", f"run.dir={tmp_path}/outputs", "data.source=pg19", f"model.path={plain}"]
    command += ["data.workers=1", "data.seq_len=64", f"data.path={root}", f"data.cache={tmp_path}/cache"]
    unverified = run(*command, "--verify")
    assert unverified.returncode == 2
    assert "run data/prepare.py with the same options first" in unverified.stderr
    first = run(*command, "shard=1/2")
    assert first.returncode == 0, first.stderr
    assert "units are there" in first.stdout
    assert not (tmp_path / "cache").exists()
    second = run(*command, "shard=2/2", "--show", "3")
    assert second.returncode == 0, second.stderr
    assert "content_sha256" in second.stdout
    assert second.stdout.count("segment ") >= 2
    assert "  <s>" in second.stdout
    assert "⏎</s>" in second.stdout
    assert "lost to the remainder" in second.stdout
    assert (tmp_path / "cache" / "tokens_per_document.png").stat().st_size > 1000
    assert run(*command, "--verify").returncode == 0  # the picture beside the data does no harm


def test_a_mixture_on_the_command_line(books: Callable[..., str], plain: str, tmp_path: Path):
    root = books(train=["The whale is a beast of the sea.\n" * 30] * 3)
    command = ["data/prepare.py", f"run.dir={tmp_path}/outputs", f"model.path={plain}", "data.workers=1"]
    command += ["data.seq_len=64", f"data.cache={tmp_path}/cache", "data.source=mixture", "eval.enabled=false"]
    mixture = f"data.mixture={{books:{{source:pg19,path:{root},weight:3}}}}"
    made = run(*command, mixture, "data.mixture.more={source: pg19, weight: 1}", f"data.mixture.more.path={root}")
    assert made.returncode == 0, made.stderr
    assert "books: 75.00% of the segments" in made.stdout
    assert "more: 25.00% of the segments" in made.stdout
    assert sorted(f.name for f in (tmp_path / "cache").iterdir() if f.is_dir()) == ["books", "more"]
    wrong = run(*command, "data.mixture.books={source: pg19, weight: 0}", "data.mixture.more={path: x, seq_len: 5}")
    assert wrong.returncode == 2
    assert "data.mixture.books.weight: got 0" in wrong.stderr
    assert "data.mixture.more: got" in wrong.stderr


def test_own_arguments_are_split_off():
    arguments, rest = own_arguments(["data=pg19", "--show", "3", "shard=0/4", "--cfg", "job"])
    assert (arguments.show, arguments.verify, arguments.shard) == (3, False, (0, 4))
    assert rest == ["data=pg19", "--cfg", "job"]
    assert own_arguments(["--verify", "--show=1"]) == (Arguments(verify=True, show=1), [])
    assert own_arguments(["--show=2", "--shard", "4/4"])[0].shard == (4, 4)
    assert own_arguments([]) == (Arguments(), [])


@pytest.mark.parametrize(
    "words",
    [
        ["--show"],
        ["--verify", "shard=0/2"],
        ["--show", "0"],
        ["--show=x"],
        ["shard=2"],
        ["shard=5/4"],
        ["shard=0/0"],
        ["--shard"],
    ],
)
def test_unusable_arguments_are_named(words: list[str]):
    with pytest.raises(ConfigError, match=r"got .*; allowed: .*; fix: "):
        own_arguments(words)


def test_prepare_command_names_a_missing_folder(plain: str, tmp_path: Path):
    command = ["data/prepare.py", f"run.dir={tmp_path}/outputs", "data.source=pg19", f"model.path={plain}"]
    wrong = run(*command, f"data.path={tmp_path}/nowhere", f"data.cache={tmp_path}/other")
    assert wrong.returncode == 2
    assert "data.path: got" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize("shipped", [False, True])
def test_tokenizer_keeps_code_compact_and_text_whole(books: Callable[..., str], tmp_path: Path, shipped: bool):
    folder = REPOSITORY / "data" / "base"
    if not shipped:
        folder = tmp_path / "out"
        code = "class A:\n    def f(self):\n        for i in self:\n            yield i\n\n        return None\n"
        root = books(train=[code * 20], test=["whale"])
        arguments = ["--source", "pg19", "--path", root, "--out", str(folder), "--vocab-size", "330"]
        made = run("data/train_tokenizer.py", *arguments)
        assert made.returncode == 0, made.stderr
        assert "bytes per token" in made.stdout
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    assert len(tokenizer("\n        return", add_special_tokens=False)["input_ids"]) <= 2
    text = "a  b\r\n\t\x00é日本🐋\n\n        x = 12345 # </s>"
    ids = tokenizer(text.replace("</s>", ""))["input_ids"]
    assert ids[0] == 0
    assert ids.count(0) == 1
    assert tokenizer.decode(ids[1:]) == text.replace("</s>", "")


def test_training_a_tokenizer_twice_gives_the_same_file(books: Callable[..., str], tmp_path: Path):
    root = books(train=["The whale is a beast of the sea; so is the captain.\n" * 50], test=["whale"])
    for name in ("a", "b"):
        arguments = ["--source", "pg19", "--path", root, "--out", str(tmp_path / name), "--vocab-size", "320"]
        made = run("data/train_tokenizer.py", *arguments)
        assert made.returncode == 0, made.stderr
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()


def test_tokenizer_command_names_a_missing_folder(tmp_path: Path):
    failed = run("data/train_tokenizer.py", "--source", "pg19", "--path", str(tmp_path / "no"), "--out", str(tmp_path))
    assert failed.returncode != 0
    assert "data.path: got" in failed.stderr
    assert "Traceback" not in failed.stderr
