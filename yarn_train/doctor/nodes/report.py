"""From the ranks' answers to the report of the comparison."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import ConfigError
from ..finding import broken
from ..show import Printer, write_json
from .compared import Meet, Node, Rank
from .judge import judge
from .rounds import Pair
from .text import summary, table

Answers = Mapping[int, Mapping[str, Any]]
SILENT = "stopped answering"


def conclude(
    options: argparse.Namespace,
    places: Mapping[int, int],
    world_size: int,
    steps: Mapping[str, Answers],
    met: Sequence[tuple[list[Pair], Answers]],
    begin: float,
) -> int:
    """Print the table, what is wrong and the verdict; returns the exit code."""
    hosts = [name.strip() for name in options.hosts.split(",")] if options.hosts else []
    nodes, pairs = nodes_of(places, steps, met), pairs_of(places, met)
    absent = sorted(set(range(world_size)) - set(places))
    expected = max(options.nodes or 0, len(hosts), len(nodes) + bool(absent))
    found = judge(nodes, pairs, missing(hosts, nodes, absent), expected)
    printer = Printer(sys.stderr if options.json == "-" else sys.stdout)
    for line in table(nodes, pairs):
        printer.line(line)
    for finding in found:
        printer.finding(finding)
    text, seconds = summary(nodes, found, expected), time.monotonic() - begin
    printer.verdict(f"{text}; {seconds:.1f} s", broken(found))
    written = not options.json or write_json(options.json, found, text, seconds)
    return 1 if broken(found) else 0 if written else ConfigError.exit_code


def missing(hosts: Sequence[str], nodes: Sequence[Node], ranks: Sequence[int]) -> list[str]:
    """Who never came: by name where the names are known, else by rank."""
    there = {node.host.split(".")[0] for node in nodes}
    absent = [host for host in hosts if host.split(".")[0] not in there]
    if absent or not ranks:
        return absent
    return [f"rank {', '.join(map(str, ranks))}"]


def nodes_of(
    places: Mapping[int, int], steps: Mapping[str, Answers], met: Sequence[tuple[list[Pair], Answers]]
) -> list[Node]:
    """The machines with all that they said of themselves."""
    found = []
    for number in sorted(set(places.values())):
        ranks = sorted(rank for rank, node in places.items() if node == number)
        told = steps["identity"].get(ranks[0], {}).get("value") or {}
        within = [steps["within"].get(rank, {}) for rank in ranks]
        found.append(
            Node(
                number,
                str(steps["arrive"][ranks[0]]["value"]["host"]),
                told,
                [_rank(rank, steps, met) for rank in ranks],
                min((w["value"]["bus"] for w in within if w.get("value")), default=None),
                next((w["error"] for w in within if w.get("error")), ""),
                steps["clock"].get(ranks[0], {}).get("value"),
            )
        )
    return found


def _rank(rank: int, steps: Mapping[str, Answers], met: Sequence[tuple[list[Pair], Answers]]) -> Rank:
    for name in ("identity", "alone"):
        if rank in steps[name] and steps[name][rank]["error"]:
            return Rank(error=f"{name}: {steps[name][rank]['error']}")
    silent = [f"at the step '{name}'" for name, answers in steps.items() if rank not in answers]
    silent += [f"in round {n} of pairs" for n, (_, answers) in enumerate(met, start=1) if rank not in answers]
    alone = steps["alone"].get(rank, {}).get("value") or {}
    error = f"{SILENT} {silent[0]}" if silent else alone.get("disk_error", "")
    return Rank(alone.get("matmul"), alone.get("memory"), alone.get("write"), error)


def pairs_of(places: Mapping[int, int], met: Sequence[tuple[list[Pair], Answers]]) -> dict[Pair, Meet]:
    """What each pair measured; pairs of which a machine was dead before are left out."""
    found = {}
    for pairs, answers in met:
        for pair in pairs:
            said = [answers[rank] for rank, node in places.items() if node in pair and rank in answers]
            values = [answer["value"] for answer in said if answer["value"]]
            errors = [answer["error"] for answer in said if answer["error"]]
            if values and not errors:
                found[pair] = Meet(min(v["bus"] for v in values), max(v["latency"] for v in values))
            elif errors:
                found[pair] = Meet(error=errors[0])
    return found
