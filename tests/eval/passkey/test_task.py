"""Passkeys from questions to rows: which answers count, what is kept, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import passkey_ranks
import pytest
import torch
import torch.multiprocessing as mp
from passkey_ranks import LENGTHS
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from yarn_train.config import build
from yarn_train.dist import runtime as dist_runtime
from yarn_train.errors import DataError, YarnTrainError
from yarn_train.eval.passkey import ask, task
from yarn_train.eval.passkey.answers import is_right
from yarn_train.model.load import load_config


@pytest.fixture
def knowing(base: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """A model that reads the key off a prompt, of up to 450 tokens; the shapes of all batches."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    shapes: list[tuple[int, int]] = []

    def answer(model: Any, prompts: torch.Tensor, new_tokens: int, stop: Any, chunk: int | None) -> torch.Tensor:
        shapes.append(tuple(prompts.shape))
        assert chunk == (None if prompts.shape[1] <= 2048 else 2048)
        keys = [re.findall(r"\d+", tokenizer.decode(row))[-1] for row in prompts]
        wrong = prompts.shape[1] > 450
        words = [f" {'1' + key if wrong else key}." for key in keys]
        return torch.tensor([tokenizer.encode(word, add_special_tokens=False)[:7] for word in words])

    monkeypatch.setattr(ask, "greedy", answer)
    return shapes


def run(base: Path, folder: Path, *labels: str, **options: Any) -> Any:
    job = passkey_ranks.job(base, folder, dist_runtime.start(), *(labels or ("a",)), **options)
    task.run(job)
    return job


def rows_of(folder: Path, name: str = "passkey") -> list[dict[str, Any]]:
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (" 12345.", True),
        ("12345\nWhat", True),
        (" the key is 12345", True),
        ("123456", False),
        ("1234", False),
        (" 99999, no: 12345", False),
        ("", False),
        (" twelve", False),
        ("012345", False),
    ],
)
def test_the_first_number_of_an_answer_is_the_key(answer: str, right: bool) -> None:
    assert is_right(answer, "12345") == right


def test_the_reference_compares_numbers() -> None:
    assert is_right(" 0042", "42", as_number=True)
    assert not is_right(" 0042", "42")


def test_rows_count_right_answers_by_length_and_depth(base, knowing, tmp_path):
    run(base, tmp_path, "a", "b")
    rows = rows_of(tmp_path)
    assert rows == [
        {
            "label": label,
            "method": "none",
            "ramp": None,
            "factor": 1.0,
            "stage": None,
            "variant": "plain",
            "length": length,
            "depth": depth,
            "correct": 3 if length <= 450 else 0,
            "total": 3,
        }
        for label in "ab"
        for length in LENGTHS
        for depth in (0.0, 0.5, 1.0)
    ]
    answers = rows_of(tmp_path, "passkey_answers")
    assert len(answers) == 2 * 3 * 9
    assert all(a["tokens"] == a["length"] and a["right"] == (a["answer"] == f" {a['key']}.") for a in answers)
    by_model = [[a["key"] for a in answers if a["label"] == label] for label in "ab"]
    assert by_model[0] == by_model[1]
    assert all(rows * tokens <= 2048 for rows, tokens in knowing)
    assert max(rows for rows, _ in knowing) == 5


def test_what_is_there_is_not_asked_again(base, knowing, tmp_path):
    run(base, tmp_path, lengths=[400])
    assert len(knowing) == 2
    run(base, tmp_path, lengths=[400, 450])
    assert [tokens for _, tokens in knowing[2:]] == [450] * 3
    before = rows_of(tmp_path)
    run(base, tmp_path, lengths=[450])
    assert len(knowing) == 5
    assert rows_of(tmp_path) == before

    job = run(base, tmp_path, lengths=[600], variant="many_keys", keys=2)
    assert rows_of(tmp_path)[: len(before)] == before
    assert [row["variant"] for row in rows_of(tmp_path)[len(before) :]] == ["many_keys"] * 3
    assert job.say == []
    job = run(base, tmp_path, lengths=[400], seed=1)
    assert "kept as passkey.1.json" in job.say[0]
    assert {row["variant"] for row in rows_of(tmp_path)} == {"plain"}
    assert len(rows_of(tmp_path, "passkey_answers.1")) == 27


def test_answers_without_a_row_are_asked_again(base, knowing, tmp_path):
    run(base, tmp_path, lengths=[400, 450])
    whole = rows_of(tmp_path), rows_of(tmp_path, "passkey_answers")
    (tmp_path / "passkey.json").write_text(json.dumps([r for r in whole[0] if r["length"] == 400]))
    knowing.clear()
    run(base, tmp_path, lengths=[400, 450])
    assert {tokens for _, tokens in knowing} == {450}
    assert (rows_of(tmp_path), rows_of(tmp_path, "passkey_answers")) == whole


def test_reference_prompts_have_tokens_of_their_own(base, knowing, tmp_path):
    run(base, tmp_path, lengths=[400], variant="reference")
    answers = rows_of(tmp_path, "passkey_answers")
    assert len(answers) == 9
    assert all(300 < a["tokens"] < 410 and a["right"] for a in answers)
    assert sum(row["total"] for row in rows_of(tmp_path)) == 9


def test_keys_in_books_are_found_and_books_are_part_of_the_settings(base, books, knowing, tmp_path):
    run(base, tmp_path, lengths=[420], variant="book", books=books)
    assert all(row["correct"] == 3 for row in rows_of(tmp_path))
    settings = json.loads((tmp_path / "passkey_settings.json").read_text())
    assert set(settings["book"]["books"]) == {"pg19/test/test0.txt", "pg19/test/test1.txt"}
    with pytest.raises(DataError, match=r"passkey.lengths: got 90000; allowed: tokens that some held-out document has"):
        run(base, tmp_path, lengths=[90000], variant="book", books=books)


def test_a_prompt_beyond_the_memory_is_an_error_and_the_lengths_before_it_stay(base, knowing, tmp_path, monkeypatch):
    known = ask.greedy

    def small(model: Any, prompts: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
        if prompts.shape[1] > 400:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return known(model, prompts, *args, **more)

    monkeypatch.setattr(ask, "greedy", small)
    with pytest.raises(
        YarnTrainError, match=r"passkey.lengths: got 450; allowed: prompts that fit the device's memory, 4 at once"
    ):
        run(base, tmp_path)
    assert {row["length"] for row in rows_of(tmp_path)} == {400}


def test_two_ranks_answer_as_one(base, tmp_path):
    mp.spawn(passkey_ranks.main, (str(base), str(tmp_path)), nprocs=passkey_ranks.WORLD)
    run(base, tmp_path / "alone")
    answers = rows_of(tmp_path / "alone", "passkey_answers")
    assert rows_of(tmp_path / "rank 0", "passkey_answers") == answers
    assert rows_of(tmp_path / "rank 0") == rows_of(tmp_path / "alone")
    assert not (tmp_path / "nothing is written here").exists()
    assert len({a["answer"] for a in answers}) > 2


def problems(model: Path, **options: Any) -> list[str]:
    given = {"model": {"path": str(model)}, **options}
    return task.problems(build(given), load_config(str(model)))


def test_problems_are_found_before_models_are_read(base, tiny_tokenizer, tmp_path):
    assert problems(base, passkey={"lengths": [400]}) == []
    short = problems(base, passkey={"lengths": [100, 400]})
    assert len(short) == 1
    assert re.match(r"passkey.lengths: got 100; allowed: >= 2\d\d tokens, the shortest possible", short[0])
    assert "got 32" in problems(base)[0]
    assert "hide fewer" in problems(base, passkey={"lengths": [400], "variant": "many_keys"})[0]
    assert "at most 69" in problems(base, passkey={"variant": "many_keys", "keys": 500})[0]
    shared = problems(base, passkey={"lengths": [400]}, eval={"shard": True}, parallel={"context": 2})
    assert [line.partition(":")[0] for line in shared] == ["eval.shard", "parallel.context"]


def test_a_tokenizer_without_digits_is_refused(base, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2, "The": 3, "pass": 4, "key": 5}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    AutoConfig.from_pretrained(base).save_pretrained(tmp_path)
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(tmp_path)
    assert "a tokenizer that can write digits" in problems(tmp_path, passkey={"lengths": [400]})[0]
