"""``python -m yarn_train.export_gguf FOLDER OUT.gguf``: a Hugging Face folder as llama.cpp's single file.

llama.cpp computes the same frequencies and the same factor on cos and sin from it, or nothing is written and the reason
is said. FOLDER is any model folder of a stage, or one from ``python -m yarn_train.export``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .dist import environment
from .errors import YarnTrainError
from .gguf.write import TORCH, write_gguf
from .redact import guard_streams


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and export; exit status 2 for anything a user can fix."""
    parser = argparse.ArgumentParser(prog="python -m yarn_train.export_gguf", description=__doc__)
    parser.add_argument("folder", type=Path, help="Hugging Face folder with config.json and safetensors")
    parser.add_argument("out", type=Path, help="file to write; must not exist")
    parser.add_argument("--dtype", choices=sorted(TORCH), default="f32", help="of the matrices (default: f32)")
    options = parser.parse_args(arguments)
    try:
        rope = write_gguf(options.folder, options.out, options.dtype)
    except YarnTrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    how = "one divisor per pair" if rope.divisors is not None else f"type {rope.kind}"
    print(f"exported {options.folder} to {options.out}: RoPE as {how}, factor {rope.factor:g}")
    return 0


if __name__ == "__main__":
    guard_streams(environment.secrets())
    sys.exit(main())
