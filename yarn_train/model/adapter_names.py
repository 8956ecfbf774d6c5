"""Names of parameters in a model with adapters, as peft gives them."""

from __future__ import annotations

NAME = "default"  # of the adapter


def is_update(name: str) -> bool:
    """Whether a parameter is one of A and B."""
    return f".lora_A.{NAME}." in name or f".lora_B.{NAME}." in name


def plain(name: str) -> str:
    """The name that a parameter has without adapters."""
    return name.replace(".base_layer.", ".")
