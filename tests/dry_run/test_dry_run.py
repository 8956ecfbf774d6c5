"""``launch.dry_run``: what it finds, says, refuses and never writes; and that broken rules of ours do not pass it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, child_env
from transformers import LlamaConfig

from yarn_train import app
from yarn_train import config as schema
from yarn_train.config import Config
from yarn_train.data import loader
from yarn_train.dist import environment
from yarn_train.dist import mesh as dist_mesh
from yarn_train.dist import runtime as dist_runtime
from yarn_train.dry_run import ranks as dry_ranks
from yarn_train.dry_run import run as dry_run
from yarn_train.dry_run.checkpoints import checkpoint_bytes
from yarn_train.dry_run.command import commands
from yarn_train.dry_run.ranks import every_rank
from yarn_train.dry_run.verify import RuleBroken, uneven, verify
from yarn_train.dry_run.zero import zero_pieces
from yarn_train.errors import ConfigError
from yarn_train.model.load import load_config
from yarn_train.parallel.shard import Layout
from yarn_train.plan.jobs import Tracer

Dry = Callable[..., str]
OPTIONS: dict[str, Mapping[str, Any]] = {
    "FSDP2": {},
    "HSDP": {"parallel": {"replicate": 2}},
    "ZeRO-1": {"engine": {"name": "deepspeed", "zero_stage": 1}},
    "ZeRO-3": {"engine": {"name": "deepspeed", "zero_stage": 3}},
}


class OneProcess(Tracer):
    """Traces here: a process of their own costs seconds."""

    def __enter__(self) -> OneProcess:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @property
    def _pool(self) -> Any:
        class Now:
            def submit(self, call: Callable[..., Any], *given: Any) -> Any:
                result = call(*given)
                return type("Done", (), {"result": lambda self: result})()

        return Now()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process group of an earlier test, and no network."""
    dist_runtime.stop()

    def refuse(self: socket.socket, address: object) -> None:
        raise AssertionError(f"a dry run must not connect to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def dry(
    compose: Callable[..., dict[str, Any]],
    tiny_args: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Dry:
    """dry(nodes, workers, *overrides) -> what it prints; the run folder is tmp_path/run."""
    monkeypatch.setattr(dry_run, "Tracer", OneProcess)

    def run(nodes: int, workers: int, *overrides: str) -> str:
        launch = [f"launch.nnodes={nodes}", f"launch.nproc_per_node={workers}", "launch.dry_run=true"]
        words = [*tiny_args, *launch, "train.global_batch_size=16", *overrides]
        capsys.readouterr()
        app.train(compose(*words), {word.split("=")[0]: word for word in words}, tmp_path / "run")
        return capsys.readouterr().out

    return run


def small(options: Mapping[str, Any] = {}) -> Config:
    """A stage of four sequences of 48 tokens per step."""
    plain = {"data": {"seq_len": 48}, "train": {"global_batch_size": 4}, "rope": {"factor": 4.0}}
    return schema.build(plain | dict(options))


@pytest.fixture(scope="module")
def base() -> LlamaConfig:
    """Rows of 24, 40 and 10: no two of them are cut alike by 4 ranks, and 10 not evenly."""
    return LlamaConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        vocab_size=10,
        max_position_embeddings=32,
    )


def checked(cfg: Config, base: LlamaConfig, ranks: int) -> list[dry_ranks.RankView]:
    views = every_rank(cfg, base, ranks)
    verify(views, cfg, base)
    return views


# ---- the whole of it ----


def test_the_papers_chain_on_64_gpus_is_checked(
    compose: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["experiment=yarn_llama2_7b_chain", "launch.nnodes=8", "launch.nproc_per_node=8", "launch.dry_run=true"]
    monkeypatch.chdir(tmp_path)
    app.train(compose(*words), {word.split("=")[0]: word for word in words}, tmp_path / "run")
    text = capsys.readouterr().out
    assert "8 node(s) x 8 H100 SXM 80 GB = 64 ranks" in text
    assert "ranks of stage s16, s32: all 64 tried" in text
    assert "8,388,608 tokens, each read exactly once" in text
    assert "1.18 to 1.18 GiB of weights and moments per rank" in text  # 12 x 6,738,415,616 / 64
    assert text.count("FITS") == 2
    assert "DOES NOT FIT" not in text
    assert "WARNING" not in text
    assert "emozilla/pg19 of the hub" in text
    assert (
        "sbatch --nodes=8 --gpus-per-node=8 --exclusive launch/slurm.sbatch experiment=yarn_llama2_7b_chain\n" in text
    )
    assert list(tmp_path.iterdir()) == []


def test_the_entry_leaves_nothing_behind_and_reports_every_problem_at_once(tmp_path: Path, tiny_model: Path) -> None:
    folder = tmp_path / "run"
    wrong = ["launch.nnodes=3", "launch.nproc_per_node=2", "parallel.replicate=4", "memory.loss=full"]
    wrong += ["data.seq_len=8388608", "launch.dry_run=true", f"model.path={tiny_model}", f"run.dir={folder}"]
    command = [sys.executable, str(ROOT / "train.py"), "experiment=extend", "eval=none", "rope.factor=4", *wrong]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, env=child_env())
    assert done.returncode == 2, done.stdout + done.stderr
    assert "2 problems in the configuration" in done.stderr
    assert "a divisor of the number of ranks (6)" in done.stderr
    assert "memory.loss: got 'full'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_writes_nothing_and_names_the_commands(dry: Dry, tmp_path: Path, books: Path) -> None:
    text = dry(2, 4, "launch.timeout=900")
    assert list(tmp_path.iterdir()) == []
    assert f"{books}, here; every node must see it" in text
    assert "not prepared here" in text
    assert "a folder here, 0.00 GiB of safetensors" in text
    sbatch, own = text.splitlines()[-2:]
    assert sbatch.startswith("  sbatch --nodes=2 --gpus-per-node=4 --exclusive launch/slurm.sbatch experiment=extend ")
    assert "launch.timeout=900" in sbatch
    assert "launch.dry_run" not in sbatch + own
    assert own.endswith("launch.nnodes=2 launch.nproc_per_node=4 launch.rendezvous=FIRST_NODE:29500  # on each node, "
                        "without Slurm")  # fmt: skip


def test_an_existing_run_is_continued_or_refused(dry: Dry, train: Callable[..., Path], tiny_args: list[str],
                                                 tmp_path: Path) -> None:  # fmt: skip
    train(tmp_path / "run", *tiny_args, "train.global_batch_size=16", "train.stop_after=4")
    dist_runtime.stop()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    text = dry(1, 4)
    assert "goes on with stage s4 after step 4, saved by 1 ranks and sharded anew" in text
    assert "prepared: " in text
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with pytest.raises(ConfigError, match=r"optim\.lr: was 0\.0003, now 0\.5"):
        dry(1, 4, "optim.lr=0.5")
    with pytest.raises(ConfigError, match=r"run\.resume: got 'never'"):
        dry(1, 4, "run.resume=never")


def test_what_does_not_fit_exits_with_3(dry: Dry, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        dry(1, 2, "plan.memory_gib=1")
    assert stop.value.code == 3
    assert "dry run: DOES NOT FIT" in capsys.readouterr().out


def test_packages_that_only_this_machine_lacks_are_notes(dry: Dry, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.util.find_spec
    absent = {"torchao", "liger_kernel", "deepspeed"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in absent else installed(name, *a))
    text = dry(1, 2, "optim.state=8bit", "memory.loss=fused", "model.attention=flash_attention_2", "plan.gpus=5")
    assert text.count("needed on every node, not here: ") == 2
    assert "flash-attn 2.8 or later must be installed on every node" in text
    assert "plan.gpus=5 is not used" in text
    assert "needed on every node, not here: engine.name" in dry(1, 2, "engine.name=deepspeed")
    with pytest.raises(ConfigError, match=r"engine.zero_stage: got 0"):
        dry(1, 2, "engine.name=deepspeed", "engine.zero_stage=0")


def test_only_rank_0_of_a_launcher_does_it(dry: Dry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "rank", lambda: 1)
    assert dry(1, 2) == ""


def test_no_hub_is_asked(dry: Dry) -> None:
    with pytest.raises(ConfigError, match="hf download some/model --include"):
        dry(1, 2, "model.path=some/model")
    text = dry(1, 2, "run.init_from=outputs/none_such", "data.path=some/books", "data.cache=null")
    assert "run.init_from=outputs/none_such: not on this machine" in text
    assert "some/books of the hub, its newest commit" in text
    assert "not in this machine's cache of the hub; nodes use theirs" in dry(1, 2, "run.init_from=some/model")


def test_weights_and_data_that_are_here_and_do_not_fit_are_refused_together(
    dry: Dry, tiny_tokenizer: Any, base: LlamaConfig, tmp_path: Path, train: Callable[..., Path], tiny_args: list[str]
) -> None:
    train(tmp_path / "other", *tiny_args, "train.steps=2")
    dist_runtime.stop()
    base.save_pretrained(tmp_path / "small")
    tiny_tokenizer.save_pretrained(tmp_path / "small")
    with pytest.raises(ConfigError) as error:
        dry(1, 2, f"run.init_from={tmp_path / 'small'}", "data.seq_len=32")
    text = str(error.value)
    assert "run.init_from hidden_size: got 24; allowed: 32" in text
    assert "got 'seq_len=64'; allowed: what this run asks for: seq_len=32" in text


# ---- groups and machines ----


@pytest.mark.parametrize(
    ("nodes", "workers", "options", "fix"),
    [
        (2, 2, ["parallel.context=4"], "parallel.context_method=auto parallel.ulysses=2 keeps them on one"),
        (4, 2, ["parallel.replicate=2"], "parallel.replicate=4 (a plan says whether that fits) keeps copies on one"),
        (4, 2, ["parallel.replicate=2", "parallel.shard=4"], "parallel.replicate=4 parallel.shard=2"),
        (2, 3, ["parallel.context=2", "train.global_batch_size=12"], "parallel.context=1 keeps them on one"),
        (2, 2, ["parallel.context=4", "parallel.ulysses=2"], None),
        (4, 2, ["parallel.replicate=4"], None),
        (4, 2, ["parallel.context=2"], None),
        (4, 2, [], None),
    ],
)
def test_groups_that_cross_machines_and_need_not_come_with_better_sizes(
    dry: Dry, nodes: int, workers: int, options: list[str], fix: str | None
) -> None:
    warned = crossing(dry(nodes, workers, *options))
    if fix is None:
        assert warned == []
        return
    (line,) = warned
    assert fix in line
    changed = {word.partition("=")[0]: word for word in [*options, *fix.split()] if "=" in word}
    assert crossing(dry(nodes, workers, *changed.values())) == []  # what it says helps


def crossing(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("WARNING") and "between nodes" in line]


def test_ranks_that_keep_less_than_others_are_named(base: LlamaConfig) -> None:
    (line,) = uneven(checked(small({"train": {"global_batch_size": 6}}), base, 6))
    assert re.match(r"rank 5 keeps \d\d% less of the model than rank 0: ", line)
    many = small({"train": {"global_batch_size": 64}})
    assert "ranks keep nothing of the model (the first is rank 40)" in uneven(checked(many, base, 64))[0]
    assert uneven(checked(small({"parallel": {"replicate": 2}}), base, 4)) == []


# ---- broken rules of ours ----


@pytest.mark.parametrize("parallel", [{}, {"context": 2}, {"context": 3, "context_method": "ring"},
                                      {"context": 4, "ulysses": 2}, {"replicate": 2, "context": 2}])  # fmt: skip
def test_every_layout_reads_and_keeps_everything_once(base: LlamaConfig, parallel: dict[str, Any]) -> None:
    ranks = 6 if parallel.get("context") == 3 else 8
    plain = {"train": {"global_batch_size": 24, "micro_batch_size": 1}, "data": {"seq_len": 50}}
    views = checked(small({"parallel": parallel, **plain}), base, ranks)
    assert [view.rank for view in views] == list(range(ranks))


def test_a_mixture_is_read_once_too(base: LlamaConfig) -> None:
    parts = {"a": {"weight": 3, "source": "stdlib"}, "b": {"weight": 1, "source": "text", "path": "x"}}
    data = {"source": "mixture", "mixture": parts, "seq_len": 32}
    cfg = small({"data": data, "eval": {"enabled": False}, "train": {"global_batch_size": 8, "micro_batch_size": 2}})
    checked(cfg, base, 4)


def _every_rank_reads_rank_0s(ids: list[int], rank: int, ranks: int, size: int) -> list[list[int]]:
    return [ids[start : start + size] for start in range(0, len(ids), size * ranks)]


def _no_zigzag(layout: Layout, length: int, rank: int) -> list[tuple[int, int]]:
    chunk = length // (2 * layout.ring)
    return [(chunk * rank, chunk * (rank + 2))]


@pytest.mark.parametrize(
    ("owner", "name", "broken", "parallel", "message"),
    [
        (loader, "local_ids", _every_rank_reads_rank_0s, {}, r"step 1, segment and token \d+ and 0 belongs to"),
        (loader, "local_ids", lambda *a: [], {}, r"step 1, segment and token \d+ and 0 belongs to no rank"),
        (Layout, "ring_runs", _no_zigzag, {"context": 2, "context_method": "ring"}, "belongs to ranks 0 and 1"),
        (Layout, "runs", lambda self, length, rank: [(0, length // 2)], {"context": 2}, "belongs to ranks 0 and 1"),
        (dist_mesh.Mesh, "data_rank", property(lambda self: 0), {}, "belongs to ranks 0 and 1"),
        (dist_mesh.Mesh, "context_rank", property(lambda self: 1), {"context": 2}, "belongs to"),
        (
            dry_ranks,
            "chunk_start",
            lambda rows, ranks, rank: rows // ranks * rank,
            {},
            "parameter .* belongs",
        ),
    ],
)
def test_a_broken_rule_does_not_pass(
    monkeypatch: pytest.MonkeyPatch,
    base: LlamaConfig,
    owner: Any,
    name: str,
    broken: Any,
    parallel: dict[str, Any],
    message: str,
) -> None:
    cfg = small({"parallel": parallel})
    checked(cfg, base, 4)
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(RuleBroken, match=message) as error:
        checked(cfg, base, 4)
    assert error.value.exit_code == 1


def test_ranks_that_disagree_about_a_group_do_not_pass(base: LlamaConfig) -> None:
    cfg = small()
    views = checked(cfg, base, 4)
    views[1] = dataclasses.replace(views[1], groups={**views[1].groups, "sharding": (0, 1, 2)})
    with pytest.raises(RuleBroken, match=r"sharding group of rank 0 is \[0, 1, 2, 3\], but of rank 1 \[0, 1, 2\]"):
        verify(views, cfg, base)


def test_labels_that_get_lost_do_not_pass(monkeypatch: pytest.MonkeyPatch, base: LlamaConfig) -> None:
    make = loader.make_batch

    def forgetful(segments: Any, documents: Any = None) -> Any:
        batch = make(segments, documents)
        batch.labels[:, 0] = -100
        return batch

    monkeypatch.setattr(loader, "make_batch", forgetful)
    with pytest.raises(RuleBroken, match="step 1 learns 184 tokens on all ranks together, 188 are there"):
        checked(small(), base, 4)


def test_zero_divides_everything_once() -> None:
    groups = [{"a": 7, "b": 30}, {"c": 3}]
    for stage in (1, 2, 3):
        for ranks in (1, 2, 5, 8):
            pieces = [zero_pieces(groups, stage, ranks, rank) for rank in range(ranks)]
            for name, numel in {**groups[0], **groups[1]}.items():
                held = [element for piece in pieces for element in range(*piece[name])]
                assert held == list(range(numel)), (stage, ranks, name)


# ---- against real ranks ----


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with what four real gloo ranks keep, and their checkpoints."""
    out = tmp_path_factory.mktemp("real")
    names = [n for n in OPTIONS if not n.startswith("ZeRO") or importlib.util.find_spec("deepspeed")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    cells = [f"{name}={json.dumps(OPTIONS[name])}" for name in names]
    command = [*launcher, str(ROOT / "tests/dry_run/shard_ranks.py"), str(tiny_model), str(out), *cells]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=child_env())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return out


@pytest.mark.parametrize("name", OPTIONS)
def test_ranks_and_checkpoints_are_those_of_a_real_run(name: str, real: Path, tiny_model: Path) -> None:
    if not (real / f"{name}_0.json").exists():
        pytest.skip("needs the deepspeed package")
    cfg = small({"model": {"path": str(tiny_model), "dtype": "float32"}, **OPTIONS[name]})
    config = load_config(str(tiny_model))
    views = checked(cfg, config, 4)
    for view in views:
        held = json.loads((real / f"{name}_{view.rank}.json").read_text())
        assert {key: tuple(piece) for key, piece in held.items()} == dict(view.pieces), view.rank
    (checkpoint,) = (real / name).iterdir()
    size = sum(file.stat().st_size for file in checkpoint.iterdir())
    whole, largest = checkpoint_bytes(cfg, config, views)
    assert largest == max(file.stat().st_size for file in checkpoint.glob("rank_*.safetensors"))
    assert 0 < size - whole < 600  # train_state.json, and digits of what COMPLETE says


# ---- what to type ----


def test_commands_say_what_was_typed_and_where_it_runs() -> None:
    words = ["++data.mixture.a.weight=1", "run.name=a b", "launch.dry_run=true", "launch.max_restarts=2"]
    launch = {"nproc_per_node": 8, "max_restarts": 2}
    plain = "data.mixture.a.weight=1 'run.name=a b'"
    direct, torchrun = commands(schema.build({"launch": launch}).launch, words, 1.0)
    assert direct == f"python train.py {plain} launch.max_restarts=2 launch.nproc_per_node=8"
    assert torchrun.startswith(f"NPROC_PER_NODE=8 MAX_RESTARTS=2 launch/torchrun.sh {plain}  #")
    launch |= {"nnodes": 2, "rendezvous": "n1:9"}
    slurm, direct = commands(schema.build({"launch": launch}).launch, [*words, "launch.nnodes=2"], 200.0)
    asked = "--nodes=2 --gpus-per-node=8 --exclusive --export=ALL,MAX_RESTARTS=2 --signal=B:USR1@600"
    assert slurm == f"sbatch {asked} launch/slurm.sbatch {plain}"
    assert "launch.nnodes=2 launch.nproc_per_node=8 launch.rendezvous=n1:9  #" in direct
