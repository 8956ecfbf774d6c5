"""What the launch files say, for tests to compare."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubeflow_trainer_api.models as models
import yaml
from support import ROOT

LAUNCH = ROOT / "launch"
# Generated from the OpenAPI documents of Kubernetes and Trainer.
MODELS = {
    "Job": models.IoK8sApiBatchV1Job,
    "PersistentVolumeClaim": models.IoK8sApiCoreV1PersistentVolumeClaim,
    "TrainJob": models.TrainerV1alpha1TrainJob,
    "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
}


def kubernetes() -> list[dict[str, Any]]:
    """Every object of launch/k8s."""
    files = sorted((LAUNCH / "k8s").glob("*.yaml"))
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


def one(kind: str) -> dict[str, Any]:
    """The only object of its kind."""
    (found,) = [document for document in kubernetes() if document["kind"] == kind]
    return found


def sky() -> dict[str, Any]:
    """launch/sky.yaml."""
    return yaml.safe_load((LAUNCH / "sky.yaml").read_text())


def job_specs() -> dict[str, dict[str, Any]]:
    """The batch/v1 Job specs: of the plain Job, and of the Job that Trainer makes of the runtime."""
    (replicated,) = one("TrainingRuntime")["spec"]["template"]["spec"]["replicatedJobs"]
    return {"Job": one("Job")["spec"], "TrainJob": replicated["template"]["spec"]}


def unknown(document: dict[str, Any]) -> list[str]:
    """Fields that the object's model does not keep.

    Raises:
        ValueError: a value has the wrong type, or a required field is missing.
    """
    return list(_lost(document, MODELS[document["kind"]].from_dict(document).to_dict(), ""))


def _lost(given: Any, kept: Any, path: str) -> Iterator[str]:
    if isinstance(given, dict):
        for key, value in given.items():
            if isinstance(kept, dict) and key in kept:
                yield from _lost(value, kept[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(given, list):
        for number, (a, b) in enumerate(zip(given, kept, strict=True)):
            yield from _lost(a, b, f"{path}[{number}]")
    elif given != kept:
        yield path


def fake_python(folder: Path, body: str) -> dict[str, str]:
    """An environment in which launch/torchrun.sh starts a shell script in Python's place."""
    script = folder / "python"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return {**os.environ, "PYTHON": str(script), "LOG_DIR": str(folder / "logs")}


def torchrun_arguments(command: list[str], folder: Path, env: dict[str, str]) -> dict[str, str]:
    """Run a command that ends in launch/torchrun.sh with 8 pretended GPUs; torchrun's options, and ours as ``""``."""
    seen = folder / "arguments"
    pretend = fake_python(folder, f'[ "$1" != -c ] || {{ echo 8; exit; }}; printf "%s\\n" "$@" > "{seen}"')
    done = subprocess.run(command, cwd=ROOT, env={**pretend, **env}, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
    words = seen.read_text().splitlines()
    entry = words.index(str(ROOT / "train.py"))
    options = {words[i]: words[i + 1] for i in range(entry - 1) if words[i].startswith("--")}
    return {**options, "": " ".join(words[entry + 1 :])}
