"""Eager attention's memory is named before a run, not met in it."""

from __future__ import annotations

import dataclasses

from transformers import LlamaConfig

from yarn_train.config import Config, build
from yarn_train.model.backends.eager import matrix_bytes
from yarn_train.model.matrices import MOST, length_problems, matrix_problems

BASE = LlamaConfig(num_attention_heads=32)


def config(tokens: int, **parallel: object) -> Config:
    plain = build({})
    return dataclasses.replace(
        plain,
        data=dataclasses.replace(plain.data, seq_len=tokens),
        parallel=dataclasses.replace(plain.parallel, **parallel),
    )


def test_two_float32_matrices_of_all_heads() -> None:
    assert matrix_bytes(1, 32, 8192, 8192) == 2 * 4 * 32 * 8192**2 == MOST


def test_a_length_that_fits_is_no_problem_and_one_more_token_is() -> None:
    assert matrix_problems(config(8192), BASE, "eager") == []
    (line,) = matrix_problems(config(65536), BASE, "eager")
    assert "data.seq_len with 1 x 32 heads x 65,536 x 65,536 scores" in line
    assert "these take 1,024 GiB" in line
    assert matrix_problems(config(65536), BASE, "cpu") == []


def test_ranks_that_share_a_sequence_share_the_square() -> None:
    assert matrix_problems(config(65536, context=8, context_method="ring"), BASE, "eager") == []
    (line,) = matrix_problems(config(65536, context=8, context_method="ulysses"), BASE, "eager")
    assert "1 x 4 heads x 65,536 x 65,536" in line


def test_windows_of_an_evaluation_are_named_by_their_option() -> None:
    (line,) = length_problems("eval.windows", 131_072, 1, 32)
    assert "a smaller eval.windows" in line
