"""What lies outside: the hub and Weights & Biases. Secrets are looked for and never shown. Never imports torch."""

from __future__ import annotations

import email.utils
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...train import wandb_login
from ..finding import FAIL, OK, SKIP, WARN, Finding
from .software import installed

TIMEOUT = 5.0  # seconds
SKEW = 60.0  # seconds between clocks; certificates and signed addresses become invalid around here
OFFLINE = "HF_HUB_OFFLINE=1 with a cache that was filled elsewhere, or data.path and model.path as folders"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
WANDB = "wandb"


@dataclass(frozen=True)
class Answer:
    """What the hub said.

    Attributes:
        code: HTTP status; None when nothing came.
        error: why not.
        skew: seconds that the hub's clock is ahead of ours, if it told.
    """

    code: int | None
    error: str = ""
    skew: float | None = None


def hub(model: str | None = None) -> list[Finding]:
    """Whether the hub can be reached, with which rights; `model` is a hub id that a run wants, if it wants one."""
    from huggingface_hub import constants, get_token

    lacks, token = not_cached(model) if model else [], get_token()
    if constants.HF_HUB_OFFLINE:
        return [judge_hub(None, constants.ENDPOINT, True, token is not None, model, lacks)]
    url = f"{constants.ENDPOINT}/{model}/resolve/main/config.json" if model else constants.ENDPOINT
    return [judge_hub(ask(url, token if model else None), constants.ENDPOINT, False, token is not None, model, lacks)]


def not_cached(model: str) -> list[str]:
    """What of a model the hub's cache lacks: its configuration, a tokenizer, all of its weights."""
    from huggingface_hub import try_to_load_from_cache

    def there(name: str) -> Path | None:
        path = try_to_load_from_cache(model, name)
        return Path(path) if isinstance(path, str) else None

    lacks = [] if there("config.json") else ["config.json"]
    if not any(there(name) for name in TOKENIZERS):
        lacks.append("tokenizer")
    if there("model.safetensors"):
        return lacks
    index = there("model.safetensors.index.json")
    files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index else []
    missing = [file for file in files if not there(file)]
    if missing or not files:
        lacks.append(f"{len(missing)} of {len(files)} files of weights" if files else "weights")
    return lacks


def ask(url: str, token: str | None, limit: float = TIMEOUT) -> Answer:
    """A HEAD request that ends in `limit` seconds: looking a name up knows no time limit of its own."""
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(_ask(url, token)), daemon=True)
    thread.start()
    thread.join(limit)
    return answers[0] if answers else Answer(None, f"no answer within {limit:.0f} s")


def _ask(url: str, token: str | None) -> Answer:
    headers = {"User-Agent": "yarn-train-doctor"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers, method="HEAD"), timeout=TIMEOUT
        ) as got:
            return Answer(got.status, skew=_skew(got.headers.get("Date")))
    except urllib.error.HTTPError as error:
        return Answer(error.code, str(error.reason), _skew(error.headers.get("Date")))
    except (OSError, ValueError) as error:
        return Answer(None, str(getattr(error, "reason", error)))


def _skew(date: str | None) -> float | None:
    return None if date is None else email.utils.parsedate_to_datetime(date).timestamp() - time.time()


def judge_hub(
    answer: Answer | None, endpoint: str, offline: bool, token: bool, model: str | None, lacks: Sequence[str]
) -> Finding:
    """One line about the hub; `answer` is None where offline, `lacks` what the cache has not of the model."""
    cached = not lacks
    login = "a token is there" if token else "no token"
    facts = {"hub": answer is not None and answer.code is not None, "hub_token": token, "hub_offline": offline}
    have = f"; {model} is in the cache" if cached else f"; the cache lacks {model}'s {', '.join(lacks)}"
    have = have if model else ""
    if offline or answer is None:
        if model and not cached:
            means, fix = "its tokenizer and weights cannot be loaded", "unset HF_HUB_OFFLINE, or fill the cache"
            return Finding(FAIL, "hub", f"HF_HUB_OFFLINE is set{have}", means, fix, facts)
        return Finding(OK, "hub", f"not asked: HF_HUB_OFFLINE is set{have}", facts=facts)
    if answer.code is None:
        figure = f"{endpoint} not reached: {answer.error}{have}"
        means = "models and data sets by hub id cannot be downloaded; folders and the cache work"
        return Finding(FAIL if model and not cached else WARN, "hub", figure, means, f"check proxies; {OFFLINE}", facts)
    if answer.skew is not None and abs(answer.skew) > SKEW:
        figure = f"{endpoint} reached, but its clock is {answer.skew:+.0f} s from this machine's"
        return Finding(
            WARN, "hub", figure, "certificates and signed downloads may be refused", "set the clock (NTP)", facts
        )
    if model and answer.code in (401, 403):
        figure = f"{model}: access refused ({answer.code}), {login}"
        fix = f"accept its licence at {endpoint}/{model}, then: hf auth login"
        return Finding(WARN if cached else FAIL, "hub", f"{figure}{have}", "the base cannot be downloaded", fix, facts)
    if model and answer.code == 404:
        means, fix = "there is no such model", "model.path=<hub id or folder>"
        return Finding(FAIL, "hub", f"{model} is not at {endpoint}", means, fix, facts)
    if answer.code >= 400:
        means = "downloads fail until it answers again; folders and the cache work"
        fix = f"try again later, with a token (hf auth login) after 429; {OFFLINE}"
        return Finding(WARN, "hub", f"{endpoint} refuses: {answer.code} {answer.error}{have}", means, fix, facts)
    return Finding(OK, "hub", f"{endpoint} reached ({answer.code}), {login}{have}", facts=facts)


def wandb() -> list[Finding]:
    """What is here of Weights & Biases."""
    return [judge_wandb(installed(WANDB), wandb_login.logged_in(), wandb_login.mode("auto").name)]


def judge_wandb(version: str | None, login: bool, mode: str | None) -> Finding:
    """A fact that no run needs.

    Args:
        mode: what runs here do by themselves; see :func:`train.wandb_login.mode`.
    """
    there = f"{version}, {'' if login else 'not '}logged in" if version else "not installed"
    runs = f"runs are tracked {mode}" if mode else "runs are not tracked by themselves (tracking.wandb)"
    return Finding(OK if mode else SKIP, WANDB, f"{there}; {runs}", facts={"wandb": mode or False})
