"""Where the machines meet: a key-value store, who has arrived there, and in which order work goes on."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from ...errors import ConfigError, RanksLost, problem

OPERATION = 8.0  # seconds of any single operation of the store; a live one answers in milliseconds
PAUSE = 0.05  # seconds between looks at the store
HOST_NAME = "the meeting point"


class Meeting:
    """A store with values as JSON, whose every wait ends.

    Attributes:
        store: torch's own, for process groups.
    """

    def __init__(self, host: str, port: int, serve: bool, wait: float):
        """Connect, and serve the store oneself if `serve`.

        Raises:
            RanksLost: nobody serves it within `wait` seconds, or its port is taken.
        """
        self._thread = ThreadPoolExecutor(1)
        try:
            self.store = dist.TCPStore(
                host, port, is_master=serve, wait_for_workers=False, timeout=timedelta(seconds=wait)
            )
        except (dist.DistError, RuntimeError) as error:
            did = "cannot serve" if serve else f"has no contact, in {wait:.0f} s, with"
            reason = str(error).strip().splitlines()[0]
            raise RanksLost(f"{socket.gethostname()} {did} {HOST_NAME} {host}:{port}: {reason}") from error

    def put(self, key: str, value: Any) -> None:
        """Set a value.

        Raises:
            RanksLost: the store is gone.
        """
        self._guarded(self.store.set, key, json.dumps(value))

    def count(self, key: str) -> int:
        """Add one and return the new number."""
        return int(self._guarded(self.store.add, key, 1))

    def look(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those keys that are set by now."""
        there = [key for key in keys if self._guarded(self.store.check, [key])]
        return {key: json.loads(self._guarded(self.store.get, key)) for key in there}

    def gather(self, keys: Iterable[str], wait: float) -> dict[str, Any]:
        """The values of the keys that are set within `wait` seconds; returns as soon as all are."""
        missing, found, end = list(keys), dict[str, Any](), time.monotonic() + wait
        while True:
            found |= self.look(missing)
            missing = [key for key in missing if key not in found]
            if not missing or time.monotonic() > end:
                return found
            time.sleep(PAUSE)

    def get(self, key: str, wait: float) -> Any:
        """One value.

        Raises:
            RanksLost: nobody set it within `wait` seconds.
        """
        found = self.gather([key], wait)
        if key not in found:
            raise RanksLost(f"{socket.gethostname()}: the first machine did not go on within {wait:.0f} s ({key})")
        return found[key]

    def _guarded(self, work: Callable[..., Any], *arguments: Any) -> Any:
        # In a thread: torch's client waits for a dead connection as long as TCP does, a quarter of an hour.
        try:
            return self._thread.submit(work, *arguments).result(OPERATION)
        except (TimeoutError, dist.DistError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error) else f"no answer within {OPERATION:.0f} s"
            raise RanksLost(
                f"{socket.gethostname()} lost {HOST_NAME} (the first machine or the way to it): {reason}"
            ) from error


def parse_address(text: str) -> tuple[str, int]:
    """host:port.

    Raises:
        ConfigError: it is not that.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(problem("--rendezvous", text, "host:port of one of the machines", "for example node1:29500"))
    return host, int(port)


def is_here(host: str) -> bool:
    """Whether a host name means this machine: a socket can be bound to its address only there.

    Raises:
        RanksLost: the name does not resolve.
    """
    try:
        addresses = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError as error:
        raise RanksLost(f"{socket.gethostname()} cannot resolve {host}: {error}; use its address") from error
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as tried:
            try:
                tried.bind(address)
            except OSError:
                continue
            return True
    return False
