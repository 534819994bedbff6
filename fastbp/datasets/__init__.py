"""Data that comes with the package."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def load_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """1,797 handwritten digits of 8 x 8 pixels.

    Returns
    -------
    X : ndarray (1797, 64) float32
        Pixels row by row, counts of black from 0 to 16.
    y : ndarray (1797,) int64
        The digit, 0 to 9.

    Notes
    -----
    The test part of *Optical Recognition of Handwritten Digits*: E. Alpaydin and C. Kaynak, UCI Machine Learning
    Repository, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0. The numbers are unchanged; they are stored as bytes.
    """
    with np.load(os.path.join(os.path.dirname(__file__), "digits.npz")) as data:
        return data["X"].astype(np.float32), data["y"].astype(np.int64)
