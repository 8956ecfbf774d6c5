"""Which of the planner's machines a GPU belongs to."""

from __future__ import annotations

from ..plan.machines import MACHINES, Machine

OTHERS = {"PCIe", "PCIE", "NVL", "MIG"}  # forms with other memory and links than the data sheets in the planner


def machine(gpu: str) -> Machine | None:
    """By the GPU's name as torch gives it; None for one that the planner does not know."""
    words = gpu.replace("-", " ").split()
    if OTHERS & set(words):
        return None
    known = {"A100": "a100-40" if "40GB" in words else "a100-80", "H100": "h100", "H200": "h200", "B200": "b200"}
    return next((MACHINES[name] for word, name in known.items() if word in words), None)
