"""``--help``: what there is to type, on two screens; ``--help rope`` and ``--help rope.alpha`` are the options.

Written from the dataclasses of the options and the comments of the config groups, so it cannot lag behind. Never
imports torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import textwrap
import types
import typing
from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError, problem
from ..options import SECTIONS, Config, keys
from .groups import ADDED, groups, settings
from .terminal import NARROWEST, WIDTH, Style, width

FLAGS = ("--help", "-h")
ABOUT = """Teaches a RoPE language model to read further: continues its pretraining with YaRN's frequencies,
evaluates it at every length and exports it for plain transformers and vLLM."""
# (what it is for, words after "python"); a test composes each of them
EXAMPLES = (
    ("quickstart", "train.py"),
    ("8 GPUs", "train.py experiment=yarn_llama2_7b_64k launch.nproc_per_node=8"),
    ("your model", "train.py experiment=extend model.path=FOLDER rope.factor=8 run.name=mine"),
    ("next stage", "train.py experiment=extend run.init_from=outputs/mine rope.factor=16"),
    ("sweep", "train.py -m experiment=smoke rope.alpha=1,2 rope.beta=16,32"),
    ("plan", "-m yarn_train.plan experiment=yarn_llama2_7b_64k plan.gpus=8"),
)
RESUME = "the same command again: it goes on from the newest checkpoint"
MORE = (
    ("--help SECTION", "its options: default, choices, meaning; --help rope.alpha: one option"),
    ("--help GROUP", "a group's options in full; --hydra-help: Hydra's flags"),
    ("--cfg job", "prints what would run; launch.dry_run=true tries it for any number of GPUs"),
    ("docs/", "quickstart, method, memory, clusters, faults, evaluation"),
)
OTHERS = (
    "python train.py --help lists groups and sections of options, which are the same here;",
    "--help SECTION, --help SECTION.KEY and --help GROUP explain them.",
)
COLUMN = 13  # where texts begin
TYPES = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def asked(words: Sequence[str]) -> list[str] | None:
    """The topics after ``--help``; None where nobody asks for help."""
    flags = [i for i, word in enumerate(words) if word in FLAGS or word.startswith("--help=")]
    if not flags:
        return None
    first = flags[0]
    inside = [words[first].partition("=")[2]] if "=" in words[first] else []
    rest = [word for word in words[first + 1 :] if not word.startswith("-") and "=" not in word]
    return [word for word in [*inside, *rest] if word]


def text(topics: Sequence[str], program: str, style: Style | None = None, about: str = "") -> str:
    """The help on topics, or on everything.

    Args:
        program: what is typed after ``python``.
        about: what that program does; nothing for train.py.

    Raises:
        ConfigError: a topic that is neither a section, nor an option, nor a group.
    """
    style = style or Style()
    if not topics:
        return "\n".join(_overview(program, style, about))
    return "\n\n".join("\n".join(_topic(topic.strip("."), style)) for topic in topics)


def show(words: Sequence[str], program: str, about: str = "") -> bool:
    """Print the help that `words` ask for; False where they ask for none. Raises as :func:`text`."""
    topics = asked(words)
    if topics is not None:
        print(text(topics, program, about=about))
    return topics is not None


def _overview(program: str, style: Style, about: str) -> list[str]:
    usage = f"usage: python {program} [GROUP=OPTION ...] [SECTION.KEY=VALUE ...]"
    lines = [*(about.strip() or ABOUT).splitlines(), "", usage]
    if about:
        return [*lines, "", *OTHERS]
    examples = [(what, f"python {words}") for what, words in EXAMPLES]
    lines += ["", style("examples", "bold"), *_pairs([*examples, ("resume", RESUME)], style, "dim")]
    lines += ["", style("groups", "bold") + "  conf/GROUP/OPTION.yaml"]
    for name, options in groups().items():
        lines += _group(name, options, style)
    lines += ["", style("sections", "bold") + "  and how many options they have"]
    counted = [f"{name} {len(dataclasses.fields(cls))}" for name, cls in SECTIONS.items()]
    lines += textwrap.wrap(", ".join(counted), _wide(), initial_indent="  ", subsequent_indent="  ")
    return [*lines, "", style("more", "bold"), *_pairs(MORE, style, "cyan")]


def _pairs(pairs: Sequence[tuple[str, str]], style: Style, colour: str) -> list[str]:
    wide = max(len(what) for what, _ in pairs) + 2
    return [f"  {style(what.ljust(wide), colour)}{told}" for what, told in pairs]


def _group(name: str, options: dict[str, str], style: Style) -> list[str]:
    """A line per option that says something, those that do not on one."""
    silent = [option for option, about in options.items() if not about]
    said = {option: about for option, about in options.items() if about}
    wide = max(map(len, said), default=0) + 2
    lines = [f"{option:<{wide}}{about}" for option, about in said.items()] + ([" | ".join(silent)] if silent else [])
    room = _wide() - COLUMN
    lines = [line if len(line) <= room else f"{line[: room - 1].rstrip()}…" for line in lines]
    label = f"{'+' if name in ADDED else ''}{name}".ljust(COLUMN - 2)
    return [f"  {style(label, 'cyan')}{lines[0]}", *(f"{' ' * COLUMN}{line}" for line in lines[1:])]


def _wide() -> int:
    return min(WIDTH, max(NARROWEST, width(sys.stdout)))


def _topic(topic: str, style: Style) -> list[str]:
    if topic in keys():
        section, _, key = topic.partition(".")
        return _option(section, key, style)
    found = groups().get(topic, {})
    if topic not in SECTIONS and not found:
        near = difflib.get_close_matches(topic.lower(), [*SECTIONS, *groups(), *keys()], n=1, cutoff=0.6)
        fix = f"did you mean {near[0]}?" if near else "--help lists them"
        raise ConfigError(problem("--help", topic, "a section, an option or a group", fix))
    lines = []
    if topic in SECTIONS:
        lines.append(f"section {style(topic, 'bold')}: type {topic}.KEY=VALUE")
        for field in dataclasses.fields(SECTIONS[topic]):
            lines += _option(topic, field.name, style)
    if found:
        plus = "+" if topic in ADDED else ""
        lines += [""] * bool(lines) + [f"group {style(topic, 'bold')}: type {plus}{topic}=OPTION"]
        for option, about in found.items():
            lines += [f"  {style(option, 'cyan')}", *_indented(about or settings(topic, option))]
    return lines


def _option(section: str, key: str, style: Style) -> list[str]:
    cls = SECTIONS[section]
    field = next(f for f in dataclasses.fields(cls) if f.name == key)
    default = getattr(getattr(Config(), section), key)
    head = f"  {style(f'{section}.{key}', 'cyan')} = {shown(default)}"
    kinds = allowed(typing.get_type_hints(cls)[key], field.metadata)
    return [f"{head}   {style(f'({kinds})', 'dim')}", *_indented(field.metadata["doc"])]


def _indented(words: str) -> list[str]:
    room = _wide()
    return textwrap.wrap(words, room, initial_indent=" " * 6, subsequent_indent=" " * 6, break_long_words=False)


def shown(value: Any) -> str:
    """A value as it is typed."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    return f"{value:g}" if isinstance(value, float) else '""' if value == "" else str(value)


def allowed(hint: Any, metadata: typing.Mapping[str, Any]) -> str:
    """What an option takes: its choices, or its types and bound."""
    if metadata["choices"]:
        return " | ".join(metadata["choices"])
    union = isinstance(hint, types.UnionType)
    members = [member for member in typing.get_args(hint) if member is not types.NoneType] if union else [hint]
    words = [TYPES.get(one) or ("a list" if typing.get_origin(one) is list else "a section") for one in members]
    limits = [(sign, metadata[name]) for name, sign in (("minimum", ">="), ("above", ">"))]
    bound = "".join(f" {sign} {limit:g}" for sign, limit in limits if limit is not None)
    words += ["null"] if types.NoneType in typing.get_args(hint) else []
    return f"{words[0]}{bound}" + "".join(f" or {word}" for word in words[1:])
