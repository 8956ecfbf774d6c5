"""All-reduce between the ranks of this machine: NCCL over its GPUs, gloo between two processes without any."""

from __future__ import annotations

import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..data_sheets import machine
from ..finding import FAIL, OK, SKIP, WARN, Finding
from ..traffic import Group, measure

GIGA = 1e9
EXPECTED = 0.4  # of the data sheet's NVLink rate each way; nccl-tests reach 0.75 and more on healthy machines
PCIE = 4e9  # bytes/s that even GPUs on different sockets reach
LIMIT = 10.0  # seconds


def all_reduce() -> list[Finding]:
    """Starts one process per GPU, or two on the CPU, and measures between them."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 1:
        return [Finding(SKIP, "all-reduce", "one GPU: nothing to talk to")]
    name = torch.cuda.get_device_name(0) if count else None
    ranks = count or 2
    with tempfile.TemporaryDirectory(prefix="yarn-doctor-") as scratch:
        seen = _spawned(ranks, bool(count), Path(scratch, "store"))
    if isinstance(seen, str):
        means = "a run with several ranks on this machine fails in its first collective"
        fix = "NCCL_DEBUG=INFO python -m yarn_train.doctor --only all-reduce" if count else "GLOO_SOCKET_IFNAME=lo"
        return [Finding(FAIL, "all-reduce", seen, means, fix)]
    return [judge(ranks, name, seen["bus"], seen["latency"])]


def _spawned(ranks: int, cuda: bool, store: Path) -> dict[str, float] | str:
    """Rank 0's measurement, or the first error."""
    # A fork of this process has torch already; CUDA does not survive one.
    context: Any = multiprocessing.get_context("spawn" if cuda else "fork")
    results: Any = context.Queue()
    workers = [context.Process(target=_rank, args=(r, ranks, cuda, str(store), results)) for r in range(ranks)]
    for worker in workers:
        worker.start()
    seen: dict[str, float] | str = "no answer"
    for _ in workers:
        rank, answer = results.get(timeout=3 * LIMIT)
        if isinstance(answer, str):
            return f"rank {rank}: {answer}"
        seen = answer if rank == 0 else seen
    return seen


def _rank(rank: int, ranks: int, cuda: bool, store: str, results: Any) -> None:
    place = torch.device("cuda", rank) if cuda else torch.device("cpu")
    torch.set_num_threads(1)
    try:
        group = Group(dist.FileStore(store, ranks), rank, ranks, LIMIT)
        results.put((rank, measure(group, place)))
    except Exception as error:
        results.put((rank, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"))


def judge(ranks: int, gpu: str | None, bus: float, latency: float) -> Finding:
    """Bus bandwidth in bytes/s, as nccl-tests define it: 2 (n-1) / n of the message per second; latency in seconds."""
    figure = f"{bus / GIGA:,.1f} GB/s bus bandwidth, {latency * 1e6:,.0f} us latency"
    facts = {"all_reduce_bus": bus, "all_reduce_latency": latency, "all_reduce_ranks": ranks}
    if gpu is None:
        return Finding(OK, "all-reduce", f"{figure} (gloo, {ranks} processes on the CPU)", facts=facts)
    known = machine(gpu)
    link = known.link if known else None
    least = EXPECTED * link if link else PCIE
    if bus < least:
        of = f"NVLink, {link / GIGA:,.0f} GB/s each way" if link else "any PCIe machine"
        means = "gathering parameters and summing gradients takes longer than a plan says"
        fix = "nvidia-smi topo -m; nvidia-smi nvlink --status; NCCL_DEBUG=INFO; is NCCL_P2P_DISABLE set?"
        text = f"{figure} over {ranks} GPUs, {least / GIGA:,.0f} expected of {of}"
        return Finding(WARN, "all-reduce", text, means, fix, facts)
    return Finding(OK, "all-reduce", f"{figure} (NCCL, {ranks} GPUs)", facts=facts)
