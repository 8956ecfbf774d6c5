"""Every fenced block of the README and the documentation: run, or checked command by command; none is left out."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from docs.snippets import LANGUAGES, OUTPUT, Snippet, everything
from docs.snippets import commands as simple_commands
from support import ROOT, child_env

from docs import commands
from yarn_train.errors import YarnTrainError

ALL = everything()
CHECKED = [s for s in ALL if s.how == "checked"]
RUN = [s for s in ALL if s.how == "run"]
FOREIGN = {"vllm", "llama-server", "sglang.launch_server", "convert_hf_to_gguf.py", "wandb", "tensorboard"}


def test_every_block_says_what_it_is_and_has_a_check() -> None:
    odd = [s.name for s in ALL if s.language not in LANGUAGES]
    assert not odd, "fences without one of the known languages"
    expected = {"bash": {"run", "checked", "not ours"}, "python": {"run"}, **{name: {"output"} for name in OUTPUT}}
    assert [s.name for s in ALL if s.how not in expected[s.language]] == []
    pages = {s.page for s in ALL}
    assert {"README.md", "docs/quickstart.md", "docs/launch.md", "data/README.md"} <= pages
    assert len(RUN) >= 8
    assert len(CHECKED) >= 25


@pytest.mark.parametrize("snippet", CHECKED, ids=lambda s: s.name)
def test_commands_could_be_typed(snippet: Snippet) -> None:
    found = simple_commands(snippet.text)
    assert found, "a bash block without a command"
    for words in found:
        commands.check(words)


@pytest.mark.parametrize("snippet", [s for s in ALL if s.language == "bash"], ids=lambda s: s.name)
def test_shell_syntax(snippet: Snippet) -> None:
    done = subprocess.run(["bash", "-n"], input=snippet.text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("snippet", [s for s in ALL if s.how == "not ours"], ids=lambda s: s.name)
def test_only_known_programs_of_others_go_unchecked(snippet: Snippet) -> None:
    for words in simple_commands(snippet.text):
        assert FOREIGN & set(words[:3]), f"{words} is ours, or of a program that nobody named"


@pytest.mark.parametrize(
    "line",
    [
        "python train.py experiment=smok",
        "python train.py train.stpes=5",
        "python train.py experiment=smoke rope.alpha=1,2",
        "python train.py rope.alpha=64",
        "torchrun --nproc-per-node 8 train.py experiment=smoke train.steps=-1",
        "launch/torchrun.sh experimnt=smoke",
        "sbatch --nodes=2 launch/slurm.sbatch optim.lrr=1",
        "python -m yarn_train.diff outputs/a",
        "python -m yarn_train.export --dtyp float32 a b",
        "python -m yarn_train.nothing",
        "python train.py -m +sweep=nothing",
        "make trian",
        "pip install 'yarn-train[falsh]'",
        "docker build --target gpuu .",
        "unheard-of tool",
    ],
)
def test_a_command_that_cannot_work_is_found(line: str) -> None:
    with pytest.raises((AssertionError, YarnTrainError, ModuleNotFoundError)):
        commands.check(simple_commands(line)[0])


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """What a clone looks like to a command, with outputs of its own."""
    for name in ("train.py", "conf", "launch", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "data").mkdir()
    for name in ("base", "prepare.py"):
        (tmp_path / "data" / name).symlink_to(ROOT / "data" / name)
    return tmp_path


@pytest.fixture
def execute(workspace: Path) -> Iterator[Callable[[list[str]], tuple[int, str]]]:
    """execute(words) -> (exit code, output) of ``python *words`` in the workspace."""
    env = {**child_env(), "WANDB_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("zygote.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=env,
        text=True,
        cwd=workspace,
    )
    assert process.stdin
    assert process.stdout
    stdin, stdout, output = process.stdin, process.stdout, workspace / "output.txt"

    def run(words: list[str]) -> tuple[int, str]:
        output.write_text("")
        stdin.write(json.dumps({"words": words, "folder": str(workspace), "output": str(output)}) + "\n")
        stdin.flush()
        answer = stdout.readline()
        return int(answer), output.read_text(errors="replace")

    yield run
    stdin.close()
    process.wait(30)


def test_snippets_run(execute: Callable[[list[str]], tuple[int, str]], tiny_model: Path, books: Path) -> None:
    """In the order of the pages a reader opens first, in one folder: later snippets use what earlier ones made."""
    order = ["docs/quickstart.md", *sorted({s.page for s in RUN} - {"docs/quickstart.md"})]
    failed = []
    for snippet in sorted(RUN, key=lambda s: (order.index(s.page), s.line)):
        for words in _programs(snippet):
            begin = time.monotonic()
            code, output = execute(_tiny(words, tiny_model, books))
            shown = " ".join(words).split("\n")[0][:80]
            print(f"{snippet.name}: {shown}: exit code {code}, {time.monotonic() - begin:.1f} s")
            if code not in snippet.codes:
                failed.append(f"{snippet.name}: {shown}: exit code {code}\n{output[-2500:]}")
    assert not failed, "\n\n".join(failed)


def _programs(snippet: Snippet) -> list[list[str]]:
    """What Python is given for each command of a snippet that is run."""
    if snippet.language == "python":
        ast.parse(snippet.text)
        return [["-c", snippet.text]]
    found = []
    for words in simple_commands(snippet.text):
        if words == ["make", "train"]:  # the recipe, without its set-up of an environment
            assert (
                "python train.py"
                in subprocess.run(
                    ["make", "-n", "train", "ARGS="], cwd=ROOT, capture_output=True, text=True, env=os.environ
                ).stdout
            )
            words = ["python", "train.py"]
        assert words[0] == "python", f"{snippet.name}: only python and make train are run, not {words[0]}"
        found.append(words[1:])
    return found


def _tiny(words: list[str], model: Path, books: Path) -> list[str]:
    """The same command on a model and texts of seconds; what it says itself stays."""
    data = [f"eval.path={books}", "eval.source=pg19", "eval.documents=1", "eval.windows=[32,64]"]
    data += ["eval.stride=16", "eval.baselines=false"]
    sizes = [f"data.path={books}", "data.source=pg19", "data.seq_len=64", "data.workers=1", "train.steps=2"]
    sizes += ["train.global_batch_size=2", "train.micro_batch_size=1", "schedule.warmup_steps=1", "checkpoint.every=1"]
    added = {
        "train.py": [f"model.path={model}", *sizes, *data],
        "yarn_train.plan": [f"model.path={model}", *sizes],
        "yarn_train.eval": data,
    }.get(words[1] if words[0] == "-m" else words[0], [])
    given = {word.partition("=")[0] for word in words}
    return [*words, *(word for word in added if word.partition("=")[0] not in given)]
