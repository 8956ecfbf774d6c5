"""Tokenise and pack a folder of books: this project against the usual pipeline of ``datasets``, side by side.

    python -m bench.prepare --books FOLDER [--tokenizer data/base] [--llama-vocab 32000] [--seq-len 65536]

The reference is what context-extension recipes do: ``load_dataset``, ``map`` with the tokenizer over batches of
documents in ``num_proc`` processes, and a second ``map`` that joins each batch and cuts it into blocks. Both get the
same files in the same order, the same tokenizer and the same number of processes, start from text files (read once
before, so that both find them in memory) and end in a folder on disk; each runs in a process of its own. Every id of
the reference is compared with ours; what it drops at the end of each batch has nothing to be compared with. Memory is
the largest sum over the process and its children of what they hold themselves (proportional set size without mapped
files), read every 50 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.measure import table

MAP_BATCH = 1000  # the default of datasets.map, and of the recipes
PG19_BYTES = 11_453_688_524  # the train split's texts, as its data card gives them


def reference(files: list[str], tokenizer_path: str, seq_len: int, processes: int, out: Path) -> None:
    """The usual pipeline."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)

    def tokenize(batch: dict[str, Any]) -> dict[str, Any]:
        ids = tokenizer(batch["text"], add_special_tokens=False)["input_ids"]
        return {"input_ids": [[tokenizer.bos_token_id, *one, tokenizer.eos_token_id] for one in ids]}

    def group_texts(batch: dict[str, Any]) -> dict[str, Any]:
        joined = [token for one in batch["input_ids"] for token in one]
        whole = len(joined) // seq_len * seq_len
        return {"input_ids": [joined[i : i + seq_len] for i in range(0, whole, seq_len)]}

    cache = str(out / "cache")
    data = load_dataset("text", data_files=files, sample_by="document", split="train", cache_dir=cache)
    data = data.map(tokenize, batched=True, batch_size=MAP_BATCH, num_proc=processes, remove_columns=["text"])
    data = data.map(group_texts, batched=True, batch_size=MAP_BATCH, num_proc=processes)
    data.save_to_disk(str(out / "packed"))


def ours(books: str, tokenizer_path: str, seq_len: int, processes: int, out: Path) -> None:
    """This project; prints the seconds of its two steps, without the start of the interpreter and its libraries."""
    from yarn_train.config import DataConfig
    from yarn_train.data.progress import Progress
    from yarn_train.data.store import prepare

    times: list[float] = []
    busy_at: list[float] = []

    def update(now: Progress) -> None:
        times.append(time.perf_counter())
        busy_at.append(time.process_time())

    data = DataConfig(source="pg19", path=books, seq_len=seq_len)
    prepare(data, tokenizer_path, cache=str(out / "packed"), workers=processes, progress=update)
    steps = {"tokenise": times[-1] - times[0], "pack": time.perf_counter() - times[-1]}
    print(json.dumps({**steps, "parent": busy_at[-1] - busy_at[0]}))


def compare(out: Path, theirs: Path, seq_len: int, files: int, processes: int) -> tuple[int, int]:
    """Compare the reference's blocks with our stream of tokens.

    The reference loses the tail of each process's batch: its blocks are pieces of our stream that begin where the first
    document of each batch does.

    Returns:
        (tokens compared, tokens of our segments that the reference lost).

    Raises:
        SystemExit: if a token differs.
    """
    from datasets import load_from_disk

    from yarn_train.data.segments import open_segments

    segments = open_segments(out / "packed")
    stream = np.concatenate([block.reshape(-1) for block in segments.blocks()])
    starts = [int(start) for start in segments.starts]
    blocks = load_from_disk(str(theirs / "packed")).with_format("numpy")
    row = compared = 0
    for first, last in batches(files, processes):
        begin = starts[first]
        end = starts[last] if last < len(starts) else segments.described["tokens_in"]
        for at in range(begin, end - seq_len + 1, seq_len):
            wanted, found = stream[at : at + seq_len], np.asarray(blocks[row]["input_ids"])
            if not np.array_equal(wanted, found[: len(wanted)]):  # the last of ours may be in the remainder
                raise SystemExit(f"block {row} of the reference differs from our stream at token {at:,}")
            compared += len(wanted)
            row += 1
    if row != len(blocks):
        raise SystemExit(f"the reference has {len(blocks)} blocks, {row} were expected")
    return compared, len(stream) - compared


def batches(files: int, processes: int) -> Iterator[tuple[int, int]]:
    """Documents [first, last) of each batch: contiguous shards per process, then ``MAP_BATCH`` at a time."""
    size, extra = divmod(files, processes)
    first = 0
    for rank in range(processes):
        last = first + size + (rank < extra)
        for at in range(first, last, MAP_BATCH):
            yield at, min(last, at + MAP_BATCH)
        first = last


class Memory(threading.Thread):
    """Watches the memory of a process and its descendants.

    Attributes:
        peak: largest sum of proportional set sizes so far, in bytes.
        largest: the largest of a single process.
    """

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.pid, self.peak, self.largest = pid, 0, 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.05):
            sizes = [proportional_bytes(pid) for pid in descendants(self.pid)]
            self.peak, self.largest = max(self.peak, sum(sizes)), max(self.largest, *sizes)


def descendants(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(below for child in children for below in descendants(int(child)))]


def proportional_bytes(pid: int) -> int:
    """A process's proportional set size without what only mirrors files; 0 when it is gone."""
    try:
        fields = dict(line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
        return 1024 * (int(fields["Pss_Anon"].split()[0]) + int(fields["Pss_Shmem"].split()[0]))
    except (OSError, KeyError):
        return 0


def measured(which: str, args: argparse.Namespace, out: Path) -> dict[str, float]:
    """Run one pipeline in a process of its own: seconds and bytes, and what it says of its steps."""
    out.mkdir()
    job = {"which": which, "books": args.books, "files": args.files, "tokenizer": args.current, "out": str(out)}
    job |= {"seq_len": args.seq_len, "processes": args.processes}
    environment = {**os.environ, "HF_DATASETS_CACHE": str(out / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "bench.prepare", "--job", json.dumps(job)]
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    memory = Memory(process.pid)
    memory.start()
    output, errors = process.communicate()
    seconds = time.perf_counter() - started
    memory.over.set()
    memory.join()
    if process.returncode:
        raise SystemExit(f"{which} failed:\n{errors}")
    steps = json.loads(output.splitlines()[-1]) if which == "ours" else {}
    return {"seconds": seconds, "peak": memory.peak, "largest": memory.largest, **steps}


def llama_like(books: list[str], vocab_size: int, out: Path) -> Path:
    """A tokenizer built as Llama 2's is: SentencePiece-style BPE, prefix space, byte fallback, trained on ``books``."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)  # while training only
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    made.train(books[:60], trainer)
    described = json.loads(made.to_str())
    described["pre_tokenizer"] = None
    described["added_tokens"] = [token for token in described["added_tokens"] if token["id"] < 3]
    made = Tokenizer.from_str(json.dumps(described))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(out)
    return out


def ordered(books: str) -> list[str]:
    """The books in the order in which this project packs them."""
    from yarn_train.config import DataConfig
    from yarn_train.data.job import ORDER_SEED, shuffled
    from yarn_train.data.sources import open_documents

    listed = open_documents(DataConfig(source="pg19", path=books), "train")
    names = [listed.name(i) for i in range(len(listed))]
    return [str(Path(books) / "train" / Path(names[i]).name) for i in shuffled(names, ORDER_SEED)]


def link_all(source: Path, folder: Path) -> str:
    """A folder in PG19's layout with the books of all splits in train/."""
    (folder / "train").mkdir(parents=True)
    for book in sorted(source.glob("*/*.txt")):
        (folder / "train" / book.name).symlink_to(book.resolve())
    return str(folder)


def main() -> None:
    """Measure every tokenizer and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", type=Path, help="folder with {train,validation,test}/*.txt; all are used")
    parser.add_argument("--tokenizer", action="append", default=None, help="default: data/base")
    parser.add_argument("--llama-vocab", type=int, default=32_000, help="also train a Llama-2-like one; 0 does not")
    parser.add_argument("--seq-len", type=int, default=65_536)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        job = json.loads(args.job)
        out = Path(job["out"])
        if job["which"] == "reference":
            reference(job["files"], job["tokenizer"], job["seq_len"], job["processes"], out)
        else:
            ours(job["books"], job["tokenizer"], job["seq_len"], job["processes"], out)
        return
    if args.books is None:
        parser.error("--books is needed")
    with tempfile.TemporaryDirectory(prefix="bench_prepare_") as scratch:
        args.books = link_all(args.books, Path(scratch) / "books")
        args.files = ordered(args.books)
        mb = sum(Path(file).stat().st_size for file in args.files) / 1e6
        tokenizers = {path: path for path in args.tokenizer or ["data/base"]}
        if args.llama_vocab:
            name = f"Llama-2-like, {args.llama_vocab:,} tokens"
            tokenizers[name] = str(llama_like(args.files, args.llama_vocab, Path(scratch) / "llama"))
        for file in args.files:
            Path(file).read_bytes()
        print(f"{len(args.files)} books, {mb:.1f} MB, {args.processes} processes, segments of {args.seq_len:,} tokens")
        rows = []
        for number, (name, args.current) in enumerate(tokenizers.items()):
            outs = {which: Path(scratch) / f"{which}{number}" for which in ("reference", "ours")}
            found = {which: measured(which, args, out) for which, out in outs.items()}
            same, lost = compare(outs["ours"], outs["reference"], args.seq_len, len(args.files), args.processes)
            rows += [row(name, which, mb, found) for which in found]
            print(f"{name}: {same:,} tokens equal; the reference lost {lost:,} more")
            print("\n".join(f"{name}: {line}" for line in extrapolated(mb, found["ours"], args.processes)))
        header = ["tokenizer", "pipeline", "seconds", "MB/s", "rate", "peak GiB", "of reference", "largest process GiB"]
        print(table(header, rows))


def extrapolated(mb: float, found: dict[str, float], processes: int) -> list[str]:
    """PG19's training books on 16 cores, from the rates of this run; the one process that cuts and packs is a limit."""
    worker, parent, packing = mb / found["tokenise"] / processes, mb / found["parent"], mb / found["pack"]
    minutes = PG19_BYTES / 1e6 * (1 / min(16 * worker, parent) + 1 / packing) / 60
    limit = "by the workers" if 16 * worker < parent else "by the process that cuts"
    return [
        f"MB/s: a worker tokenises {worker:.1f}, the process that cuts up to {parent:.0f}, packing {packing:.0f}",
        f"PG19's {PG19_BYTES / 1e9:.1f} GB with 16 workers at these rates: {minutes:.1f} minutes, limited {limit}",
    ]


def row(name: str, which: str, mb: float, found: dict[str, dict[str, float]]) -> list[str]:
    """One line of the table."""
    mine, base = found[which], found["reference"]
    return [
        name,
        which,
        f"{mine['seconds']:.1f}",
        f"{mb / mine['seconds']:.1f}",
        f"{base['seconds'] / mine['seconds']:.2f}x",
        f"{mine['peak'] / 2**30:.2f}",
        f"{mine['peak'] / base['peak']:.2f}",
        f"{mine['largest'] / 2**30:.2f}",
    ]


if __name__ == "__main__":
    main()
