"""Small corpora and tokenizers that need no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS = "<s>", "</s>"
TEXT = ["The whale is not a fish, said the captain; it is a beast of the sea. </s>\n", "def f(x):\n    return x\n"]


def byte_level(vocab_size: int = 300) -> Tokenizer:
    """A byte-level BPE with BOS = 0 and EOS = 1."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    return tokenizer


def mergeable_eos() -> Tokenizer:
    """A tokenizer whose merges build ``</s>`` from plain characters, as a BPE trained on web pages can."""
    vocab = {BOS: 0, EOS: 1, "<": 2, "/": 3, "s": 4, ">": 5, "</": 6, "s>": 7, "a": 8}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("<", "/"), ("s", ">"), ("</", "s>")]))
    tokenizer.add_special_tokens([AddedToken(BOS, special=True), AddedToken(EOS, special=True)])
    return tokenizer


@pytest.fixture(scope="session")
def tokenizers_by_kind(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of tokenizers; adds_bos adds BOS and EOS by itself, eos_only is GPT style, padded has a third mark."""
    adding = byte_level()
    adding.post_processor = processors.TemplateProcessing(single=f"{BOS} $A {EOS}", special_tokens=[(BOS, 0), (EOS, 1)])
    kinds = {
        "plain": (byte_level(), {"bos_token": BOS, "eos_token": EOS}),
        "adds_bos": (adding, {"bos_token": BOS, "eos_token": EOS}),
        "eos_only": (byte_level(), {"eos_token": EOS}),
        "no_eos": (byte_level(), {"bos_token": BOS}),
        "mergeable": (mergeable_eos(), {"bos_token": BOS, "eos_token": EOS}),
        "padded": (byte_level(), {"bos_token": BOS, "eos_token": EOS, "pad_token": "<pad>"}),
        "other": (byte_level(vocab_size=280), {"bos_token": BOS, "eos_token": EOS}),
    }
    folders = {}
    for kind, (backend, markers) in kinds.items():
        folder = tmp_path_factory.mktemp(f"tokenizer_{kind}")
        PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=16, **markers).save_pretrained(folder)
        folders[kind] = str(folder)
    return folders


@pytest.fixture
def plain(tokenizers_by_kind: dict[str, str]) -> str:
    return tokenizers_by_kind["plain"]


@pytest.fixture
def books(tmp_path: Path) -> Callable[..., str]:
    """Make a folder of books in PG-19's layout; ``books(train=["text", b"bytes"])`` returns its path."""

    def make(**splits: list[str | bytes]) -> str:
        root = tmp_path / "books"
        for split, texts in splits.items():
            (root / split).mkdir(parents=True, exist_ok=True)
            for i, text in enumerate(texts):
                content = text if isinstance(text, bytes) else text.encode()
                (root / split / f"{i}.txt").write_bytes(content)
        return str(root)

    return make
