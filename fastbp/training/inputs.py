"""The user's data as a model and a loss take it: a batch, what to train on, what to validate with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastbp.data.arrays import Array, Samples, check_choice
from fastbp.data.sampling import NAMES, Names, Stream, open_data
from fastbp.losses import Loss, class_weights
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
    return checked if isinstance(checked, Stream) else check_weighed(checked, criterion, model.outputs, names)


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


def split_samples(data: Data, share: float, criterion: Loss, outputs: int) -> tuple[Samples, Samples]:
    """The samples to train on, and the last ones, a share of all, to validate with: views, no copies."""
    if isinstance(data, Stream):
        raise ValueError("validation_split: expected arrays, got data that is read; give validation_data")
    samples = len(data[0])
    held_out = round(share * samples)
    if not 0 < held_out < samples:
        raise ValueError(
            f"validation_split: expected samples on both sides, got {held_out} of {samples} to validate with"
        )
    X, y, weight = data
    first, last = slice(None, samples - held_out), slice(samples - held_out, None)
    weights = (None, None) if weight is None else (weight[first], weight[last])
    sides = (X[first], y[first], weights[0]), (X[last], y[last], weights[1])
    for side in sides:
        check_weighed(side, criterion, outputs)
    return sides


def weigh_classes(data: Data, criterion: Loss, outputs: int, class_weight: Any) -> Data:
    """The data with weights that are those of the samples times those of their classes."""
    if class_weight is None:
        return data
    count = criterion.classes(outputs)
    if isinstance(class_weight, str):
        check_choice("class_weight", class_weight, ("balanced",))
        if isinstance(data, Stream):
            raise ValueError("class_weight: expected weights for data that is read, whose labels are not known before")
        of_classes = balanced(criterion, data[1], count)
    else:
        given = class_weights(class_weight, count)
        if given is None:
            return data
        of_classes = given

    def weigh(samples: Samples) -> Samples:
        X, y, weight = samples
        own = criterion.weights_of(y, of_classes).astype(X.dtype)
        if weight is None:
            return X, y, own
        return X, y, weight * (own if weight.ndim == 1 else own[:, None])

    return data.mapped(weigh) if isinstance(data, Stream) else check_weighed(weigh(data), criterion, outputs)


def balanced(criterion: Loss, target: Array, classes: int) -> Array:
    """Weights with which every class that there is counts alike: N / (classes * its samples), as in scikit-learn."""
    counts = np.array([criterion.weights_of(target, of_class).sum() for of_class in np.eye(classes)])
    present = np.count_nonzero(counts)
    weights: Array = np.divide(counts.sum(), present * counts, out=np.ones(classes), where=counts > 0)
    return weights


def check_weighed(data: Samples, criterion: Loss, outputs: int, names: Names = NAMES) -> Samples:
    """``data`` if something of it counts."""
    X, y, weight = data
    if criterion.total_weight(np.empty((0, outputs), X.dtype), y, weight) == 0:
        raise no_weight(names[1], names[2])
    return data
