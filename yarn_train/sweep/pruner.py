"""What a job of a study asks in its own process: whether to go on. Never imports Optuna."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Say = Callable[[str], None]


@dataclass
class Pruner:
    """What a job asks, in its own process, whether to go on."""

    trial: Any
    every: int
    say: Say
    failures: int = 0

    def hopeless(self, step: int, value: float | None) -> bool:
        """Report a step's training loss; whether the study would rather spend the time on other values.

        Losses are compared as they are: jobs of a sweep see the same batches in the same order, so that a step is as
        hard for one as for the others. That the study's own objective may be a perplexity does no harm, as pruners
        compare losses with losses. A study that does not answer never ends a job: it goes on unpruned.
        """
        if self.failures >= 3 or value is None or not math.isfinite(value) or step % self.every:
            return False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a step that was reported before a resume
                self.trial.report(value, step)
                answer = bool(self.trial.should_prune())
        except Exception as error:
            self.failures += 1
            if self.failures == 3:
                self.say(f"the sweep's study does not answer ({type(error).__name__}); going on without its pruner")
            return False
        self.failures = 0
        return answer
