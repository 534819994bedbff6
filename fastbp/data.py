"""User data at the door: arrays are checked once and cast once, and batches() deals them out.

This is the only place that casts or copies user data. float32 C-contiguous features pass through untouched; an error
says which argument was wrong, what was expected and what came, and is raised before anything has changed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from fastbp.core import backend

Array = np.ndarray[Any, np.dtype[Any]]
Samples = tuple[Array, Array, Array | None]  # features, targets and weights that were checked

if TYPE_CHECKING:  # numpy.random and numpy.typing are a good part of the time that the package takes to import
    from numpy.typing import ArrayLike

    Seed = int | np.random.Generator | None


def choice(name: str, value: object, valid: Iterable[str | int | None]) -> Any:
    """``value`` if it is one of ``valid``, else a ValueError that offers the nearest names."""
    options = list(valid)
    if value in options:
        return value
    import difflib  # an error has the time

    near = difflib.get_close_matches(str(value), [o for o in options if isinstance(o, str)], n=3)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"expected one of {options}"
    raise ValueError(f"{name}: unknown value {value!r}; {hint}")


def positive_int(name: str, value: object, low: int = 1) -> int:
    """``value`` as an int of at least 1, or 0 if ``low`` is."""
    kind = "positive" if low else "non-negative"
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected a {kind} integer, got {value!r}")
    if value < low:
        raise ValueError(f"{name}: expected a {kind} integer, got {value}")
    return int(value)


def real_number(name: str, value: object, low: float, high: float = float("inf"), open_low: bool = False) -> float:
    """``value`` as a float in [low, high), or (low, high) if ``open_low``; an infinite bound is excluded."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not (low <= value < high and value <= sys.float_info.max) or (open_low and value == low):
        raise ValueError(f"{name}: expected a number in {'(' if open_low else '['}{low}, {high}), got {value}")
    return float(value)


def cast(name: str, value: ArrayLike, dtype: np.dtype[Any]) -> Array:
    """``value`` as a C-contiguous array of ``dtype``: itself if it is one already."""
    if type(value) is np.ndarray and value.dtype == dtype and value.flags.c_contiguous and value.flags.aligned:
        return value  # at once: a step of a small network takes less time than the questions below
    try:
        array = np.asarray(value)
    except ValueError as error:  # a ragged list
        raise ValueError(
            f"{name}: expected a rectangular array of numbers, got {type(value).__name__}: {error}"
        ) from error
    if np.ma.is_masked(value):
        raise ValueError(f"{name}: expected numbers, got a masked array with masked entries")
    if array.dtype.kind not in "buif":
        if array.dtype.kind != "O":
            raise TypeError(f"{name}: expected numbers, got an array of dtype {array.dtype}")
        try:
            array = array.astype(dtype)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name}: expected numbers, got an array of objects: {error}") from error
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and finite() says so
        return np.require(array, dtype=dtype, requirements=["C", "A"])


def finite(name: str, array: Array) -> Array:
    """``array`` if no entry is NaN or infinite."""
    if not backend().all_finite(array):
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{name}: expected finite numbers, got {array[where]} at index {where} (as {array.dtype})")
    return array


def shaped(name: str, value: ArrayLike, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """``value`` as a finite array of exactly this shape."""
    array = cast(name, value, dtype)
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    return finite(name, array)


def taken(data: Samples, rows: Array) -> Samples:
    """Copies of these rows."""
    X, y, weight = data
    return X[rows], y[rows], None if weight is None else weight[rows]


class Categories(NamedTuple):
    """What the last columns of the features hold: ids, whole numbers from 0 to ``counts[j] - 1``, (k,) int64.

    With ``reserve`` all other numbers are taken as the id ``counts[j]``.
    """

    counts: Array
    reserve: bool


def features(
    name: str, value: ArrayLike, width: int, dtype: np.dtype[Any], categories: Categories | None = None
) -> Array:
    """``value`` as a finite (samples, width) array with at least one sample, whose last columns may be categories."""
    array = cast(name, value, dtype)
    if array.ndim != 2 or array.shape[1] != width:
        raise ValueError(f"{name}: expected shape (samples, {width}), got {array.shape}")
    if array.shape[0] == 0:
        raise ValueError(f"{name}: expected at least one sample, got shape {array.shape}")
    if categories is not None:
        array = known(name, array, categories)
    return finite(name, array)


def known(name: str, array: Array, categories: Categories) -> Array:
    """``array`` if its last columns hold valid ids; with a reserved one, a copy in which it stands for all others."""
    counts, k = categories.counts, len(categories.counts)
    at = backend().unknown_category(array, counts)
    if at < 0:
        return array
    numeric = array.shape[1] - k
    if not categories.reserve:
        row, j = divmod(at, k)
        raise ValueError(
            f"{name}: column {numeric + j} (categorical {j}): expected whole numbers from 0 to {counts[j] - 1}, got "
            f"{array[row, numeric + j]:.9g} at row {row}"
        )
    array = array.copy()
    ids = array[:, numeric:]
    ids[:] = np.where((ids >= 0) & (ids < counts) & (ids == np.floor(ids)), ids, counts)
    return array


def labels(name: str, value: ArrayLike, samples: int, classes: int) -> Array:
    """``value`` as (samples,) int64 class labels in 0..classes-1."""
    array = np.asarray(value)
    if array.dtype.kind not in "iub":
        raise TypeError(f"{name}: expected integer class labels, got dtype {array.dtype}")
    same_length(name, array, samples)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected class labels of shape ({samples},), got {array.shape}")
    low, high = array.min(), array.max()
    if low < 0 or high >= classes:
        raise ValueError(f"{name}: expected labels from 0 to {classes - 1}, got {low if low < 0 else high}")
    return np.require(array, dtype=np.int64, requirements=["C", "A"])


def targets(name: str, value: ArrayLike, samples: int, outputs: int, dtype: np.dtype[Any]) -> Array:
    """``value`` as a finite (samples, outputs) array; (samples,) is taken where there is one output."""
    array = cast(name, value, dtype)
    same_length(name, array, samples)
    if array.ndim == 1 and outputs == 1:
        array = array.reshape(samples, 1)
    if array.shape != (samples, outputs):
        shape = f"({samples}, {outputs})" + (f" or ({samples},)" if outputs == 1 else "")
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    return finite(name, array)


def weights(name: str, value: ArrayLike | None, samples: int, dtype: np.dtype[Any]) -> Array | None:
    """``value`` as (samples,) non-negative weights; all may be zero, as they can be in a batch. None stays None."""
    if value is None:
        return None
    array = shaped(name, value, (samples,), dtype)
    if array.min() < 0:
        raise ValueError(f"{name}: expected non-negative weights, got {array.min()} at index {array.argmin()}")
    return array


def same_length(name: str, array: Array, samples: int) -> None:
    """Raise unless ``array`` has one row per sample."""
    if array.ndim == 0 or array.shape[0] != samples:
        raise ValueError(f"{name}: expected {samples} rows, one per sample, got shape {array.shape}")


def generator(seed: Seed) -> np.random.Generator:
    """The random generator of a seed; a generator is itself, so that it goes on where it was."""
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise type(error)(f"seed: expected a non-negative integer, a Generator or None, got {seed!r}") from error


def epoch_key(shuffle: bool, rng: np.random.Generator) -> int | None:
    """The key of the next epoch's order, for the backend's ``order``."""
    return int(rng.integers(2**64, dtype=np.uint64)) if shuffle else None


def epoch_rows(first: int, count: int, samples: int, key: int | Array | None) -> Array:
    """The row numbers at positions first..first+count of an epoch's order, (count,) int64."""
    rows = np.empty(min(count, samples - first), np.int64)
    backend().order(rows, first, samples, key)
    return rows


@overload
def batches(
    X: ArrayLike, y: ArrayLike, batch_size: int, shuffle: bool = ..., seed: Seed = ..., sample_weight: None = ...
) -> Iterator[tuple[Array, Array]]: ...
@overload
def batches(
    X: ArrayLike, y: ArrayLike, batch_size: int, shuffle: bool = ..., seed: Seed = ..., *, sample_weight: ArrayLike
) -> Iterator[tuple[Array, Array, Array]]: ...
def batches(
    X: ArrayLike,
    y: ArrayLike,
    batch_size: int,
    shuffle: bool = True,
    seed: Seed = None,
    sample_weight: ArrayLike | None = None,
) -> Iterator[tuple[Array, ...]]:
    """Deal one epoch of (X, y) out in batches, in the order that ``Sequential.fit`` takes with the same seed.

    Parameters
    ----------
    X, y : array_like
        Features and targets with one row per sample; their dtypes are kept.
    batch_size : int
        Rows per batch; the last batch has what is left.
    shuffle : bool
        Whether to draw a new order.
    seed : int, numpy.random.Generator or None
        An integer gives the same order each time. Pass one generator to every epoch to get a new order each time and
        the orders of ``fit(seed=...)`` with that seed.
    sample_weight : array_like or None
        One weight per sample, to be dealt with them.

    Yields
    ------
    xb, yb : ndarray
        Copies of the rows of one batch; with sample_weight ``xb, yb, wb``.

    Raises
    ------
    ValueError, TypeError
        If the lengths differ, there are no samples, or batch_size is not a positive integer; at the call.
    """
    X, y = np.asarray(X), np.asarray(y)
    positive_int("batch_size", batch_size)
    if X.ndim == 0 or X.shape[0] == 0:
        raise ValueError(f"X: expected at least one sample, got shape {X.shape}")
    same_length("y", y, X.shape[0])
    columns = [X, y]
    if sample_weight is not None:
        columns.append(np.asarray(sample_weight))
        same_length("sample_weight", columns[2], X.shape[0])
    key, samples = epoch_key(shuffle, generator(seed)), X.shape[0]
    dealt = (epoch_rows(first, batch_size, samples, key) for first in range(0, samples, batch_size))
    return (tuple(column[rows] for column in columns) for rows in dealt)
