"""Tells a person what a run is before its first step, and of later stages what is different there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..config import Config
from ..console.banner import Row, render
from ..metrics import pace
from ..stages import Stage
from .overview import Expected, Outlook

SAME_PACE = ("model", "adapter", "engine", "parallel", "memory", "compile")  # sections that a step takes as long with


class Introduction:
    """The banners of a run's stages."""

    def __init__(
        self,
        stages: Sequence[Stage],
        head: Sequence[Row],
        planned: Mapping[str, float],
        say: Callable[[str], None],
    ):
        self.stages, self.head, self.planned, self.say = list(stages), list(head), planned, say
        self._shown: dict[str, str] = {}
        self._trained: Stage | None = None

    def outlook(self, stage: Stage) -> Outlook:
        """How long the stage may take, and what comes after it."""
        later = self.stages[self.stages.index(stage) + 1 :]
        then = later[0].folder.name if later else "the evaluation" if stage.cfg.eval.enabled else ""
        return Outlook(self._expected(stage), then)

    def _expected(self, stage: Stage) -> Expected:
        """How long a step of the stage may take: as long as those of the stage before, or as planned."""
        before, self._trained = self._trained, stage
        if before is not None and same_pace(before.cfg, stage.cfg):
            seconds = pace.of_file(before.folder / "metrics.jsonl")
            if seconds is not None:
                return seconds, f"as in {before.folder.name}"
        if stage.name in self.planned:
            return self.planned[stage.name], "as planned from the GPU's known rates"
        return None

    def show(self, stage: Stage, facts: Sequence[Row]) -> None:
        """The whole banner, or what differs from the stage before."""
        rows = [*self.head, *facts]
        new = [row for row in rows if self._shown.get(row.label) != row.text]
        self._shown = {row.label: row.text for row in rows}
        self.say(render(self._title(stage), new))

    def _title(self, stage: Stage) -> str:
        name, number = stage.folder.name, self.stages.index(stage) + 1
        later = ", ".join(f"{one.folder.name} ({one.cfg.train.steps} steps)" for one in self.stages[number:])
        place = f"stage {number} of {len(self.stages)}: {name}" if len(self.stages) > 1 else f"stage {name}"
        return f"yarn-train {stage.cfg.run.name}, {place}{f', then {later}' if later else ''}"


def same_pace(a: Config, b: Config) -> bool:
    """Whether a step of one stage does the same work as a step of the other."""
    same = all(getattr(a, section) == getattr(b, section) for section in SAME_PACE)
    batches = [(c.train.global_batch_size, c.train.micro_batch_size, c.data.seq_len, c.optim.state) for c in (a, b)]
    return same and batches[0] == batches[1]
