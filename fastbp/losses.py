"""Losses as descriptions: what targets they take, which kernel computes them, and whether accuracy makes sense.

Calling a loss gives ``(loss, dpred)``, the mean over the batch and its gradient; any callable with that signature
serves as a loss too.

With sample weights the mean is weighted, ``sum_i s_i loss_i / sum_i s_i``; a batch whose weights are all zero has
loss and gradient 0. With ``normalize_weights=False`` it is divided by the number of samples instead, ``sum_i s_i loss_i
/ B``, as prioritised replay needs it (Schaul et al. 2016, section 3.4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat, overload

import numpy as np

from fastbp.core import backend, thread_limit
from fastbp.core.plan import ACTIVATIONS, LossSpec, check_names
from fastbp.data.arrays import (
    Array,
    as_array,
    cast,
    check_array,
    check_bool,
    check_choice,
    check_features,
    check_finite,
    check_labels,
    check_length,
    check_number,
    check_targets,
    check_weights,
    scaled_weights,
    sign_hint,
)
from fastbp.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__: list[str] = []  # every public loss adds its name above its class

Missing = Literal["error", "ignore"]

_Result = tuple[SupportsFloat, Array]  # the loss and its gradient
# Of (pred, target), and of sample_weight where there are any.
LossFunction = Callable[[Array, Array], _Result] | Callable[[Array, Array, Array], _Result]


#: The losses by the names under which ``fit`` knows them.
LOSSES: dict[str, type[Loss]] = {}


class Loss(Settings):
    """The base of all losses. ``loss(pred, target)`` returns ``(loss, dpred)``.

    fastbp's own are registered in ``LOSSES`` under their ``name``.

    pred has shape (B, O) and dtype float32 or float64 (anything else is cast to float32); dpred is like pred.
    sample_weight, if not None, has shape (B,) and is not negative; where the loss is a mean over all entries it may
    have the shape of the target, with a weight for each. reduction ``"mean"`` is what training uses; ``"sum"`` adds up
    the samples' losses, each with its weight; ``"none"`` gives every sample's own, (B,), and dpred is then the gradient
    of their sum, so that row i is that of loss i.
    """

    #: The name under which ``fit`` knows the loss; the kernel of an elementwise one has the same.
    name = ""
    #: Whether predictions are right or wrong, so that ``correct`` can count them.
    classifies = False
    #: Whether the kernel has a parameter, which the constructor sets.
    has_parameter = False
    #: What makes probabilities of its predictions: "softmax", "sigmoid", or "" where they are none.
    link = ""
    normalize_weights = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__module__ == __name__ and cls.name:  # a user's own loss has no name that fit knows
            LOSSES[cls.name] = cls

    @overload
    def __call__(
        self,
        pred: ArrayLike,
        target: ArrayLike,
        sample_weight: ArrayLike | None = ...,
        reduction: Literal["mean", "sum"] = ...,
    ) -> tuple[float, Array]: ...
    @overload
    def __call__(
        self, pred: ArrayLike, target: ArrayLike, sample_weight: ArrayLike | None = ..., *, reduction: Literal["none"]
    ) -> tuple[Array, Array]: ...
    def __call__(
        self,
        pred: ArrayLike,
        target: ArrayLike,
        sample_weight: ArrayLike | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> tuple[Any, Array]:
        array = as_array("pred", pred)
        dtype = np.dtype(array.dtype.type if array.dtype.type in (np.float32, np.float64) else np.float32)
        if array.ndim != 2:
            raise ValueError(f"pred: expected shape (samples, outputs), got {array.shape}")
        samples, outputs = array.shape
        array = check_features("pred", array, outputs, dtype)
        checked = self.check("target", target, samples, outputs, dtype)
        weight = None
        if sample_weight is not None:
            weight = self.check_weight("sample_weight", sample_weight, samples, outputs, dtype)
        if isinstance(reduction, str) and reduction == "mean":  # the usual case: no further call
            return self.compute(array, checked, weight)
        if check_choice("reduction", reduction, ("mean", "sum", "none")) == "none":
            return self.compute_each(array, checked, weight)
        (loss, dpred), total = self.compute(array, checked, weight), self.total_weight(array, checked, weight)
        return loss * total, dpred * dtype.type(total)

    def check_weight(
        self,
        name: str,
        value: ArrayLike | None,
        samples: int,
        outputs: int,
        dtype: np.dtype[Any],
        part: bool = False,
    ) -> Array | None:
        """``value`` as weights that ``compute`` takes; part: whether they are those of a part of the samples."""
        return check_weights(name, value, samples, dtype, part or not self.normalize_weights)

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

    def compute_each(self, pred: Array, target: Array, sample_weight: Array | None) -> tuple[Array, Array]:
        """Every sample's loss, times its weight, (B,), and the gradient of their sum."""
        raise ValueError(f"reduction: expected 'mean' or 'sum' for {type(self).__name__}, got 'none'")

    def spec(self, outputs: int, dtype: np.dtype[Any]) -> LossSpec | None:
        """The loss as the core knows it, for this many outputs and this dtype; None for a Python callable."""
        return None

    def total_weight(self, pred: Array, target: Array, sample_weight: Array | None) -> float:
        """What ``compute`` divides by to get the mean over these samples: how many there are, or their weight."""
        if sample_weight is None or not self.normalize_weights:
            return len(target)
        return float(sample_weight.sum(dtype=np.float64))

    def labels(self, target: Array) -> Array:
        """The targets as metrics see them: the classes of targets that are probabilities."""
        return target

    def classes(self, outputs: int) -> int:
        """How many classes a sample may be of, with so many outputs."""
        raise ValueError(f"class_weight: expected None with {type(self).__name__}, whose targets are no classes")

    def weights_of(self, target: Array, weight: Array) -> Array:
        """The samples' weights (N,) float64 by those of their classes (C,); means, of probabilities."""
        raise NotImplementedError

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

    def compute_each(self, pred: Array, target: Array, sample_weight: Array | None) -> tuple[Array, Array]:
        losses, dpred = np.empty(len(pred), pred.dtype), np.empty_like(pred)
        spec = self.spec(pred.shape[1], pred.dtype)
        backend().sample_losses(losses, dpred, pred, target, sample_weight, spec, thread_limit())
        return losses, dpred


#: How far the sum of a row of probabilities may be from 1: what rounding to half precision leaves.
PROBABILITY_ERROR = 1e-2

__all__ += ["CrossEntropy"]


class CrossEntropy(Compiled):
    """Softmax cross-entropy of logits (B, C) and integer labels (B,), or class probabilities (B, C).

    Probabilities are soft targets, such as those of another model (distillation, Hinton, Vinyals & Dean 2015), of
    several annotators, or of mixed samples; rows are not negative and sum to 1. One-hot rows are the labels themselves.

    Parameters
    ----------
    label_smoothing : float
        In [0, 1): the share of the target that is spread over all classes (Szegedy et al. 2016).
    class_weight : array_like (C,), mapping from label to weight, or None
        Non-negative. The mean is weighted, ``sum_i w[y_i] loss_i / sum_i w[y_i]``, as in PyTorch; labels that a
        mapping leaves out weigh 1. Sample weights multiply these. With probabilities t the loss of a sample is
        ``-sum_c w_c t_c log p_c``, and its weight ``sum_c w_c t_c``.
    normalize_weights : bool
        False divides the weighted sum by the number of samples.
    """

    name = "cross_entropy"
    classifies = True
    link = "softmax"

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weight: ArrayLike | Mapping[int, float] | None = None,
        *,
        normalize_weights: bool = True,
    ) -> None:
        self.label_smoothing = check_number("label_smoothing", label_smoothing, 0, 1)
        self.class_weight = _class_weights(class_weight)
        self.normalize_weights = check_bool("normalize_weights", normalize_weights)
        self._weights: dict[tuple[int, np.dtype[Any]], Array | None] = {}

    def _weight(self, classes: int, dtype: np.dtype[Any]) -> Array | None:
        key = (classes, dtype)
        if key not in self._weights:
            self._weights[key] = self._checked_weight(classes, dtype)
        return self._weights[key]

    def _checked_weight(self, classes: int, dtype: np.dtype[Any]) -> Array | None:
        weight = class_weights(self.class_weight, classes)
        if weight is None:
            return None
        return np.array(scaled_weights(weight) if self.normalize_weights else weight, dtype)  # a copy

    def check(self, name: str, target: ArrayLike, samples: int, outputs: int, dtype: np.dtype[Any]) -> Array:
        if outputs < 2:
            raise ValueError(f"{name}: cross-entropy needs at least 2 logits per sample, got {outputs}")
        self._weight(outputs, dtype)
        array = as_array(name, target)
        if array.ndim == 2 and outputs == array.shape[1]:
            return _check_probabilities(name, check_targets(name, array, samples, outputs, dtype))
        return check_labels(name, array, samples, outputs)

    def spec(self, outputs: int, dtype: np.dtype[Any]) -> LossSpec:
        return LossSpec(
            self.name,
            class_weight=self._weight(outputs, dtype),
            smoothing=self.label_smoothing,
            normalized=self.normalize_weights,
        )

    def total_weight(self, pred: Array, target: Array, sample_weight: Array | None) -> float:
        weight = self._weight(pred.shape[1], pred.dtype)
        if weight is None or not self.normalize_weights:
            return super().total_weight(pred, target, sample_weight)
        of_labels = self.weights_of(target, weight.astype(np.float64))
        return float(of_labels.sum() if sample_weight is None else of_labels @ sample_weight)

    def classes(self, outputs: int) -> int:
        return outputs

    def weights_of(self, target: Array, weight: Array) -> Array:
        return weight[target] if target.ndim == 1 else target @ weight

    def correct(self, pred: Array, target: Array) -> int:
        return int(np.count_nonzero(pred.argmax(axis=1) == self.labels(target)))

    def labels(self, target: Array) -> Array:
        return target if target.ndim == 1 else target.argmax(axis=1)


def _check_probabilities(name: str, array: Array) -> Array:
    """``array`` (B, C) if its rows are distributions over the classes."""
    sums = array.sum(axis=1, dtype=np.float64)
    if array.min() < 0 or np.abs(sums - 1).max() > PROBABILITY_ERROR:
        row = int(np.argmax(np.maximum(np.abs(sums - 1), -array.min(axis=1))))
        raise ValueError(
            f"{name}: expected labels, or rows of probabilities that sum to 1, got {array[row, :5].tolist()} in row "
            f"{row}"
        )
    return array


def class_weights(given: Any, classes: int, name: str = "class_weight") -> Array | None:
    """A weight for every class (C,) float64 from an array or a mapping by label; None if all weigh 1."""
    if given is None or (isinstance(given, Mapping) and not given):
        return None
    if isinstance(given, Mapping):
        labels = check_labels(name, list(given), len(given), classes)
        weight = np.ones(classes)
        weight[labels] = cast(name, list(given.values()), weight.dtype)
    else:
        weight = cast(name, given, np.dtype(np.float64))
    if weight.shape != (classes,):
        raise ValueError(f"{name}: expected {classes} weights, one per class, got shape {weight.shape}")
    if check_finite(name, weight).min() < 0 or weight.max() == 0:
        raise ValueError(f"{name}: expected non-negative weights that are not all zero")
    return weight


def _class_weights(given: Any) -> Any:
    """A copy, which the caller cannot change; how many there have to be is seen when they are used."""
    if given is None:
        return None
    if isinstance(given, str):
        hint = (
            "; a loss does not see all labels: write fit(..., class_weight='balanced')" if given == "balanced" else ""
        )
        raise TypeError(f"class_weight: expected weights, a mapping from label to weight or None, got {given!r}{hint}")
    values = list(given.values()) if isinstance(given, Mapping) else given
    weights = check_finite("class_weight", cast("class_weight", values, np.dtype(np.float64)))
    if weights.ndim != 1:
        raise ValueError(f"class_weight: expected one weight per class, got shape {weights.shape}")
    if weights.size and (weights.min() < 0 or (weights.max() == 0 and not isinstance(given, Mapping))):
        raise ValueError("class_weight: expected non-negative weights that are not all zero")
    return dict(given) if isinstance(given, Mapping) else weights.copy()


class Elementwise(Compiled):
    """A loss that is the mean over all entries of pred and target, both (B, O); (B,) is accepted where O is 1.

    Sample weights are (B,), or (B, O) for one of every entry.

    Parameters
    ----------
    missing : {"error", "ignore"}
        What a target that is NaN is: an error, or left out, as if its weight were zero.
    normalize_weights : bool
        False divides the weighted sum by the number of samples.
    """

    parameter = 0.0

    def __init__(self, *, missing: Missing = "error", normalize_weights: bool = True) -> None:
        self.missing: Missing = check_choice("missing", missing, ("error", "ignore"))
        self.normalize_weights = check_bool("normalize_weights", normalize_weights)

    def check(self, name: str, target: ArrayLike, samples: int, outputs: int, dtype: np.dtype[Any]) -> Array:
        return check_targets(name, target, samples, outputs, dtype, self.missing == "ignore")

    def check_weight(
        self,
        name: str,
        value: ArrayLike | None,
        samples: int,
        outputs: int,
        dtype: np.dtype[Any],
        part: bool = False,
    ) -> Array | None:
        if value is None:
            return None
        array = as_array(name, value)
        if array.ndim != 2:
            return super().check_weight(name, array, samples, outputs, dtype, part)
        if array.shape != (samples, outputs):
            raise ValueError(f"{name}: expected shape ({samples},) or ({samples}, {outputs}), got {array.shape}")
        flat = super().check_weight(name, array.reshape(-1), array.size, outputs, dtype, part)
        return None if flat is None else flat.reshape(array.shape)

    def spec(self, outputs: int, dtype: np.dtype[Any]) -> LossSpec:
        spec = LossSpec(self.name, self.parameter)
        spec.missing, spec.normalized = self.missing == "ignore", self.normalize_weights
        return spec

    def total_weight(self, pred: Array, target: Array, sample_weight: Array | None) -> float:
        if not self.normalize_weights:
            return len(target)
        if sample_weight is None and self.missing == "error":
            return len(target)
        return float(self._entry_weights(target, sample_weight).mean(axis=1).sum())

    def _entry_weights(self, target: Array, sample_weight: Array | None) -> Array:
        """Of samples (B, 1) or, where they differ, of entries (B, O), float64."""
        weights = np.ones((len(target), 1)) if sample_weight is None else sample_weight.astype(np.float64)
        weights = weights.reshape(len(target), -1)
        return weights * ~np.isnan(target) if self.missing == "ignore" else weights


__all__ += ["BinaryCrossEntropy"]


class BinaryCrossEntropy(Elementwise):
    """Cross-entropy of sigmoid(logit) and targets in [0, 1], from logits: ``max(x, 0) - x t + log(1 + exp(-|x|))``.

    Parameters
    ----------
    pos_weight : float, array_like (O,) or None
        What positive targets weigh against negative ones, of all outputs or of each, as in PyTorch: the loss is ``-(w t
        log p + (1 - t) log(1 - p))``, and the mean is that over the entries.
    label_smoothing : float
        In [0, 1): targets t become ``t (1 - label_smoothing) + label_smoothing / 2``.
    class_weight : array_like (2,), mapping from 0 and 1 to weight, or None
        For one output: weights of the samples by their class, with which the mean is weighted.
    missing, normalize_weights
        See ``Elementwise``.
    """

    name = "binary_cross_entropy"
    classifies = True
    link = "sigmoid"

    def __init__(
        self,
        pos_weight: ArrayLike | None = None,
        label_smoothing: float = 0.0,
        class_weight: ArrayLike | Mapping[int, float] | None = None,
        *,
        missing: Missing = "error",
        normalize_weights: bool = True,
    ) -> None:
        super().__init__(missing=missing, normalize_weights=normalize_weights)
        self._positive = None if pos_weight is None else _positive_weights(pos_weight)
        self.pos_weight: ArrayLike | None = self._positive
        if self._positive is not None and np.ndim(pos_weight) == 0:  # type: ignore[arg-type]
            self.pos_weight = float(self._positive[0])
        self.label_smoothing = check_number("label_smoothing", label_smoothing, 0, 1)
        self.class_weight = _class_weights(class_weight)
        self._of_classes = class_weights(self.class_weight, 2)

    def check(self, name: str, target: ArrayLike, samples: int, outputs: int, dtype: np.dtype[Any]) -> Array:
        array = super().check(name, target, samples, outputs, dtype)
        low, high = np.fmin.reduce(array, axis=None), np.fmax.reduce(array, axis=None)  # of those that are there
        if low < 0 or high > 1:
            raise ValueError(f"{name}: expected values in [0, 1], got {low if low < 0 else high}{sign_hint(array)}")
        if self._of_classes is not None:
            self.classes(outputs)  # raises where a sample has several
        if self._positive is not None and self._positive.size not in (1, outputs):
            raise ValueError(f"pos_weight: expected one weight or {outputs}, got {self._positive.size}")
        return array

    def spec(self, outputs: int, dtype: np.dtype[Any]) -> LossSpec:
        spec = super().spec(outputs, dtype)
        spec.smoothing = self.label_smoothing
        if self._positive is not None:
            spec.parameters = np.full(outputs, self._positive, dtype)
        if self._of_classes is not None:
            spec.class_weight = self._of_classes.astype(dtype)
        return spec

    def total_weight(self, pred: Array, target: Array, sample_weight: Array | None) -> float:
        if self._of_classes is None or not self.normalize_weights:
            return super().total_weight(pred, target, sample_weight)
        of_classes = self.weights_of(target, self._of_classes)
        return float(self._entry_weights(target, sample_weight)[:, 0] @ of_classes)

    def classes(self, outputs: int) -> int:
        if outputs != 1:
            raise ValueError(f"class_weight: expected None or pos_weight with several outputs, got {outputs}")
        return 2

    def weights_of(self, target: Array, weight: Array) -> Array:
        of_samples: Array = weight[0] + (weight[1] - weight[0]) * np.nan_to_num(target[:, 0].astype(np.float64))
        return of_samples

    def correct(self, pred: Array, target: Array) -> int:
        """Rows of which every output is on its target's side of one half, or its target is missing."""
        right = (pred > 0) == (target > 0.5)
        return int(np.count_nonzero((right | np.isnan(target) if self.missing == "ignore" else right).all(axis=1)))


def _positive_weights(given: ArrayLike) -> Array:
    """A copy, (1,) or (O,); how many there have to be is seen when they are used."""
    weights = np.atleast_1d(check_finite("pos_weight", cast("pos_weight", given, np.dtype(np.float64)))).copy()
    if weights.ndim != 1 or weights.size == 0 or weights.min() < 0:
        raise ValueError(f"pos_weight: expected a non-negative weight or one per output, got {given!r}")
    return weights


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
    missing, normalize_weights
        See ``Elementwise``.
    """

    name = "huber"
    has_parameter = True

    def __init__(self, delta: float = 1.0, *, missing: Missing = "error", normalize_weights: bool = True) -> None:
        super().__init__(missing=missing, normalize_weights=normalize_weights)
        self.parameter = self.delta = check_number("delta", delta, 0, open_low=True)


__all__ += ["Quantile"]


class Quantile(Elementwise):
    """The pinball loss (Koenker & Bassett 1978): ``max(q (t - p), (q - 1) (t - p))``; predicts the q-quantile.

    Parameters
    ----------
    q : float or sequence of float
        In (0, 1). Of several, each output of the target is predicted at all: the predictions are (B, T * Q) for targets
        (B, T), in the order (target, quantile), and the loss is the mean over all of them.
    missing, normalize_weights
        See ``Elementwise``. Weights of entries have the shape of the target.
    """

    name = "quantile"
    has_parameter = True

    def __init__(
        self, q: float | Sequence[float] = 0.5, *, missing: Missing = "error", normalize_weights: bool = True
    ) -> None:
        super().__init__(missing=missing, normalize_weights=normalize_weights)
        several = isinstance(q, (list, tuple)) or (isinstance(q, np.ndarray) and q.ndim == 1)
        given = list(q) if several else [q]  # type: ignore[arg-type]
        if not given:
            raise ValueError("q: expected a quantile or several, got none")
        levels = tuple(check_number("q", level, 0, 1, open_low=True) for level in given)
        self.q: float | tuple[float, ...] = levels if several else levels[0]
        self.parameter, self._levels = levels[0], levels

    def check(self, name: str, target: ArrayLike, samples: int, outputs: int, dtype: np.dtype[Any]) -> Array:
        return super().check(name, self._of_each(name, target, outputs), samples, outputs, dtype)

    def check_weight(
        self,
        name: str,
        value: ArrayLike | None,
        samples: int,
        outputs: int,
        dtype: np.dtype[Any],
        part: bool = False,
    ) -> Array | None:
        if value is not None and as_array(name, value).ndim == 2:
            value = self._of_each(name, value, outputs)
        return super().check_weight(name, value, samples, outputs, dtype, part)

    def _of_each(self, name: str, value: ArrayLike, outputs: int) -> ArrayLike:
        """An entry of a target, or its weight, once for every quantile; as it is if it is so already."""
        count = len(self._levels)
        if count == 1:
            return value
        if outputs % count:
            raise ValueError(f"q: expected {count} outputs, or a multiple, for {count} quantiles, got {outputs}")
        array = as_array(name, value)
        array = array[:, None] if array.ndim == 1 else array
        return np.repeat(array, count, axis=1) if array.shape[1:] == (outputs // count,) else array

    def spec(self, outputs: int, dtype: np.dtype[Any]) -> LossSpec:
        spec = super().spec(outputs, dtype)
        if len(self._levels) > 1:
            spec.parameters = np.tile(np.array(self._levels, dtype), outputs // len(self._levels))
        return spec


__all__ += ["Poisson"]


class Poisson(Elementwise):
    """Poisson negative log-likelihood up to a constant, ``exp(p) - t p``: the prediction is the log of the rate."""

    name = "poisson"

    def check(self, name: str, target: ArrayLike, samples: int, outputs: int, dtype: np.dtype[Any]) -> Array:
        array = super().check(name, target, samples, outputs, dtype)
        low = np.fmin.reduce(array, axis=None)  # of those that are there
        if low < 0:
            raise ValueError(f"{name}: expected non-negative counts, got {low}")
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


def probabilities(link: str, logits: Array) -> Array:
    """What a loss's link makes of logits (B, O), in place."""
    if logits.size and link == "softmax":
        backend().softmax(logits, logits, thread_limit())
    elif logits.size:
        backend().activation_forward(logits, logits, ACTIVATIONS[link].code, thread_limit())
    return logits


check_names(backend(), "losses", LOSSES)

LossName = Literal["cross_entropy", "binary_cross_entropy", "mse", "mae", "huber", "quantile", "poisson"]
LossLike = LossName | Loss | LossFunction


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
