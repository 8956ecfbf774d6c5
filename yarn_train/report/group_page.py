"""The page of a sweep, or of several runs side by side."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from .blocks import Block, Code, Folded, Heading, Picture
from .differences import common, differing
from .eval_page import after_perplexity, others
from .figures import many, swept
from .figures.base import said
from .figures.parallel import parallel
from .group_tables import difference_grid, failure_grid, job_grid, what_was_run
from .groups import Group, Member
from .scored import NOT_COMPARED, scored_alike
from .side_by_side import side_by_side
from .tables import Grid, perplexity_caption, perplexity_grid
from .texts import said as told

ONE_AXIS = 6  # figures of single options


def blocks(group: Group, pictures: Mapping[str, Path], out: Path) -> list[Block]:
    """The page, top to bottom: how it stands, the best, failures, pictures, all jobs, differences, commands.

    Args:
        pictures: PNG files by their names.
        out: the folder of the page, which links start from.
    """
    link = lambda member: _link(member, out)  # noqa: E731
    page: list[Block] = [Heading(group.name, 1), summary(group)]
    if group.sweep:
        page += [Code(group.sweep.command)]
    page += _best(group)
    page += _failures(group, link)
    page += _results(group, pictures)
    page += [Heading("Runs" if group.sweep is None else "Jobs"), job_grid(group, link)]
    page += _curves(group, pictures)
    page += _evaluations(group, pictures)
    page += _options(group)
    known = any(m.run and m.run.trained_here for m in group.members) or group.sweep
    return [*page, Heading("What was run"), what_was_run(group)] if known else page


def summary(group: Group) -> str:
    """One sentence: how many of them, and how they stand."""
    total = max(len(group.members), (group.sweep.total or 0) if group.sweep else 0)
    kinds = [m.status for m in group.members]
    parts = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(sorted(kinds)) if kind != "unknown"]
    parts += [f"{kinds.count('unknown')} unfinished"] if "unknown" in kinds else []
    parts += [f"{group.missing()} not begun"] if group.missing() else []
    what = f"{'Sweep' if group.sweep else 'Comparison'} of {total} {'jobs' if group.sweep else 'runs'}"
    how = f" ({group.sweep.sweeper}, launcher {group.sweep.launcher})" if group.sweep else ""
    listed = f": {', '.join(parts)}" if parts else ""
    alike = scored_alike([member.run for member in group.members if member.run])
    warning = "" if alike else f" P{NOT_COMPARED[1:]}."
    return f"{what}{how}{listed}. Compared by {group.metric}; lower is better.{warning}"


def commands(member: Member) -> list[str]:
    """What to type to run a job alone, and ten times as long if it trains; empty where its words are not known."""
    job = member.job
    if job is None or not job.overrides:
        return []
    words = [w for w in job.overrides if not w.startswith(("run.name=", "run.dir="))]
    alone = shlex.join(["python", "train.py", *words, f"run.name={job.name}_alone"])
    steps = (member.run.stages[-1].option("train.steps") if member.run and member.run.stages else None) or 0
    kept = [w for w in words if not w.startswith(("train.steps=", "+train.steps="))]
    if not (isinstance(steps, int) and steps):
        return [alone]
    return [
        alone,
        shlex.join(["python", "train.py", *kept, f"train.steps={10 * steps}", f"run.name={job.name}_longer"]),
    ]


def _best(group: Group) -> list[Block]:
    best = group.best()
    if best is None:
        return ["No run has a result yet." if group.members else "No job has begun."]
    values = ", ".join(f"{key} = {said(value)}" for key, value in best.swept.items())
    named = best.name if not values else f"{best.name} ({values})"
    page: list[Block] = [Heading("Best"), f"{named}: {group.metric} = {best.objective:.5g}."]
    typed = commands(best)
    if typed:
        longer = ", and ten times as long" if len(typed) > 1 else ""
        page += [f"To run it alone{longer}:", Code("\n".join(typed))]
    return page


def _failures(group: Group, link: object) -> list[Block]:
    page: list[Block] = []
    if group.failed():
        page += [Heading("What did not end well"), failure_grid(group, link)]  # type: ignore[arg-type]
    rest = [line for line in group.problems if all(line != m.problem for m in group.failed())]
    if rest:
        page += [Heading("What could not be read", 2 if not page else 3)]
        page += [Grid(["file"], [[line] for line in rest], numeric=False)]
    return page


def _results(group: Group, pictures: Mapping[str, Path]) -> list[Block]:
    page: list[Block] = []
    panels = swept.best_panels(group)
    if panels:
        axes = swept.plane(group) or ("", "")
        page += [Heading(f"{axes[0]} and {axes[1]}")]
        about = _about_panels(group, len(panels), len(swept.panels(group)))
        low, high = swept.color_range(group)
        figures = [(panel.rest, swept.heat_map(group, panel)) for panel in panels]
        above = any((m.objective or 0.0) > high for m in group.ranked())
        scale = (f"{low:.4g}", f"{high:.4g} and more" if above else f"{high:.4g}")
        page += [Picture(pictures.get("sweep"), f"{group.metric} by {axes[0]} and {axes[1]}", figures, about, scale)]
    several = [key for key in group.axes if len(swept.levels(group, key)) > 1]
    single = [(key, figure) for key in several[:ONE_AXIS] if (figure := swept.over_one(group, key))]
    if single:
        page += [Heading("Each option" if len(single) > 1 else single[0][0])]
        still = None if panels else pictures.get("sweep")
        titles = [(key if len(single) > 1 else "", figure) for key, figure in single]
        how = "One point per run; the other options differ too." if len(single) > 1 else ""
        page += [Picture(still, f"{group.metric} by each option", titles, how)]
    lines = parallel(group)
    if lines:
        how = "One line per run, darker where it is better, the best in orange."
        page += [Heading("All options together"), Picture(None, "Parallel coordinates", [("", lines)], how)]
    return page


def _about_panels(group: Group, shown: int, of: int) -> str:
    said_of = f"{shown} of {of} combinations, those with the lowest values. " if shown < of else ""
    return f"{said_of}{group.metric[:1].upper()}{group.metric[1:]} in each cell; the best of all is framed and starred."


def _curves(group: Group, pictures: Mapping[str, Path]) -> list[Block]:
    page: list[Block] = []
    for name, title, figure in (
        ("perplexity", "Perplexity against context", many.perplexities(group)),
        ("losses", "Training loss", many.losses(group)),
        ("", "Speed and memory", many.speed_and_memory(group)),
    ):
        if figure:
            page += [Heading(title), Picture(pictures.get(name), title, [("", figure)])]
    return page


def _evaluations(group: Group, pictures: Mapping[str, Path]) -> list[Block]:
    scene = side_by_side(group)
    if scene is None:
        return []
    page: list[Block] = []
    if scene.found.perplexity:
        rows = scene.found.perplexity
        page += [Heading("Perplexities"), perplexity_caption(rows), perplexity_grid(rows, intervals=True)]
    return [*page, *after_perplexity(scene, pictures), *others(scene, pictures)]


def _options(group: Group) -> list[Block]:
    configs = [m.run.config or (m.run.stages[0].config if m.run.stages else {}) if m.run else {} for m in group.members]
    if not any(configs):
        return []
    differ, shared = differing(configs), common(configs)
    page: list[Block] = [Heading("Options")]
    page += [difference_grid(group, differ)] if differ else ["All runs have the same options."]
    body = [[key, told(value)] for key, value in shared.items()]
    return [
        *page,
        Folded(f"{len(shared)} options are the same in all runs", Grid(["option", "value"], body, numeric=False)),
    ]


def _link(member: Member, out: Path) -> str:
    """From the page to the run's report, or to its folder where it has none."""
    report = member.folder / "report" / "index.html"
    target = report if report.is_file() else member.folder
    return quote(os.path.relpath(target.resolve(), out.resolve()))
