"""Host memory that loading a model takes beside its own shards: python -m bench.import_memory --gigabytes 2

Writes a Llama with random bfloat16 weights as sharded safetensors and loads it as a run does: each of the ranks (FSDP2,
gloo) reads its rows of each tensor straight into its float32 shard. A thread samples the process's own memory (RssAnon)
and the pages of the files that are mapped (RssFile), which the kernel takes back when it needs them. Stated per rank:
the peak of the first, over what the process held before and what stays, its shards of weights and of AdamW's moments.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.multiprocessing as mp
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from bench.measure import table
from yarn_train import config as schema
from yarn_train.dist import runtime as dist_runtime
from yarn_train.engine.fsdp2 import FSDP2Engine
from yarn_train.model.load import load_config
from yarn_train.model.registry import choose_kernel
from yarn_train.train.setup import build_engine, make_mesh

MIB = 2**20
SAMPLE_SECONDS = 0.002
FILES = 5


def resident() -> dict[str, int]:
    """Bytes of this process: its own memory, and pages of files."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    found = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[0].startswith("Rss")}
    return {"own": found["RssAnon"], "files": found["RssFile"]}


class Peak:
    """The largest of :func:`resident` while it is entered."""

    def __init__(self) -> None:
        self.bytes = resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self.bytes = {key: max(value, self.bytes[key]) for key, value in resident().items()}

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()


def described(gigabytes: float) -> LlamaConfig:
    """A Llama of about so many bytes in bfloat16, in eight layers with a vocabulary that is small beside them."""
    hidden = max(64, round((gigabytes * 1e9 / 2 / (8 * 12)) ** 0.5 / 64) * 64)
    heads = hidden // 64
    sizes = {"hidden_size": hidden, "intermediate_size": 8 * hidden // 3 // 8 * 8, "num_hidden_layers": 8}
    return LlamaConfig(
        **sizes, num_attention_heads=heads, num_key_value_heads=heads, vocab_size=1024, max_position_embeddings=2048
    )


def write_model(folder: Path, config: LlamaConfig) -> int:
    """Random weights in :data:`FILES` files and an index; bytes of the largest tensor."""
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    index: dict[str, str] = {}
    largest = 0
    for number, names in enumerate(_parts(sorted(shapes))):
        file = f"model-{number + 1:05}-of-{FILES:05}.safetensors"
        tensors = {name: torch.randn(shapes[name], dtype=torch.bfloat16) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
        largest = max(largest, *(tensor.nbytes for tensor in tensors.values()))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return largest


def _parts(names: list[str]) -> Iterator[list[str]]:
    size = -(-len(names) // FILES)
    return (names[begin : begin + size] for begin in range(0, len(names), size))


def load(rank: int, ranks: int, folder: str) -> None:
    """One rank: load, and leave what was seen in folder/<rank>.json."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    torch.set_num_threads(1)
    runtime = dist_runtime.start()
    cfg = schema.build({"model": {"path": folder, "dtype": "float32"}, "rope": {"factor": 2.0}})
    base = load_config(folder)
    mesh = make_mesh(cfg, base, runtime)
    kernel = choose_kernel("sdpa", runtime.device, torch.float32)
    before = resident()
    with Peak() as peak:
        engine, _ = build_engine(cfg, base, folder, kernel, mesh, runtime.device)
    assert isinstance(engine, FSDP2Engine)
    moments = [tensor for state in engine.optimizer.state.values() for tensor in state.values()]
    kept = {"shards": _bytes(engine.module.parameters()), "moments": _bytes(moments)}
    over = {key: peak.bytes[key] - before[key] for key in before}
    found = {**kept, "own": over["own"] - sum(kept.values()), "files": over["files"]}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist_runtime.stop()


def _bytes(tensors: Iterable[Any]) -> int:
    """Of this rank's parts."""
    return sum((t.to_local() if isinstance(t, DTensor) else t).nbytes for t in tensors if isinstance(t, torch.Tensor))


def measure(gigabytes: float, ranks: int) -> dict[str, Any]:
    """Bytes of the model's files and of its largest tensor (as float32), and what each rank saw."""
    with tempfile.TemporaryDirectory() as folder:
        largest = 2 * write_model(Path(folder), described(gigabytes))
        model = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        _spawn(folder, ranks)
        seen = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(ranks)]
    return {"model": model, "largest": largest, "ranks": seen}


def _spawn(folder: str, ranks: int) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    mp.spawn(load, (ranks, folder), nprocs=ranks)


def main() -> None:
    """Measure and print, sizes in MiB."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of the model's files")
    parser.add_argument("--ranks", type=int, default=2)
    given = parser.parse_args()
    found = measure(given.gigabytes, given.ranks)
    print(f"files {found['model'] / MIB:.0f} MiB, largest tensor {found['largest'] / MIB:.1f} MiB as float32")
    rows = [
        [str(rank), *(f"{seen[key] / MIB:.1f}" for key in ("shards", "moments", "own", "files"))]
        for rank, seen in enumerate(found["ranks"])
    ]
    print(table(["rank", "shards, MiB", "AdamW's moments", "peak above both", "mapped pages"], rows))


if __name__ == "__main__":
    main()
