"""The page of every option, from the dataclasses that define them and the files of ``conf/``."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

import yaml

from yarn_train.console.groups import ADDED
from yarn_train.console.help import allowed, shown
from yarn_train.options import FREE_FORM, SECTIONS

ABOUT = {
    "run": "The run's folder, and how it begins and ends.",
    "model": "The base model, its precision and its attention kernel.",
    "adapter": "LoRA in place of full fine-tuning: [adapters](adapters.md).",
    "rope": "How frequencies are scaled: [the method](pictures.md), [how to choose](choosing.md).",
    "data": "What is trained on: [data](data.md).",
    "train": "Steps and batches.",
    "optim": "AdamW.",
    "schedule": "The learning rate over the steps.",
    "engine": "Who shards weights, gradients and moments, and where they live.",
    "parallel": "How ranks share the work: [long sequences](long-sequences.md).",
    "memory": "What is kept, computed again or moved: [long sequences](long-sequences.md).",
    "compile": "torch.compile.",
    "checkpoint": "How often, how many: [resume and faults](faults.md).",
    "eval": "What is evaluated and on what, and perplexity: [evaluation](evaluation.md).",
    "passkey": "A number to be found in a long text: [evaluation](evaluation.md#passkey).",
    "harness": "[Standard benchmarks](harness.md).",
    "study": "What is tried on an unscaled base: [without training](evaluation.md#without-training).",
    "plan": "Will it fit, how long: [the arithmetic](memory.md).",
    "launch": "Workers, machines, limits: [clusters](launch.md).",
    "tracking": "Where metrics go besides metrics.jsonl: [tracking](tracking.md).",
    "profile": "Where the time goes: [performance](performance.md#where-the-time-goes-profile).",
    "sweep": "How the jobs of a sweep are compared: [sweeps](sweeps.md).",
    "curriculum": "Stages that follow each other in one run.",
}

INTRO = """# Every option

<style>.md-nav--secondary .md-nav {{ display: none }}</style>

{count} options. This page is made of the dataclasses in `yarn_train/options_training.py`, `yarn_train/options_job.py`
and `yarn_train/options_eval.py` when the site is built, so it cannot be out of date.

An option is given on the command line as `section.name=value`. A misspelt one is refused, with the nearest that exists.
The default here is what holds where neither the command line nor an experiment says otherwise; `train.py` alone runs
`experiment=quickstart`, whose values are [below](#groups). This prints what a command would use:

```bash
python train.py experiment=extend --cfg job
```

`python train.py --help rope.alpha` says the same in a terminal. Lists are written `[1,2]`, nothing is `null`, truth is
`true` or `false`. In a shell put quotes around brackets.
"""

GROUPS = """## Groups { #groups }

A group's word picks a file below `conf/` whose values are put over the defaults: `model=llama2_7b`. The command line
still wins over all of them.

"""


def markdown(conf: Path) -> str:
    """The whole page.

    Args:
        conf: the folder of Hydra's groups.
    """
    count = sum(len(dataclasses.fields(cls)) for cls in SECTIONS.values())
    sections = [_section(name, cls) for name, cls in SECTIONS.items()]
    return "\n".join([INTRO.format(count=count), *sections, GROUPS + _groups(conf)])


def _section(name: str, cls: type) -> str:
    hints = typing.get_type_hints(cls)
    keys = [_option(f"{name}.{f.name}", f, hints[f.name]) for f in dataclasses.fields(cls)]
    return "\n".join([f"## {name} {{ #{name} }}\n\n{ABOUT[name]}\n", *keys])


def _option(key: str, field: dataclasses.Field[Any], hint: Any) -> str:
    made = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    kinds = "names of your own" if key in FREE_FORM else allowed(hint, field.metadata)
    facts = f"default `{shown(made)}` · {kinds}"
    return f"### `{key}` {{ #{key} }}\n\n{_escaped(facts)}\n{{ .facts }}\n\n{_sentence(field.metadata['doc'])}\n"


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", "\\*")


def _sentence(text: str) -> str:
    return _escaped(text) + ("" if text.endswith(".") else ".")


def _groups(conf: Path) -> str:
    rows = ["| word | what it sets |", "|---|---|"]
    for folder in sorted(p for p in conf.iterdir() if p.is_dir()):
        for file in sorted(folder.glob("*.yaml")):
            about, values = _described(file)
            text = " ".join(f"`{key}={shown(value)}`" for key, value in values.items())
            plus = "+" if folder.name in ADDED else ""
            rows.append(f"| `{plus}{folder.name}={file.stem}` | {' '.join(filter(None, [about, text]))} |")
    return "\n".join(rows) + "\n"


def _described(file: Path) -> tuple[str, dict[str, Any]]:
    """A file's comment at its head, and its values; of an experiment with ``section.`` before each name."""
    text = file.read_text(encoding="utf-8")
    comments = [line[1:].strip() for line in text.splitlines() if line.startswith("#") and "@package" not in line]
    content = yaml.safe_load(text) or {}
    content.pop("defaults", None)
    about = _escaped(" ".join(comments)).replace("|", "\\|")
    return about + (":" if about and content and about[-1] not in ".:" else ""), _flat(content)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return flat
