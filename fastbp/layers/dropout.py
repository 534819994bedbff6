"""Dropout."""

from __future__ import annotations

from typing import Any

from fastbp.data.arrays import check_number
from fastbp.layers.layer import Layer


class Dropout(Layer):
    """In training, zero each entry with probability p and scale the rest by 1 / (1 - p) (Srivastava et al. 2014).

    The masks follow from the model's seed and its count of training steps, on every backend alike.

    Parameters
    ----------
    p : float
        In [0, 1).
    """

    kind = "dropout"
    identity_in_inference = True

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = check_number("p", p, 0, 1)

    def settings(self) -> dict[str, Any]:
        return {"p": self.p}

    def fields(self) -> dict[str, float]:
        return {"p": self.p}
