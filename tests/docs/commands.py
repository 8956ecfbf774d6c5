"""Whether a command that a page prints could be typed: each program has its own way to look without running it."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import subprocess
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest import mock

from hydra.core.override_parser.overrides_parser import OverridesParser
from support import ROOT

from yarn_train import cli
from yarn_train.console import help
from yarn_train.prepare import own_arguments
from yarn_train.stages import examine

HYDRA_PROGRAMS = {"yarn_train.plan", "yarn_train.eval"}
TOOLS = {"cat", "cd", "cp", "export", "git", "jq", "ls", "rsync", "scp", "sed", "ssh", "tail", "wget", "curl"}


def check(words: list[str]) -> None:
    """Raise AssertionError, naming what is wrong, where this command cannot work."""
    program = words[0]
    assert program in PROGRAMS, f"no check is known for {program!r}: {' '.join(words)}"
    PROGRAMS[program](words[1:])


def _python(words: list[str]) -> None:
    if words[0] == "-m":
        _module(words[1], words[2:])
    elif words[0] == "train.py":
        _composes(words[1:])
    elif words[0] == "data/prepare.py":
        _composes(own_arguments(words[1:])[1])
    else:
        assert (ROOT / words[0]).is_file(), f"{words[0]} does not exist"
        if words[0].endswith("train_tokenizer.py"):
            _parses("data.train_tokenizer", words[1:], file=ROOT / words[0])


def _module(name: str, words: list[str]) -> None:
    if name in HYDRA_PROGRAMS:
        _composes(words)
    elif name in ("torch.distributed.run", "torch.distributed.flight_recorder.fr_trace"):
        assert importlib.util.find_spec(name), f"there is no {name}"
        if name.endswith("run"):
            _torchrun(words)
    elif name == "pytest":
        assert all((ROOT / word).exists() for word in words if word.startswith("tests/")), words
    elif name.startswith("bench."):
        at = ROOT / name.replace(".", "/")
        if at.is_dir():
            _parses(f"{name}.__main__", words)
        else:
            assert at.with_suffix(".py").is_file(), f"there is no {name}"
    else:
        package = (ROOT / name.replace(".", "/")).is_dir()
        _parses(f"{name}.__main__" if package else name, words)


class _Parsed(Exception):
    pass


def _parses(module: str, words: list[str], file: Path | None = None) -> None:
    """Run a program up to the point where it has understood its arguments."""
    if file is None:
        program = importlib.import_module(module)
    else:
        spec = importlib.util.spec_from_file_location(module, file)
        assert spec is not None
        assert spec.loader is not None
        program = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(program)
    real = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, args: list[str] | None = None, namespace: object = None) -> None:
        self.allow_abbrev = False  # a page writes options out
        real(self, args, namespace)
        raise _Parsed

    refused = ""
    with mock.patch.object(argparse.ArgumentParser, "parse_args", parse), mock.patch("sys.argv", ["", *words]):
        try:
            program.main(words) if program.main.__code__.co_argcount else program.main()
        except _Parsed:
            return
        except SystemExit as end:
            refused = f"it ends with {end.code}"
    raise AssertionError(f"{module} does not take {words}: {refused or 'its arguments are never parsed'}")


def _composes(words: list[str]) -> None:
    """The options make a configuration without a problem; of a sweep, the first job's do."""
    if "--help" in words:
        assert help.text(help.asked(words) or [], "train.py")
        return
    options, flags = [word for word in words if not word.startswith("-")], [w for w in words if w.startswith("-")]
    if "--cfg" in flags:
        options.remove("job")
        flags.remove("--cfg")
    assert set(flags) <= {"-m", "--multirun"}, flags
    typed, kept = {}, []
    for override in OverridesParser.create().parse_overrides(options):
        key, text = override.key_or_group.lstrip("+"), override.input_line or ""
        if key.startswith("hydra/"):
            assert _plugin(key.removeprefix("hydra/"), str(override.value())), f"hydra knows no {text}"
        elif not key.startswith("hydra."):
            assert not override.is_sweep_override() or "-m" in flags or "--multirun" in flags, f"{text} needs -m"
            word = _first(override)
            kept.append(word)
            typed[key] = word
    raw = cli.compose(kept)
    problems = examine(raw, Path("outputs/run"), typed)[1]
    assert not problems.lines, problems.lines


def _first(override: object) -> str:
    """The override with the first of its values, where it is swept."""
    if not override.is_sweep_override():  # type: ignore[attr-defined]
        return str(override.input_line)  # type: ignore[attr-defined]
    key = override.key_or_group  # type: ignore[attr-defined]
    with suppress(Exception):
        return f"{key}={next(iter(override.sweep_string_iterator()))}"  # type: ignore[attr-defined]
    return f"{key}={override.value().start}"  # type: ignore[attr-defined]


def _plugin(group: str, name: str) -> bool:
    from hydra.core.plugins import Plugins

    found = {kind.__name__.lower() for kind in Plugins.instance().discover()}
    wanted = name.split("_")[0] + group
    return any(wanted in plugin for plugin in found) or name == "basic"


def _torchrun(words: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    with suppress(ValueError):
        words = words[: words.index("|")]
    parsed = get_args_parser().parse_args(words)
    rest = list(parsed.training_script_args)
    _python(["-m", parsed.training_script, *rest] if parsed.module else [parsed.training_script, *rest])


def _launcher(words: list[str]) -> None:
    if words[:1] == ["-m"]:
        _module(words[1], words[2:])
    else:
        _composes(words)


def _sbatch(words: list[str]) -> None:
    script = next(i for i, word in enumerate(words) if not word.startswith("-"))
    assert (ROOT / words[script]).is_file(), words[script]
    _launcher(words[script + 1 :])


def _srun(words: list[str]) -> None:
    check(words[next(i for i, word in enumerate(words) if not word.startswith("-")) :])


def _make(words: list[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = [word for word in words if "=" not in word]
    assert set(named) <= targets, f"the Makefile has no {set(named) - targets}"


def _pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words[1:]:
        for extra in re.findall(r"\[([a-z,]+)\]", word):
            assert set(extra.split(",")) <= set(extras), f"no extra {extra}"


def _docker(words: list[str]) -> None:
    if "--target" in words:
        target = words[words.index("--target") + 1]
        assert re.search(rf"^FROM .* AS {target}$", (ROOT / "Dockerfile").read_text(), re.M), target


def _files(words: list[str]) -> None:
    for word in words:
        assert not word.startswith(("launch/", "tests/", "docs/")) or (ROOT / word).exists(), word


def _bench_tool(words: list[str]) -> None:
    assert words, "an option or a folder is expected"


def _chain(words: list[str]) -> None:
    done = subprocess.run(["bash", "-n", str(ROOT / "launch/chain.sh")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "python": _python,
    "torchrun": _torchrun,
    "launch/torchrun.sh": _launcher,
    "launch/chain.sh": _chain,
    "sbatch": _sbatch,
    "srun": _srun,
    "make": _make,
    "pip": _pip,
    "docker": _docker,
    "kubectl": _files,
    "sky": _files,
    "tensorboard": _bench_tool,
    "wandb": _bench_tool,
    **dict.fromkeys(TOOLS, _files),
}
