"""Write passkey documents, so that a small model can be trained to answer passkey prompts.

    python data/passkey.py --out FOLDER --documents 20000 --tokens 96:256 --tokenizer data/base --seed 0

Each is a prompt of the evaluation with its answer: a key of five digits at a random depth of a text of random length.
``train.py data.source=text data.path=FOLDER`` reads them. One key in ten, chosen by its SHA-256, is kept for
evaluations and never written here.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

# A script finds the modules beside it; the package is one folder up and need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from yarn_train.data.tokenize import load_tokenizer
from yarn_train.errors import YarnTrainError
from yarn_train.eval.passkey.kinds import training_text
from yarn_train.eval.passkey.tokens import Tokens


def write(out: Path, documents: int, shortest: int, longest: int, tokenizer: str, seed: int) -> Path:
    """Write ``out/train.jsonl``; the same arguments give the same bytes.

    Raises:
        YarnTrainError: no tokenizer, or no prompt is as short as `shortest`.
    """
    tokens = Tokens(load_tokenizer(tokenizer))
    out.mkdir(parents=True, exist_ok=True)
    path = out / "train.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(documents):
            text = training_text(tokens, seed, shortest, longest, number)
            file.write(json.dumps({"text": text}) + "\n")
    return path


def main() -> None:
    """Parse the arguments and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--tokens", default="96:256", help="MIN:MAX tokens of a document, BOS and EOS included")
    parser.add_argument("--tokenizer", default="data/base", help="folder or hub id")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    shortest, _, longest = args.tokens.partition(":")
    if not (shortest.isdigit() and longest.isdigit() and int(shortest) <= int(longest)):
        parser.error(f"--tokens {args.tokens}: write MIN:MAX, such as 96:256")
    path = write(args.out, args.documents, int(shortest), int(longest), args.tokenizer, args.seed)
    print(f"{path}: {args.documents} documents")


if __name__ == "__main__":
    try:
        main()
    except YarnTrainError as error:
        sys.exit(f"error: {error}")
