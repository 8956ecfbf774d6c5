"""No key, token or password is printed or written."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import ROOT, child_env

from yarn_train.redact import guard_streams, redacted, redacted_command, redacted_values

HEX = "0123456789abcdef0123456789abcdef01234567"
HUB = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567"
AWS = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
MARK = hashlib.sha256(HUB.encode()).hexdigest()[:6]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"a {HUB}, b", "a hf_***, b"),
        ("https://user:pa55word@host/x.parquet", "https://***@host/x.parquet"),
        ("s3://key@bucket/x", "s3://***@bucket/x"),
        (f"WANDB_API_KEY={HEX} python", "WANDB_API_KEY=*** python"),
        (f"{{'wandb_api_key': '{HEX}'}}", "{'wandb_api_key': '***'}"),
        (f'"aws_secret_access_key": "{AWS}"', '"aws_secret_access_key": "***"'),
        ("id AKIAIOSFODNN7EXAMPLE.", "id ***."),
        ("https://h/x?a=1&X-Amz-Signature=abcdef&b=2", "https://h/x?a=1&X-Amz-Signature=***&b=2"),
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer ***"),
        ("ghp_0123456789abcdefghij", "***"),
    ],
)
def test_what_looks_like_a_secret_is_replaced(text: str, clean: str):
    assert redacted(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        f"data set at commit {HEX}",
        f"data.revision={HEX}",
        "eos_token=None, bos_token='<s>'",
        "no token: log in with `hf auth login`",
        "01_s4  step 1/8  loss 5.7822  12,966 tok/s",
        "step_tokens=256 max_tokens=null",
        "git@host:owner/name",
        "data.path=/books/hf_sets/pg19",
        "model.path=/models/sk-tiny-llama-base-cased",
        "model.path=sk-tiny-llama-base-cased",
    ],
)
def test_what_only_resembles_one_stays(text: str):
    assert redacted(text) == text
    assert redacted_command([text]) == [text] or "commit" in text


def test_values_from_the_environment_are_replaced_wherever_they_stand():
    assert redacted("x/correct-horse/y", ["correct-horse"]) == "x/***/y"
    assert redacted("the word short", ["short"]) == "the word short"
    assert redacted_values({"a": ["b", {"c": HUB}], "n": 1}) == {"a": ["b", {"c": f"hf_***#{MARK}"}], "n": 1}
    assert redacted_command([f"+x={HEX}"]) == ["+x=***"]


def test_two_values_that_are_not_shown_stay_two():
    """A resume compares what config.yaml holds."""
    one, other = (redacted_values(f"https://user:{word}@host/books") for word in ("first", "other"))
    assert one != other
    assert (one.partition("#")[0], other.partition("#")[0]) == ("https://***@host/books",) * 2


def test_logs_of_libraries_that_were_set_up_before_are_clean(monkeypatch: pytest.MonkeyPatch):
    logger, out = logging.Logger("early"), io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    logger.addHandler(logging.StreamHandler())  # keeps the stream that it finds
    monkeypatch.setitem(logging.root.manager.loggerDict, "early", logger)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    guard_streams([])
    logger.warning(HUB)
    assert out.getvalue() == "hf_***\n"


def test_a_long_line_takes_no_time():
    started = time.perf_counter()
    redacted("a.b-" * 100_000 + "token" * 100_000)
    assert time.perf_counter() - started < 5


PLANTED = {
    "HF_TOKEN": HUB,
    "WANDB_API_KEY": HEX,
    "AWS_SECRET_ACCESS_KEY": AWS,
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "MY_DB_PASSWORD": "correct-horse-battery",
}
PASSWORD = "s3cr3t-in-a-path"


def leaks(text: str) -> list[str]:
    return [secret for secret in (*PLANTED.values(), PASSWORD) if secret in text]


def start(*words: str) -> subprocess.CompletedProcess[str]:
    env = {**child_env(), **PLANTED}
    command = [sys.executable, str(ROOT / "train.py"), *words]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=250)


def everything(folder: Path) -> str:
    names = [os.fsdecode(path) for path in folder.rglob("*")]
    return "\n".join([*names, *(p.read_bytes().decode("latin-1") for p in folder.rglob("*") if p.is_file())])


def test_a_run_leaves_no_secret_in_its_folder_or_output(
    train: Callable[..., Path], tiny_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Planted in the environment, on the command line and in an option's value; two workers, with their own logs."""
    run = tmp_path / "run"
    words = [
        *(*tiny_args, f"run.dir={run}", "train.steps=2", "eval=none", "train.global_batch_size=2"),
        *(f"run.name=a-{HEX}-b", "launch.nproc_per_node=2", f"eval.path=https://me:{PASSWORD}@host/{HUB}"),
    ]
    done = start(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert leaks(done.stdout + done.stderr) == []
    assert leaks(everything(run)) == []
    assert "***" in (run / "run.json").read_text()
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    train(run, *(word for word in words if not word.startswith("launch.")))  # a redacted config.yaml is this run's
    assert leaks(everything(run)) == []


def test_errors_show_no_secret(tiny_args: list[str], tmp_path: Path):
    bad = (f"data.path=https://me:{PASSWORD}@host/{HUB}.parquet", f"data.cache={tmp_path / 'none'}")
    done = start(*tiny_args, f"run.dir={tmp_path / 'run'}", *bad)
    assert done.returncode == 2
    assert "***" in done.stderr
    assert leaks(done.stdout + done.stderr) == []
