"""Train the byte-level BPE tokenizer of the shipped base model. Deterministic: same files, same tokenizer.

    python data/train_tokenizer.py --source stdlib+pg19 --path <pg19 folder> --out data/base --vocab-size 4096

Only the train split is read. Every book contributes the same number of characters, and all books together no more than
the code, so that prose does not crowd the indentation and identifiers of the code out of a small vocabulary.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# A script finds the modules beside it; the package is one folder up and need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from yarn_train.config import DOCUMENT_SOURCES, DataConfig
from yarn_train.data.documents import Documents, read_all
from yarn_train.data.sources import open_documents
from yarn_train.errors import YarnTrainError

BOS, EOS = "<s>", "</s>"


def corpus(data: DataConfig) -> Iterator[str]:
    """Texts to train on: all code, and an equal slice of every book capped at the code's bytes in total."""
    listed = {part: part_of(data, part, "train") for part in data.source.split("+")}
    budget = int(listed["stdlib"].sizes().sum()) if "stdlib" in listed else None
    for part, found in listed.items():
        quota = budget // len(found) if budget is not None and part != "stdlib" else None
        for _, text in read_all(found):
            yield text if quota is None else _middle(text, quota)


def part_of(data: DataConfig, part: str, split: str) -> Documents:
    """One split of one part of a source such as ``stdlib+pg19``."""
    return open_documents(dataclasses.replace(data, source=part), split)


def _middle(text: str, length: int) -> str:
    """``length`` characters from the middle: the ends of a book are its contents page and its notes."""
    start = max(0, (len(text) - length) // 2)
    return text[start : start + length]


def train(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE: any text round-trips; bos is id 0, eos is id 1; bos is put before encoded text."""
    tokenizer = Tokenizer(models.BPE())
    # The regex keeps "\n" and the spaces after it in one piece (less the space before the word), so BPE learns
    # every common indentation as one token.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0), (EOS, 1)]
    )
    return tokenizer


def save(tokenizer: Tokenizer, out: Path) -> None:
    """Write a Hugging Face tokenizer folder that plain ``AutoTokenizer`` loads."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(out)


def bytes_per_token(tokenizer: Any, held: Documents) -> float:
    """Bytes of UTF-8 per token over documents the tokenizer never saw."""
    total_bytes = total_tokens = 0
    for _, text in read_all(held):
        total_bytes += len(text.encode())
        total_tokens += len(tokenizer.encode(text, add_special_tokens=False).ids)
    return total_bytes / total_tokens


def main() -> None:
    """Parse the arguments, train, save, and report bytes per token on held-out documents of each source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=DOCUMENT_SOURCES, default="stdlib")
    parser.add_argument("--path", help="folder, file or hub id of the pg19 or text source")
    parser.add_argument(
        "--held-out",
        type=float,
        default=0.1,
        help="share of documents never read, of sources without splits (default 0.1)",
    )
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    data = DataConfig(source=args.source, path=args.path, held_out=args.held_out)
    started = time.perf_counter()
    tokenizer = train(corpus(data), args.vocab_size)
    save(tokenizer, args.out)
    print(f"{args.out}: {tokenizer.get_vocab_size()} tokens, trained in {time.perf_counter() - started:.1f} s")
    for part in args.source.split("+"):
        rate = bytes_per_token(tokenizer, part_of(data, part, "test"))
        print(f"{part} test split: {rate:.3f} bytes per token")


if __name__ == "__main__":
    try:
        main()
    except YarnTrainError as error:
        sys.exit(f"error: {error}")
