"""The user's data as a model and a loss take it: a batch, what to train on, what to validate with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastbp.data.arrays import Samples
from fastbp.data.sampling import NAMES, Names, Stream, open_data
from fastbp.losses import Loss
from fastbp.model import Model

if TYPE_CHECKING:
    ValidationData = tuple[Any, ...] | list[Any] | Callable[[], Iterable[tuple[Any, ...]]] | None

Data = Samples | Stream

EVALUATION_BUFFER = 16384  # samples of data that is read are evaluated at a time


def check_batch(
    model: Model, criterion: Loss, X: Any, y: Any, sample_weight: Any, names: Names, part: bool = False
) -> Samples:
    """X, y and the weights as arrays for the model and the loss; part: whether they are a part of the samples."""
    X = model.check_features(names[0], X)
    target = criterion.check(names[1], y, X.shape[0], model.outputs, model.dtype)
    model.check_apart(names[0], X)
    model.check_apart(names[1], target)
    if sample_weight is None:  # the usual case: no further call
        return X, target, None
    weight = criterion.check_weight(names[2], sample_weight, X.shape[0], model.outputs, model.dtype, part)
    if weight is not None:
        model.check_apart(names[2], weight)
    return X, target, weight


def open_samples(
    model: Model, criterion: Loss, data: tuple[Any, Any, Any], buffer_size: int, names: Names = NAMES
) -> Data:
    """X, y and weights to train or to evaluate with, checked; what does not fit into memory is when it is read."""

    def check(chunk: tuple[Any, Any, Any], own_names: Names) -> Samples:
        return check_batch(model, criterion, *chunk, own_names, part=own_names is not names)

    checked = open_data(data, check, buffer_size, names)
    if not isinstance(checked, Stream):
        _, y, weight = checked
        if criterion.total_weight(np.empty((0, model.outputs), model.dtype), y, weight) == 0:
            raise no_weight(names[1], names[2])
    return checked


def no_weight(y: str, sample_weight: str) -> ValueError:
    """The error for data of which nothing counts; single batches may be like that."""
    return ValueError(f"{sample_weight}: expected a positive weight among them and the classes of {y}, got zeros only")


def open_evaluation(model: Model, criterion: Loss, data: tuple[Any, Any, Any], names: Names = NAMES) -> Data:
    """X, y and weights to evaluate with."""
    return open_samples(model, criterion, data, EVALUATION_BUFFER, names)


def open_validation(model: Model, criterion: Loss, data: ValidationData) -> Data | None:
    """``fit``'s validation_data, checked; None stays None."""
    if data is None:
        return None
    if callable(data):
        data = data, None
    if not isinstance(data, (tuple, list)) or len(data) not in (2, 3):
        raise TypeError(
            "validation_data: expected (Xv, yv), (Xv, yv, sample_weight) or a function that gives chunks, got "
            f"{type(data).__name__}"
        )
    names = "validation_data[0]", "validation_data[1]", "validation_data[2]"
    weighted = data[0], data[1], data[2] if len(data) == 3 else None
    return open_evaluation(model, criterion, weighted, names)
