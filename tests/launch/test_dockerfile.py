"""The Dockerfile: read by a linter and here, and the CPU image built without a container engine and run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from image import Image, Stage, assignments, confined, context, read, substitute
from launch_files import job_specs, one
from support import ROOT

from yarn_train.dist.stop import STOPPED
from yarn_train.train.run_folder import git_hash

ARGUMENTS, STAGES = read()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
REVISION = "0123456789abcdef0123456789abcdef01234567"
COMPILERS = {"build-essential", "gcc", "g++", "clang", "make-guile", "nvcc", "cuda-toolkit"}


def lint(text: str) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("hadolint"), "--no-color", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True)


def packages(stage: Stage) -> set[str]:
    """What apt-get installs."""
    text = " ".join(re.findall(r"--no-install-recommends (.*?)(?:&&|$)", " ".join(stage.values("RUN"))))
    return set(text.replace('"', "").split())


def settings(stage: Stage, *kinds: str) -> dict[str, list[str]]:
    return {kind: stage.values(kind) for kind in kinds}


def test_the_linter_finds_nothing() -> None:
    done = lint(DOCKERFILE)
    assert done.returncode == 0, done.stdout
    assert lint(DOCKERFILE.replace("USER 10001:10001", "USER root")).returncode != 0


def test_base_images_are_pinned_and_versions_are_the_projects() -> None:
    bases = [stage.base for stage in STAGES.values() if stage.base not in STAGES]
    assert len(bases) == 4
    for base in bases:
        image = ARGUMENTS[base.strip("${}")]
        assert re.fullmatch(r"[a-z/]+:[\w.-]+@sha256:[0-9a-f]{64}", image)
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert ARGUMENTS["TORCH_VERSION"] == pins["torch"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert [dict(assignments(a))["VERSION"] for a in DOCKERFILE_ARGS if a.startswith("VERSION")] == [version] * 2
    # The CUDA that flash-attn is compiled with is the one it runs with.
    tags = [re.search(r"cuda:([\d.]+)-", ARGUMENTS[name]) for name in ("CUDA_IMAGE", "CUDA_BUILD_IMAGE")]
    assert len({tag[1] for tag in tags if tag}) == 1


DOCKERFILE_ARGS = [text for stage in STAGES.values() for text in stage.values("ARG")]


def test_compilers_stay_in_the_build_stage() -> None:
    assert packages(STAGES["gpu-build"]) & COMPILERS
    assert packages(STAGES["gpu-jit"]) & COMPILERS
    for name in ("cpu", "gpu"):
        found = packages(STAGES[name])
        assert not found & COMPILERS
        assert not [package for package in found if package.endswith("-dev")]
        # launch/torchrun.sh finds its workers with ps, and the Makefile needs make
        assert {"procps", "make", "tini"} <= found


def test_both_images_are_used_alike() -> None:
    kinds = ("WORKDIR", "ENV", "VOLUME", "USER", "STOPSIGNAL", "ENTRYPOINT", "CMD")
    assert settings(STAGES["cpu"], *kinds) == settings(STAGES["gpu"], *kinds)
    assert STAGES["cpu"].values("RUN")[-1] == STAGES["gpu"].values("RUN")[-1]
    assert STAGES["cpu-build"].values("RUN")[-1] == STAGES["gpu-build"].values("RUN")[-1]
    assert STAGES["gpu-jit"].values("USER")[-1] == STAGES["gpu"].values("USER")[-1]


def test_the_image_and_the_manifests_agree() -> None:
    cpu = STAGES["cpu"]
    entry, command = json.loads(cpu.values("ENTRYPOINT")[0]), json.loads(cpu.values("CMD")[0])
    for kind, spec in job_specs().items():
        pod = spec["template"]["spec"]
        (container,) = pod["containers"]
        assert {m["mountPath"] for m in container["volumeMounts"]} >= set(json.loads(cpu.values("VOLUME")[0])), kind
        who = pod["securityContext"]
        assert f"{who['runAsUser']}:{who['runAsGroup']}" == cpu.values("USER")[0]
        assert who["fsGroup"] == who["runAsGroup"]
        (wait,) = re.findall(r"docker stop -t (\d+) CONTAINER", DOCKERFILE)
        assert pod["terminationGracePeriodSeconds"] == int(wait)
    job = one("Job")["spec"]["template"]["spec"]["containers"][0]
    assert "command" not in job
    assert job["args"][: len(command)] == command
    (container,) = job_specs()["TrainJob"]["template"]["spec"]["containers"]
    assert container["command"][: len(entry)] == entry
    assert container["command"][-len(command) :] == command
    assert os.access(ROOT / command[0], os.X_OK)
    assert cpu.values("STOPSIGNAL") == ["SIGTERM"]


def test_the_context_is_what_the_image_needs(tmp_path: Path) -> None:
    found = {path.name for path in context(tmp_path).iterdir()}
    assert found >= {"Makefile", "README.md", "conf", "constraints.txt", "data", "launch", "train.py", "yarn_train"}
    assert not found & {".git", ".venv", "outputs", "tests", "docs", "Dockerfile"}
    assert (tmp_path / "data" / "base" / "model.safetensors").is_file()
    ignored = set((ROOT / ".gitignore").read_text().replace("__pycache__/", "**/__pycache__/").split())
    assert {name.rstrip("/") for name in ignored} <= set((ROOT / ".dockerignore").read_text().split())


def test_an_edited_dependency_neither_installs_torch_nor_compiles_flash_attn_again() -> None:
    """Docker repeats what follows a COPY of files that changed."""
    for name in ("cpu-build", "gpu-build"):
        texts = [f"{kind} {text}" for kind, text in STAGES[name].steps]
        (copied,) = [number for number, text in enumerate(texts) if "constraints.txt ./" in text]
        slow = {n for n, text in enumerate(texts) if re.search(r"^RUN .*pip install .*(torch==|flash-attn)", text)}
        assert slow
        assert max(slow) < copied, name
        assert "constraints.txt" not in "".join(texts[:copied])


def test_what_builds_the_project_is_installed_by_name() -> None:
    """The images install the project without build isolation, so that nothing else brings it."""
    (wanted,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    for name in ("cpu-build", "gpu-build"):
        (step,) = [text for text in STAGES[name].values("RUN") if "-m venv" in text]
        assert f'"{wanted}"' in step


def test_a_run_from_an_image_records_the_commit_it_was_built_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cpu", "gpu"):
        assert "REVISION=" in STAGES[name].values("ARG")[-1]
        ((variable, value),) = assignments(STAGES[name].values("ENV")[-1])
        monkeypatch.setenv(variable, substitute(value, {"REVISION": REVISION}))
        with monkeypatch.context() as image:
            image.setenv("PATH", str(tmp_path))  # no git in there
            assert git_hash() == REVISION
            image.setenv(variable, substitute(value, {"REVISION": ""}))  # nobody said
            assert git_hash() is None


def test_the_revision_that_is_packed_is_what_a_checkout_would_record(tmp_path: Path) -> None:
    files = [ROOT / "Dockerfile", ROOT / "launch" / "sky.yaml", ROOT / "launch" / "k8s" / "README.md"]
    (asked,) = {re.findall(r'REVISION="\$\((git [^)]*)\)"', file.read_text())[0] for file in files}

    def git(command: str) -> str:
        who = "git -c user.name=a -c user.email=b"
        line = ["sh", "-c", command.replace("git", who, 1)]
        return subprocess.run(line, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    git("git init -q")
    (tmp_path / "code").write_text("one")
    git("git add code")
    git("git commit -qm one")
    git("git tag -a v1 -m v1")
    assert git(asked) == git("git rev-parse HEAD")
    (tmp_path / "code").write_text("two")
    assert git(asked) == git("git rev-parse HEAD") + "+dirty"


def test_what_runs_in_the_image_ends_with_the_tests(tmp_path: Path) -> None:
    _needs_overlays(tmp_path / "probe")
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    line = f"mount -t tmpfs nothing {mounted} && echo mounted && exec sleep 300"
    body = f"import subprocess; subprocess.run({confined(line)})"
    with subprocess.Popen([sys.executable, "-c", body], stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        assert tests.stdout.readline() == "mounted\n"
        tests.kill()
        assert tests.stdout.read() == ""  # all that could write there is gone, sleep too
    assert str(mounted) not in Path("/proc/mounts").read_text()


@pytest.mark.parametrize(
    ("wheel", "version", "expected"),
    [
        ("https://example.com/flash.whl", "2.8.3", ["install torch==2.13.0 https://example.com/flash.whl"]),
        ("", "", []),
        (
            "",
            "2.8.3",
            [
                "install ninja packaging psutil wheel",
                "install --no-build-isolation --no-binary flash-attn torch==2.13.0 flash-attn==2.8.3",
            ],
        ),
    ],
)
def test_flash_attn_is_a_wheel_or_compiled_or_left_out(
    tmp_path: Path, wheel: str, version: str, expected: list[str]
) -> None:
    (step,) = [text for text in STAGES["gpu-build"].values("RUN") if "FLASH_ATTN" in text]
    pip = tmp_path / ".venv" / "bin" / "pip"
    pip.parent.mkdir(parents=True)
    pip.write_text('#!/bin/sh\necho "$@" >> pip.log\n')
    pip.chmod(0o755)
    env = {**os.environ, "FLASH_ATTN_WHEEL": wheel, "FLASH_ATTN_VERSION": version, "TORCH_VERSION": "2.13.0"}
    subprocess.run(["/bin/sh", "-ec", step], cwd=tmp_path, env=env, check=True)
    log = tmp_path / "pip.log"
    assert (log.read_text().splitlines() if log.exists() else []) == expected


@pytest.fixture(scope="module")
def cpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The CPU image, built from the recipe with the package indexes this machine uses."""
    folder = tmp_path_factory.mktemp("image")
    _needs_overlays(folder / "probe")
    (folder / "context").mkdir()
    try:
        source = context(folder / "context")
        build = Image(STAGES["cpu-build"], folder / "cpu-build", ARGUMENTS, {}).build(source, {})
        given = {"REVISION": REVISION}
        yield Image(STAGES["cpu"], folder / "cpu", ARGUMENTS, given).build(source, {"cpu-build": build})
    finally:
        shutil.rmtree(folder)


def _needs_overlays(folder: Path) -> None:
    for name in ("upper", "work", "root"):
        (folder / name).mkdir(parents=True)
    mount = f"mount -t overlay o -o lowerdir=/,upperdir={folder}/upper,workdir={folder}/work {folder}/root"
    tried = subprocess.run(["unshare", "--mount", "--pid", "--net", "--fork", "sh", "-c", mount], capture_output=True)
    if tried.returncode or not shutil.which("apt-get"):
        pytest.skip(f"needs root, namespaces, overlays and apt-get: {tried.stderr.decode().strip() or 'no apt-get'}")


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_image_trains_without_network_on_a_read_only_root(cpu: Image) -> None:
    assert cpu.run(["sh", "-c", "! command -v gcc && ! command -v git"]).returncode == 0
    options = "experiment=smoke train.steps=2 schedule.warmup_steps=1"
    done = cpu.run(["make", "train", f"ARGS={options}"])
    assert done.returncode == 0, done.stdout
    assert "installing" not in done.stdout
    assert "run complete; the model is " in done.stdout
    run = cpu.folder / "volumes/_app_outputs/smoke"
    assert (run / "01_s16/model/model.safetensors").is_file()
    assert json.loads((run / "run.json").read_text())["git"] == REVISION


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_docker_stop_saves_and_the_same_container_goes_on(cpu: Image) -> None:
    options = ["experiment=smoke", "run.name=stopped", "train.steps=200"]
    command = [*json.loads(cpu.settings["CMD"]), *options]
    with cpu.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as container:
        assert container.stdout is not None
        before = []
        for line in container.stdout:
            before.append(line)
            if "step 1/200" in line:
                break
        (process_1,) = Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()
        os.kill(int(process_1), signal.SIGTERM)
        began = time.monotonic()
        after = container.stdout.read()
    assert container.returncode == STOPPED, "".join(before) + after
    assert time.monotonic() - began < 120
    assert "stopped by SIGUSR1 after step" in after
    kept = cpu.folder / "volumes" / "_app_outputs" / "stopped" / "01_s16" / "checkpoints"
    assert list(kept.glob("step_*/COMPLETE"))
    (step,) = set(re.findall(r"after step (\d+)", after))  # told when it stops, and by the last lines
    again = cpu.run([*command, f"train.stop_after={int(step) + 1}"])
    assert again.returncode == 0, again.stdout
    assert f"at step {step}, on 1 rank(s) x 2 accumulation as before\n" in again.stdout
    assert f"stopped after step {int(step) + 1} " in again.stdout


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_health_is_being_able_to_write_runs(cpu: Image) -> None:
    check = json.loads(cpu.settings["HEALTHCHECK"].partition("CMD")[2])
    assert cpu.run(check).returncode == 0
    assert cpu.run(check, user="4321:4321").returncode != 0


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_user_without_a_name_can_import_everything(cpu: Image) -> None:
    probe = "import getpass, torch._inductor.codecache, yarn_train.app; print(getpass.getuser(), torch.__version__)"
    done = cpu.run(["python", "-c", probe], user="4321:4321")
    assert done.returncode == 0, done.stdout
    assert done.stdout.split()[-2:] == ["trainer", f"{ARGUMENTS['TORCH_VERSION']}+cpu"]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_versions_are_the_pinned_ones(cpu: Image) -> None:
    done = cpu.run(["pip", "freeze", "--exclude-editable"])
    assert done.returncode == 0, done.stdout
    pins = (ROOT / "constraints.txt").read_text().lower().replace("_", "-").splitlines()
    installed = done.stdout.lower().replace("_", "-").replace("+cpu", "").split()
    assert len(installed) > 40
    assert set(installed) <= set(pins)
