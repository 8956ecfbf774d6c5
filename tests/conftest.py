"""Shared fixtures: composed options, a tiny offline model, books in PG19's layout, running train.py."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf
from support import ROOT, child_env, launch_command
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from yarn_train import app, cli
from yarn_train.model.backends import cpu_backward

LENGTH = 32  # the tiny model's original context
TINY = (
    "experiment=extend",
    "eval=none",
    "data.source=pg19",
    "data.seq_len=64",
    "data.workers=1",
    "rope.factor=4",
    "train.steps=8",
    "schedule.warmup_steps=2",
    "checkpoint.every=2",
    "checkpoint.keep=100",
)


def pytest_configure() -> None:
    """A shell starts what is in its background with these ignored; tests send them to processes that inherit this."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked gpu, wherever they stand, skip themselves on a machine without one."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


@pytest.fixture(scope="session", autouse=True)
def untracked() -> Iterator[None]:
    """Whoever is logged in to wandb: tests, and the processes they start, send nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        yield


@pytest.fixture(autouse=True)
def torchs_backward() -> Iterator[None]:
    """A run with compile.enabled chooses the CPU's kernel for its process; the next test shares that."""
    yield
    cpu_backward.use(False)


@pytest.fixture(scope="session")
def compose() -> Callable[..., dict[str, Any]]:
    """compose("experiment=smoke", "rope.alpha=2") -> the plain nested dict train.py would get."""

    def composed(*overrides: str) -> dict[str, Any]:
        cli.register_schema()
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            options = OmegaConf.to_container(hydra_compose("config", list(overrides)), resolve=True)
        assert isinstance(options, dict)
        return {str(key): value for key, value in options.items()}

    return composed


@pytest.fixture(scope="session")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeded word salad in PG19's layout: 8 training books, 2 to validate and 2 to test on."""
    folder = tmp_path_factory.mktemp("books")
    rng = random.Random(7)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 6))) for _ in range(120)]
    for split, count in (("train", 8), ("validation", 2), ("test", 2)):
        (folder / split).mkdir()
        for number in range(count):
            text = " ".join(rng.choices(words, k=400))
            (folder / split / f"{split}{number}.txt").write_text(text + "\n")
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(books: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE with <s> and </s>, trained on the books."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train([str(p) for p in sorted((books / "train").glob("*.txt"))], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", model_max_length=LENGTH)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A 2-layer Llama with tied embeddings and grouped-query attention, pretrained on nothing."""
    folder = tmp_path_factory.mktemp("tiny_model")
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=len(tiny_tokenizer),
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_args(tiny_model: Path, books: Path, tmp_path: Path) -> list[str]:
    """Overrides of a few seconds' run on the tiny model, prepared data inside tmp_path."""
    return [*TINY, f"model.path={tiny_model}", f"data.path={books}", f"data.cache={tmp_path / 'cache'}"]


@pytest.fixture
def train(compose: Callable[..., dict[str, Any]]) -> Callable[..., Path]:
    """train(folder, *overrides): what train.py does, in this process (one rank)."""

    def run(folder: Path, *overrides: str) -> Path:
        typed = {text.split("=")[0].lstrip("+"): text for text in overrides}
        app.train(compose(*overrides), typed, folder)
        return folder

    return run


@pytest.fixture(scope="session")
def rank_server() -> Iterator[subprocess.Popen[str]]:
    """Forks ranks on order, see rank_server.py."""
    command = [sys.executable, str(ROOT / "tests/rank_server.py")]
    env = {**child_env(), "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout
        assert json.loads(process.stdout.readline()) == {"ready": True}
        yield process
        process.kill()


@pytest.fixture
def forked(rank_server: subprocess.Popen[str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """forked(*overrides, ranks=2): train.py on several ranks, as `launch` starts it but without torchrun's seconds."""

    def run(*overrides: str, ranks: int = 2, check: bool = True) -> subprocess.CompletedProcess[str]:
        logs = [str(tmp_path / f".{name}") for name in ("stdout", "stderr")]
        order = {"words": overrides, "ranks": ranks, "environ": child_env(), "logs": logs}
        assert rank_server.stdin
        assert rank_server.stdout
        print(json.dumps(order), file=rank_server.stdin, flush=True)
        codes = json.loads(rank_server.stdout.readline())["codes"]
        said = ["".join(Path(f"{log}.{rank}").read_text() for rank in range(ranks)) for log in logs]
        done = subprocess.CompletedProcess(overrides, next((code for code in codes if code), 0), *said)
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def launch() -> Callable[..., subprocess.CompletedProcess[str]]:
    """launch(*overrides, ranks=2): train.py in processes of its own, under torchrun when ranks > 0."""

    def run(*overrides: str, ranks: int = 0, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = launch_command(*overrides, ranks=ranks)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, env=child_env())
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run
