"""Tasks of our own for lm-evaluation-harness, offline: multiple choice, writing, whole texts, made-up data, a group."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

DATA = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/test.jsonl, train: {folder}/train.jsonl}}}}
test_split: test
fewshot_split: train
"""
CHOICE = """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
  - {metric: brier_score, higher_is_better: false}
"""
WRITE = """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
process_results: !function helpers.written
generation_kwargs: {until: ["b", "ca"], max_gen_toks: 12, do_sample: false}
metric_list:
  - {metric: length, aggregation: mean, higher_is_better: true}
  - {metric: checksum, aggregation: mean, higher_is_better: true}
"""
TEXT = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}} {{question}} {{choices[0]}} {{choices[1]}}"
metric_list:
  - {metric: word_perplexity}
  - {metric: byte_perplexity}
"""
MADE = """
output_type: multiple_choice
custom_dataset: !function helpers.made
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
HELPERS = """
import zlib
import datasets
from transformers import AutoTokenizer

def written(doc, results):
    return {"length": float(len(results[0])), "checksum": float(zlib.crc32(results[0].encode()) % 1000)}

def made(max_seq_lengths, tokenizer, **kwargs):
    size = len(AutoTokenizer.from_pretrained(tokenizer))
    rows = [{"question": f"{n} {size}", "choices": ["a", "b"], "answer": 0} for n in range(max_seq_lengths[0])]
    return {"test": datasets.Dataset.from_list(rows)}
"""


def _questions(path: Path, count: int, seed: int, words: list[str]) -> None:
    rng = random.Random(seed)

    def line() -> str:
        return " ".join(rng.choices(words, k=rng.randint(1, 4)))

    rows = [
        {"question": line(), "choices": [line() for _ in range(3)], "answer": rng.randrange(3)} for _ in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def own_tasks(tmp_path_factory: pytest.TempPathFactory, books: Path) -> Path:
    """A folder of task files: words of the books, so that the tiny model's tokenizer knows them."""
    folder = tmp_path_factory.mktemp("own_tasks")
    words = (books / "train" / "train0.txt").read_text().split()
    _questions(folder / "test.jsonl", 9, 0, words)
    _questions(folder / "train.jsonl", 30, 1, words)
    data = DATA.format(folder=folder)
    (folder / "helpers.py").write_text(HELPERS)
    for name, text in (("choice", CHOICE), ("write", WRITE), ("text", TEXT)):
        (folder / f"own_{name}.yaml").write_text(f"task: own_{name}\n{data}{text}")
    (folder / "own_made.yaml").write_text(f"task: own_made\n{MADE}")
    twin = f"task: own_twin\ntag: own_tag\n{data}{CHOICE}process_docs: !function helpers.some\n"
    (folder / "own_twin.yaml").write_text(twin)
    (folder / "helpers.py").write_text(HELPERS + "\ndef some(docs):\n    return docs.select(range(len(docs) - 5))\n")
    group = (
        "group: own_group\ntask: [own_choice, own_twin]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    (folder / "own_group.yaml").write_text(group)
    return folder
