"""What transformers 4 makes of our exports: the frequencies, magnitude and logits that transformers 5 computes.

transformers 4 lies in a folder of its own: make transformers4, or YARN_TRAIN_TRANSFORMERS4.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from families.catalogue import LENGTH
from interop.exports import EXPORTS, FACTOR, export
from interop.installed import FOUR, environment

ASK = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM
answers = {"version": transformers.__version__}
for name, folder in json.load(sys.stdin).items():
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    except ValueError as error:
        answers[name] = str(error)
        continue
    longest = model.config.max_position_embeddings
    ids = torch.randint(0, 64, (1, longest), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0]
    tables = {}
    for module in model.modules():
        for key, value in module._buffers.items():
            if key.endswith("inv_freq") and not key.endswith("original_inv_freq"):
                scaling = getattr(module, key.removesuffix("inv_freq") + "attention_scaling")
                tables[json.dumps([x.hex() for x in value.tolist()])] = float(scaling)
    torch.save(logits, folder + "/" + sys.argv[1] + ".pt")
    answers[name] = sorted(tables.items())
print(json.dumps(answers))
"""
pytestmark = pytest.mark.skipif(not FOUR, reason="no transformers 4: make transformers4")


def ask(folders: dict[str, str], label: str, env: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-c", ASK, label]
    done = subprocess.run(command, input=json.dumps(folders), env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("exports")
    return {name: str(export(name, folder / str(number))) for number, name in enumerate(EXPORTS)}


@pytest.fixture(scope="module")
def answers(folders: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What transformers 5 and 4 say, each in a process of its own."""
    return ask(folders, "five", environment(None)), ask(folders, "four", environment(FOUR))


def test_they_are_the_versions_that_are_meant(answers: tuple[dict[str, Any], dict[str, Any]]) -> None:
    assert [found["version"].partition(".")[0] for found in answers] == ["5", "4"]


def test_transformers_4_refuses_what_it_cannot_say(answers: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Its Phi-3 takes three fields and no magnitude, and raises, which is better than another magnitude."""
    assert "must be a dictionary with three fields" in answers[1]["phi3"]
    assert isinstance(answers[0]["phi3"], list)


@pytest.mark.parametrize("name", [name for name in EXPORTS if name != "phi3"])
def test_transformers_4_computes_the_same(
    name: str, folders: dict[str, str], answers: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    five, four = (found[name] for found in answers)
    assert five == four  # bit for bit: frequencies as hex, and the magnitude
    logits = [torch.load(f"{folders[name]}/{label}.pt", weights_only=True) for label in ("five", "four")]
    longest = len(logits[0])
    assert longest == (LENGTH if name == "none" else round(LENGTH * EXPORTS[name][1].get("factor", FACTOR)))
    for part in (slice(0, longest // 3), slice(longest // 3, 2 * longest // 3), slice(2 * longest // 3, longest)):
        torch.testing.assert_close(logits[1][part], logits[0][part], rtol=1e-4, atol=1e-5)
