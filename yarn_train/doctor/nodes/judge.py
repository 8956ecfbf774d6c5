"""From measurements of machines and pairs to what is wrong with which of them. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from ..data_sheets import machine
from ..finding import FAIL, WARN, Finding
from .compared import Meet, Node, rate_text
from .rounds import Pair

SLOW_NODE, SLOW_LINK = 0.6, 0.5  # shares of what the others reach
SLOW_GPU, SLOW_CPU = 0.85, 0.5  # a machine without GPUs does other work too
LATE = 5.0  # times the median latency, and
LATE_SECONDS = 1e-3  # at least this
SKEW = 1.0  # seconds between clocks
NETWORK = 0.3  # of the adapters that the planner assumes; sockets in place of InfiniBand or RoCE stay far below
FIX = "install the same everywhere"
FIXES = {"environment": "set it alike everywhere (launch/env.sh)", "device": "one run on machines of one kind"}


def judge(nodes: Sequence[Node], pairs: Mapping[Pair, Meet], missing: Sequence[str], expected: int) -> list[Finding]:
    """Everything that is wrong, what breaks a run first."""
    names = {node.number: node.label for node in nodes}
    found = [*_missing(nodes, missing, expected), *_failures(nodes), *_links(names, pairs), *_latency(names, pairs)]
    found += _network(nodes, pairs)
    found += [*_compute(nodes, "matmul", "computes"), *_compute(nodes, "memory", "copies in memory")]
    found += [*_compute(nodes, "write", "writes to disk"), *_intra(nodes), *_differences(nodes), *_clocks(nodes)]
    return found


def scores(numbers: Sequence[int], pairs: Mapping[Pair, Meet]) -> dict[int, float]:
    """The best bandwidth that each node reaches with anybody: a node is no slower than its best pair; 0 without one."""
    best = dict.fromkeys(numbers, 0.0)
    for pair, meet in pairs.items():
        for node in pair:
            best[node] = max(best[node], meet.bus or 0.0)
    return best


def _missing(nodes: Sequence[Node], missing: Sequence[str], expected: int) -> Iterator[Finding]:
    if not missing and len(nodes) >= expected:
        return
    there = ", ".join(node.label for node in nodes) or "nobody"
    who = ", ".join(missing) or f"{expected - len(nodes)} of {expected} machines"
    means = "a run of all machines waits for it and never starts"
    fix = "on that machine: is it up, does it reach the first one (ping, firewall), was the command started?"
    yield Finding(FAIL, "missing", f"{who} never came; here are {there}", means, fix, {"missing": list(missing)})


def _failures(nodes: Sequence[Node]) -> Iterator[Finding]:
    for node in nodes:
        for number, rank in enumerate(node.ranks):
            if rank.error:
                means, fix = "a run fails there", f"python -m yarn_train.doctor on {node.label}"
                yield Finding(FAIL, f"{node.label} rank {number}", rank.error, means, fix, {"broken": node.label})
        if node.intra_error:
            means, fix = "its own ranks cannot talk to each other", f"python -m yarn_train.doctor on {node.label}"
            yield Finding(
                FAIL, node.label, f"all-reduce within it: {node.intra_error}", means, fix, {"broken": node.label}
            )


def _links(names: Mapping[int, str], pairs: Mapping[Pair, Meet]) -> Iterator[Finding]:
    if not pairs:
        return
    best = scores(list(names), pairs)
    met = {node: [pair for pair in pairs if node in pair] for node in names}
    usual = statistics.median_high([best[node] for node in names if met[node]])
    cut = [node for node in names if met[node] and not best[node] and len(names) > 2 and usual]
    slow = [node for node in names if met[node] and 0 < best[node] < SLOW_NODE * usual]
    for node in cut:
        error = next(pairs[pair].error for pair in met[node])
        means = "no run that uses it works"
        fix = "its cable, switch port, firewall; NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME there"
        figure = f"no contact with any of its {len(met[node])} partners: {error}"
        yield Finding(FAIL, names[node], figure, means, fix, {"broken": names[node]})
    for node in slow:
        figure = (
            f"{rate_text(best[node])} at best, over {len(met[node])} pairs; the machines' median is {rate_text(usual)}"
        )
        means = f"every collective of a run takes {usual / best[node]:.1f} times as long with it"
        fix = "its network adapter, cable or switch port: ethtool <interface>, ibstat; leave it out until then"
        yield Finding(FAIL, names[node], f"slow in all its pairs: {figure}", means, fix, {"slow": names[node]})
    for (a, b), meet in pairs.items():
        text, blamed = f"{names[a]} - {names[b]}", {a, b} & {*cut, *slow}
        if meet.bus is None and not {a, b} & set(cut):
            means, fix = "a run that uses both of them fails", "routes, firewalls and interfaces between the two"
            yield Finding(FAIL, text, f"no contact: {meet.error}", means, fix, {"link": [names[a], names[b]]})
        elif meet.bus and not blamed and meet.bus < SLOW_LINK * min(best[a], best[b]):
            figure = (
                f"only together slow: {rate_text(meet.bus)}; with others {rate_text(best[a])} and {rate_text(best[b])}"
            )
            means, fix = "a ring over this link is as slow as it", "the switches and cables between the two"
            yield Finding(FAIL, text, figure, means, fix, {"link": [names[a], names[b]]})


def _network(nodes: Sequence[Node], pairs: Mapping[Pair, Meet]) -> Iterator[Finding]:
    """All machines alike and all of them slow: nobody stands out where NCCL found no adapter anywhere."""
    rates = [meet.bus for meet in pairs.values() if meet.bus]
    kinds = [(machine(str(node.identity.get("device"))), len(node.ranks)) for node in nodes]
    known = [min(kind.network * count, kind.link) for kind, count in kinds if kind]
    if not rates or len(known) < len(nodes) or statistics.median(rates) >= NETWORK * min(known):
        return
    seen, planned = statistics.median(rates), min(known)
    figure = f"{rate_text(seen)} between machines, all alike; a plan assumes {rate_text(planned)}"
    means = "collectives take that much longer than a plan says: fewer adapters than one per GPU, or NCCL finds none"
    fix = "NCCL_DEBUG=INFO says which network is used (NET/Socket is none of them); NCCL_IB_HCA; ibstat"
    yield Finding(WARN, "network", figure, means, fix, {"network": seen, "network_planned": planned})


def _latency(names: Mapping[int, str], pairs: Mapping[Pair, Meet]) -> Iterator[Finding]:
    seen = {pair: meet.latency for pair, meet in pairs.items() if meet.latency is not None}
    least = {node: min((late for pair, late in seen.items() if node in pair), default=None) for node in names}
    known = {node: late for node, late in least.items() if late is not None}
    if len(known) < 3:
        return
    usual = statistics.median_low(known.values())
    for node, late in known.items():
        if late > LATE * usual and late > LATE_SECONDS:
            figure = f"latency {late * 1e6:,.0f} us at best, the median is {usual * 1e6:,.0f}"
            means = "small collectives of every step wait for it"
            yield Finding(
                WARN,
                names[node],
                figure,
                means,
                "another interface or route there? ip route; ethtool",
                {"late": names[node]},
            )


def _compute(nodes: Sequence[Node], what: str, does: str) -> Iterator[Finding]:
    every = [(node, n, rate) for node in nodes for n, r in enumerate(node.ranks) if (rate := getattr(r, what))]
    if len(every) < 2:
        return
    usual = statistics.median_high([rate for _, _, rate in every])
    for node, number, rate in every:
        gpu = node.identity.get("device", "CPU") != "CPU" and what != "write"
        if rate < (SLOW_GPU if gpu else SLOW_CPU) * usual:
            figure = f"rank {number} {does} at {rate / usual:.0%} of the median of all ranks"
            means = "every step waits for it" if what != "write" else "every checkpoint waits for it"
            fix = (
                "nvidia-smi -q -d PERFORMANCE there: heat, power, another process"
                if gpu
                else "top there: other processes?"
            )
            fact = {"slow_rank": [node.label, number], "measured": what}
            yield Finding(FAIL if gpu else WARN, node.label, figure, means, fix, fact)


def _intra(nodes: Sequence[Node]) -> Iterator[Finding]:
    known = [(node, node.intra) for node in nodes if node.intra]
    if len(known) < 2:
        return
    usual = statistics.median_high([rate for _, rate in known])
    for node, rate in known:
        if rate < SLOW_NODE * usual:
            figure = f"all-reduce within it reaches {rate_text(rate)}, the machines' median is {rate_text(usual)}"
            fix = "nvidia-smi topo -m and nvidia-smi nvlink --status there"
            yield Finding(FAIL, node.label, figure, "every step waits for it", fix, {"slow": node.label})


def _differences(nodes: Sequence[Node]) -> Iterator[Finding]:
    labels = [node.label for node in nodes]
    for label in sorted({label for label in labels if labels.count(label) > 1}):
        figure = f"{labels.count(label)} machines are called {label}"
        yield Finding(WARN, "host names", figure, "messages cannot say which one fails", "hostnamectl set-hostname")
    for what, severe in (("versions", True), ("git", True), ("driver", False), ("python", False), ("device", False)):
        yield from _different(nodes, what, FAIL if severe else WARN)
    yield from _different(nodes, "environment", WARN)


def _different(nodes: Sequence[Node], what: str, status: str) -> Iterator[Finding]:
    given = [(node.label, node.identity.get(what)) for node in nodes if node.identity]  # else it told nothing at all
    tables = [value for _, value in given if isinstance(value, Mapping)]
    keys = sorted({key for table in tables for key in table}) if tables else [what]
    for key in keys:
        values = [(label, value.get(key) if isinstance(value, Mapping) else value) for label, value in given]
        kinds: dict[str, list[str]] = {}
        for label, value in values:
            kinds.setdefault("not set" if value is None else str(value), []).append(label)
        if len(kinds) > 1:
            text = "; ".join(
                f"{value} on {', '.join(labels)}" for value, labels in sorted(kinds.items(), key=lambda k: -len(k[1]))
            )
            means, fix = "ranks that compute or talk differently: errors, hangs or other results", FIXES.get(what, FIX)
            if what == "device":
                means = "every step waits for the slowest kind, and the smallest memory is the limit of all"
            yield Finding(status, f"differs: {key}", text, means, fix, {"differs": key})


def _clocks(nodes: Sequence[Node]) -> Iterator[Finding]:
    for node in nodes:
        if node.skew is not None and abs(node.skew) > SKEW:
            figure = f"its clock is {node.skew:+.1f} s from the first machine's"
            means = "logs of the machines cannot be laid side by side; make and caches mislead"
            yield Finding(WARN, node.label, figure, means, "timedatectl set-ntp true", {"skew": node.label})
