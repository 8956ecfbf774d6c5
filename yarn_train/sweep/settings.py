"""How a study chooses values, and where jobs find it. Never imports Optuna."""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import ConfigError, problem

FILE = "study.db"
HOW = "study.json"
SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("median", "hyperband", "none")


@dataclass(frozen=True)
class Settings:
    """How a study chooses and prunes; ``hydra.sweeper`` has the meanings."""

    n_trials: int = 20
    n_jobs: int = 1
    sampler: str = "tpe"
    seed: int | None = 0
    startup_trials: int = 5
    pruner: str = "median"
    prune_after_trials: int = 3
    prune_after_steps: int = 10
    prune_every: int = 5
    storage: str | None = None
    study_name: str | None = None

    def problems(self) -> list[str]:
        """What is wrong with them."""
        found = []
        least = {"n_trials": 1, "n_jobs": 1, "startup_trials": 0, "prune_after_trials": 0, "prune_after_steps": 0}
        for name, low in {**least, "prune_every": 1}.items():
            if getattr(self, name) < low:
                found.append(problem(f"hydra.sweeper.{name}", getattr(self, name), f">= {low}", "raise it"))
        for name, choices in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
            if getattr(self, name) not in choices:
                found.append(problem(f"hydra.sweeper.{name}", getattr(self, name), " | ".join(choices), "choose one"))
        if self.storage is not None:
            parts = urlsplit(self.storage)
            allowed = "a database by its URL, such as sqlite:////shared/study.db"
            if not parts.scheme:
                fix = f"sqlite:///{Path(self.storage).absolute()}, or null for the sweep's folder"
                found.append(problem("hydra.sweeper.storage", self.storage, allowed, fix))
            elif parts.password:
                got, fix = f"{parts.scheme}://... with a password", "leave the password to ~/.pgpass or ~/.my.cnf"
                found.append(problem("hydra.sweeper.storage", got, f"{allowed}, without a password", fix))
        return found


def leave(folder: Path, settings: Settings) -> tuple[str, Settings]:
    """The study's URL and settings with its name, left where jobs find them too."""
    settings = replace(settings, study_name=settings.study_name or folder.absolute().name)
    url = settings.storage or f"sqlite:///{folder.absolute() / FILE}"
    aside = folder / f".{HOW}.{os.getpid()}.incomplete"
    aside.write_text(json.dumps({"url": url, "settings": asdict(settings)}, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, folder / HOW)
    return url, settings


def hold(folder: Path) -> int:
    """Descriptor of the lock of the one process that may ask the study; gone with it.

    Raises:
        ConfigError: another process has it.
    """
    path, deadline = folder / ".study.lock", time.monotonic() + 5.0
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                fix = "wait until it has ended, or end it; another sweep has another run.name"
                raise ConfigError(problem("run.name", folder.name, "a sweep that nobody runs", fix)) from None
            time.sleep(0.2)
