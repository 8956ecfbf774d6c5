"""Two machines, one run: the network between them fails, comes back, and the same command goes on."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from namespaces import Machine, machines
from support import course, metrics, same_weights

TIMEOUT = 8  # launch.timeout
PORT = 29511
ENDS = {"launch/torchrun.sh": 12, "train.py": 30}  # seconds that a launcher may need after its workers


def starter(launcher: str, run: Path) -> tuple[list[str], dict[str, str]]:
    """The words that start one machine's worker, and their environment."""
    if launcher == "train.py":
        meeting = ["launch.nproc_per_node=1", "launch.nnodes=2", f"launch.rendezvous=node1:{PORT}"]
        return [sys.executable, "train.py", *meeting], {}
    said = {"NNODES": "2", "NPROC_PER_NODE": "1", "RDZV_ENDPOINT": f"node1:{PORT}", "LOG_DIR": str(run.parent / "logs")}
    return [launcher], {**said, "PYTHON": sys.executable, "AGENT_TIMEOUT": str(ENDS[launcher])}


def start(launcher: str, nodes: list[Machine], run: Path, args: list[str]) -> list[subprocess.Popen[str]]:
    words, said = starter(launcher, run)
    words += [*args, f"run.dir={run}", f"launch.timeout={TIMEOUT}"]
    return [node.start(words, console(run, node).open("w"), {**said, "NODE_RANK": node.name[-1]}) for node in nodes]


def console(run: Path, node: Machine) -> Path:
    return run.parent / f"{node.name}.log"


def wait_for_rows(file: Path, count: int) -> None:
    deadline = time.monotonic() + 90
    while not (file.is_file() and len(file.read_text().splitlines()) >= count):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["launch/torchrun.sh", "train.py"])
def test_a_cut_link_ends_all_ranks_and_the_same_command_resumes_bit_for_bit(launcher, launch, tiny_args, tmp_path):
    args = [*(a for a in tiny_args if not a.startswith("train.steps")), "model.dtype=float32", "train.steps=40"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    launch(*args, f"run.dir={whole}", ranks=2)
    with machines(2) as nodes:
        running = start(launcher, nodes, parts, args)
        wait_for_rows(parts / "01_s4/metrics.jsonl", 6)
        nodes[1].link("down")
        cut = time.monotonic()
        codes = [process.wait(timeout=TIMEOUT + ENDS[launcher] + 40) for process in running]
        assert time.monotonic() - cut < TIMEOUT + ENDS[launcher] + 30
        assert 0 not in codes
        assert 75 not in codes
        assert len(metrics(parts / "01_s4")) < 40
        for node in nodes:
            text = console(parts, node).read_text()
            assert f"on {node.name} lost contact with other ranks" in text, text
            assert "Traceback" not in text.partition("lost contact")[0], text
        nodes[1].link("up")
        running = start(launcher, nodes, parts, args)
        assert [process.wait(timeout=100) for process in running] == [0, 0], console(parts, nodes[0]).read_text()
    assert course(whole / "01_s4") == course(parts / "01_s4")
    assert same_weights(whole / "01_s4/model", parts / "01_s4/model")
