"""Activation: an activation function as a layer of its own."""

from __future__ import annotations

from typing import Any

from fastbp.core import plan
from fastbp.data.arrays import check_choice
from fastbp.layers.layer import Layer


class Activation(Layer):
    """An activation as a layer of its own, for use after BatchNorm or LayerNorm; after a Dense it is fused into it.

    Parameters
    ----------
    name : str
        One of the names that ``Dense`` takes.
    """

    kind = "activation"
    is_activation = True

    def __init__(self, name: plan.ActivationName) -> None:
        super().__init__()
        self.name: plan.ActivationName = check_choice("name", name, [a for a in plan.ACTIVATIONS if a is not None])

    def settings(self) -> dict[str, Any]:
        return {"name": self.name}

    def fields(self) -> dict[str, float]:
        return {"activation": plan.ACTIVATIONS[self.name].code}
