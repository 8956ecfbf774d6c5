"""One rank of the comparison. Rank 0 leads: it says when a step is over and who is still there.

All measuring happens in a child process with a time limit, so that a rank always comes back to the meeting point.
"""

from __future__ import annotations

import argparse
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ...dist import environment
from ...errors import RanksLost
from ..child import Child, ChildError
from .meeting import PAUSE, Meeting
from .rounds import Pair, partner, tournament

PRELOADED = ["torch", f"{__package__}.measure"]
START = 25.0  # seconds until a child has imported torch and told what it is
ALONE = 25.0  # for a rank's own measurements
# For a group's measurements, and for each single call in it. NCCL alone takes many seconds to start on many GPUs.
TOGETHER, CALL = {"cpu": 10.0, "cuda": 30.0}, {"cpu": 6.0, "cuda": 25.0}
LATER = 5.0  # seconds that the leader waits longer than a rank may take


Answers = dict[int, dict[str, Any]]  # rank -> {"value": ..., "error": ...}


def longest(machines: int, rounds: int, wait: float) -> float:
    """Seconds after which a diagnosis is over, whatever happens in it."""
    meetings = 1 + min(rounds, machines)  # within a machine, and rounds of pairs
    parts = [wait, START, START, ALONE, LATER, *[TOGETHER["cuda"]] * meetings, LATER]  # the first START is Python's
    return sum(part + 2 * LATER for part in parts)


class Diagnosis:
    """A rank's place, its way to the others, and who of them still answers.

    Attributes:
        places: rank -> node of every rank that arrived.
        alive: ranks that answered in every step so far.
        kind: of the devices: cuda if any rank has a GPU, else cpu.
    """

    def __init__(self, options: argparse.Namespace, address: tuple[str, int], meeting: Meeting):
        self.options, self.address, self.meeting = options, address, meeting
        self.rank, self.world_size = environment.rank(), environment.world_size()
        self.node, self.local = environment.group_rank(), environment.local_rank()
        self.places: dict[int, int] = {}
        self.alive: set[int] = set()
        self.kind = "cpu"
        self._child: Child | None = None

    @classmethod
    def under_launcher(cls, options: argparse.Namespace) -> Diagnosis:
        """From the launcher's environment variables.

        Raises:
            RanksLost: no contact with the meeting point.
        """
        host, port, served = environment.meeting_point()
        serve = environment.rank() == 0 and not served
        return cls(options, (host, port), Meeting(host, port, serve, options.wait))

    def run(self) -> int:
        """Measure, and return the exit code that all ranks share.

        Raises:
            RanksLost: this rank lost the others.
        """
        begin = time.monotonic()
        try:
            steps = {"arrive": self.arrive()}
            steps["identity"] = self.step("identity", lambda: self.ask("identity", START), START)
            steps["alone"] = self.step("alone", lambda: self.ask("alone", ALONE, disk=self.options.disk), ALONE)
            given = [answer["value"] or {} for answer in steps["identity"].values()]  # alike on all ranks, so
            self.kind = "cuda" if any(told.get("device", "CPU") != "CPU" for told in given) else "cpu"  # is this
            steps["within"] = self.step("within", self.within, TOGETHER[self.kind])
            steps["clock"] = self.step("clock", self.clock, LATER)
            met = self.rounds()
            code = 0
            if self.rank == 0:
                from . import report  # imports transformers, which no other rank has to wait for

                code = report.conclude(self.options, self.places, self.world_size, steps, met, begin)
            return self.leave(code)
        finally:
            if self._child is not None:
                self._child.kill()

    def arrive(self) -> Answers:
        """Tell who is here; the leader waits for all of them, ``--wait`` seconds at most."""
        self.alive = set(range(self.world_size))
        here = {"host": socket.gethostname(), "node": self.node}
        answers = self.step("arrive", lambda: here, 0.0, self.options.wait)
        self.places = {rank: int(answer["value"]["node"]) for rank, answer in answers.items()}
        return answers

    def step(self, name: str, work: Callable[[], Any], limit: float, patience: float = LATER) -> Answers:
        """Do this rank's `work`; the answers of all ranks, and those that gave none are dead from now on.

        Args:
            limit: seconds that the work takes at most; `patience`: that the leader waits longer.
        """
        begin = time.monotonic()
        answer: dict[str, Any] = {"value": None, "error": ""}
        try:
            answer["value"] = work()
        except ChildError as error:
            answer["error"] = str(error)
        self.meeting.put(f"doctor/{name}/{self.rank}", answer)
        if self.rank == 0:
            keys = {f"doctor/{name}/{rank}": rank for rank in sorted(self.alive)}
            got = self.meeting.gather(keys, max(0.0, begin + limit + patience - time.monotonic()))
            self.meeting.put(f"doctor/{name}/all", {keys[key]: value for key, value in got.items()})
        everything = self.meeting.get(f"doctor/{name}/all", limit + patience + LATER)
        answers = {int(rank): given for rank, given in everything.items()}
        if self.rank not in answers:
            raise RanksLost(f"rank {self.rank} on {socket.gethostname()} answered too late ({name})")
        self.alive = set(answers)
        return answers

    def ask(self, function: str, limit: float, **arguments: Any) -> Any:
        """The child's answer. One that failed is never used again: its groups may be half made.

        Raises:
            ChildError: there was none.
        """
        try:
            self._child = self._child or Child(PRELOADED)
            return self._child.call(f"{__package__}.measure:{function}", limit, **arguments)
        except ChildError:
            if self._child is not None:
                self._child.kill()
            self._child = None
            raise

    def within(self) -> dict[str, float] | None:
        """All-reduce between the ranks of this machine."""
        mine = self.ranks_of(self.node)
        return self.together(f"within/{self.node}", mine) if len(mine) > 1 and mine <= self.alive else None

    def rounds(self) -> list[tuple[list[Pair], Answers]]:
        """Every round's pairs and answers."""
        done = []
        for number, pairs in enumerate(tournament(sorted(set(self.places.values())), self.options.rounds)):
            whole = [pair for pair in pairs if all(self.ranks_of(node) <= self.alive for node in pair)]
            other = partner(self.node, whole)
            ranks = set[int]() if other is None else self.ranks_of(self.node) | self.ranks_of(other)
            name = f"round/{number}"
            done.append((pairs, self.step(name, partial(self.together, name, ranks), TOGETHER[self.kind])))
        return done

    def together(self, name: str, ranks: set[int]) -> dict[str, float] | None:
        """All-reduce between some ranks, this one included; None without any."""
        if not ranks:
            return None
        host, port = self.address
        place = {"name": f"{name}/{min(ranks)}", "rank": sorted(ranks).index(self.rank), "size": len(ranks)}
        limit, call = TOGETHER[self.kind], CALL[self.kind]
        result: dict[str, float] = self.ask("together", limit, host=host, port=port, timeout=call, **place)
        return result

    def ranks_of(self, node: int) -> set[int]:
        """Of a machine, dead ones included."""
        return {rank for rank, place in self.places.items() if place == node}

    def clock(self) -> float | None:
        """Seconds that this machine's clock is ahead of the leader's, as far as one question and answer tell.

        None on other ranks than a machine's first, and where the leader had no time to answer.
        """
        firsts = {min(self.ranks_of(node)) for node in set(self.places.values())} - {0}
        if self.rank == 0:
            waiting, end = firsts & self.alive, time.monotonic() + LATER
            while waiting and time.monotonic() < end:
                asked = {rank for rank in waiting if self.meeting.look([f"doctor/ask/{rank}"])}
                for rank in asked:
                    self.meeting.put(f"doctor/tell/{rank}", time.time())
                waiting -= asked
                time.sleep(PAUSE)
            return 0.0
        if self.rank not in firsts:
            return None
        begin = time.time()
        self.meeting.put(f"doctor/ask/{self.rank}", True)
        try:
            theirs = float(self.meeting.get(f"doctor/tell/{self.rank}", LATER))
        except RanksLost:
            return None  # not worth a rank; a leader that is gone is noticed by the next step
        return (begin + time.time()) / 2 - theirs

    def leave(self, code: int) -> int:
        """The leader's exit code, on every rank; the leader stays until the others have it."""
        if self.rank == 0:
            self.meeting.put("doctor/verdict", code)
            self.meeting.gather([f"doctor/bye/{rank}" for rank in self.alive - {0}], LATER)
            return code
        code = int(self.meeting.get("doctor/verdict", 2 * LATER))
        self.meeting.put(f"doctor/bye/{self.rank}", code)
        return code
