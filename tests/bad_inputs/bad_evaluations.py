"""Evaluations that cannot run as asked: their options, and what they need of a model."""

from __future__ import annotations

import json

from bad_inputs.bad_entries import ENTRIES
from bad_inputs.bad_input import Bad, Place, nothing

EVALUATION = "Evaluation"
EVAL = "python -m yarn_train.eval"
HERE = (
    "model.path={w}/model",
    "run.dir={w}/r",
    "eval.source=pg19",
    "eval.path={w}/books",
    "eval.windows=[32]",
    "eval.stride=16",
)
WHOLE = "eval.windows_per_document=null"


def at_the_end(title: str, *words: str) -> Bad:
    """Of a training that evaluates when it is done."""
    return Bad(EVALUATION, title, ("eval=perplexity", "eval.windows=[32]", *words))


def alone(*words: str, title: str = "", spoil=nothing) -> Bad:
    """Of python -m yarn_train.eval, with a model and books."""
    return Bad(EVALUATION, title or f"{EVAL} {' '.join(words)}", (*HERE, *words), spoil, entry=ENTRIES[EVAL])


def scaled(place: Place) -> None:
    """The model says that its RoPE is scaled."""
    file = place.model / "config.json"
    config = json.loads(file.read_text())
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    file.write_text(json.dumps({**config, "rope_parameters": rope}))


def unfinished(place: Place) -> None:
    (place.run / "01_s4" / "checkpoints").mkdir(parents=True)


CASES = [
    at_the_end("an evaluation that needs no training", "eval.tasks=[perplexity,temperature]"),
    at_the_end("an evaluation that there is not: eval.tasks=[perplexty]", "eval.tasks=[perplexty]"),
    at_the_end("one name in the place of a list: eval.tasks=passkey", "eval.tasks=passkey"),
    at_the_end("no evaluation: eval.tasks=[]", "eval.tasks=[]"),
    at_the_end("the same twice: eval.tasks=[perplexity,perplexity]", "eval.tasks=[perplexity,perplexity]"),
    at_the_end("truncate with windows_per_document", "eval.truncate=true"),
    at_the_end("max_tokens with windows_per_document", "eval.max_tokens=64"),
    at_the_end("max_tokens below the largest window", WHOLE, "eval.max_tokens=16"),
    at_the_end("passkey.keys without many_keys", "passkey.keys=3"),
    at_the_end("benchmarks of nothing: harness.tasks=[]", "eval.tasks=[harness]", "harness.tasks=[]"),
    *[
        alone(f"eval={study}", title=f"{EVAL} eval={study} of a scaled model", spoil=scaled)
        for study in ("dynamic", "temperature", "ramp")
    ],
    alone("eval=ramp", "study.alphas=[0]", "study.betas=[]"),
    alone("eval=temperature", "study.temperatures=[-1]", "study.factors=[0.5]"),
    alone("eval=dynamic", "study.methods=[none]"),
    Bad(
        EVALUATION,
        f"{EVAL} on a run that is not finished",
        ("model.path={w}/run", *HERE[1:]),
        unfinished,
        entry=ENTRIES[EVAL],
    ),
]
