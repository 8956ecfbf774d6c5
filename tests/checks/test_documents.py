"""Documents that an evaluation will need are looked for before the training whose result it evaluates."""

from __future__ import annotations

import pytest

from yarn_train.errors import DataError

PERPLEXITY = ("eval=perplexity", "eval.windows=[32,100000]", "eval.documents=1")
PASSKEY = ("eval=passkey", "passkey.variant=book", "passkey.lengths=[300,100000]", "passkey.depths=1")


@pytest.mark.parametrize(
    ("task", "named"), [(PERPLEXITY, "100032 tokens.*eval.windows"), (PASSKEY, "passkey.lengths: got 100000")]
)
def test_documents_that_are_too_short_are_found_before_anything_is_trained(train, tiny_args, tmp_path, task, named):
    with pytest.raises(DataError, match=named):
        train(tmp_path / "run", *tiny_args, *task)
    assert not list(tmp_path.glob("run/*/metrics.jsonl"))
    assert not (tmp_path / "cache").exists()
