"""The engine table: every engine x loss x recompute policy gives one process's loss and gradients.

The reference is plain transformers: eager attention with a mask, complete logits, no sharding, fp32.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from engine_ranks import ACTIVATIONS, BLOCK, DOCUMENTS, LOSSES, TOKENS, TOPOLOGIES, config, global_batch
from filelock import FileLock
from support import ROOT, child_env
from torch.optim import AdamW
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from yarn_train.model.load import load_config
from yarn_train.rope import hf as rope_hf

WORKER = ROOT / "tests/engine_ranks.py"
WORLDS = sorted({world for world, _ in TOPOLOGIES.values()})


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all test processes of this run share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if base.name.startswith("popen-") else base) / "engine_table"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def table_model(shared: Path, tiny_model: Path) -> Path:
    """The tiny model of whichever test process was first: 4 heads, 2 KV heads, tied embeddings."""
    folder = shared / "model"
    with FileLock(shared / "model.lock"):
        if not folder.exists():
            LlamaForCausalLM.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def cells(shared: Path, table_model: Path):
    """cells(topology) -> results by (loss, activation); the first to ask runs all topologies of that many ranks."""

    def of(name: str):
        world = TOPOLOGIES[name][0]
        with FileLock(shared / f"world{world}.lock"):
            if not (shared / f"{name}.pt").exists() and not (shared / f"failed{world}").exists():
                names = [n for n, (ranks, _) in TOPOLOGIES.items() if ranks == world]
                done = run(world, table_model, shared, names)
                if done.returncode:
                    (shared / f"failed{world}").write_text(done.stdout[-3000:] + done.stderr[-6000:])
        if not (shared / f"{name}.pt").exists():
            pytest.fail((shared / f"failed{world}").read_text())
        return torch.load(shared / f"{name}.pt")

    return of


def run(world: int, model: Path, out: Path, names: list[str]) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    command = [*launcher, str(WORKER), str(model), str(out), *names]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=child_env())


@pytest.fixture(scope="session")
def references(table_model: Path):
    """What plain transformers makes of the batch, without and with documents."""
    return {masked: plain_step(table_model, masked) for masked in (False, True)}


@pytest.fixture
def reference(references, request: pytest.FixtureRequest):
    """The one for the test's topology."""
    topology = getattr(request.node, "callspec", None) and request.node.callspec.params["topology"]
    return references[topology is not None and TOPOLOGIES[topology][1].get("data") == BLOCK["data"]]


def mask(masked: bool) -> torch.Tensor:
    """[B, 1, S, S], what eager attention adds to its scores."""
    seen = torch.ones(len(DOCUMENTS), 1, TOKENS, TOKENS, dtype=torch.bool).tril()
    for row, starts in zip(seen, DOCUMENTS if masked else (), strict=False):
        for start in starts:
            row[:, start:, :start] = False
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


def plain_step(table_model: Path, masked: bool):
    """Loss, gradients, their norm and the weights after one clipped AdamW step, by plain transformers."""
    cfg = config(str(table_model), {}, "full", "none")
    scaled = rope_hf.scaled_config(load_config(str(table_model)), cfg.rope)
    model = LlamaForCausalLM.from_pretrained(table_model, config=scaled, attn_implementation="eager")
    batch = global_batch(scaled.vocab_size, masked)
    logits = model(batch.input_ids, attention_mask=mask(masked), position_ids=batch.position_ids).logits
    loss = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="sum") / batch.num_valid
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.optim.grad_clip)
    AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=cfg.optim.eps, weight_decay=0.0).step()
    return {
        "loss": loss.item(),
        "tokens": batch.num_valid,
        "gradients": gradients,
        "norm": norm.item(),
        "weights": model.state_dict(),
    }


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_loss_and_every_gradient_equal_one_process(cells, reference, topology, loss, activation):
    cell = cells(topology)[loss, activation]
    assert cell["tokens"] == reference["tokens"]
    assert cell["loss"] == pytest.approx(reference["loss"], rel=1e-5)
    assert cell["norm"] == pytest.approx(reference["norm"], rel=1e-5)
    wrong = {
        name: error
        for name, gradient in reference["gradients"].items()
        if not (error := relative(cell["gradients"][name], gradient)) <= 1e-5
    }
    assert cell["gradients"].keys() == reference["gradients"].keys()
    assert wrong == {}


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_an_optimizer_step_equals_torchs_adamw(cells, reference, topology):
    cell = cells(topology)["chunked", "none"]
    for name, weight in reference["weights"].items():
        assert relative(cell["weights"][name], weight) <= 1e-5, name


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_every_rank_keeps_the_exact_rope_table(cells, table_model, topology):
    config = LlamaConfig.from_pretrained(table_model)
    config.rope_parameters = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    oracle, _ = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    expected = ("torch.float32", hashlib.sha256(oracle.numpy().tobytes()).hexdigest())
    for cell in cells(topology).values():
        assert cell["tables"] == [expected] * TOPOLOGIES[topology][0]
        assert cell["corrupted"]


def test_the_reference_itself_notices_a_wrong_gradient(reference):
    name, gradient = next(iter(reference["gradients"].items()))
    assert relative(gradient * (1 + 2e-5), gradient) > 1e-5, name
