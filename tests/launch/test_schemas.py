"""The launch files by the schemas of Kubernetes and SkyPilot themselves, in an environment of their own."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launch_files import kubernetes, sky
from support import ROOT

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the schemas."""
    folder = tmp_path_factory.mktemp("tools")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    wanted = Path(__file__).with_name("schema_tools.txt")
    done = subprocess.run([python, "-m", "pip", "install", "-q", "-r", wanted], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{wanted.name} cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return python


def problems(python: Path, *documents: tuple[str, dict[str, Any]]) -> list[str | None]:
    env = {"HOME": str(python.parent.parent), "PATH": "/usr/bin:/bin"}  # SkyPilot keeps a database in its user's home
    done = subprocess.run(
        [python, ROOT / "tests" / "schema_check.py"],
        input=json.dumps(documents),
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def changed(document: dict[str, Any], path: str) -> dict[str, Any]:
    """A copy in which the field at a dotted path has one letter more."""
    wrong = copy.deepcopy(document)
    *above, last = path.split(".")
    parent = wrong
    for key in above:
        parent = parent[int(key)] if key.isdigit() else parent[key]
    parent[f"{last}x"] = parent.pop(last)
    return wrong


def test_kubernetes_own_schema_takes_the_core_objects_and_no_misspelt_field(tools: Path) -> None:
    core = [d for d in kubernetes() if d["kind"] in ("Job", "PersistentVolumeClaim")]
    (job,) = [d for d in core if d["kind"] == "Job"]
    paths = [
        "spec.podFailurePolicy",
        "spec.podFailurePolicy.rules.0.onExitCodes.operator",
        "spec.template.spec.terminationGracePeriodSeconds",
        "spec.template.spec.containers.0.securityContext.readOnlyRootFilesystem",
        "spec.template.spec.volumes.3.emptyDir.sizeLimit",
    ]
    found = problems(tools, *(("kubernetes", d) for d in [*core, *(changed(job, path) for path in paths)]))
    assert found[: len(core)] == [None] * len(core)
    assert all(found[len(core) :]), list(zip(paths, found[len(core) :], strict=True))


def test_sky_takes_the_task_and_no_misspelt_field(tools: Path) -> None:
    task = sky()
    unnamed, task["envs"]["BUCKET"] = sky(), "my-runs"
    paths = [
        "num_nodes",
        "resources.use_spot",
        "resources.any_of.0.accelerators",
        "resources.job_recovery.recover_on_exit_codes",
        "file_mounts./outputs.mode",
        "file_mounts./outputs.config.mount_cached.transfers",
        "setup",
    ]
    found = problems(tools, ("sky", unnamed), ("sky", task), *(("sky", changed(task, path)) for path in paths))
    assert "'BUCKET' is None" in str(found[0])  # a default would be the name of somebody's bucket
    assert found[1] is None
    assert all(found[2:]), list(zip(paths, found[2:], strict=True))
