"""Errors that say that other ranks are gone, told apart from a rank's own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch.distributed as dist
from support import ROOT, child_env

from yarn_train.dist.failure import explained
from yarn_train.dist.heartbeat import heartbeat
from yarn_train.errors import RanksLost


@pytest.mark.parametrize(
    "error",
    [
        dist.DistNetworkError("cannot connect"),
        dist.DistStoreError("no answer"),
        dist.DistBackendError("NCCL error"),
        RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.1]:1"),
        RuntimeError("[unbound_buffer.cc:129] Timed out waiting 8000ms for send operation to complete\nmore"),
    ],
)
def test_a_lost_peer_is_told_as_one(error):
    told = explained(error)
    assert isinstance(told, RanksLost)
    assert str(error).splitlines()[0] in str(told)
    assert told.exit_code == 1


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("Connection closed by peer"), KeyError(1)])
def test_anything_else_stays_what_it_is(error):
    assert explained(error) is error


def test_storage_that_fails_is_told_with_the_phase_and_folder_where_the_error_names_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "folder", tmp_path / "heartbeat")
    monkeypatch.setattr(heartbeat, "phase", "evaluate")
    said = str(explained(OSError(28, "No space left on device")))  # as of a write into an open file
    assert f"could not use {tmp_path}, in phase evaluate: No space left on device (" in said
    assert "MB free there" in said


def test_ranks_that_never_come_are_told_without_a_traceback(tiny_args, tmp_path):
    alone = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    command = [sys.executable, "train.py", *tiny_args, f"run.dir={tmp_path / 'run'}", "launch.timeout=2"]
    env = {**child_env(), **alone, "MASTER_PORT": str(20000 + os.getpid() % 10000)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "[rank 1] error: rank 1 on" in done.stderr
    assert "Not all ranks came within launch.timeout" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run/run.json").exists()
