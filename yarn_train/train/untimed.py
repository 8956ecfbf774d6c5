"""Which steps say nothing about the speed of the others: they are marked, and rates leave them out."""

from __future__ import annotations

from ..parallel import compiled

FIRST, COMPILATION, SAVE, PROFILE = "first step", "compilation", "save", "profile"


class Watch:
    """Tells the steps of one start of a stage apart."""

    def __init__(self) -> None:
        self._begun = False
        self._graphs = compiled.graphs()

    def reason(self, save_seconds: float, profiled: bool) -> str | None:
        """Why the step that has just ended is not like the others, or None where it is.

        Args:
            save_seconds: that training stood still before the step for a checkpoint, whose writing goes on beside it.
            profiled: whether a profiler looked at it, which costs time itself.
        """
        first, self._begun = not self._begun, True  # caches fill, memory is allocated, libraries choose their kernels
        before, self._graphs = self._graphs, compiled.graphs()
        found = {FIRST: first, COMPILATION: self._graphs != before, PROFILE: profiled, SAVE: save_seconds > 0}
        return next((why for why, is_so in found.items() if is_so), None)
