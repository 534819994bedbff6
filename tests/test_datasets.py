"""The data sets that come with the package."""

from pathlib import Path

import pytest

import fastbp as fb


def test_digits():
    X, y = fb.datasets.load_digits()
    assert X.shape == (1797, 64)
    assert X.min() == 0
    assert X.max() == 16
    assert sorted(set(y)) == list(range(10))
    assert (Path(fb.__file__).parent / "datasets" / "digits.npz").stat().st_size < 64 * 1024


def test_digits_are_scikit_learns():
    datasets = pytest.importorskip("sklearn.datasets")
    X, y = fb.datasets.load_digits()
    expected = datasets.load_digits()
    assert (expected.data == X).all()
    assert (expected.target == y).all()
