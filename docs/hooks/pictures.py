"""``python docs/hooks/pictures.py``: the pictures of the method, docs/img/*.svg, from the functions that train with it.

All are of Llama 2: 128 rotated dimensions, base 10,000, pretrained at 4,096 tokens.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent.parent))

from chart import Axis, Chart, Curve  # noqa: E402

from yarn_train.rope.frequencies import attention_factor, base_frequencies, rope_table, rotations  # noqa: E402

LLAMA: dict[str, Any] = {"dim": 128, "theta": 1e4, "original_length": 4096}
PAIRS = Axis("pair of dimensions, fastest first", 0, 63, [(i, str(i)) for i in (0, 10, 20, 30, 40, 50, 63)])
PARTS = [(1, "1"), (0.5, "1/2"), (0.25, "1/4"), (0.125, "1/8"), (0.0625, "1/16")]
SHARES = Axis("new frequency / old one", 1 / 20, 1.12, PARTS, True)
KEPT = Axis("share kept", 0, 1.08, [(v, f"{v:g}") for v in (0, 0.25, 0.5, 0.75, 1)])


def scaled(name: str, method: str, dashed: bool = False, **options: Any) -> Curve:
    """What each pair's frequency is multiplied by, at s=16."""
    table = rope_table(method, factor=16.0, **LLAMA, **options)
    multiplier = table.inv_freq.double() / base_frequencies(128, 1e4).double()
    return Curve(name, list(enumerate(multiplier.tolist())), dashed)


def ramp(name: str, kind: str, dashed: bool = False) -> Curve:
    """The share of each pair's own frequency that is kept, g of the formulas."""
    shares = [(i, (value - 1 / 16) / (1 - 1 / 16)) for i, value in scaled(name, "yarn", ramp=kind).points]
    return Curve(name, shares, dashed)


def turns() -> Chart:
    """Rotations of each pair within the pretraining length."""
    values = rotations(base_frequencies(128, 1e4), 4096).tolist()
    marks = [(1000, "1,000"), (100, "100"), (10, "10"), (1, "1"), (0.1, "0.1")]
    return Chart(
        "How often each pair turns in 4,096 tokens",
        PAIRS,
        Axis("full turns", 0.06, 1000, marks, True),
        [Curve("turns", list(enumerate(values)))],
        levels=[(32, "beta: 32 turns"), (1, "alpha: 1 turn")],
    )


def methods() -> Chart:
    """The four methods side by side."""
    curves = [
        scaled("PI", "pi"),
        scaled("NTK-aware", "ntk"),
        scaled("YaRN (by parts)", "yarn"),
        scaled("Eq. 18 ramp", "yarn", True, ramp="by_rotations"),
    ]
    return Chart("What becomes of each frequency, s = 16", PAIRS, SHARES, curves)


def ramps() -> Chart:
    """Both ramps."""
    curves = [ramp("by_index", "by_index"), ramp("by_rotations", "by_rotations", True)]
    lines = [(20, "20: 32 turns"), (46, "46: 1 turn")]
    return Chart("The ramp: how much of its own frequency a pair keeps", PAIRS, KEPT, curves, lines)


def temperature() -> Chart:
    """The rule of the attention temperature."""
    factors = [2 ** (step / 8) for step in range(57)]
    rule = [(s, attention_factor("yarn", s)) for s in factors]
    x = Axis("s, extended / original length", 1, 128, [(2**k, str(2**k)) for k in range(8)], True)
    marks = [(v, f"{v:g}") for v in (1, 1.25, 1.5, 1.75, 2, 2.25)]
    curves = [Curve("on cos and sin", rule), Curve("on the logits", [(s, m * m) for s, m in rule])]
    return Chart("sqrt(1/t) = 0.1 ln s + 1", x, Axis("multiplied by", 0.95, 2.25, marks), curves)


def alphas() -> Chart:
    """Another alpha."""
    values = (0.25, 1.0, 4.0, 16.0)
    curves = [scaled(f"alpha = {a:g}", "yarn", a != 1.0, alpha=a) for a in values]
    return Chart("alpha: the slow end of the ramp (beta = 32, s = 16)", PAIRS, SHARES, curves)


def betas() -> Chart:
    """Another beta."""
    values = (4.0, 16.0, 32.0, 128.0)
    curves = [scaled(f"beta = {b:g}", "yarn", b != 32.0, beta=b) for b in values]
    return Chart("beta: the fast end of the ramp (alpha = 1, s = 16)", PAIRS, SHARES, curves)


CHARTS = {
    "turns": turns,
    "methods": methods,
    "ramps": ramps,
    "temperature": temperature,
    "alpha": alphas,
    "beta": betas,
}


def main() -> None:
    """Write all of them."""
    for name, chart in CHARTS.items():
        (HERE.parent / "img" / f"{name}.svg").write_text(chart().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
