"""Losses as descriptions: what targets they take, which kernel computes them, and whether accuracy makes sense.

Calling a loss gives ``(loss, dpred)``, the mean over the batch and its gradient; any callable with that signature
serves as a loss too.

With sample weights the mean is weighted, ``sum_i s_i loss_i / sum_i s_i``; a batch whose weights are all zero has
loss and gradient 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, SupportsFloat

import numpy as np

from fastbp.core import backend, thread_limit
from fastbp.core.plan import LossSpec, check_names
from fastbp.data.arrays import (
    Array,
    as_array,
    cast,
    check_array,
    check_choice,
    check_features,
    check_finite,
    check_labels,
    check_length,
    check_number,
    check_targets,
    check_weights,
    scaled_weights,
)
from fastbp.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__: list[str] = []  # every public loss adds its name above its class

_Result = tuple[SupportsFloat, Array]  # the loss and its gradient
# Of (pred, target), and of sample_weight where there are any.
LossFunction = Callable[[Array, Array], _Result] | Callable[[Array, Array, Array], _Result]


#: The losses by the names under which ``fit`` knows them.
LOSSES: dict[str, type[Loss]] = {}


class Loss(Settings):
    """The base of all losses. ``loss(pred, target)`` returns ``(loss, dpred)``.

    fastbp's own are registered in ``LOSSES`` under their ``name``.

    pred has shape (B, O) and dtype float32 or float64 (anything else is cast to float32); dpred is like pred.
    sample_weight, if not None, has shape (B,) and is not negative.
    """

    #: The name under which ``fit`` knows the loss; the kernel of an elementwise one has the same.
    name = ""
    #: Whether predictions are right or wrong, so that ``correct`` can count them.
    classifies = False
    #: Whether the kernel has a parameter, which the constructor sets.
    has_parameter = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__module__ == __name__ and cls.name:  # a user's own loss has no name that fit knows
            LOSSES[cls.name] = cls

    def __call__(
        self, pred: ArrayLike, target: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> tuple[float, Array]:
        array = as_array("pred", pred)
        dtype = np.dtype(array.dtype.type if array.dtype.type in (np.float32, np.float64) else np.float32)
        if array.ndim != 2:
            raise ValueError(f"pred: expected shape (samples, outputs), got {array.shape}")
        array = check_features("pred", array, array.shape[1], dtype)
        checked = self.check("target", target, array.shape[0], array.shape[1], dtype)
        return self.compute(array, checked, check_weights("sample_weight", sample_weight, array.shape[0], dtype))

    def check(self, name: str, target: ArrayLike, samples: int, outputs: int, dtype: np.dtype[Any]) -> Array:
        """``target`` as the array that ``compute`` takes, for predictions of shape (samples, outputs)."""
        return check_targets(name, target, samples, outputs, dtype)

    def compute(self, pred: Array, target: Array, sample_weight: Array | None) -> tuple[float, Array]:
        """The loss and its gradient for arrays that were checked; a loss of the user's own overrides it."""
        raise NotImplementedError

    def compute_with(
        self, pred: Array, target: Array, sample_weight: Array | None, threads: int
    ) -> tuple[float, Array]:
        """``compute``, with so many threads of the core; a loss of the user's own does not use them."""
        return self.compute(pred, target, sample_weight)

    def spec(self, outputs: int, dtype: np.dtype[Any]) -> LossSpec | None:
        """The loss as the core knows it, for this many outputs and this dtype; None for a Python callable."""
        return None

    def total_weight(self, pred: Array, target: Array, sample_weight: Array | None) -> float:
        """What ``compute`` divides by to get the mean over these samples: how many there are, or their weight."""
        return len(target) if sample_weight is None else float(sample_weight.sum(dtype=np.float64))

    def correct(self, pred: Array, target: Array) -> int:
        """How many predictions are right."""
        raise NotImplementedError


class Compiled(Loss):
    """The base of the losses that the core computes: those with a ``spec``."""

    def compute(self, pred: Array, target: Array, sample_weight: Array | None) -> tuple[float, Array]:
        return self.compute_with(pred, target, sample_weight, thread_limit())

    def compute_with(
        self, pred: Array, target: Array, sample_weight: Array | None, threads: int
    ) -> tuple[float, Array]:
        dpred, spec = np.empty_like(pred), self.spec(pred.shape[1], pred.dtype)
        return backend().loss(dpred, pred, target, sample_weight, spec, threads), dpred


__all__ += ["CrossEntropy"]


class CrossEntropy(Compiled):
    """Softmax cross-entropy of logits (B, C) and integer labels (B,).

    Parameters
    ----------
    label_smoothing : float
        In [0, 1): the share of the target that is spread over all classes (Szegedy et al. 2016).
    class_weight : array_like (C,), mapping from label to weight, or None
        Non-negative. The mean is weighted, ``sum_i w[y_i] loss_i / sum_i w[y_i]``, as in PyTorch; labels that a
        mapping leaves out weigh 1. Sample weights multiply these.
    """

    name = "cross_entropy"
    classifies = True

    def __init__(
        self, label_smoothing: float = 0.0, class_weight: ArrayLike | Mapping[int, float] | None = None
    ) -> None:
        self.label_smoothing = check_number("label_smoothing", label_smoothing, 0, 1)
        self.class_weight = _class_weights(class_weight)
        self._weights: dict[tuple[int, np.dtype[Any]], Array | None] = {}

    def _weight(self, classes: int, dtype: np.dtype[Any]) -> Array | None:
        key = (classes, dtype)
        if key not in self._weights:
            self._weights[key] = self._checked_weight(classes, dtype)
        return self._weights[key]

    def _checked_weight(self, classes: int, dtype: np.dtype[Any]) -> Array | None:
        if self.class_weight is None or (isinstance(self.class_weight, Mapping) and not self.class_weight):
            return None
        if isinstance(self.class_weight, Mapping):
            given = check_labels("class_weight", list(self.class_weight), len(self.class_weight), classes)
            weight = np.ones(classes)
            weight[given] = cast("class_weight", list(self.class_weight.values()), weight.dtype)
        else:
            weight = cast("class_weight", self.class_weight, np.dtype(np.float64))
        if weight.shape != (classes,):
            raise ValueError(f"class_weight: expected {classes} weights, one per class, got shape {weight.shape}")
        if check_finite("class_weight", weight).min() < 0 or weight.max() == 0:
            raise ValueError("class_weight: expected non-negative weights that are not all zero")
        return np.array(scaled_weights(weight), dtype)  # a copy

    def check(self, name: str, target: ArrayLike, samples: int, outputs: int, dtype: np.dtype[Any]) -> Array:
        if outputs < 2:
            raise ValueError(f"{name}: cross-entropy needs at least 2 logits per sample, got {outputs}")
        self._weight(outputs, dtype)
        return check_labels(name, target, samples, outputs)

    def spec(self, outputs: int, dtype: np.dtype[Any]) -> LossSpec:
        return LossSpec(self.name, self.label_smoothing, self._weight(outputs, dtype))

    def total_weight(self, pred: Array, target: Array, sample_weight: Array | None) -> float:
        weight = self._weight(pred.shape[1], pred.dtype)
        if weight is None:
            return super().total_weight(pred, target, sample_weight)
        of_labels = weight.astype(np.float64)[target]
        return float(of_labels.sum() if sample_weight is None else of_labels @ sample_weight)

    def correct(self, pred: Array, target: Array) -> int:
        return int(np.count_nonzero(pred.argmax(axis=1) == target))


def _class_weights(given: Any) -> Any:
    """A copy, which the caller cannot change; how many there have to be is seen when they are used."""
    if given is None:
        return None
    values = list(given.values()) if isinstance(given, Mapping) else given
    weights = check_finite("class_weight", cast("class_weight", values, np.dtype(np.float64)))
    if weights.ndim != 1:
        raise ValueError(f"class_weight: expected one weight per class, got shape {weights.shape}")
    if weights.size and (weights.min() < 0 or (weights.max() == 0 and not isinstance(given, Mapping))):
        raise ValueError("class_weight: expected non-negative weights that are not all zero")
    return dict(given) if isinstance(given, Mapping) else weights.copy()


class Elementwise(Compiled):
    """A loss that is the mean over all entries of pred and target, both (B, O); (B,) is accepted where O is 1."""

    parameter = 0.0

    def spec(self, outputs: int, dtype: np.dtype[Any]) -> LossSpec:
        return LossSpec(self.name, self.parameter)


__all__ += ["BinaryCrossEntropy"]


class BinaryCrossEntropy(Elementwise):
    """Cross-entropy of sigmoid(logit) and targets in [0, 1], from logits: ``max(x, 0) - x t + log(1 + exp(-|x|))``."""

    name = "binary_cross_entropy"
    classifies = True

    def check(self, name: str, target: ArrayLike, samples: int, outputs: int, dtype: np.dtype[Any]) -> Array:
        array = super().check(name, target, samples, outputs, dtype)
        low, high = array.min(), array.max()
        if low < 0 or high > 1:
            raise ValueError(f"{name}: expected values in [0, 1], got {low if low < 0 else high}")
        return array

    def correct(self, pred: Array, target: Array) -> int:
        """Rows of which every output is on its target's side of one half."""
        return int(np.count_nonzero(((pred > 0) == (target > 0.5)).all(axis=1)))


__all__ += ["MSE"]


class MSE(Elementwise):
    """Mean squared error, ``e^2`` with ``e = pred - target``."""

    name = "mse"


__all__ += ["MAE"]


class MAE(Elementwise):
    """Mean absolute error, ``|e|``; its gradient at 0 is 0."""

    name = "mae"


__all__ += ["Huber"]


class Huber(Elementwise):
    """Huber 1964: ``e^2 / 2`` for ``|e| <= delta``, ``delta (|e| - delta / 2)`` beyond.

    Parameters
    ----------
    delta : float
        Positive.
    """

    name = "huber"
    has_parameter = True

    def __init__(self, delta: float = 1.0) -> None:
        self.parameter = self.delta = check_number("delta", delta, 0, open_low=True)


__all__ += ["Quantile"]


class Quantile(Elementwise):
    """The pinball loss (Koenker & Bassett 1978): ``max(q (t - p), (q - 1) (t - p))``; predicts the q-quantile.

    Parameters
    ----------
    q : float
        In (0, 1).
    """

    name = "quantile"
    has_parameter = True

    def __init__(self, q: float = 0.5) -> None:
        self.parameter = self.q = check_number("q", q, 0, 1, open_low=True)


__all__ += ["Poisson"]


class Poisson(Elementwise):
    """Poisson negative log-likelihood up to a constant, ``exp(p) - t p``: the prediction is the log of the rate."""

    name = "poisson"

    def check(self, name: str, target: ArrayLike, samples: int, outputs: int, dtype: np.dtype[Any]) -> Array:
        array = super().check(name, target, samples, outputs, dtype)
        if array.min() < 0:
            raise ValueError(f"{name}: expected non-negative counts, got {array.min()}")
        return array


class _Custom(Loss):
    """A user's callable ``(pred, target) -> (loss, dpred)``; its targets are passed through as they are.

    Sample weights, where there are any, are its third argument.
    """

    def __init__(self, function: LossFunction) -> None:
        self.function: Callable[..., _Result] = function

    def check(self, name: str, target: ArrayLike, samples: int, outputs: int, dtype: np.dtype[Any]) -> Array:
        array = as_array(name, target)
        check_length(name, array, samples)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
        return array

    def compute(self, pred: Array, target: Array, sample_weight: Array | None) -> tuple[float, Array]:
        weighted = () if sample_weight is None else (sample_weight,)
        result = self.function(pred, target, *weighted)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"loss: expected the callable to return (loss, dpred), got {type(result).__name__}")
        loss = float(result[0])
        if not np.isfinite(loss):  # training ends with it: the gradient is of no use
            return loss, np.zeros_like(pred)
        return loss, check_array("dpred", result[1], pred.shape, pred.dtype)


check_names(backend(), "losses", LOSSES)

LossLike = str | Loss | LossFunction


_DEFAULTS: dict[str, Loss] = {}  # by name, as a step asks for it


def resolve(loss: LossLike) -> Loss:
    """The loss that a name, a Loss or a callable stands for."""
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        if loss not in _DEFAULTS:
            _DEFAULTS[loss] = LOSSES[check_choice("loss", loss, LOSSES)]()
        return _DEFAULTS[loss]
    if isinstance(loss, type):
        raise TypeError(f"loss: expected an instance, got the class {loss.__name__}; write {loss.__name__}()")
    if callable(loss):
        return _Custom(loss)
    raise TypeError(f"loss: expected a name, a Loss or a callable (pred, target) -> (loss, dpred), got {loss!r}")
