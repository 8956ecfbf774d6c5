"""Several machines on one: network namespaces joined by a bridge, with host names, whose links can be cut.

Needs root and `ip`; :func:`machines` skips the test where they are missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import pytest
from support import ROOT, child_env

LINK = "eth0"


class Machine:
    """One namespace: a host name, an address and a network interface of its own."""

    def __init__(self, namespace: str, number: int):
        self.namespace, self.name, self.address = namespace, f"node{number}", f"10.77.0.{number}"

    def command(self, words: Sequence[str]) -> list[str]:
        """`words` as they run on this machine."""
        name = f'hostname {self.name}; exec "$@"'
        return ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "sh", "-c", name, "sh", *words]

    def start(
        self, words: Sequence[str], output: IO[str], extra: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start `words` here in a session of their own; stdout and stderr go to `output`."""
        env = {**child_env(), "GLOO_SOCKET_IFNAME": LINK, **(extra or {})}
        return subprocess.Popen(
            self.command(words), cwd=ROOT, env=env, stdout=output, stderr=output, text=True, start_new_session=True
        )

    def link(self, state: str) -> None:
        """Pull the cable (`down`) or put it back (`up`)."""
        _ip("-n", self.namespace, "link", "set", LINK, state)

    def shape(self, *words: str) -> None:
        """`tc qdisc` arguments for this machine's link: shape("tbf", "rate", "100mbit", ...)."""
        subprocess.run(
            ["tc", "-n", self.namespace, "qdisc", "replace", "dev", LINK, "root", *words], check=True, timeout=20
        )


@contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """`count` machines on one switch, gone afterwards with all that runs on them."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("network namespaces need root, iproute2 and unshare")
    prefix = f"yt{os.getpid()}"
    switch = f"{prefix}switch"
    found = [Machine(f"{prefix}node{number}", number) for number in range(1, count + 1)]
    with ExitStack() as stack:
        _namespace(stack, switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for number, machine in enumerate(found, start=1):
            _hosts(stack, machine, found)
            _namespace(stack, machine.namespace)
            port = f"port{number}"
            _ip("-n", switch, "link", "add", port, "type", "veth", "peer", LINK, "netns", machine.namespace)
            _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            _ip("-n", machine.namespace, "address", "add", f"{machine.address}/24", "dev", LINK)
            for name in ("lo", LINK):
                _ip("-n", machine.namespace, "link", "set", name, "up")
        yield found


def _namespace(stack: ExitStack, name: str) -> None:
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, timeout=20)
    if done.returncode:
        pytest.skip(f"network namespaces are not allowed here: {done.stderr.strip()}")
    stack.callback(_remove, name)


def _remove(name: str) -> None:
    inside = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, timeout=20).stdout.split()
    if inside:
        subprocess.run(["kill", "-9", *inside], timeout=20)
    _ip("netns", "del", name)


def _hosts(stack: ExitStack, machine: Machine, others: Sequence[Machine]) -> None:
    """/etc/hosts as this machine sees it."""
    folder = Path("/etc/netns") / machine.namespace
    folder.mkdir(parents=True)
    stack.callback(shutil.rmtree, folder)
    lines = ["127.0.0.1 localhost", *(f"{other.address} {other.name}" for other in others)]
    (folder / "hosts").write_text("\n".join(lines) + "\n")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=20)
