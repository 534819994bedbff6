"""The flat buffers that layers and optimizers share.

All parameters of a model lie in one vector, all gradients in another, so an optimizer is one pass over them. Every
tensor starts on a cache line; the few entries between two tensors are zero and stay zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastbp.core import thread_limit
from fastbp.core._lock import ReadWriteLock
from fastbp.core.plan import ALIGNMENT, aligned
from fastbp.data.arrays import Array, check_array
from fastbp.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

#: By a tensor's name, how a user writes the layer that has it, and what it is called there: ``layers[0]``, ``weight``.
Owners = dict[str, tuple[str, str]]


SHOWN = 8  # tensors in a repr


class Parameters(Settings):
    """The parameters of a model: ``values`` and ``grads``, flat, and every tensor as a view on them.

    Iterating gives the parameter tensors in the order of the layers; they can be written in place. ``lock`` is that of
    the whole model: who trains it holds it, and so does everybody else who reads or changes the model.
    """

    _instead: ClassVar[str] = "write into the arrays, or make a new model"

    def __init__(self, shapes: dict[str, tuple[int, ...]], dtype: np.dtype[Any], owners: Owners) -> None:
        line = ALIGNMENT // dtype.itemsize
        self.offsets: dict[str, int] = {}
        self.ends: dict[str, int] = {}  # with the entries behind a tensor
        self.shapes, self.owners = shapes, owners
        size = 0
        for name, shape in shapes.items():
            self.offsets[name] = size
            size += -(-math.prod(shape) // line) * line
            self.ends[name] = size
        self._values: Array = aligned(size, dtype)
        self._grads: Array = aligned(size, dtype)
        self._values[:] = 0
        self._grads[:] = 0
        self.lock = ReadWriteLock()

    @classmethod
    def _setting_names(cls) -> tuple[str, ...]:
        """None: they are those of the model."""
        return ()

    @property
    def values(self) -> Array:
        """All parameters, a vector that may be written in place; assigning copies into it."""
        return self._values

    @values.setter
    def values(self, values: ArrayLike) -> None:
        self._copy_in("values", self._values, values)

    @property
    def grads(self) -> Array:
        """All gradients, likewise."""
        return self._grads

    @grads.setter
    def grads(self, grads: ArrayLike) -> None:
        self._copy_in("grads", self._grads, grads)

    def _copy_in(self, name: str, flat: Array, given: ArrayLike) -> None:
        array = check_array(name, given, flat.shape, flat.dtype)
        if array is flat:  # after ``values *= 0.5``
            return
        with self.exclusive():
            for tensor in self.shapes:  # what is behind a tensor stays zero
                self.view(flat, tensor)[...] = self.view(array, tensor)

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep all else that changes or reads the model out: for a step, or another change."""
        return self.lock.exclusive()

    def shared(self, threads: int | None = None) -> AbstractContextManager[int]:
        """Keep out threads that train; gives how many threads of the core may be used, as those that read share them.

        They share this many, or ``get_num_threads()`` if threads is None.
        """
        return self.lock.shared(threads or thread_limit())

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is laid out anew, so that it starts on a cache line too."""
        return _copy, (self.shapes, self.owners, self.values, self.grads, Unchanged(self.lock))

    def __len__(self) -> int:
        return len(self.shapes)

    def __repr__(self) -> str:
        """``Parameters(4 tensors of 1,250 float32: 0.weight (8, 16), 0.bias (16,), ...)``"""
        first = ", ".join(f"{name} {shape}" for name, shape in list(self.shapes.items())[:SHOWN])
        rest = ", ..." if len(self) > SHOWN else ""
        return f"Parameters({len(self)} tensors of {self.count:,} {self.values.dtype}: {first}{rest})"

    def __iter__(self) -> Iterator[Array]:
        return (self.value(name) for name in self.shapes)

    @property
    def count(self) -> int:
        """How many numbers are learned."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def value(self, name: str) -> Array:
        """The parameter tensor of that name, a view."""
        return self.view(self.values, name)

    def grad(self, name: str) -> Array:
        """Its gradient, a view."""
        return self.view(self.grads, name)

    def view(self, flat: Array, name: str) -> Array:
        """A tensor of a vector that is laid out as the parameters are."""
        start, shape = self.offsets[name], self.shapes[name]
        return flat[start : start + math.prod(shape)].reshape(shape)


def copy_overlap(to: Array, tensor: Array) -> None:
    """Fill the first rows and columns of a tensor with those of one that may be smaller or larger."""
    part = tuple(slice(min(a, b)) for a, b in zip(to.shape, tensor.shape, strict=True))
    to[part] = tensor[part]


class Unchanged:
    """The last part of what a copy or a pickle is made of: it raises if the model has changed since this was made.

    The arrays are read after ``__reduce__`` has returned, and no lock can be held so long: another thread may begin to
    train. It is made before anything is read, and reached when everything is.
    """

    def __init__(self, lock: ReadWriteLock) -> None:
        self._lock, self._version = lock, lock.version()

    def __reduce__(self) -> tuple[Any, ...]:
        self._lock.check_version(self._version)
        return bool, ()


def _copy(
    shapes: dict[str, tuple[int, ...]], owners: Owners, values: Array, grads: Array, _unchanged: object = None
) -> Parameters:
    parameters = Parameters(shapes, values.dtype, owners)
    parameters.values[:], parameters.grads[:] = values, grads
    return parameters
