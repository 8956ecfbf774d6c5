"""One rank that runs train.py's work several times in one process, for tests that would launch once for each.

Run under torchrun: train_ranks.py OUT JSON   JSON is a list of {"options": [...], "poison": {step: kind}, "rank": R}.
Steps are poisoned on rank R alone. Every rank writes, for each: {"error", "saved", "loaded"}, see engine_state.watch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from engine_state import watch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from poison import poison
from support import ROOT

from yarn_train import app, cli
from yarn_train.dist import environment
from yarn_train.errors import YarnTrainError


def composed(options: list[str]) -> dict[str, Any]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        found = OmegaConf.to_container(compose("config", options), resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def run(job: dict[str, Any]) -> dict[str, Any]:
    options = job["options"]
    folder = next(text.partition("=")[2] for text in options if text.startswith("run.dir="))
    typed = {text.split("=")[0].lstrip("+"): text for text in options}
    error = ""
    with pytest.MonkeyPatch.context() as patch:
        seen = watch(patch)
        if environment.rank() == job.get("rank"):
            poison(patch, {int(step): kind for step, kind in job["poison"].items()})
        try:
            app.train(composed(options), typed, Path(folder))
        except YarnTrainError as raised:
            error = f"{type(raised).__name__}: {raised}"
    return {"error": error, **seen}


def main(out: str, jobs: str) -> None:
    cli.register_schema()
    found = [run(job) for job in json.loads(jobs)]
    (Path(out) / f"rank{environment.rank()}.json").write_text(json.dumps(found))
    if dist.is_initialized():
        dist.barrier()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
