"""From measurements of machines to names, without any machine."""

from __future__ import annotations

import argparse
import dataclasses
from itertools import combinations
from pathlib import Path

import pytest

from yarn_train.doctor.finding import FAIL, WARN
from yarn_train.doctor.nodes.compared import Meet, Node, Rank
from yarn_train.doctor.nodes.judge import judge
from yarn_train.doctor.nodes.report import conclude, missing, nodes_of, pairs_of
from yarn_train.doctor.nodes.rounds import partner, tournament
from yarn_train.doctor.nodes.text import summary, table

IDENTITY = {"versions": {"torch": "2.13.0"}, "git": "abc", "environment": {"NCCL_IB_HCA": "mlx5"}, "device": "H100"}


def node(number: int, matmul: float = 600e12, **changes: object) -> Node:
    ranks = [Rank(matmul, 3e12, None), Rank(600e12, 3e12, None)]
    return dataclasses.replace(Node(number, f"host{number}", IDENTITY, ranks, 400e9, skew=0.0), **changes)  # type: ignore[arg-type]


def all_pairs(count: int, slow: dict[tuple[int, int], Meet] | None = None) -> dict[tuple[int, int], Meet]:
    return {pair: (slow or {}).get(pair, Meet(40e9, 30e-6)) for pair in combinations(range(count), 2)}


def facts(nodes: list[Node], pairs: dict[tuple[int, int], Meet], status: str = FAIL) -> list[dict[str, object]]:
    return [f.facts for f in judge(nodes, pairs, [], len(nodes)) if f.status == status]


def test_a_healthy_cluster_has_no_findings_and_a_table_row_per_machine():
    nodes, pairs = [node(n) for n in range(4)], all_pairs(4)
    assert judge(nodes, pairs, [], 4) == []
    assert summary(nodes, [], 4) == "ready: 4 of 4 machines, 8 x H100"
    rows = table(nodes, pairs)
    assert len(rows) == 5
    assert rows[1].split() == [
        "host0",
        "H100",
        "2",
        "600.00",
        "3,000.00",
        "400.00",
        "GB/s",
        "40.00",
        "GB/s",
        "40.00",
        "GB/s",
        "30",
    ]


def test_a_machine_slow_in_all_its_pairs_is_named_alone():
    slow = {pair: Meet(4e9, 30e-6) for pair in all_pairs(5) if 2 in pair}
    assert facts([node(n) for n in range(5)], all_pairs(5, slow)) == [{"slow": "host2"}]


def test_two_slow_machines_of_four_are_both_named():
    slow = {pair: Meet(4e9, 30e-6) for pair in all_pairs(4) if {0, 2} & set(pair)}
    assert facts([node(n) for n in range(4)], all_pairs(4, slow)) == [{"slow": "host0"}, {"slow": "host2"}]


def test_a_pair_slow_only_together_is_a_link():
    assert facts([node(n) for n in range(4)], all_pairs(4, {(1, 3): Meet(4e9, 30e-6)})) == [
        {"link": ["host1", "host3"]}
    ]


def test_contact_with_nobody_is_a_machine_and_with_one_a_link():
    nodes, gone = [node(n) for n in range(4)], Meet(error="Timed out")
    cut = {pair: gone for pair in all_pairs(4) if 1 in pair}
    assert facts(nodes, all_pairs(4, cut)) == [{"broken": "host1"}]
    assert facts(nodes, all_pairs(4, {(0, 1): gone})) == [{"link": ["host0", "host1"]}]
    assert facts(nodes[:2], {(0, 1): gone}) == [{"link": ["host0", "host1"]}]


def test_a_throttled_gpu_is_named_with_its_rank_and_a_busy_cpu_is_a_warning():
    nodes = [node(0), node(1, matmul=450e12), node(2)]
    assert facts(nodes, {}) == [{"slow_rank": ["host1", 0], "measured": "matmul"}]
    cpu = [
        dataclasses.replace(n, identity={**IDENTITY, "device": "CPU"})
        for n in [node(0), node(1, matmul=200e12), node(2)]
    ]
    assert facts(cpu, {}) == []
    assert facts(cpu, {}, WARN) == [{"slow_rank": ["host1", 0], "measured": "matmul"}]


@pytest.mark.parametrize(
    ("changes", "status", "differs"),
    [
        ({"versions": {"torch": "2.11.0"}}, FAIL, "torch"),
        ({"git": "abd+dirty"}, FAIL, "git"),
        ({"environment": {}}, WARN, "NCCL_IB_HCA"),
        ({"device": "L40S"}, WARN, "device"),
    ],
)
def test_what_differs_between_machines_is_named_with_both_values(changes, status, differs):
    nodes = [node(0), node(1, identity={**IDENTITY, **changes}), node(2)]
    (found,) = judge(nodes, {}, [], 3)
    assert (found.status, found.facts) == (status, {"differs": differs})
    assert "host0, host2" in found.figure
    assert "on host1" in found.figure


def test_gpus_of_different_kinds_are_no_matter_of_installing():
    (found,) = judge([node(0), node(1, identity={**IDENTITY, "device": "A100"})], {}, [], 2)
    assert (found.what, found.fix) == ("differs: device", "one run on machines of one kind")
    assert "slowest kind" in found.means


def test_a_machine_that_told_nothing_of_itself_differs_in_nothing():
    mute = node(1, identity={}, ranks=[Rank(error="identity: no answer within 25 s")])
    assert [f.what for f in judge([node(0), mute, node(2)], {}, [], 3)] == ["host1 rank 0"]


def test_machines_that_are_all_equally_slow_are_held_against_their_adapters():
    """Two H100 with 50 GB/s each per machine: 30 % of 100 is what sockets do not reach."""
    nodes = [node(n) for n in range(3)]
    pairs = dict.fromkeys(all_pairs(3), Meet(8e9, 30e-6))
    (found,) = judge(nodes, pairs, [], 3)
    assert (found.status, found.what) == (WARN, "network")
    assert found.facts == {"network": 8e9, "network_planned": 100e9}
    assert "NCCL_IB_HCA" in found.fix
    unknown = [dataclasses.replace(n, identity={**IDENTITY, "device": "CPU"}) for n in nodes]
    assert judge(unknown, pairs, [], 3) == []


def test_clocks_names_late_and_inner_links_are_looked_at():
    late = {pair: Meet(40e9, 20e-3) for pair in all_pairs(3) if 0 in pair}
    nodes = [node(0, skew=0.0), node(1, skew=-7.5), node(2, host="host1", intra=90e9)]
    found = judge(nodes, all_pairs(3, late), [], 3)
    assert [(f.status, f.what) for f in found] == [
        (WARN, "host0"), (FAIL, "host1"), (WARN, "host names"), (WARN, "host1"),
    ]  # fmt: skip
    assert "-7.5 s" in found[3].figure


def test_a_rank_that_fell_silent_is_broken_where_it_fell():
    here = {0: 0, 1: 1}
    arrive = {r: {"value": {"host": f"host{r}", "node": r}, "error": ""} for r in here}
    identity = {r: {"value": IDENTITY, "error": ""} for r in here}
    done = {r: {"value": {"matmul": 1e12, "memory": 1e9}, "error": ""} for r in here}
    empty = {r: {"value": None, "error": ""} for r in here}
    steps = {"arrive": arrive, "identity": identity, "alone": done, "within": empty, "clock": empty}
    met = [([(0, 1)], {0: {"value": None, "error": "Hung: no answer within 10 s"}})]
    nodes, pairs = nodes_of(here, steps, met), pairs_of(here, met)
    assert nodes[1].ranks[0].error == "stopped answering in round 1 of pairs"
    assert pairs == {(0, 1): Meet(error="Hung: no answer within 10 s")}
    assert {"broken": "host1"} in facts(nodes, pairs)
    full = argparse.Namespace(hosts=None, nodes=2, json="/dev/full" if Path("/dev/full").exists() else "/")
    assert conclude(full, here, 2, steps, met, 0.0) == 1  # the others still wait for this code


def test_the_missing_are_named_or_numbered():
    nodes = [node(0, host="a.cluster"), node(1, host="b")]
    assert missing(["a", "b", "c"], nodes, []) == ["c"]
    assert missing([], nodes, [2, 3]) == ["rank 2, 3"]
    (found,) = judge(nodes, {}, [], 3)
    assert found.figure == "1 of 3 machines never came; here are a.cluster, b"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 16])
def test_everybody_meets_everybody_once_and_nobody_two_at_a_time(count):
    rounds = tournament(range(count), 99)
    assert sorted(pair for pairs in rounds for pair in pairs) == list(combinations(range(count), 2))
    for pairs in rounds:
        players = [player for pair in pairs for player in pair]
        assert len(players) == len(set(players)) >= count - 1
        assert all(partner(a, pairs) == b and partner(b, pairs) == a for a, b in pairs)


def test_few_rounds_are_different_rounds():
    few, every = tournament(range(64), 8), tournament(range(64), 99)
    assert len(few) == 8
    assert all(pairs in every for pairs in few)
    assert len({pair for pairs in few for pair in pairs}) == 8 * 32
