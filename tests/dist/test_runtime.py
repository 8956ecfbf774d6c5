"""Ranks that meet: one that waits for others does so as long as it was told, and no longer."""

from __future__ import annotations

import socket
import threading
import time

import pytest
import torch.distributed as dist

from yarn_train.dist import runtime
from yarn_train.errors import RanksLost


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """This process is rank 1 of 2, and rank 0 is to serve a store there; nobody does yet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host, port = free.getsockname()
    told = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "MASTER_ADDR": host, "MASTER_PORT": port}
    for name, value in told.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    return host, port


def test_a_rank_that_nobody_serves_gives_up_in_its_time(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch is not asked before somebody listens: its own wait takes twice the timeout."""
    monkeypatch.setattr(dist, "init_process_group", lambda *a, **k: pytest.fail("torch waits"))
    began = time.monotonic()
    with pytest.raises(RanksLost, match=r"(?s)no answer from 127\.0\.0\.1:\d+ in 1 s: .*launch\.timeout"):
        runtime.start(timeout=1.0)
    assert 1.0 <= time.monotonic() - began < 8.0


def test_a_store_that_comes_late_is_found(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[object] = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: met.append(timeout))
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    server = socket.socket()
    later = threading.Timer(0.5, lambda: (server.bind(address), server.listen()))
    later.start()
    assert runtime.start(timeout=60.0).rank == 1
    later.join()
    server.close()
    assert len(met) == 1


def test_rank_0_serves_the_store_itself(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    runtime._wait_for_store(0.0)
