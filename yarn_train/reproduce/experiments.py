"""The commands of the reproduction: the paper's experiments, every length divided by sixteen. Pure.

The shipped base stands for Llama 2: its L is 256 tokens where Llama's is 4,096. What is compared is the shape of the
paper's tables, never their values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

L = 256
BASE = "data/base"
TABLE1_WINDOWS = (L // 2, L, 3 * L // 2, 2 * L, 5 * L // 2, 4 * L)  # the paper's 2k, 4k, 6k, 8k, 10k and 16k
TABLE2_WINDOWS = (L, 2 * L, 4 * L, 8 * L, 16 * L, 24 * L, 32 * L, 48 * L)  # 4k ... 64k, 96k, 128k and 192k
PASSKEY_LENGTHS = (L, 2 * L, 4 * L, 8 * L, 16 * L, 24 * L, 32 * L)
METHODS = ("pi", "ntk", "ntk_by_parts", "yarn")
SEEDS = (0, 1, 2)
STAGES = (
    "{{s16: {{rope: {{factor: 16}}, train: {{steps: 40}}}}, "
    "s32: {{rope: {{factor: 32}}, train: {{steps: 20}}, run: {{seed: {seed}}}}}}}"
)
PAPERS_SECOND_SEED = 31337


@dataclass(frozen=True)
class Run:
    """One command.

    Attributes:
        key: unique; the folder below the reproduction's own that it writes.
        title: what it is, for people.
        program: what Python is given.
        words: what follows; ``{out}`` stands for the reproduction's folder, ``{books}`` for that of the books.
        needs: keys of commands that must have ended well.
    """

    key: str
    title: str
    words: tuple[str, ...]
    program: tuple[str, ...] = ("train.py",)
    needs: tuple[str, ...] = ()


def runs(books: bool, seeds: Sequence[int] = SEEDS) -> list[Run]:
    """Every command: first what nobody trains, then seed by seed, so that one that is interrupted has whole seeds.

    Args:
        books: train and evaluate on books in PG19's layout, else on the standard library.
    """
    data = ("data=pg19", "data.path={books}") if books else ("data=stdlib",)
    found = [*untrained(data), *passkey_texts()]
    for seed in seeds:
        found += [*trained(data, seed, seed == SEEDS[0]), *passkey(books, seed)]
    return found


def untrained(data: tuple[str, ...]) -> list[Run]:
    """The studies that need no training: dynamic scaling, temperature, ramp."""
    study = (*data, f"model.path={BASE}", "eval.documents=10")
    titles = {
        "dynamic": "dynamic scaling without training (Figure 5)",
        "temperature": "perplexity against temperature (Appendix A.2)",
        "ramp": "alpha, beta and the two ramps",
    }
    return [
        Run(
            f"studies/{name}",
            title,
            (f"eval={name}", *study, f"run.dir={{out}}/studies/{name}"),
            program=("-m", "yarn_train.eval"),
        )
        for name, title in titles.items()
    ]


def trained(data: tuple[str, ...], seed: int, first: bool) -> list[Run]:
    """All trainings of one seed; what nobody trains is evaluated with the first of SEEDS."""
    table1 = (*data, *_evaluated(TABLE1_WINDOWS), "rope.factor=2", "data.seq_len=512", "checkpoint.keep=1")
    table1 += ("train.global_batch_size=16", "train.micro_batch_size=16", "eval.windows_per_document=4")
    table2 = (*data, *_evaluated(TABLE2_WINDOWS), "data.seq_len=4096", "checkpoint.keep=1")
    stages = STAGES.format(seed=PAPERS_SECOND_SEED + seed)
    found = [_run("yarn_s16_s32", "YaRN, s=16 then s=32", seed, (*table2, f"curriculum.stages={stages}"), first)]
    for method in METHODS[:-1]:
        found.append(_run(f"{method}_s16", f"{method}, s=16", seed, (*table2, "rope.factor=16", f"rope={method}")))
    for method in ("pi", "ntk", "yarn"):
        words = (*table1, f"rope={method}")
        found.append(_run(f"{method}_s2", f"{method}, s=2", seed, words, first and method == "yarn"))
    return found


def passkey_texts() -> list[Run]:
    """Texts that teach a base of four layers to answer passkey prompts: short ones, then long ones."""
    lengths = {"short": ("120:250", 6000), "long": ("300:4000", 600)}
    return [
        Run(
            f"data/passkey_{name}",
            f"{name} passkey texts",
            (f"--out={{out}}/data/passkey_{name}", f"--tokens={tokens}", f"--documents={count}", f"--tokenizer={BASE}"),
            program=("data/passkey.py",),
        )
        for name, (tokens, count) in lengths.items()
    ]


def passkey(books: bool, seed: int) -> list[Run]:
    """A base that retrieves at L, and its extension: half of the data are the texts of Table 2, half long prompts."""
    texts = "{{source: text, path: {{out}}/data/passkey_{}, weight: 1}}".format
    short, long = "data/passkey_short", "data/passkey_long"
    base = f"runs/passkey_base/seed_{seed}"
    first: tuple[str, ...] = (
        "experiment=extend",
        "rope=none",
        "rope.factor=1",
        "data.source=text",
        f"data.path={{out}}/{short}",
    )
    first += (f"data.seq_len={L}", "train.steps=300", "train.global_batch_size=8", "train.micro_batch_size=8")
    first += ("optim.lr=1e-3", "schedule.warmup_steps=20", "eval=none", "checkpoint.every=300", "checkpoint.keep=1")
    plain = "{source: pg19, path: {books}, weight: 1}" if books else "{source: stdlib, weight: 1}"
    mixture = f"data.mixture={{texts: {plain}, passkey: {texts('long')}}}"
    second: tuple[str, ...] = (
        "experiment=extend",
        "data.source=mixture",
        mixture,
        "data.seq_len=4096",
        "checkpoint.keep=1",
    )
    second += (f"curriculum.stages={STAGES.format(seed=PAPERS_SECOND_SEED + seed)}", f"run.init_from={{out}}/{base}")
    lengths = ",".join(map(str, PASSKEY_LENGTHS))
    second += ("eval=passkey", f"passkey.lengths=[{lengths}]", "passkey.depths=10", "passkey.trials=1")
    return [
        Run(base, f"a base that finds keys, seed {seed}", (*first, *_own("passkey_base", seed)), needs=(short,)),
        Run(
            f"runs/passkey/seed_{seed}",
            f"passkey, s=16 then s=32, seed {seed}",
            (*second, *_own("passkey", seed), f"passkey.seed={seed}"),
            needs=(long, base),
        ),
    ]


def _own(name: str, seed: int) -> tuple[str, ...]:
    """A run's own name, folder and seed."""
    return (f"run.name={name}_seed{seed}", f"run.dir={{out}}/runs/{name}/seed_{seed}", f"run.seed={seed}")


def _run(name: str, title: str, seed: int, words: tuple[str, ...], baselines: bool = False) -> Run:
    key = f"runs/{name}/seed_{seed}"
    evaluated = f"eval.baselines={str(baselines).lower()}"
    return Run(key, f"{title}, seed {seed}", ("experiment=extend", *words, evaluated, *_own(name, seed)))


def _evaluated(windows: Sequence[int]) -> tuple[str, ...]:
    return ("eval=perplexity", f"eval.windows=[{','.join(map(str, windows))}]", "eval.documents=10")
