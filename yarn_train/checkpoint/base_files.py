"""Files of the base that belong to any model made from it: its licence, and how it is to be generated with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from .. import model_revision

CARD, GENERATION = "README.md", "generation_config.json"
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*")
OF_THE_HUB = (CARD, GENERATION, "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "USE_POLICY.md")
LENGTHS = ("max_length", "max_new_tokens")  # of what was sensible for the shorter window


def base_files(path: str) -> dict[str, Path]:
    """Card, licence files and generation config of a folder, or of the hub as far as it answers; by name."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        found = {file for pattern in (CARD, GENERATION, *LICENCES) for file in folder.glob(pattern) if file.is_file()}
        return {file.name: file for file in sorted(found)}
    asked = {name: _of_the_hub(path, name) for name in OF_THE_HUB}
    return {name: file for name, file in asked.items() if file is not None}


def licences(files: dict[str, Path]) -> list[str]:
    """Names of the files that hold a licence, not those that only add to one."""
    return [name for name in files if name.upper().startswith(("LICENSE", "LICENCE", "COPYING"))]


def carry(folder: Path, files: dict[str, Path]) -> None:
    """Copy licences into an exported folder, and what the base says of generation but for its lengths."""
    for name, file in files.items():
        if name not in (CARD, GENERATION):
            shutil.copyfile(file, folder / name)
    if GENERATION not in files:
        return
    theirs = json.loads(files[GENERATION].read_text(encoding="utf-8"))
    kept = {key: value for key, value in theirs.items() if key not in LENGTHS}
    (folder / GENERATION).write_text(json.dumps({**kept, "use_cache": True}, indent=2) + "\n", encoding="utf-8")


def _of_the_hub(path: str, name: str) -> Path | None:
    from huggingface_hub import hf_hub_download  # takes a while to import, and most models are folders

    try:
        return Path(hf_hub_download(path, name, revision=model_revision.of(path)))
    except Exception:  # it has no such file, or cannot be asked: nothing depends on it
        return None
