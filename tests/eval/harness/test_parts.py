"""Batches, rows and names: what needs no harness, and what its own index must have."""

from __future__ import annotations

import importlib.util
import json
import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_train.config import HarnessConfig, build
from yarn_train.eval.harness import task as harness
from yarn_train.eval.harness.requests import batches, padded, questions
from yarn_train.eval.harness.results import rows
from yarn_train.eval.harness.score import answers
from yarn_train.eval.harness.selection import PAPER, Wanted, in_short_table, list_problems, unknown_problem, wanted
from yarn_train.model.load import build_model, load_config
from yarn_train.model.registry import choose_kernel

VOCABULARY = 67
NAMES = {"label": "YaRN", "method": "yarn", "ramp": None, "factor": 4.0, "stage": "01_s4"}
BASE = {"label": "base", "method": "none", "ramp": None, "factor": 1.0, "stage": None}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """With the attention that evaluations use, which refuses masks."""
    folder = tmp_path_factory.mktemp("random")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=1, initializer_range=0.4, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    kernel = choose_kernel("auto", torch.device("cpu"), torch.float32)
    return build_model(str(folder), load_config(str(folder)), None, kernel).eval()


def pairs(count, seed=0):
    rng = np.random.default_rng(seed)
    made = [
        (rng.integers(VOCABULARY, size=rng.integers(1, 40)), rng.integers(VOCABULARY, size=n % 5 + 1))
        for n in range(count)
    ]
    shared = [(made[0][0], rng.integers(VOCABULARY, size=1)) for _ in range(3)]  # a question with three short answers
    return [(context.tolist(), continuation.tolist()) for context, continuation in made + shared]


@torch.no_grad()
def one_at_a_time(model, context, continuation, max_length):
    """Plain definition: every token given all tokens before it, no batch, no padding."""
    kept = (context + continuation)[-(max_length + 1) :]
    nats, greedy = 0.0, True
    for place in range(len(kept) - len(continuation), len(kept)):
        ids = torch.tensor([kept[:place]])
        logits = model(input_ids=ids, position_ids=torch.arange(place)[None], use_cache=False).logits[0, -1].double()
        nats += logits.log_softmax(-1)[kept[place]].item()
        greedy &= bool(logits.argmax() == kept[place])
    return nats, greedy


@pytest.mark.parametrize("logits_at_once", [2**24, 5 * VOCABULARY])
def test_padding_on_the_right_changes_nothing(model, logits_at_once):
    asked = pairs(24)
    expected = [one_at_a_time(model, *pair, max_length=30) for pair in asked]
    longest_first, cut = questions(asked, 30)
    packed = batches(longest_first, 160)
    assert max(len(batch) for batch in packed) > 3
    assert any(len({len(q.tokens) for q in batch}) > 2 for batch in packed), "nothing is padded"
    found = dict(answer for batch in packed for answer in answers(model, batch, logits_at_once))
    assert [found[slot].log_probability for slot in range(len(asked))] == pytest.approx(
        [n for n, _ in expected], abs=2e-5
    )
    assert [found[slot].greedy for slot in range(len(asked))] == [g for _, g in expected]
    assert cut == sum(len(context) + len(continuation) > 31 for context, continuation in asked) > 0


def test_answers_to_the_same_input_share_one_pass():
    asked, _ = questions([([1, 2, 3], [4]), ([1, 2, 3], [5]), ([1, 2], [3, 9]), ([1, 2], [3])], 10)
    assert [(q.tokens.tolist(), q.slots) for q in asked] == [([1, 2, 3], (0, 1, 2)), ([1, 2], (3,))]


def test_a_batch_has_at_most_its_positions_with_the_padding():
    asked, _ = questions([(list(range(n)), [1]) for n in range(1, 30)], 64)
    packed = batches(asked, 60)
    assert [q for batch in packed for q in batch] == asked
    assert all(padded(batch).size <= 60 for batch in packed)
    assert [len(batch) for batch in batches(asked, 1)] == [1] * 29


RESULTS = {
    "results": {
        "group": {"alias": "group", "sample_len": 400, "acc,none": 0.35, "acc_stderr,none": 0.02, "sample_count": {}},
        "a": {
            "alias": "a",
            "sample_len": 100,
            "acc,none": 0.2,
            "acc_stderr,none": 0.04,
            "4096,none": -1,
            "f1,strict": 0.5,
        },
        "b": {
            "alias": "b",
            "sample_len": 300,
            "acc,none": 0.4,
            "acc_stderr,none": 0.03,
            "4096,none": 0.5,
            "ppl,none": math.inf,
        },
    },
    "n-shot": {"a": 5, "b": 5, "group": 5},
    "n-samples": {"a": {"original": 100, "effective": 100}, "b": {"original": 900, "effective": 300}},
}


def test_rows_of_a_group_are_its_own_and_its_members():
    found = {(row["task"], row["metric"]): row for row in rows("group", RESULTS, ["a", "b"])}
    assert set(found) == {
        *(("group", "acc"), ("group", "acc_macro"), ("a", "acc"), ("a", "f1 (strict)")),
        *(("b", "acc"), ("b", "4096"), ("b", "ppl")),
    }
    macro = found["group", "acc_macro"]
    assert macro["value"] == pytest.approx(0.3)
    assert macro["stderr"] == pytest.approx(math.sqrt(0.04**2 + 0.03**2) / 2)
    assert (macro["samples"], macro["shots"], macro["group"]) == (400, 5, None)
    assert found["group", "acc"]["value"] == 0.35
    assert found["b", "acc"]["group"] == "group"
    assert found["b", "acc"]["samples"] == 300
    assert found["b", "ppl"]["value"] is None
    assert found["a", "f1 (strict)"]["stderr"] is None
    json.dumps(list(found.values()), allow_nan=False)


def test_the_short_table_has_the_papers_metric_where_the_paper_asks_so():
    assert in_short_table("arc_challenge", None, "acc_norm", 25)
    assert not in_short_table("arc_challenge", None, "acc", 25)
    assert in_short_table("arc_challenge", None, "acc", 0)
    assert not in_short_table("mmlu_anatomy", "mmlu", "acc", 5)
    assert in_short_table("mmlu", None, "acc_macro", 5)


def test_the_papers_tasks_and_names_beside_them():
    assert wanted(HarnessConfig(tasks=["paper", "quiz"]))[3:] == [Wanted("truthfulqa_mc2", 0), Wanted("quiz", None)]
    assert {task.name: task.shots for task in wanted(HarnessConfig())} == {
        "arc_challenge": 25,
        "hellaswag": 10,
        "mmlu": 5,
        "truthfulqa_mc2": 0,
    }
    assert {task.shots for task in wanted(HarnessConfig(shots=3))} == {3}
    assert "allowed: each task once; fix: name mmlu once" in list_problems(HarnessConfig(tasks=["paper", "mmlu"]))[0]
    assert list_problems(HarnessConfig(tasks=[]))[0].startswith("harness.tasks: got []")
    assert "allowed: hellaswag | hellaswag_gu;" in unknown_problem("helaswag", ["mmlu", "hellaswag", "hellaswag_gu"])
    assert "allowed: paper;" in unknown_problem("papr", ["mmlu"])


def test_what_cannot_run_is_said_before_anything_loads(tmp_path, tiny_model, monkeypatch):
    def problems(**options):
        cfg = build({"model": {"path": str(tiny_model)}, "harness": {"include_path": str(tmp_path), **options}})
        return harness.problems(cfg, load_config(str(tiny_model)))

    data = tmp_path / "quiz.json"
    data.write_text('{"a": 1}\n')
    (tmp_path / "quiz.yaml").write_text(f"task: quiz\ndataset_path: json\ndataset_kwargs: {{data_files: {data}}}\n")
    assert problems(tasks=["quiz"]) == []
    gone = problems(tasks=["quiz"], include_path=str(tmp_path / "gone"))
    assert [line.partition(":")[0] for line in gone] == ["harness.include_path"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert problems(tasks=["quiz"])[-1].endswith("pip install 'yarn-train[harness]'")


def test_a_model_of_unknown_length_needs_one(tmp_path):
    (tmp_path / "quiz.yaml").write_text("task: quiz\n")
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}  # which does not say it
    base = LlamaConfig(rope_parameters=scaled)
    cfg = build({"harness": {"include_path": str(tmp_path), "tasks": ["quiz"]}})
    assert harness.problems(cfg, base)[0].startswith("harness.max_length: got None")


@pytest.mark.long  # the harness's own index has fifteen thousand files
def test_the_harness_has_the_papers_tasks_and_its_long_ones():
    calls = pytest.importorskip("yarn_train.eval.harness.lm_eval_calls")
    assert calls.name_problems([*wanted(HarnessConfig()), Wanted("ruler", None)], None) == []
    index = calls._complete(None).task_index
    subjects = {name for name in calls._members(index, "mmlu") if index[name].kind.name == "TASK"}
    assert len(subjects) == 57
    assert "niah_single_1" in calls._members(index, "ruler")
    assert set(PAPER) <= set(index)
    (line,) = calls.name_problems([Wanted("helaswag", None)], None)
    assert "hellaswag |" in line
    assert len(calls.expanded([Wanted("ai2_arc", 1)], None)) == 2
