"""The claims, held against the paper's own tables, and against tables in which one thing is wrong."""

from __future__ import annotations

import copy

import pytest

from yarn_train.reproduce.claims import Claim, claims
from yarn_train.reproduce.experiments import L

# The authors' data files (jquesnelle/yarn): data/proofpile-long-small-8k.csv, data/proofpile-long-small.csv, the 70B
# base of data/proofpile-long-small-32k-70b.csv; on the branch "ablations" (L = 2,048) llama1-32k-loss.csv, of which
# "last" is the mean of the last 50 of 400 steps, and proofpile-long-small-llama1-32k.csv. Lengths are in units of L.
TABLE1 = {
    "yarn_s2": {0.5: 3.918, 1: 3.510, 1.5: 3.514, 2: 3.356, 2.5: 6.049, 4: 77.2},
    "ntk_s2": {0.5: 4.203, 1: 3.751, 1.5: 3.743, 2: 3.587, 2.5: 6.235},
    "pi_s2": {0.5: 3.922, 1: 3.510, 1.5: 3.509, 2: 3.344, 2.5: 8.071},
}
TABLE2 = {
    "base": {1: 2.96, 2: 56.0},
    "yarn_s16": {1: 3.689, 2: 3.507, 4: 2.987, 8: 2.655, 16: 2.422, 24: 15.51},
    "yarn_s32": {1: 3.752, 2: 3.562, 4: 3.036, 8: 2.698, 16: 2.453, 24: 2.364, 32: 2.372},
}
ABLATION = {
    "yarn_s16": {1: 4.189, 2: 3.767, 4: 3.605, 8: 3.088, 16: 2.769},
    "pi_s16": {16: 3.568},
    "ntk_s16": {16: 8.494},
    "ntk_by_parts_s16": {16: 2.814},
}
LOSSES = {
    "yarn": {"first": 3.024, "last": 1.971},
    "ntk_by_parts": {"first": 4.646, "last": 1.981},
    "pi": {"first": 5.519, "last": 2.061},
    "ntk": {"first": 5.498, "last": 2.304},
}
PASSKEY = {"base": {2: 0.0}, "yarn_s16": {16: 0.963}, "yarn_s32": {32: 0.994}}
DYNAMIC = {  # no numbers are published: the order that Figure 5 draws
    "base": {1: 4.0, 2: 90.0, 4: 300.0, 8: 400.0, 16: 500.0},
    "dynamic pi": {1: 4.0, 2: 5.0, 4: 9.0, 8: 20.0, 16: 40.0},
    "dynamic ntk": {1: 4.0, 2: 4.2, 4: 5.0, 8: 7.0, 16: 9.0},
    "dynamic yarn": {1: 4.0, 2: 3.9, 4: 3.8, 8: 3.9, 16: 4.2},
}


def tokens(curves: dict[str, dict[float, float]]) -> dict[str, dict[int, float]]:
    return {name: {round(times * L): value for times, value in curve.items()} for name, curve in curves.items()}


def judged(table1=TABLE1, table2=TABLE2, losses=LOSSES, passkey=PASSKEY, dynamic=DYNAMIC) -> dict[str, Claim]:
    found = claims(tokens(table1), tokens(table2), losses, tokens(passkey), tokens(dynamic))
    assert len({claim.name for claim in found}) == len(found)
    return {claim.name: claim for claim in found}


def test_the_papers_own_numbers_hold() -> None:
    verdicts = {name: claim.holds for name, claim in judged().items()}
    assert verdicts.pop("YaRN at s=16") is None  # not measured on Llama 2
    assert all(verdicts.values()), verdicts
    ablation = judged(table2=ABLATION)
    assert ablation["YaRN at s=16"].holds
    assert ablation["longer is better up to s L"].holds


@pytest.mark.parametrize("method", ["pi", "ntk", "ntk_by_parts"])
def test_a_better_method_at_the_full_length_breaks_the_claim(method) -> None:
    table2 = {**ABLATION, f"{method}_s16": {16: 2.7}}
    assert judged(table2=table2)["YaRN at s=16"].holds is False


def test_the_price_at_the_first_stages_length_is_that_of_its_length() -> None:
    table2 = {**TABLE2, "yarn_s32": {**TABLE2["yarn_s32"], 16: 2.53, 32: 2.5}}
    found = {name for name, claim in judged(table2=table2).items() if claim.holds is False}
    assert found == {"price of s=32 at the first stage's length"}


@pytest.mark.parametrize(
    ("table", "model", "times", "value", "broken"),
    [
        (2, "yarn_s16", 4, 3.6, "longer is better up to s L"),
        (2, "yarn_s16", 24, 4.0, "yarn_s16 ends at s L"),
        (1, "yarn_s2", 2.5, 3.9, "yarn_s2 ends at s L"),
        (1, "pi_s2", 2.5, 3.9, "pi_s2 ends at s L"),
        (2, "yarn_s32", 32, 2.6, "s=32 reaches past its data"),
        (2, "yarn_s32", 1, 3.9, "price of s=32 at the base's own length"),
        (2, "base", 2, 4.0, "the base breaks inside 2L"),
        (1, "yarn_s2", 1, 3.8, "YaRN at s=2"),
        (3, "yarn_s16", 16, 0.8, "yarn_s16 finds keys"),
        (3, "yarn_s32", 32, 0.8, "yarn_s32 finds keys"),
        (4, "dynamic ntk", 8, 3.8, "Dynamic YaRN is best"),
    ],
)
def test_one_wrong_number_breaks_its_claim_alone(table, model, times, value, broken) -> None:
    tables = copy.deepcopy({1: TABLE1, 2: TABLE2, 3: PASSKEY, 4: DYNAMIC})
    tables[table][model][times] = value
    found = judged(tables[1], tables[2], passkey=tables[3], dynamic=tables[4])
    assert {name for name, claim in found.items() if claim.holds is False} == {broken}
    assert value in found[broken].numbers.values()


@pytest.mark.parametrize("method", ["pi", "ntk", "ntk_by_parts"])
@pytest.mark.parametrize("which", ["first", "last"])
def test_a_lower_loss_of_another_method_breaks_its_claim_alone(method, which) -> None:
    losses = {**LOSSES, method: {**LOSSES[method], which: 1.9}}
    broken = {name for name, claim in judged(losses=losses).items() if claim.holds is False}
    assert broken == {f"{which} training loss"}


def test_a_claim_without_its_numbers_is_not_judged() -> None:
    found = judged({}, {}, {}, {}, {})
    assert {claim.holds for claim in found.values()} == {None}
    assert all(claim.numbers == {} for claim in found.values())
