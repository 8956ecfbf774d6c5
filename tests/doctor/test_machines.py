"""Several machines on one: the doctor names the slow one, the missing one, the dead one, and says when all is well."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from namespaces import LINK, Machine, machines

PORT = 29601
SLOW = ("tbf", "rate", "40mbit", "burst", "64kb", "latency", "200ms")  # 5 MB/s


def doctor(*words: str) -> list[str]:
    return [sys.executable, "-m", "yarn_train.doctor", "--nodes", *words]


def start(nodes: list[Machine], folder: Path, *words: str) -> list[subprocess.Popen[str]]:
    """The same command on every machine; the first one's report goes to report.json."""
    command = doctor("3", "--rendezvous", f"node1:{PORT}", "--json", str(folder / "report.json"), *words)
    return [node.start(command, (folder / f"{node.name}.log").open("w")) for node in nodes]


def finish(running: list[subprocess.Popen[str]], folder: Path) -> tuple[list[int], dict[str, Any], str]:
    codes = [process.wait(timeout=150) for process in running]
    text = "\n".join(log.read_text() for log in sorted(folder.glob("*.log")))
    assert (folder / "report.json").is_file(), text
    return codes, json.loads((folder / "report.json").read_text()), text


def facts(report: dict[str, Any], status: str = "FAIL") -> list[dict[str, Any]]:
    return [finding["facts"] for finding in report["findings"] if finding["status"] == status]


@pytest.mark.long
def test_three_healthy_machines_are_ready(tmp_path):
    with machines(3) as nodes:
        codes, report, text = finish(start(nodes, tmp_path), tmp_path)
    assert (codes, facts(report)) == ([0, 0, 0], []), text
    assert "ready: 3 of 3 machines, 3 x CPU" in text


@pytest.mark.long
def test_a_slow_machine_and_one_that_never_comes_are_named_and_every_machine_says_so(tmp_path):
    with machines(3) as nodes:
        nodes[2].shape(*SLOW)
        words = ("--nodes", "4", "--hosts", "node1,node2,node3,node4", "--wait", "9")
        codes, report, text = finish(start(nodes, tmp_path, *words), tmp_path)
    assert codes == [1, 1, 1], text
    assert facts(report) == [{"missing": ["node4"]}, {"slow": "node3"}], text
    assert "node4 never came; here are node" in text
    assert "node3: slow in all its pairs" in report["verdict"]


@pytest.mark.long
def test_a_machine_that_is_cut_off_in_the_middle_ends_in_a_minute_and_is_named(tmp_path):
    with machines(3) as nodes:
        began = time.monotonic()
        running = start(nodes, tmp_path)
        deadline = time.monotonic() + 60
        while "waits for 2 more" not in (tmp_path / "node1.log").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(4)  # somewhere between their arrival and the pairs
        nodes[1].link("down")
        codes, report, text = finish(running, tmp_path)
        assert codes == [1, 1, 1], text
        assert any("node2" in json.dumps(fact) for fact in facts(report)), text
        assert not any("node3" in json.dumps(fact) for fact in facts(report)), text
        assert time.monotonic() - began < 100
        assert "lost the meeting point" in (tmp_path / "node2.log").read_text()


@pytest.mark.long
def test_under_torchrun_with_a_range_of_machines_the_missing_one_is_counted(tmp_path):
    """torchrun with an exact number of machines starts nobody before all are there: a range lets the doctor speak."""
    with machines(2) as nodes:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:3", "--nproc-per-node=1"]
        torchrun += ["--rdzv-backend=c10d", "--rdzv-endpoint=node1:29611", "--rdzv-conf=last_call_timeout=4"]
        command = [*torchrun, *doctor("3", "--json", str(tmp_path / "report.json"))[1:]]
        running = [node.start(command, (tmp_path / f"{node.name}.log").open("w")) for node in nodes]
        codes, _, text = finish(running, tmp_path)
        assert codes == [1, 1], text
        assert "1 of 3 machines never came; here are node1, node2" in text


@pytest.mark.long
def test_a_pair_that_is_slow_only_together_is_a_link(tmp_path):
    """Between node2 and node3 only: a class of the queue for each other's address."""
    with machines(3) as nodes:
        for node, other in ((nodes[1], nodes[2]), (nodes[2], nodes[1])):
            below = ["tc", "-n", node.namespace]
            node.shape("handle", "1:", "htb", "default", "1")
            for number, rate in (("1", "10gbit"), ("2", "40mbit")):
                limit = ["classid", f"1:{number}", "htb", "rate", rate, "burst", "64kb"]
                subprocess.run([*below, "class", "add", "dev", LINK, "parent", "1:", *limit], check=True, timeout=20)
            match = ["u32", "match", "ip", "dst", f"{other.address}/32", "flowid", "1:2"]
            words = [*below, "filter", "add", "dev", LINK, "protocol", "ip", "parent", "1:", "prio", "1", *match]
            if subprocess.run(words, capture_output=True, timeout=20).returncode:
                pytest.skip("this kernel has no u32 filters")
        codes, report, text = finish(start(nodes, tmp_path), tmp_path)
    assert codes == [1, 1, 1], text
    assert [sorted(fact["link"]) for fact in facts(report)] == [["node2", "node3"]], text


@pytest.mark.long
def test_a_pair_without_a_route_is_a_link_and_everybody_else_is_measured(tmp_path):
    with machines(3) as nodes:
        for node, other in ((nodes[1], nodes[2]), (nodes[2], nodes[1])):
            words = ["ip", "-n", node.namespace, "route", "add", "blackhole", f"{other.address}/32"]
            subprocess.run(words, check=True, timeout=20)
        codes, report, text = finish(start(nodes, tmp_path), tmp_path)
    assert codes == [1, 1, 1], text
    assert [sorted(fact["link"]) for fact in facts(report)] == [["node2", "node3"]], text
    assert "no contact" in text
