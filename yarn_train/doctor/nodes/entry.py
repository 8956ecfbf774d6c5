"""``--nodes``: as a rank under a launcher, or as the starter of this machine's ranks where there is none."""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import time
from typing import Any

import torch

from ...dist import environment
from ...errors import ConfigError, RanksLost, problem
from ..show import unwritable
from .meeting import Meeting, is_here, parse_address
from .rank import Diagnosis, longest

DONE = 20.0  # seconds that the first machine keeps the meeting point open for the others


def diagnose(options: argparse.Namespace) -> int:
    """Returns the exit code: 1 if something is broken on any machine, or if this one lost the others."""
    try:
        if environment.under_launcher():
            if options.rendezvous is not None:
                fix = "leave it out: the launcher has a meeting point"
                raise ConfigError(problem("--rendezvous", options.rendezvous, "nothing under torchrun", fix))
            if environment.rank() == 0:
                refuse_unwritable(options)
            return Diagnosis.under_launcher(options).run()
        return start(options)
    except RanksLost as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def refuse_unwritable(options: argparse.Namespace) -> None:
    """Before anybody is waited for; only for the one that writes the report.

    Raises:
        ConfigError: the report cannot be written.
    """
    if found := unwritable(options.json):
        raise ConfigError(found)


def start(options: argparse.Namespace) -> int:
    """Meet the other machines, then start this one's ranks as torchrun would, and wait for them.

    torchrun itself starts nothing before every machine is there, so that it cannot say who is missing.
    """
    hosts = [name.strip() for name in options.hosts.split(",")] if options.hosts else []
    expected = options.nodes or len(hosts)
    if options.rendezvous is None or expected < 1:
        fix = "--nodes N --rendezvous HOST:PORT on every machine; or torchrun ... -m yarn_train.doctor --nodes"
        raise ConfigError(problem("--nodes", options.nodes, "a number of machines and where they meet", fix))
    host, port = parse_address(options.rendezvous)
    first = is_here(host)
    if first:
        refuse_unwritable(options)
    meeting = Meeting(host, port, first, options.wait)
    mine = {"host": socket.gethostname(), "ranks": max(1, torch.cuda.device_count())}
    number = 0 if first else meeting.count("doctor/arrived")
    meeting.put(f"doctor/machine/{number}", mine)
    if first:
        print(f"{mine['host']} waits for {expected - 1} more at {host}:{port}, {options.wait:.0f} s", flush=True)
        keys = [f"doctor/machine/{n}" for n in range(expected)]
        there = meeting.gather(keys, options.wait)
        meeting.put("doctor/machines", {str(n): there[key] for n, key in enumerate(keys) if key in there})
    # By number: one that was counted and then died leaves a gap.
    machines = {int(n): given for n, given in meeting.get("doctor/machines", options.wait + 10).items()}
    if number not in machines:
        if len(machines) == expected:
            why = f"{expected} machines were expected and are here; this is one more: --nodes {expected + 1} everywhere"
        else:
            why = f"it came later than {options.wait:.0f} s after the first: --wait longer"
        raise RanksLost(f"{mine['host']} is not compared: {why}")
    there_now = [machines[n] for n in sorted(machines)]
    limit = longest(len(machines), options.rounds, options.wait)
    code = _ranks(there_now, sorted(machines).index(number), (host, port), not hosts, limit)
    if first:  # the store lives here: the others' ranks still read the verdict from it
        meeting.gather([f"doctor/left/{n}" for n in machines if n != number], DONE if len(machines) > 1 else 0)
    else:
        meeting.put(f"doctor/left/{number}", code)
    return code


def _ranks(
    machines: list[dict[str, Any]], number: int, address: tuple[str, int], hosts_unknown: bool, limit: float
) -> int:
    """Start this machine's ranks and wait for them, `limit` seconds at most; returns the worst exit code."""
    before, here = sum(m["ranks"] for m in machines[:number]), machines[number]["ranks"]
    total = sum(m["ranks"] for m in machines)
    words = [sys.executable, "-m", "yarn_train.doctor", *_without(sys.argv[1:], "--rendezvous")]
    if hosts_unknown:
        words += ["--hosts", ",".join(m["host"] for m in machines)]
    running = [
        subprocess.Popen(words, env=environment.as_rank(before + n, total, (n, here), number, address))
        for n in range(here)
    ]
    end = time.monotonic() + limit
    try:
        codes = [process.wait(timeout=max(0.1, end - time.monotonic())) for process in running]
        return max(1 if code < 0 else code for code in codes)  # a rank that was killed is a broken one
    except subprocess.TimeoutExpired as error:
        raise RanksLost(f"ranks of {machines[number]['host']} did not end within {limit:.0f} s") from error
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()


def _without(words: list[str], option: str) -> list[str]:
    kept, skip = [], False
    for word in words:
        if not skip and not word.startswith(option):
            kept.append(word)
        skip = not skip and word == option
    return kept
