"""The config groups as their files describe themselves: ``conf/<group>/<option>.yaml``. Never imports torch."""

from __future__ import annotations

from pathlib import Path

CONF = Path(__file__).resolve().parents[2] / "conf"
INSIDE = ("hydra",)  # groups of Hydra's own, of which files here only add to


FIRST = ("experiment", "sweep")
ADDED = ("sweep",)  # groups that no composition has unless it is told to


def groups(conf: Path = CONF) -> dict[str, dict[str, str]]:
    """Group -> option -> what its file says about it in its first comment; empty where it says nothing."""
    folders = [folder for folder in conf.iterdir() if folder.is_dir() and folder.name not in INSIDE]
    folders.sort(key=lambda folder: (folder.name not in FIRST, folder.name))
    found = {folder.name: {file.stem: about(file) for file in sorted(folder.glob("*.yaml"))} for folder in folders}
    return {name: options for name, options in found.items() if options}


def settings(group: str, option: str) -> str:
    """What an option's file sets, in one line."""
    lines = (CONF / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines()
    return ", ".join(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))


def about(file: Path) -> str:
    """The first comment of a YAML file, its lines joined, up to the end of the first sentence."""
    lines: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        _, mark, text = line.partition("#")
        text = text.strip()
        if mark and not text.startswith("@package"):
            lines.append(text)
        elif lines:
            break
    whole = " ".join(lines)
    sentence, end, _ = whole.partition(". ")
    return sentence + "." * bool(end)
