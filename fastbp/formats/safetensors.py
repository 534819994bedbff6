"""Weights as safetensors files in the names and layout of PyTorch's ``state_dict``.

The modules of a ``torch.nn.Sequential`` are numbered: a ``Dense`` with an activation is two of them, ``Linear`` and
``ReLU``, everything else is one; so are the modules of a branch. A ``Residual`` is a module that is a
``torch.nn.Sequential`` itself, a ``Concatenate`` one that is a ``ModuleList`` of them, or a ``ModuleDict`` where the
branches have names. ``Linear`` holds its weight as (O, I), the transpose of ours. The tables of a
``TabularInput``, for which PyTorch has no module, are ``0.weights.0`` and so on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

try:
    from safetensors import SafetensorError, deserialize
    from safetensors.numpy import save as to_bytes
except ImportError as error:
    raise ImportError("fastbp.safetensors needs the safetensors package: pip install fastbp[safetensors]") from error

from fastbp.data.arrays import Array, check_finite
from fastbp.formats import npz
from fastbp.formats.writing import File, name_of, read_bytes, write_file
from fastbp.layers import Dense
from fastbp.layers.composition import Composite
from fastbp.layers.tree import Chain, inside, whole
from fastbp.parameters import Parameters
from fastbp.training.sequential import Sequential, check_model


def _tensors(model: Sequential) -> Iterator[tuple[str, Array]]:
    """PyTorch's names, and our arrays as views in PyTorch's layout."""
    return _chain(whole(model.layers), "", model.parameters())


def _chain(chain: Chain, path: str, parameters: Parameters) -> Iterator[tuple[str, Array]]:
    """The tensors of a list of layers; path is PyTorch's."""
    number = 0
    for place in chain.places():
        layer, own = place.layer, f"{path}{number}"
        for name in layer.shapes():
            array = parameters.value(f"{place.path}.{name}")
            yield f"{own}.{name}", array.T if isinstance(layer, Dense) else array
        for name in layer.running_shapes():
            yield f"{own}.{name}", getattr(layer, name)
        if isinstance(layer, Composite):
            for branch, inner in zip(layer.inner(), inside(place), strict=True):
                yield from _chain(inner, f"{own}.{branch.path}", parameters)
        number += 2 if isinstance(layer, Dense) and layer.activation is not None else 1


def _counters(model: Sequential) -> list[str]:
    """What else PyTorch's batch normalisation has: how many batches it has seen."""
    names = (name for name, _ in _tensors(model))
    return [name.replace("running_mean", "num_batches_tracked") for name in names if name.endswith("running_mean")]


_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}


def _array(dtype: str, shape: list[int], data: bytes) -> Array:
    """A tensor of a file. Of bfloat16, which NumPy does not have, the bits are the upper half of a float32's."""
    if dtype not in _DTYPES:
        raise ValueError(f"expected numbers of {', '.join(_DTYPES)}, got {dtype}")
    array: Any = np.frombuffer(data, _DTYPES[dtype])
    if dtype == "BF16":
        array = (array.astype("<u4") << 16).view("<f4")
    return np.asarray(array.reshape(shape))


def save(model: Sequential, path: File) -> None:
    """Write the weights and running statistics; ``torch.nn.Sequential`` of the same modules loads them.

    ``net.load_state_dict(safetensors.torch.load_file(path))`` does it, with ``strict=True`` too.

    Parameters
    ----------
    model : Sequential or fitted estimator
        Of an estimator its ``model_``.
    path : str or path

    Raises
    ------
    TypeError
        If it is no model.
    OSError
        If the file cannot be written; one that was there before is unharmed.
    """
    model = check_model(model)
    with model.model.shared():
        tensors = {name: np.ascontiguousarray(array) for name, array in _tensors(model)}
        tensors |= {name: np.array(model.model.training_step, np.int64) for name in _counters(model)}
        write_file(path, to_bytes(tensors, metadata={"format": "pt"}))


def load(model: Sequential, path: File) -> None:
    """Read weights and running statistics, of this module's or PyTorch's writing, into a model of the same layers.

    They are cast to the model's dtype. Such files have no checksum: a weight that the disk has changed to another
    finite number cannot be told from the one that was saved.

    Parameters
    ----------
    model : Sequential
    path : str or path

    Raises
    ------
    FileFormatError
        If the file is no safetensors file, or its tensors are not those of the model; the model is as it was then.
    TypeError
        If it is no model.
    OSError
        If the file cannot be read.
    """
    own = dict(_tensors(check_model(model)))
    where, data = name_of(path), read_bytes(path)
    try:
        given = {name: _array(**tensor) for name, tensor in deserialize(data)}  # type: ignore[no-untyped-call]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise npz.FileFormatError(f"path: expected a safetensors file, got {where!r}: {error}") from error
    for name in _counters(model):
        given.pop(name, None)
    if given.keys() != own.keys():
        missing, unknown = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
        raise npz.FileFormatError(f"path: in {where!r} the tensors {missing} are missing, and {unknown} too many")
    for name, array in given.items():
        if array.shape != own[name].shape or array.dtype.kind != "f":
            raise npz.FileFormatError(
                f"path: in {where!r} expected {name} to be floats of shape {own[name].shape}, got {array.dtype} of "
                f"{array.shape}"
            )
        try:
            with np.errstate(all="ignore"):
                given[name] = check_finite(name, np.ascontiguousarray(array, model.dtype))
            if name.endswith("running_var") and given[name].min() < 0:
                raise ValueError(f"{name}: expected no negative variance, got {given[name].min()}")
        except ValueError as error:
            raise npz.FileFormatError(f"path: in {where!r} {error}") from error
    with model.model.exclusive():
        for name, array in given.items():
            own[name][:] = array
