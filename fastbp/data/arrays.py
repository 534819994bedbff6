"""User data: arrays are checked once and cast once.

This is the only place that casts user data. C-contiguous features of the model's dtype pass through untouched, whether
they are NumPy's or lie in the memory of pandas, polars, Arrow or PyTorch; an error says which argument was wrong, what
was expected and what came, and is raised before anything has changed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastbp.core import backend
from fastbp.core.sparse import CSR
from fastbp.data.hints import near_names

Array = np.ndarray[Any, np.dtype[Any]]
Features = Array | CSR
Samples = tuple[Features, Array, Array | None]  # features, targets and weights that were checked

if TYPE_CHECKING:  # numpy.random and numpy.typing are a good part of the time that the package takes to import
    from numpy.typing import ArrayLike

    Seed = int | np.random.Generator | None


def check_choice(name: str, value: object, valid: Iterable[str | int | None]) -> Any:
    """``value`` if it is one of ``valid``, else a ValueError that offers the nearest names."""
    options = list(valid)
    if isinstance(value, (str, int, float, type(None))) and value in options:  # an array would be compared by entries
        return value
    raise ValueError(f"{name}: unknown value {value!r}; {near_names(str(value), options)}")


LARGEST_WEIGHT = 2.0**100  # of samples and classes: products and sums of these fit float64
LARGEST = 2**62  # of all sizes and counts: sums of a few of them fit the core's 64 bits


def check_bool(name: str, value: object) -> bool:
    """``value`` if it is True or False; a name, an array or a number in the wrong place would be one of the two."""
    if not isinstance(value, (bool, np.bool_)):
        given = repr(value) if isinstance(value, (str, int, float, type(None))) else type(value).__name__
        raise TypeError(f"{name}: expected True or False, got {given}")
    return bool(value)


def check_int(name: str, value: object, low: int = 1, high: int = LARGEST) -> int:
    """``value`` as an int of at least 1, or 0 if ``low`` is, and at most ``high``."""
    kind = "positive" if low else "non-negative"
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected a {kind} integer, got {value!r}")
    if value < low:
        raise ValueError(f"{name}: expected a {kind} integer, got {value}")
    if value > high:
        raise ValueError(f"{name}: expected an integer of at most {high}, got {value}")
    return int(value)


#: Bytes that this machine has; where it does not say so, as on Windows, those that a process can address.
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**47


def check_memory(name: str, size: int) -> None:
    """Raise if so many bytes are more than there can be: Linux may promise them, and end the process that uses them."""
    if size > MEMORY:
        raise ValueError(f"{name}: expected what fits into the {MEMORY:,} bytes of this machine, got {size:,} bytes")


def check_number(name: str, value: object, low: float, high: float = float("inf"), open_low: bool = False) -> float:
    """``value`` as a finite float in [low, high), or (low, high) if ``open_low``."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    try:
        number = float(value)  # first: what is above a bound in another type may be rounded to it
    except OverflowError:
        number = math.inf
    if not (low <= number < high and math.isfinite(number)) or (open_low and number == low):
        raise ValueError(f"{name}: expected a number in {'(' if open_low else '['}{low}, {high}), got {value}")
    return number


def check_normal(name: str, value: float, dtype: np.dtype[Any]) -> float:
    """``value``, above 0, if it is finite in this dtype and not below the smallest normal number.

    The core takes smaller ones for 0.
    """
    limits = np.finfo(dtype)
    if not float(limits.tiny) <= value <= float(limits.max):
        raise ValueError(
            f"{name}: expected a number from {limits.tiny:.3g} to {limits.max:.3g}, as in {dtype}, got {value}"
        )
    return value


def as_array(name: str, value: Any) -> Array:
    """``value`` as an array, over the same memory where its layout allows."""
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray) and not value.dtype.names and np.ma.is_masked(value):
        raise ValueError(f"{name}: expected numbers, got a masked array with masked entries")
    if hasattr(value, "toarray"):
        raise TypeError(f"{name}: expected a dense array, got {type(value).__name__}; toarray() gives one")
    try:
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return np.from_dlpack(value)
        if hasattr(value, "to_numpy_ndarray"):  # Arrow's tensors of one shape, and its lists of one length
            return np.asarray(value.to_numpy_ndarray())
        if hasattr(getattr(value, "type", None), "list_size"):
            return np.asarray(value.flatten()).reshape(len(value), -1)
        return np.asarray(value)
    except ValueError as error:  # a ragged list
        raise ValueError(
            f"{name}: expected a rectangular array of numbers, got {type(value).__name__}: {error}"
        ) from error
    except (TypeError, RuntimeError, BufferError) as error:  # a tensor that is not on the CPU, or requires a gradient
        raise TypeError(f"{name}: expected an array of numbers, got {type(value).__name__}: {error}") from error


def cast(name: str, value: ArrayLike, dtype: np.dtype[Any]) -> Array:
    """``value`` as a C-contiguous array of ``dtype``: itself if it is one already."""
    if type(value) is np.ndarray and value.dtype == dtype and value.flags.c_contiguous and value.flags.aligned:
        return value  # first, as a step of a small network takes less time than the checks below
    array = as_array(name, value)
    if array.dtype.kind not in "buifO":
        raise TypeError(f"{name}: expected numbers, got an array of dtype {array.dtype}")
    if array.dtype.kind == "O":
        text = next((entry for entry in array.flat if isinstance(entry, (str, bytes))), None)
        if text is not None:  # NumPy would read the number in it
            raise TypeError(f"{name}: expected numbers, got an array of objects with {text!r} among them")
    try:
        with np.errstate(all="ignore"):  # what does not fit becomes infinite, and check_finite() says so
            return np.require(array, dtype=dtype, requirements=["C", "A"])
    except OverflowError as error:  # of an object
        raise ValueError(f"{name}: expected finite numbers, got an array of objects: {error}") from error
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected numbers, got an array of objects: {error}") from error


def check_finite(name: str, array: Array) -> Array:
    """``array`` if no entry is NaN or infinite."""
    if not backend().all_finite(array):
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{name}: expected finite numbers, got {array[where]} at index {where} (as {array.dtype})")
    return array


def check_array(name: str, value: ArrayLike, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """``value`` as a finite array of exactly this shape."""
    array = cast(name, value, dtype)
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    return check_finite(name, array)


def take_rows(data: Samples, rows: Array) -> Samples:
    """Copies of these rows."""
    X, y, weight = data
    return X[rows], y[rows], None if weight is None else weight[rows]


class Categories(NamedTuple):
    """What the last columns of the features hold: ids, whole numbers from 0 to ``counts[j] - 1``, (k,) int64.

    With ``reserve`` all other numbers stand for the id ``counts[j]``.
    """

    counts: Array
    reserve: bool

    def among(self, x: Array) -> bool:
        """Whether checked features have one of the reserved ids."""
        return self.reserve and bool((x[:, x.shape[1] - len(self.counts) :] == self.counts).any())


def check_features(
    name: str,
    value: ArrayLike,
    width: int,
    dtype: np.dtype[Any],
    categories: Categories | None = None,
    empty: bool = False,
) -> Array:
    """``value`` as a finite (samples, width) array, whose last columns may be categories.

    empty: whether it may have no samples.
    """
    array = cast(name, value, dtype)
    check_width(name, array, width)
    check_samples(name, array, empty)
    if categories is not None and len(array):
        array = check_categories(name, array, categories)
    return check_finite(name, array)


def check_samples(name: str, array: Any, empty: bool) -> None:
    """Raise if ``array`` has no rows, unless it may be empty."""
    if array.shape[0] == 0 and not empty:
        raise ValueError(f"{name}: expected at least one sample, got shape {array.shape}")


def check_width(name: str, array: Any, width: int) -> None:
    """Raise unless ``array`` has rows of this width."""
    if array.shape[1:] != (width,):
        raise ValueError(f"{name}: expected shape (samples, {width}), got {array.shape}")


def check_categories(name: str, array: Array, categories: Categories) -> Array:
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


def check_labels(name: str, value: ArrayLike, samples: int, classes: int) -> Array:
    """``value`` as (samples,) int64 class labels in 0..classes-1."""
    array = as_array(name, value)
    if array.dtype.kind not in "iub":
        raise TypeError(f"{name}: expected integer class labels, got dtype {array.dtype}{_label_hint(array)}")
    check_length(name, array, samples)
    if array.ndim != 1:
        raise ValueError(
            f"{name}: expected class labels of shape ({samples},), got {array.shape}{_shape_hint(array, classes)}"
        )
    low, high = array.min(), array.max()
    if low < 0 or high >= classes:
        hint = "; they begin at 0, as y - 1 does" if (low, high) == (1, classes) else sign_hint(array)
        raise ValueError(f"{name}: expected labels from 0 to {classes - 1}, got {low if low < 0 else high}{hint}")
    return np.require(array, dtype=np.int64, requirements=["C", "A"])


def sign_hint(array: Array) -> str:
    """How labels that are signs become 0 and 1."""
    signs = (abs(array) == 1).all() and array.min() < array.max()
    return "; (y > 0).astype(int) makes 0 and 1 of -1 and 1" if signs else ""


def _label_hint(array: Array) -> str:
    """How labels that are no integers become some."""
    if array.dtype.kind in "UST" or (array.dtype.kind == "O" and array.size and isinstance(array.flat[0], str)):
        return "; np.unique(y, return_inverse=True)[1] numbers them, and the estimators take them as they are"
    if array.dtype.kind == "f" and array.size and (array == np.floor(array)).all():
        return "; y.astype(int) makes integers of them"
    if array.dtype.kind == "O" and array.size and all(isinstance(entry, (int, np.integer)) for entry in array.flat):
        return "; y.astype(int) makes integers of them"
    return ""


def _shape_hint(array: Array, classes: int) -> str:
    """How labels in an array of another shape become a vector."""
    if array.shape[1:] == (1,):
        return "; y.ravel() has it"
    if array.ndim != 2 or not (np.count_nonzero(array, axis=1) == 1).all() or not (array.max(axis=1) == 1).all():
        return ""
    if array.shape[1] != classes:  # argmax would be followed by the next error
        return f"; as one-hot rows these are {array.shape[1]} classes, and there are {classes}"
    return "; y.argmax(axis=1) has the labels of one-hot rows"


def check_targets(
    name: str, value: ArrayLike, samples: int, outputs: int, dtype: np.dtype[Any], missing: bool = False
) -> Array:
    """``value`` as a finite (samples, outputs) array; (samples,) is accepted where there is one output.

    missing: whether there may be NaN, but no infinity.
    """
    array = cast(name, value, dtype)
    check_length(name, array, samples)
    if array.ndim == 1 and outputs == 1:
        array = array.reshape(samples, 1)
    if array.shape != (samples, outputs):
        shape = f"({samples}, {outputs})" + (f" or ({samples},)" if outputs == 1 else "")
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    if missing:
        if np.isinf(array).any():
            raise ValueError(f"{name}: expected finite numbers or NaN, got infinity")
        return array
    return check_finite(name, array)


def check_weights(
    name: str, value: ArrayLike | None, samples: int, dtype: np.dtype[Any], part: bool = False
) -> Array | None:
    """``value`` as (samples,) non-negative weights; all may be zero, as they can be in a batch. None stays None.

    Those of a part of the samples are not scaled.
    """
    if value is None:
        return None
    array = as_array(name, value)
    array = check_array(name, array, (samples,), dtype if array.dtype == dtype else np.dtype(np.float64))
    if array.min() < 0:
        raise ValueError(f"{name}: expected non-negative weights, got {array.min()} at index {array.argmin()}")
    scaled = scaled_weights(array)
    if part and scaled is not array:
        raise ValueError(f"{name}: expected a greatest weight between 1e-30 and 1e30, got {array.max()}")
    return cast(name, scaled, dtype)


def scaled_weights(array: Array) -> Array:
    """Weights, of which only the ratios count, by a power of two near 1: their sum neither overflows nor underflows."""
    high = array.max()
    if high == 0 or 1 / LARGEST_WEIGHT < high < LARGEST_WEIGHT:
        return array
    return np.asarray(np.ldexp(array, -int(np.frexp(high)[1])))


def check_length(name: str, array: Array, samples: int) -> None:
    """Raise unless ``array`` has one row per sample."""
    if array.shape[:1] != (samples,):
        raise ValueError(f"{name}: expected {samples} rows, one per sample, got shape {array.shape}")


def as_generator(seed: Seed) -> np.random.Generator:
    """The random generator of a seed; a generator is itself, so that it goes on where it was."""
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise type(error)(f"seed: expected a non-negative integer, a Generator or None, got {seed!r}") from error
