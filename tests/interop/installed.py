"""Where transformers 4 is, beside the one that everything else runs with."""

from __future__ import annotations

import os
from pathlib import Path

from support import ROOT


def _four() -> Path | None:
    folder = Path(os.environ.get("YARN_TRAIN_TRANSFORMERS4") or ROOT / ".transformers4")
    return folder if (folder / "transformers").is_dir() else None


FOUR = _four()


def environment(packages: Path | None) -> dict[str, str]:
    """For a child process that takes transformers from `packages` first."""
    own = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    env = {**os.environ, **own}
    env.pop("PYTHONPATH", None)
    return env if packages is None else {**env, "PYTHONPATH": str(packages)}
