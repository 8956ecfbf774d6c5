"""The report for a text viewer; pictures are linked by file name, as they lie beside it."""

from __future__ import annotations

from collections.abc import Sequence

from .blocks import Block, Code, Folded, Heading, Picture
from .tables import Grid, to_markdown


def as_markdown(page: Sequence[Block]) -> str:
    """All blocks, one below the other; a heading with nothing to show below it here is left out."""
    found = [(block, _text(block)) for block in page]
    found = [(block, text) for block, text in found if text]
    follows = [*(block for block, _ in found[1:]), Heading("")]
    return "\n".join(text for (block, text), below in zip(found, follows, strict=True) if not _empty(block, below))


def _empty(block: Block, below: Block) -> bool:
    return isinstance(block, Heading) and isinstance(below, Heading) and below.level <= block.level


def _text(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}\n"
    if isinstance(block, Picture):
        return f"![{block.text}]({block.path.name})\n" if block.path else ""
    if isinstance(block, Code):
        return f"```bash\n{block.text}\n```\n"
    if isinstance(block, Folded):
        return f"{block.title}.\n"
    return to_markdown(block) if isinstance(block, Grid) else f"{block}\n"
