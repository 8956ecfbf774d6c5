"""launch/k8s and launch/sky.yaml: known fields only, and the same facts everywhere."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from launch_files import LAUNCH, job_specs, kubernetes, one, sky, torchrun_arguments, unknown
from support import ROOT
from torch.distributed.run import get_args_parser

from yarn_train.dist.stop import STOPPED
from yarn_train.errors import StorageError, TrainingDiverged, YarnTrainError
from yarn_train.free_options import FREE_ON_RESUME

DOES_NOT_FIT = 3  # of launch.dry_run
FREE = {"labels", "requests", "limits"}  # keys below these are names of the user's


def names(document: dict[str, Any]) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


def fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all fields that a schema names."""
    for key, below in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if not path or path[-1] not in FREE:
            if isinstance(value, dict):
                yield (*path, key)
            yield from fields(below, (*path, key))


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


@pytest.mark.parametrize("document", kubernetes(), ids=names)
def test_the_api_knows_every_field(document: dict[str, Any]) -> None:
    assert unknown(document) == []


@pytest.mark.parametrize("document", kubernetes(), ids=names)
def test_a_misspelt_field_is_found_wherever_it_stands(document: dict[str, Any]) -> None:
    paths = [path for path in fields(document) if path != ("kind",)]
    assert len(paths) > 5
    for path in paths:
        wrong = copy.deepcopy(document)
        parent = at(wrong, path[:-1])
        parent[f"{path[-1]}x"] = parent.pop(path[-1])
        try:
            found = unknown(wrong)
        except ValueError:
            continue  # it was a required one
        assert any(text.endswith(f".{path[-1]}x") for text in found), path


@pytest.mark.parametrize("kind", job_specs())
def test_exit_codes_are_answered_as_they_are_meant(kind: str) -> None:
    spec = job_specs()[kind]
    rules = spec["podFailurePolicy"]["rules"]
    codes = {r["action"]: r["onExitCodes"] for r in rules if "onExitCodes" in r}
    (container,) = spec["template"]["spec"]["containers"]
    assert {c["containerName"] for c in codes.values()} == {container["name"]}
    hopeless = [YarnTrainError.exit_code, DOES_NOT_FIT, TrainingDiverged.exit_code, StorageError.exit_code]
    assert codes["FailJob"]["values"] == hopeless
    assert codes["Ignore"]["values"] == [STOPPED]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["podReplacementPolicy"] == "Failed"
    assert sky()["resources"]["job_recovery"]["recover_on_exit_codes"] == [STOPPED]


def test_a_hopeless_run_does_not_start_its_job_set_again() -> None:
    (rule,) = one("TrainingRuntime")["spec"]["template"]["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


def test_both_jobs_run_the_same_pod() -> None:
    """Apart from the container's name and command, which Trainer decides, and resources, which the TrainJob states."""
    pods = [spec["template"]["spec"] for spec in job_specs().values()]
    a, b = ({**pod, "containers": None} for pod in pods)
    assert a == b
    theirs = {"name", "command", "args", "env", "resources"}
    a, b = ({k: v for k, v in pod["containers"][0].items() if k not in theirs} for pod in pods)
    assert a == b
    trainer = one("TrainJob")["spec"]["trainer"]
    assert job_specs()["Job"]["template"]["spec"]["containers"][0]["resources"] == trainer["resourcesPerNode"]


def test_pods_have_equal_requests_and_limits_and_one_worker_per_gpu() -> None:
    trainer = one("TrainJob")["spec"]["trainer"]
    assert trainer["resourcesPerNode"]["requests"] == trainer["resourcesPerNode"]["limits"]
    assert trainer["numProcPerNode"] == trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    assert trainer["numNodes"] == one("TrainingRuntime")["spec"]["mlPolicy"]["numNodes"]
    assert one("TrainJob")["spec"]["runtimeRef"]["name"] == one("TrainingRuntime")["metadata"]["name"]


def test_claims_exist_and_shared_memory_is_memory() -> None:
    pod = job_specs()["Job"]["template"]["spec"]
    claims = {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
    assert claims == {d["metadata"]["name"] for d in kubernetes() if d["kind"] == "PersistentVolumeClaim"}
    (container,) = pod["containers"]
    mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    volumes = {v["name"]: v for v in pod["volumes"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert "/tmp" in mounts


def test_experiments_and_variables_exist() -> None:
    for text in (LAUNCH / "sky.yaml").read_text(), *(f.read_text() for f in (LAUNCH / "k8s").iterdir()):
        for experiment in re.findall(r"experiment=(\w+)", text):
            assert (ROOT / "conf" / "experiment" / f"{experiment}.yaml").is_file()
    starter = (LAUNCH / "torchrun.sh").read_text()
    given = {e["name"] for s in job_specs().values() for e in s["template"]["spec"]["containers"][0]["env"]}
    assert given == {"HF_TOKEN", "MAX_RESTARTS", "RUN"}
    assert "${MAX_RESTARTS:-" in starter
    assert os.access(LAUNCH / "torchrun.sh", os.X_OK)


def test_the_token_of_gated_models_comes_from_the_secret_that_the_readme_makes() -> None:
    making = re.search(r"create secret generic (\S+) --from-literal=(\w+)=", (LAUNCH / "k8s" / "README.md").read_text())
    assert making
    for spec in job_specs().values():
        (container,) = spec["template"]["spec"]["containers"]
        (token,) = [e["valueFrom"]["secretKeyRef"] for e in container["env"] if e["name"] == "HF_TOKEN"]
        assert token == {"name": making[1], "key": making[2], "optional": True}
    assert "HF_TOKEN" in sky()["secrets"]


@pytest.mark.parametrize("processes", ["8", "auto"])
def test_trainer_and_the_starter_mean_the_same_nodes(tmp_path: Path, processes: str) -> None:
    (container,) = job_specs()["TrainJob"]["template"]["spec"]["containers"]
    pet = {
        "PET_NNODES": "2",
        "PET_NODE_RANK": "1",
        "PET_NPROC_PER_NODE": processes,  # auto: a TrainJob without numProcPerNode
        "PET_MASTER_ADDR": "yarn-train-node-0-0.yarn-train",
        "PET_MASTER_PORT": "29500",
    }
    # torch's own names for what Trainer sets
    assert {name.removeprefix("PET_").lower() for name in pet} <= {a.dest for a in get_args_parser()._actions}
    values = {**pet, "RUN": "yarn-train"}
    command = [re.sub(r"\$\((\w+)\)", lambda m: values[m[1]], word) for word in container["command"]]
    assert command[:2] == ["tini", "--"]  # the image's entry point, which a command replaces
    command = [*command[2:-1], str(ROOT / command[-1]), *one("TrainJob")["spec"]["trainer"]["args"]]
    seen = torchrun_arguments(command, tmp_path, pet)
    assert seen["--nnodes"] == "2"
    assert seen["--nproc-per-node"] == "8"
    assert seen["--rdzv-endpoint"] == "yarn-train-node-0-0.yarn-train:29500"
    assert seen["--rdzv-id"] == "yarn-train"
    assert seen[""] == "experiment=yarn_llama2_7b_64k"


@pytest.mark.parametrize("nodes", [1, 2])
def test_sky_nodes_meet_on_the_first(tmp_path: Path, nodes: int) -> None:
    task = sky()
    env = {
        "SKYPILOT_NUM_NODES": str(nodes),
        "SKYPILOT_NODE_RANK": "0",
        "SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6",
        "SKYPILOT_TASK_ID": "sky-managed-1",
        **{name: value for name, value in task["envs"].items() if value is not None},
    }
    seen = torchrun_arguments(["bash", "-c", task["run"]], tmp_path, env)
    assert seen["--nnodes"] == str(nodes)
    assert seen["--rdzv-endpoint"] == ("10.0.0.5:29500" if nodes > 1 else "localhost:0")
    assert seen["--rdzv-id"] == "sky-managed-1"
    assert seen["--max-restarts"] == task["envs"]["MAX_RESTARTS"]
    assert seen[""] == task["envs"]["OPTIONS"]


def test_a_spot_machine_that_is_taken_costs_minutes(compose: Callable[..., dict[str, Any]]) -> None:
    assert compose(*sky()["envs"]["OPTIONS"].split())["checkpoint"]["every"] <= 5
    assert "checkpoint.every" in FREE_ON_RESUME  # a run that was begun elsewhere goes on here


def test_sky_takes_a_python_of_its_own_and_keeps_runs_in_the_bucket(tmp_path: Path) -> None:
    """The machine's Python may be older than ours, and one that uv finds may be a half of Ubuntu's."""
    home, code = tmp_path / "home", tmp_path / "code"
    (home / ".local" / "bin").mkdir(parents=True)
    (code / "outputs").mkdir(parents=True)
    found = 'case "$*" in *--system*--managed-python*) echo /managed/python3.12 ;; *) exit 1 ;; esac'
    programs = {
        home / ".local" / "bin" / "uv": f'[ "$2" = install ] && touch "$HOME/installed" || {found}',
        tmp_path / "make": 'ls "$HOME/installed" && echo "$@" > "$HOME/made"',
    }
    for program, body in programs.items():
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    env = {"HOME": str(home), "PATH": f"{tmp_path}:/usr/bin:/bin", "FLASH_ATTN_WHEEL": ""}
    subprocess.run(["bash", "-c", sky()["setup"]], cwd=code, env=env, check=True, capture_output=True)
    assert (home / "made").read_text() == "setup PYTHON=/managed/python3.12\n"
    assert (code / "outputs").readlink() == Path("/outputs")
    (home / ".local" / "bin" / "uv").unlink()
    assert subprocess.run(["bash", "-c", sky()["setup"]], cwd=code, env=env, capture_output=True).returncode


def test_sky_names_the_version_it_was_held_against() -> None:
    tools = Path(__file__).with_name("schema_tools.txt").read_text()
    (version,) = re.findall(r"skypilot==(\S+)", tools)
    assert f"SkyPilot {version};" in (LAUNCH / "sky.yaml").read_text()


def test_shell_in_sky_yaml_is_clean(tmp_path: Path) -> None:
    task = sky()
    scripts = {"run": task["run"], "setup": task["setup"]}
    for name, text in scripts.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}")
    command = [Path(sys.executable).with_name("shellcheck"), *(tmp_path / name for name in scripts)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
