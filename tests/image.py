"""A build of the Dockerfile without a container engine.

Every stage is an overlay over this machine's own root file system, in which the stage's RUN, COPY and the rest are done
as the recipe says; paths, users and processes are those of the image. The base image is this machine's system without
what a slim image lacks, and with the Python that runs the tests, which may be older than the recipe's.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dockerfile_parse import DockerfileParser
from support import ROOT

# In no slim image: what the recipe forgets to install must not come from the machine that tests it.
ABSENT = ("curl", "file", "gcc", "git", "make", "procps", "sudo", "tini", "wget")


@dataclass
class Stage:
    """One FROM and what follows it: (instruction, text) with continuations joined and comments gone."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def values(self, instruction: str) -> list[str]:
        """The texts of all steps of one kind."""
        return [text for kind, text in self.steps if kind == instruction]


def read(file: Path = ROOT / "Dockerfile") -> tuple[dict[str, str], dict[str, Stage]]:
    """The arguments before the first FROM, and the stages by name."""
    parser = DockerfileParser(fileobj=file.open("rb"), env_replace=False)
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    for step in parser.structure:
        kind, text = step["instruction"], step["value"]
        if kind == "FROM":
            base, _, name = text.partition(" AS ")
            current = stages[name] = Stage(name, base)
        elif kind == "ARG" and current is None:
            arguments |= dict(assignments(text))
        elif current is not None and kind != "COMMENT":
            current.steps.append((kind, text))
    return arguments, stages


def assignments(text: str) -> Iterator[tuple[str, str]]:
    """NAME=value pairs of an ARG, ENV or LABEL; a name alone has no pair."""
    for word in shlex.split(text):
        name, equals, value = word.partition("=")
        if equals:
            yield name, value


def substitute(text: str, env: dict[str, str]) -> str:
    """$NAME and ${NAME} outside of RUN, where no shell replaces them."""
    return re.sub(r"\$\{?(\w+)\}?", lambda m: env.get(m[1], ""), text)


def context(folder: Path) -> Path:
    """What `docker build .` of a clean checkout would send: files git knows or would add, without .dockerignore's."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for pattern in (ROOT / ".dockerignore").read_text().splitlines():
        if pattern and not pattern.startswith("#"):
            for path in list(folder.glob(pattern)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


class Image:
    """A stage being built.

    Args:
        stage: its recipe.
        folder: room for its files; must not be on an overlay itself.
        arguments: values of ARGs that differ from the recipe's.
        inherited: values of the ARGs before the first FROM.
    """

    def __init__(self, stage: Stage, folder: Path, inherited: dict[str, str], arguments: dict[str, str]):
        self.stage, self.folder = stage, folder
        self.env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        self._args = {k: v for k, v in os.environ.items() if k.startswith("PIP_")}  # this machine's index and proxy
        self._inherited, self._given = inherited, arguments
        self.settings: dict[str, Any] = {}
        self.workdir = "/"
        for name in ("upper", "work", "root"):
            (folder / name).mkdir(parents=True)
        self.shell(_base_commands())

    @property
    def upper(self) -> Path:
        """Where the files lie that the stage wrote."""
        return self.folder / "upper"

    def mounts(self) -> str:
        """Shell commands that make the root file system appear, without this repository in it."""
        root = shlex.quote(str(self.folder / "root"))
        layers = f"lowerdir=/,upperdir={self.upper},workdir={self.folder / 'work'}"
        return (
            f"mount -t overlay overlay -o {shlex.quote(layers)} {root} && mount -t proc proc {root}/proc "
            f"&& mount --rbind /dev {root}/dev && mount -t tmpfs hidden {root}{shlex.quote(str(ROOT))} && "
        )

    def shell(self, text: str) -> subprocess.CompletedProcess[str]:
        """Run a shell line in the image, as root and with the network."""
        inside = ["/bin/sh", "-ec", f"cd {shlex.quote(self.workdir)}\n{text}"]
        line = f"{self.mounts()}exec chroot {shlex.quote(str(self.folder / 'root'))} {shlex.join(inside)}"
        env = {**self._args, **self.env, "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(confined(line), env=env, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done

    def build(self, source: Path, others: dict[str, Image]) -> Image:
        """Do every step of the stage."""
        for kind, text in self.stage.steps:
            getattr(self, f"_{kind.lower()}", self._setting(kind))(text, source, others)
        return self

    def _setting(self, kind: str) -> Any:
        def keep(text: str, source: Path, others: dict[str, Image]) -> None:
            self.settings[kind] = text

        return keep

    def _arg(self, text: str, source: Path, others: dict[str, Image]) -> None:
        name = text.partition("=")[0]
        default = dict(assignments(text)).get(name, self._inherited.get(name, ""))
        self._args[name] = self._given.get(name, default)

    def _env(self, text: str, source: Path, others: dict[str, Image]) -> None:
        known = {**self._args, **self.env}
        self.env |= {name: substitute(value, known) for name, value in assignments(text)}

    def _workdir(self, text: str, source: Path, others: dict[str, Image]) -> None:
        self.workdir = text
        (self.upper / text.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def _copy(self, text: str, source: Path, others: dict[str, Image]) -> None:
        words = text.split()
        from_stage = words[0].startswith("--from=")
        if from_stage:
            source = others[words.pop(0).removeprefix("--from=")].upper
        *names, target = words
        there = self.upper / self.workdir.lstrip("/") / target
        for name in names:
            origin = source / name.lstrip("/")
            # Another stage's gigabyte is linked: it is finished, and nothing here writes into its files.
            _copy_tree(origin, there, link=from_stage) if origin.is_dir() else shutil.copy2(origin, there)

    def _run(self, text: str, source: Path, others: dict[str, Image]) -> None:
        self.shell(text)

    def start(self, command: list[str] | None = None, user: str = "", **options: Any) -> subprocess.Popen[str]:
        """Start a container: no network, read-only root, the image's user and entry point, volumes that stay.

        Args:
            command: in place of CMD.
            user: in place of USER.
        """
        root = self.folder / "root"
        line = self.mounts()
        for volume in (*json.loads(self.settings["VOLUME"]), "/tmp"):
            kept = self.folder / "volumes" / volume.replace("/", "_")
            if not kept.exists():
                kept.mkdir(parents=True)
                _copy_tree(self.upper / volume.lstrip("/"), kept) if volume != "/tmp" else kept.chmod(0o1777)
            line += f"mount --bind {shlex.quote(str(kept))} {shlex.quote(f'{root}{volume}')} && "
        line += f"mount -o remount,ro {shlex.quote(str(root))} && "
        words = [*json.loads(self.settings["ENTRYPOINT"]), *(command or json.loads(self.settings["CMD"]))]
        inside = ["/bin/sh", "-c", f'cd {self.workdir} && exec "$@"', "sh", *words]
        who = user or self.settings["USER"]
        line += f"exec chroot --userspec={who} --groups= {shlex.quote(str(root))} {shlex.join(inside)}"
        # loopback exists in a container without a network
        line = f"ip link set lo up && {line}"
        return subprocess.Popen(confined(line, "--net", "--ipc"), env=self.env, text=True, **options)

    def run(self, command: list[str] | None = None, user: str = "") -> subprocess.CompletedProcess[str]:
        """A container's life, with its output."""
        with self.start(command, user, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            output, _ = process.communicate(timeout=280)
        return subprocess.CompletedProcess([], process.returncode, output, "")


def confined(line: str, *namespaces: str) -> list[str]:
    """The command that runs a shell line in namespaces of its own, which end with the process that starts it.

    Mounts exist in the namespace only, and the namespace exists as long as its processes: when the tests are killed,
    however hard, nothing stays.

    Args:
        namespaces: options of unshare for others than mounts and processes.
    """
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", *namespaces]
    return ["setpriv", "--pdeathsig", "KILL", *unshare, "/bin/sh", "-ec", line]


def _copy_tree(origin: Path, target: Path, link: bool = False) -> None:
    """With owners, times and links."""
    target.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-al" if link else "-a", f"{origin}/.", str(target)], check=True)


def _base_commands() -> str:
    """Make this machine's system what the base image is; Python lies in /usr/local, as in the official images."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    prefix = Path(sys.base_prefix).resolve()
    public = "\n".join(f"chmod o+x {shlex.quote(str(folder))}" for folder in reversed(prefix.parents))
    return f"""
apt-get purge -y --allow-remove-essential {" ".join(ABSENT)} > /dev/null 2>&1 || true
rm -f {" ".join(f"/usr/bin/{program} /usr/local/bin/{program}" for program in (*ABSENT, "pgrep", "ps", "cc", "g++"))}
{public}
rm -rf /usr/local/lib/{name}
ln -s {shlex.quote(str(prefix / "lib" / name))} /usr/local/lib/{name}
cp {shlex.quote(str(prefix / "bin" / name))} /usr/local/bin/{name}
ln -sf {name} /usr/local/bin/python3
"""
