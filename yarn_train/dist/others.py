"""What the heartbeats of all ranks say together: who is behind, who is gone, who failed first. Never imports torch."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

FOLDER = "heartbeat"
SILENT = 15.0  # seconds without a new file after which a rank is taken to be gone; more where ranks write seldom
SHOWN = 8  # lines about others at most
CLOCKS = 3.0  # seconds that the clocks of machines may differ; an earlier start is further away than that

ENDED, STOPPED = ("X", "Z"), ("T", "t")  # states of a process, see proc(5): one that nobody has collected has ended
State = Mapping[str, Any]
AFTER_ANOTHER = ("RanksLost", "KeyboardInterrupt", "StopRequested", "SystemExit")  # ends that others caused


def file_of(folder: Path, rank: int) -> Path:
    """The heartbeat file of a rank."""
    return folder / f"rank{rank}.json"


def remove_others(folder: Path) -> None:
    """Remove what ranks but 0 left in an earlier start: they must not be taken for those of this one."""
    with suppress(OSError):
        for path in folder.glob("rank*.json"):
            number = path.stem.removeprefix("rank")
            if number.isdigit() and int(number) > 0:
                path.unlink()


def read(folder: Path, rank: int) -> State | None:
    """What a rank wrote last; None where there is nothing to read."""
    try:
        state = json.loads(file_of(folder, rank).read_text())
        return state if isinstance(state, dict) and {"time", "step", "phase", "host", "pid"} <= state.keys() else None
    except (OSError, ValueError):
        return None


def place(step: int | None, phase: str) -> str:
    """Where a rank stands, in words."""
    return f"step {step} in phase {phase}" if step is not None else f"phase {phase}"


def behind(folder: Path, mine: State) -> list[str]:
    """Lines about the other ranks, those that explain most first.

    Args:
        mine: this rank's own state.
    """
    ranks = [rank for rank in range(mine["world_size"]) if rank != mine["rank"]]
    found = {rank: read(folder, rank) for rank in ranks}
    lines = [f"rank {rank} has left no heartbeat in {folder}" for rank, state in found.items() if state is None]
    alive = {mine["rank"]: mine}
    for rank, state in found.items():
        if state is not None:
            why = _gone(folder, rank, state, mine)
            if why:
                lines.append(f"{_who(rank, state)} {why}, at {place(state['step'], state['phase'])}")
            else:
                alive[rank] = state
    lines += _behind(alive, mine["rank"])
    if not lines:
        return [f"all {mine['world_size']} ranks are at {place(mine['step'], mine['phase'])}"] if ranks else []
    return lines[:SHOWN] + ([f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])


def first_failure(folder: Path, mine: State, began: float) -> str:
    """Who failed before this rank lost the others; empty where nobody says so.

    Args:
        began: when this start began, in seconds since the epoch: what is older belongs to an earlier one.
    """
    states = {rank: read(folder, rank) for rank in range(mine["world_size"]) if rank != mine["rank"]}
    new = {rank: s for rank, s in states.items() if s is not None and s["time"] >= began - CLOCKS}
    own = [(s["time"], rank) for rank, s in new.items() if _failed_by_itself(s)]
    if own:
        rank = min(own)[1]
        return f"{_who(rank, new[rank])} failed first: {new[rank]['ended']}"
    missing = {rank: _missing(folder, rank, s, mine) for rank, s in new.items() if not s.get("ended")}
    return next((f"{_who(rank, new[rank])} {why}" for rank, why in missing.items() if why), "")


def _failed_by_itself(state: State) -> bool:
    ended = state.get("ended")
    return bool(ended) and ended != "done" and str(ended).partition(":")[0] not in AFTER_ANOTHER


def _gone(folder: Path, rank: int, state: State, mine: State) -> str:
    """Why a rank does not go on; empty for one that lives."""
    return f"has ended ({state['ended']})" if state.get("ended") else _missing(folder, rank, state, mine)


def _missing(folder: Path, rank: int, state: State, mine: State) -> str:
    """Why a rank that has not said that it ended does not go on; empty for one that lives."""
    if state["host"] == mine["host"]:
        letter = _letter(state["pid"])
        if letter in ENDED:
            return "is gone: it was killed, or crashed"
        if letter in STOPPED:
            return "is stopped: by SIGSTOP, or a debugger"
    silent = _silence(folder, rank, mine["rank"])
    limit = max(SILENT, mine["world_size"] / 8)
    return f"has been silent for {silent:.0f} s: its process is stopped, or its machine gone" if silent > limit else ""


def _silence(folder: Path, rank: int, own: int) -> float:
    """Seconds between the last heartbeats of two ranks, by the clock of the storage that both write to."""
    try:
        return file_of(folder, own).stat().st_mtime - file_of(folder, rank).stat().st_mtime
    except OSError:
        return 0.0


def _behind(alive: Mapping[int, State], own: int) -> list[str]:
    """Ranks that are elsewhere than most, those with the fewest steps first."""
    counts = Counter(_stand(state) for state in alive.values())
    reference = max(counts, key=lambda stand: (counts[stand], stand == _stand(alive[own])))
    away = [rank for rank, state in alive.items() if _stand(state) != reference]
    lines = []
    for rank in sorted(away, key=lambda rank: (alive[rank]["step"] or 0, rank)):
        state = alive[rank]
        who = "this rank" if rank == own else _who(rank, state)
        seconds = float(state.get("seconds_in_phase", 0.0))
        lines.append(f"{who} is elsewhere than the others: {place(*_stand(state))} for {seconds:.0f} s")
    return lines


def _stand(state: State) -> tuple[int | None, str]:
    return state["step"], state["phase"]


def _who(rank: int, state: State) -> str:
    return f"rank {rank} on {state['host']} (pid {state['pid']})"


def _letter(pid: int) -> str:
    """The state of a process of this machine as Linux writes it; empty where it is unknown."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ENDED[0]
        except OSError:
            pass
        return ""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ENDED[0]
