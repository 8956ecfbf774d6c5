"""Tables of several runs: the jobs, what failed, where options differ, what was run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from .figures.base import said
from .groups import Group, Member
from .objective import final_loss
from .style import mean
from .tables import Grid, number
from .texts import count, duration
from .texts import said as told

COLUMNS = 6  # runs whose options stand side by side; of more, values are counted
NAMED = 3  # values of an option that are listed by their runs


def job_grid(group: Group, link: Callable[[Member], str]) -> Grid:
    """One row per run: swept values, objective, status, time, overhead, devices; the best first."""
    order = sorted(group.members, key=lambda m: (m.objective is None or m.status == "failed", m.objective or math.inf))
    swept, sweep = list(group.axes), group.sweep is not None
    header = ["job" if sweep else "run", *map(_last_word, swept), group.metric, "loss", "tokens/s", "status", "time"]
    devices = any(m.job and m.job.devices for m in order)
    header += ["overhead s"] if sweep else ["host"]
    header += ["devices"] if devices else []
    body, values, links = [], {}, {}
    for i, member in enumerate(order):
        cells = [(member.name, math.nan), *((_option(member, key), _value(member, key)) for key in swept)]
        cells += [(number(member.objective), _float(member.objective)), *_numbers(member)]
        cells += [(member.status if member.status != "unknown" else "unfinished", math.nan)]
        cells += _cost(member, sweep, devices)
        body.append([text for text, _ in cells])
        values.update({(i, j): value for j, (_, value) in enumerate(cells) if math.isfinite(value)})
        links[i, 0] = link(member)
    best = group.best()
    column = 1 + len(swept)
    bold = {(i, column) for i, m in enumerate(order) if best and m.name == best.name}
    muted = {i for i, m in enumerate(order) if m.status in ("failed", "stopped", "pruned") or m.problem}
    words = {j for j, name in enumerate(header) if name in ("status", "devices", "host")}
    words |= {1 + j for j, key in enumerate(swept) if any(isinstance(m.swept.get(key), str) for m in order)}
    return _told(Grid(header, body, frozenset(bold), frozenset(muted), True, links, values, frozenset(words)))


def _told(grid: Grid) -> Grid:
    """Without columns that say nothing of any run, such as the speed of evaluations."""
    kept = [j for j in range(len(grid.header)) if not grid.body or any(row[j] for row in grid.body)]
    place = {j: number for number, j in enumerate(kept)}
    return Grid(
        header=[grid.header[j] for j in kept],
        body=[[row[j] for j in kept] for row in grid.body],
        bold=frozenset((i, place[j]) for i, j in grid.bold if j in place),
        muted=grid.muted,
        links=grid.links,
        values={(i, place[j]): value for (i, j), value in (grid.values or {}).items() if j in place},
        words=frozenset(place[j] for j in grid.words if j in place),
    )


def failure_grid(group: Group, link: Callable[[Member], str]) -> Grid:
    """One row per run that did not end well: its status, its reason and where its log is."""
    body, links = [], {}
    for i, member in enumerate(group.failed()):
        log = member.folder / "job.log"
        reason = member.problem or member.reason or "no reason was recorded"
        code = member.job.exit_code if member.job else None
        reason += f" (exit code {code})" if code not in (None, 0) else ""
        body.append([member.name, member.status, reason, str(log) if log.is_file() else "no log"])
        links[i, 0] = link(member)
    return Grid(["what", "status", "reason", "log"], body, numeric=False, links=links)


def difference_grid(group: Group, differ: Mapping[str, list[Any]]) -> Grid:
    """Options that differ: a column per run, or for many runs the values and how many runs have each."""
    names = [m.name for m in group.members]
    if len(names) <= COLUMNS:
        body = [[key, *(_short(told(v)) for v in values)] for key, values in differ.items()]
        return Grid(["option", *names], body, numeric=False)
    body = []
    for key, values in differ.items():
        counts: dict[str, list[str]] = {}
        for name, value, member in zip(names, values, group.members, strict=True):
            if member.run:
                counts.setdefault(_short(told(value)), []).append(name)
        spread = _range(values) if len(counts) > COLUMNS else ""
        if spread:
            body.append([key, f"{spread} ({len(counts)} values)", ""])
            continue
        listed = [f"{v} ({len(n)} run{'s' if len(n) > 1 else ''})" for v, n in counts.items()]
        few = sorted(counts.items(), key=lambda item: len(item[1]))[0]
        odd = f"only {few[1][0]} has {few[0]}" if len(few[1]) == 1 and len(counts) <= NAMED else ""
        body.append([key, "; ".join(listed[:12]) + (f"; {len(listed) - 12} more" if len(listed) > 12 else ""), odd])
    if any(row[2] for row in body):
        return Grid(["option", "values", "odd one out"], body, numeric=False)
    return Grid(["option", "values"], [row[:2] for row in body], numeric=False)


def _range(values: list[Any]) -> str:
    """``1 to 8`` of numbers; empty where something else is among them."""
    found = [v for v in values if v is not None]
    if not found or any(isinstance(v, bool) or not isinstance(v, int | float) for v in found):
        return ""
    return f"{min(found):g} to {max(found):g}"


def what_was_run(group: Group) -> Grid:
    """Commands, versions, hosts and times of all runs, those that are alike once."""
    infos = [m.run.info for m in group.members if m.run and m.run.info]
    body = []
    if group.sweep:
        body += [["command", group.sweep.command], ["started", told(group.sweep.started)]]
        body += [["ended", told(group.sweep.ended) if group.sweep.ended else "not yet, or it was interrupted"]]
    else:
        body += [[f"command of {m.name}", told(m.run.info.get("command"))] for m in group.members[:12] if m.run]
        body += [["started", _many([info.get("started") for info in infos])]]
        body += [["ended", _many([info.get("ended") for info in infos])]]
    for key in ("git", "host", "device", "python", "world_size"):
        body.append([key, _many([info.get(key) for info in infos])])
    for key in dict.fromkeys(k for info in infos for k in _mapping(info.get("versions"))):
        body.append([key, _many([_mapping(info.get("versions")).get(key) for info in infos])])
    seconds = [m.job.seconds for m in group.members if m.job and m.job.seconds]
    overhead = [m.job.overhead_seconds for m in group.members if m.job and m.job.overhead_seconds is not None]
    if seconds:
        body.append(["all jobs together", duration(math.fsum(seconds))])
    if overhead:
        body.append(["overhead per job", f"{mean(overhead):.1f} s on average, {max(overhead):.1f} s at most"])
    return Grid(["what", "value"], body, numeric=False)


def _numbers(member: Member) -> list[tuple[str, float]]:
    loss = final_loss(member.run) if member.run else math.nan
    stages = member.run.stages if member.run else ()
    speeds = [mean(s.typical().series("tokens_per_second")) for s in stages if s.metrics]
    speed = mean(speeds)
    return [
        (f"{loss:.4f}" if math.isfinite(loss) else "", loss),
        (count(speed) if math.isfinite(speed) else "", speed),
    ]


def _cost(member: Member, sweep: bool, devices: bool) -> list[tuple[str, float]]:
    job = member.job
    seconds = _float(job.seconds) if job else _steps_seconds(member)
    cells = [(duration(seconds) if math.isfinite(seconds) else "", seconds)]
    if sweep:
        overhead = _float(job.overhead_seconds) if job else math.nan
        cells.append((f"{overhead:.1f}" if math.isfinite(overhead) else "", overhead))
    else:
        cells.append((told(member.run.info.get("host", "")) if member.run else "", math.nan))
    return [*cells, (", ".join(job.devices) if job else "", math.nan)] if devices else cells


def _steps_seconds(member: Member) -> float:
    found = [v for s in (member.run.stages if member.run else ()) for v in s.series("seconds") if math.isfinite(v)]
    return math.fsum(found) if found else math.nan


def _option(member: Member, key: str) -> str:
    return _short(said(member.swept[key])) if key in member.swept else ""


def _value(member: Member, key: str) -> float:
    value = member.swept.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _float(value: float | None) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _last_word(key: str) -> str:
    return key.rpartition(".")[2]


def _short(text: str, longest: int = 60) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _many(values: list[Any]) -> str:
    """Distinct values, at most six of them."""
    found = list(dict.fromkeys(told(v) for v in values))
    return "; ".join(found[:6]) + (f"; and {len(found) - 6} more" if len(found) > 6 else "") or "not recorded"
