"""Python, the packages and the CUDA driver that they meet. Never imports torch at the top: it may be what is broken."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from ..finding import FAIL, OK, WARN, Finding

PROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"
NAME = "yarn-train"
INSTALL = "pip install -c constraints.txt -e . (or: make setup)"
# What each extra is for; an extra that is missing is only named.
EXTRAS = {
    "flash": "model.attention=flash_attention_2",
    "fused": "memory.loss=fused",
    "lowbit": "optim.state=8bit, bfloat16",
    "deepspeed": "engine.name=deepspeed",
}
# First Linux driver that runs a CUDA version's builds (CUDA's release notes, minor version compatibility).
DRIVERS = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
SLOW = 10.0  # seconds for nvidia-smi's answer


def python_and_packages() -> list[Finding]:
    """Versions of Python, of all requirements, and of the extras."""
    project = _project()
    every = [*project["dependencies"], *chain.from_iterable(project["extras"].values())]
    found = {requirement.name: installed(requirement.name) for requirement in every}
    return [
        judge_python(platform.python_version(), project["python"]),
        judge_packages(project["dependencies"], found),
        judge_extras(project["extras"], found),
    ]


def installed(name: str) -> str | None:
    """Version of an installed package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def judge_python(version: str, wanted: str) -> Finding:
    """`wanted` is a specifier as in ``requires-python``."""
    if Requirement(f"python{wanted}").specifier.contains(version):
        return Finding(OK, "python", f"{version} ({wanted} needed)", facts={"python": version})
    means, fix = "the package does not install here", "make clean; make setup PYTHON=python3.11"
    return Finding(FAIL, "python", f"{version}, {wanted} is needed", means, fix, {"python": version})


def judge_packages(wanted: Sequence[Requirement], found: Mapping[str, str | None]) -> Finding:
    """Whether all requirements are met."""
    wrong = [text for requirement in wanted if (text := _unmet(requirement, found[requirement.name]))]
    facts = {"versions": {r.name: found[r.name] for r in wanted}}
    if wrong:
        return Finding(
            FAIL, "packages", "; ".join(wrong), "imports or results differ from what is tested", INSTALL, facts
        )
    main = ", ".join(f"{name} {found[name]}" for name in ("torch", "transformers") if found.get(name))
    return Finding(OK, "packages", f"all {len(wanted)} as pyproject.toml asks; {main}", facts=facts)


def judge_extras(extras: Mapping[str, Sequence[Requirement]], found: Mapping[str, str | None]) -> Finding:
    """Which optional packages are there; only an unfit version is a warning."""
    there, absent, wrong = [], [], []
    for extra, use in EXTRAS.items():
        for requirement in extras.get(extra, []):
            version = found[requirement.name]
            if version is None:
                absent.append(f"{requirement.name} ({use})")
            elif text := _unmet(requirement, version):
                wrong.append(f"{text} ({use})")
            else:
                there.append(f"{requirement.name} {version} ({use})")
    figure = f"installed: {', '.join(there) or 'none'}; not installed: {', '.join(absent) or 'none'}"
    if wrong:
        fix = "pip install 'yarn-train[flash]', [fused], [lowbit] or [deepspeed]"
        return Finding(WARN, "optional packages", "; ".join(wrong), "the options named are refused", fix)
    return Finding(OK, "optional packages", figure)


def _unmet(requirement: Requirement, version: str | None) -> str:
    if version is None:
        return f"{requirement.name} is missing ({requirement.specifier} needed)"
    if not requirement.specifier.contains(Version(version).base_version, prereleases=True):
        return f"{requirement.name} {version} ({requirement.specifier} needed)"
    return ""


def _project() -> dict[str, Any]:
    """What the package asks for: from pyproject.toml in a checkout, else from the installed metadata."""
    if PROJECT.is_file():
        table = tomllib.loads(PROJECT.read_text())["project"]
        extras = {k: [Requirement(r) for r in v] for k, v in table["optional-dependencies"].items()}
        dependencies = [Requirement(r) for r in table["dependencies"]]
        return {"python": table["requires-python"], "dependencies": dependencies, "extras": extras}
    every = [Requirement(text) for text in importlib.metadata.requires(NAME) or []]
    chosen = {name: [r for r in every if r.marker and r.marker.evaluate({"extra": name})] for name in EXTRAS}
    wanted = importlib.metadata.metadata(NAME)["Requires-Python"] or ">=3.11"
    return {"python": wanted, "dependencies": [r for r in every if not r.marker], "extras": chosen}


def torch_build() -> list[Finding]:
    """Whether torch's build and the driver fit each other."""
    import torch

    driver = driver_version()
    names, error = list[str](), ""
    if torch.version.cuda is not None:
        try:
            torch.cuda.init()
            names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        except Exception as problem:  # torch raises RuntimeError, AssertionError and its own kinds here
            error = str(problem).strip().splitlines()[0]
    return [judge_build(torch.__version__, torch.version.cuda, driver, names, error)]


def driver_version() -> str | None:
    """The NVIDIA driver's version as the kernel module or nvidia-smi tells it; None where neither does."""
    module = Path("/proc/driver/nvidia/version")
    if module.is_file() and (match := re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", module.read_text())):
        return match.group(1)
    if shutil.which("nvidia-smi") is None:
        return None
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SLOW)
    except subprocess.TimeoutExpired:
        return None  # the line about the GPUs says how slow it is
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None


def judge_build(torch: str, cuda: str | None, driver: str | None, names: Sequence[str], error: str) -> Finding:
    """One line about torch's CUDA build and the driver.

    Args:
        torch: torch's version; cuda: the CUDA version it was built for, None for a CPU build.
        driver: version of the driver, None without one.
        names: of the GPUs that CUDA offers; `error` is what it said where it did not start.
    """
    what, facts = (
        "torch and driver",
        {"torch_cuda": cuda, "driver": driver, "cuda": bool(names), "gpu_names": list(names)},
    )
    if cuda is None and driver is None:
        return Finding(OK, what, f"torch {torch} is a CPU build, and there is no NVIDIA driver", facts=facts)
    if cuda is None:
        figure = f"torch {torch} is a CPU build, but there is an NVIDIA driver {driver}"
        fix = "pip install --force-reinstall torch (the build for CUDA)"
        return Finding(FAIL, what, figure, "the GPUs of this machine would not be used", fix, facts)
    if names:
        return Finding(OK, what, f"torch {torch} for CUDA {cuda}, driver {driver or 'unknown'}", facts=facts)
    figure = f"torch {torch} for CUDA {cuda}, {f'driver {driver}' if driver else 'no driver'}"
    if driver is None:
        means = "runs use the CPU; a GPU of this machine, if it has one, stays idle"
        fix = "in a container: docker run --gpus all; else install the NVIDIA driver; without a GPU all is well"
        return Finding(WARN, what, figure, means, fix, facts)
    needed = DRIVERS.get(int(cuda.split(".")[0]))
    if needed and Version(driver) < Version(needed):
        figure += f": too old, {needed} or newer is needed"
        older = max((major for major, least in DRIVERS.items() if Version(least) <= Version(driver)), default=None)
        fix = f"update the driver to {needed}" + (f", or install a torch built for CUDA {older}" if older else "")
        return Finding(FAIL, what, figure, "CUDA does not start: no run on these GPUs", fix, facts)
    fix = "nvidia-smi; ls -l /dev/nvidia*; on NVSwitch machines: systemctl status nvidia-fabricmanager"
    return Finding(
        FAIL, what, f"{figure}: CUDA does not start: {error or 'no device visible'}", "no run on GPUs", fix, facts
    )


def code_version() -> list[Finding]:
    """Which commit of yarn-train this is: what a run's record will say."""
    from ...train.run_folder import git_hash

    commit = git_hash()
    version = installed(NAME) or "not installed"
    if commit is None:
        return [Finding(OK, "yarn-train", f"{version}, no git checkout", facts={"git": None})]
    dirty = "; its uncommitted changes will be in no record" if commit.endswith("+dirty") else ""
    return [
        Finding(OK, "yarn-train", f"{version}, commit {commit[:12]}{dirty and '+dirty'}{dirty}", facts={"git": commit})
    ]
