"""Layers as descriptions: sizes, initial values and the op record that each is lowered to. No arithmetic.

A layer gets its arrays when a ``Sequential`` takes it: views on the model's flat buffers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastbp.core import plan
from fastbp.data import Array, Categories, choice, positive_int, real_number, shaped
from fastbp.parameters import Parameters

if TYPE_CHECKING:  # numpy.random is imported when a model is made
    Init = str | Callable[[np.random.Generator, tuple[int, int]], Array] | None

# Variance of the weights times (fan_in, fan_out) weights, and the distribution.
_INITS: dict[str, Callable[[int, int], float]] = {
    "glorot_uniform": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "glorot_normal": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "he_uniform": lambda fan_in, fan_out: 2 / fan_in,
    "he_normal": lambda fan_in, fan_out: 2 / fan_in,
    "lecun_uniform": lambda fan_in, fan_out: 1 / fan_in,
    "lecun_normal": lambda fan_in, fan_out: 1 / fan_in,
}


class Layer:
    """What every layer has: the op it is lowered to, its width, and its place in a model."""

    kind: ClassVar[int]
    #: Width of the input, or None where any will do.
    width: int | None = None

    def __init__(self) -> None:
        self._parameters: Parameters | None = None
        self._name = ""

    def outputs(self, inputs: int) -> int:
        """Width of the output for an input of width ``inputs``."""
        return inputs

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters by name."""
        return {}

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, for saving and copying."""
        return {}

    def fields(self) -> dict[str, float]:
        """What the layer sets in its op record beyond sizes and offsets."""
        return {}

    def take(self, parameters: Parameters, name: str) -> None:
        """Become the layer called ``name`` of the model that owns ``parameters``."""
        self._parameters, self._name = parameters, name

    def _owner(self) -> Parameters:
        if self._parameters is None:
            raise RuntimeError(f"{self!r} has no arrays yet: they come with the Sequential that takes it")
        return self._parameters

    def initial_values(self, rng: np.random.Generator) -> dict[str, Array]:
        """The parameters that do not start at zero, by name."""
        return {}

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name in self.__dict__ and self._parameters is not None:
            raise AttributeError(f"{name}: {self!r} is part of a model, whose plan is made; build a new model instead")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.settings().items())})"


class _Parametric(Layer):
    """A layer with a weight and perhaps a bias."""

    def _set(self, tensor: str, value: Any) -> None:
        view = self._owner().value(f"{self._name}.{tensor}")
        view[:] = shaped(tensor, value, view.shape, view.dtype)

    @property
    def weight(self) -> Array:
        """The weight, a view on the model's parameters; assigning copies into it."""
        return self._owner().value(f"{self._name}.weight")

    @weight.setter
    def weight(self, value: Any) -> None:
        self._set("weight", value)

    @property
    def bias(self) -> Array | None:
        """The bias, a view as well; None if the layer has none."""
        return self._owner().value(f"{self._name}.bias") if "bias" in self.shapes() else None

    @bias.setter
    def bias(self, value: Any) -> None:
        if "bias" not in self.shapes():
            raise ValueError(f"bias: {self!r} has none")
        self._set("bias", value)

    @property
    def dweight(self) -> Array:
        """The loss's gradient with respect to the weight, filled by ``backward``."""
        return self._owner().grad(f"{self._name}.weight")

    @property
    def dbias(self) -> Array | None:
        """The loss's gradient with respect to the bias, or None."""
        return self._owner().grad(f"{self._name}.bias") if "bias" in self.shapes() else None


class Dense(_Parametric):
    """A fully connected layer, ``y = activation(x @ weight + bias)``.

    Parameters
    ----------
    in_features, out_features : int
        Widths I and O of input and output.
    activation : str or None
        ``relu``, ``leaky_relu`` (slope 0.01), ``elu`` (alpha 1), ``gelu`` (exact), ``silu``, ``tanh``, ``sigmoid``,
        ``softplus``, or None for none.
    bias : bool
        Whether there is a bias.
    init : str, callable or None
        ``he_uniform``, ``he_normal`` (He et al. 2015), ``glorot_uniform``, ``glorot_normal`` (Glorot & Bengio 2010),
        ``lecun_uniform``, ``lecun_normal``, or ``init(rng, (I, O)) -> array``. None is he_uniform for the ReLU family,
        GELU and SiLU, glorot_uniform otherwise. Biases start at zero.

    Attributes
    ----------
    weight, dweight : ndarray (I, O)
    bias, dbias : ndarray (O,) or None

    Raises
    ------
    TypeError, ValueError
        If a width is not a positive integer, or the activation or init is unknown.
    """

    kind = plan.DENSE

    def __init__(
        self, in_features: int, out_features: int, activation: str | None = None, bias: bool = True, init: Init = None
    ) -> None:
        super().__init__()
        self.in_features = self.width = positive_int("in_features", in_features)
        self.out_features = positive_int("out_features", out_features)
        self.activation: str | None = choice("activation", activation, plan.ACTIVATIONS)
        self.has_bias = bool(bias)
        self.init: Init = init if callable(init) else choice("init", init, [None, *_INITS])

    def outputs(self, inputs: int) -> int:
        return self.out_features

    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.in_features, self.out_features)}
        return shapes | {"bias": (self.out_features,)} if self.has_bias else shapes

    def settings(self) -> dict[str, Any]:
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "activation": self.activation,
            "bias": self.has_bias,
        }

    def fields(self) -> dict[str, float]:
        return {"activation": plan.ACTIVATIONS[self.activation].code}

    def initial_values(self, rng: np.random.Generator) -> dict[str, Array]:
        shape = (self.in_features, self.out_features)
        if callable(self.init):
            return {"weight": self.init(rng, shape)}
        name = self.init or plan.ACTIVATIONS[self.activation].init
        std = math.sqrt(_INITS[name](*shape))
        if name.endswith("normal"):
            return {"weight": rng.normal(0, std, shape)}
        return {"weight": rng.uniform(-std * math.sqrt(3), std * math.sqrt(3), shape)}


class Activation(Layer):
    """An activation as a layer of its own, for use after BatchNorm or LayerNorm; after a Dense it is fused into it.

    Parameters
    ----------
    name : str
        One of the names that ``Dense`` takes.
    """

    kind = plan.ACTIVATION

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name: str = choice("name", name, [a for a in plan.ACTIVATIONS if a is not None])

    def settings(self) -> dict[str, Any]:
        return {"name": self.name}

    def fields(self) -> dict[str, float]:
        return {"activation": plan.ACTIVATIONS[self.name].code}


class Dropout(Layer):
    """In training, zero each entry with probability p and scale the rest by 1 / (1 - p) (Srivastava et al. 2014).

    The masks follow from the model's seed and its count of training steps, on every backend alike.

    Parameters
    ----------
    p : float
        In [0, 1).
    """

    kind = plan.DROPOUT

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = real_number("p", p, 0, 1)

    def settings(self) -> dict[str, Any]:
        return {"p": self.p}

    def fields(self) -> dict[str, float]:
        return {"p": self.p}


class _Norm(_Parametric):
    """Batch and layer norm's common part: a scale that starts at one and a shift that starts at zero."""

    def __init__(self, n: int, eps: float) -> None:
        super().__init__()
        self.n = self.width = positive_int("n", n)
        self.eps = real_number("eps", eps, 0, open_low=True)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.n,), "bias": (self.n,)}

    def settings(self) -> dict[str, Any]:
        return {"n": self.n, "eps": self.eps}

    def fields(self) -> dict[str, float]:
        return {"eps": self.eps}

    def initial_values(self, rng: np.random.Generator) -> dict[str, Array]:
        return {"weight": np.ones(self.n)}


class BatchNorm(_Norm):
    """Normalise each feature over the batch (Ioffe & Szegedy 2015), then scale by ``weight`` and shift by ``bias``.

    Training uses the batch's mean and variance and moves the running ones towards them (the variance unbiased, as in
    PyTorch); inference uses the running ones. A batch of one sample, which has no variance, leaves them alone.

    Parameters
    ----------
    n : int
        Features.
    momentum : float
        Share of the batch in the running statistics, in [0, 1].
    eps : float
        Added to the variance.

    Attributes
    ----------
    running_mean, running_var : ndarray (n,)
        Views; they can be written in place.
    """

    kind = plan.BATCHNORM

    def __init__(self, n: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__(n, eps)
        self.momentum = real_number("momentum", momentum, 0, math.nextafter(1, 2))
        self._stats: Array | None = None

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"momentum": self.momentum}

    def fields(self) -> dict[str, float]:
        return super().fields() | {"momentum": self.momentum}

    def take_stats(self, stats: Array) -> None:
        """Take the (4, n) view of the model's statistics: running mean and variance, batch mean and 1/std."""
        self._stats = stats
        stats[:] = 0
        stats[1] = 1

    def _running(self, row: int) -> Array:
        self._owner()  # raises where there are no arrays yet
        assert self._stats is not None
        view: Array = self._stats[row]
        return view

    @property
    def running_mean(self) -> Array:
        return self._running(0)

    @property
    def running_var(self) -> Array:
        return self._running(1)


class LayerNorm(_Norm):
    """Normalise each sample over its features (Ba, Kiros & Hinton 2016), then scale and shift.

    Parameters
    ----------
    n : int
        Features.
    eps : float
        Added to the variance.
    """

    kind = plan.LAYERNORM

    def __init__(self, n: int, eps: float = 1e-5) -> None:
        super().__init__(n, eps)


_MOST_CATEGORIES = 2**24  # float32, in which ids travel, holds whole numbers up to here


class Lookup(Layer):
    """What embeddings share: ids in the last columns of the input are replaced by rows of tables that are learned."""

    kind = plan.EMBEDDING
    n_numeric = 0
    unknown: str
    _std: ClassVar[float]  # of the tables at the start

    def tables(self) -> dict[str, tuple[int, int, int]]:
        """By name, a table's number of categories, its width, and how many columns of ids look up in it."""
        raise NotImplementedError

    def _rows(self, categories: int) -> int:
        return categories + (self.unknown == "reserve")

    def outputs(self, inputs: int) -> int:
        return self.n_numeric + sum(dim * columns for _, dim, columns in self.tables().values())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: (self._rows(count), dim) for name, (count, dim, _) in self.tables().items()}

    def fields(self) -> dict[str, float]:
        return {"numeric": self.n_numeric}

    def initial_values(self, rng: np.random.Generator) -> dict[str, Array]:
        return {name: rng.normal(0, self._std, shape) for name, shape in self.shapes().items()}

    def records(self, offsets: dict[str, int]) -> Array:
        """The TABLE records of the plan, for tables that begin at these offsets."""
        tables = self.tables().items()
        return np.array([(self._rows(n), dim, offsets[name], k) for name, (n, dim, k) in tables], plan.TABLE)

    def categories(self) -> Categories:
        """What the last columns of the input may hold."""
        counts, _, columns = np.array(list(self.tables().values()), np.int64).T
        return Categories(np.repeat(counts, columns), self.unknown == "reserve")


def _categories(name: str, value: object) -> int:
    """``value`` as a number of categories."""
    count = positive_int(name, value)
    if count > _MOST_CATEGORIES:
        raise ValueError(f"{name}: expected at most {_MOST_CATEGORIES} categories, got {count}")
    return count


class Embedding(Lookup, _Parametric):
    """Replace every id by its row of one table that is learned; the first layer of a model.

    The ids come as whole numbers in the columns of X, of any dtype.

    Parameters
    ----------
    num_embeddings : int
        Ids run from 0 to ``num_embeddings - 1``; at most 2**24.
    embedding_dim : int
        Numbers per row.
    columns : int
        Columns of ids, as of words in a sentence: X is (N, columns), the output (N, columns * embedding_dim).
    unknown : {"error", "reserve"}
        What any other entry is, NaN included: an error that names the column, or the id ``num_embeddings``, for which
        the table has one more row.

    Attributes
    ----------
    weight, dweight : ndarray (num_embeddings, embedding_dim)
        Starts standard normal, as in PyTorch.

    Raises
    ------
    TypeError, ValueError
        If a number is not a positive integer or too large.

    Notes
    -----
    Every step updates every row as the optimizer would with the whole gradient, momentum and weight decay included, as
    for ``torch.nn.Embedding``; where that leaves the rows that are not in a batch alone (SGD without momentum, Adagrad,
    both without weight decay), ``fit`` does not visit them. Ids have no gradient: ``backward(dy, True)`` gives zeros.
    """

    _std = 1.0

    def __init__(self, num_embeddings: int, embedding_dim: int, columns: int = 1, unknown: str = "error") -> None:
        super().__init__()
        self.num_embeddings = _categories("num_embeddings", num_embeddings)
        self.embedding_dim = positive_int("embedding_dim", embedding_dim)
        self.columns = self.width = positive_int("columns", columns)
        self.unknown: str = choice("unknown", unknown, ["error", "reserve"])

    def tables(self) -> dict[str, tuple[int, int, int]]:
        return {"weight": (self.num_embeddings, self.embedding_dim, self.columns)}

    def settings(self) -> dict[str, Any]:
        return {
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "columns": self.columns,
            "unknown": self.unknown,
        }


class TabularInput(Lookup):
    """Numeric and categorical columns together, each categorical one through an ``Embedding`` of its own; first layer.

    X is (N, n_numeric + k): the numeric columns, then k columns of ids, whole numbers in the dtype of the others. The
    output is (N, O): the numeric columns as they are, then the rows of the tables, in the order of the columns.

    Parameters
    ----------
    n_numeric : int
        May be 0.
    cardinalities : sequence of int
        Categories of each categorical column; ids run from 0 to one less. At most 2**24.
    embedding_dim : int, sequence of int or None
        Width of all tables, of each, or ``min(600, round(1.6 * cardinality**0.56))``, the rule of thumb of fastai's
        ``emb_sz_rule``.
    unknown : {"error", "reserve"}
        What any other entry of a categorical column is, NaN included: an error that names the column, or the category
        ``cardinalities[j]``, for which every table has one more row.

    Attributes
    ----------
    weights, dweights : tuple of ndarray (cardinalities[j], dim[j])
        The tables and their gradients, views on the model's parameters. They start normal with standard deviation 0.01,
        as in fastai: categories are told apart as far as the data do, and a rare one stays near the mean.

    Raises
    ------
    TypeError, ValueError
        If a number is out of range, or there are other than k widths.

    Notes
    -----
    Numeric columns train best standardised, to mean 0 and variance 1. As for ``Embedding``, every step updates every
    row, and ids have no gradient.
    """

    _std = 0.01

    def __init__(
        self,
        n_numeric: int,
        cardinalities: Sequence[int],
        embedding_dim: int | Sequence[int] | None = None,
        unknown: str = "error",
    ) -> None:
        super().__init__()
        self.n_numeric = positive_int("n_numeric", n_numeric, low=0)
        self.cardinalities = _each("cardinalities", cardinalities, _categories)
        if not self.cardinalities:
            raise ValueError("cardinalities: expected at least one categorical column, got none")
        if embedding_dim is None:
            self.embedding_dim = tuple(min(600, round(1.6 * n**0.56)) for n in self.cardinalities)
        elif isinstance(embedding_dim, (int, np.integer)):
            self.embedding_dim = (positive_int("embedding_dim", embedding_dim),) * len(self.cardinalities)
        else:
            self.embedding_dim = _each("embedding_dim", embedding_dim, positive_int)
        if len(self.embedding_dim) != len(self.cardinalities):
            raise ValueError(
                f"embedding_dim: expected {len(self.cardinalities)} widths, one per categorical column, got "
                f"{len(self.embedding_dim)}"
            )
        self.width = self.n_numeric + len(self.cardinalities)
        self.unknown: str = choice("unknown", unknown, ["error", "reserve"])

    def tables(self) -> dict[str, tuple[int, int, int]]:
        sizes = zip(self.cardinalities, self.embedding_dim, strict=True)
        return {f"weights.{j}": (count, dim, 1) for j, (count, dim) in enumerate(sizes)}

    def settings(self) -> dict[str, Any]:
        return {
            "n_numeric": self.n_numeric,
            "cardinalities": self.cardinalities,
            "embedding_dim": self.embedding_dim,
            "unknown": self.unknown,
        }

    @property
    def weights(self) -> tuple[Array, ...]:
        return tuple(self._owner().value(f"{self._name}.{table}") for table in self.tables())

    @property
    def dweights(self) -> tuple[Array, ...]:
        return tuple(self._owner().grad(f"{self._name}.{table}") for table in self.tables())


def _each(name: str, values: Sequence[int], check: Callable[[str, object], int]) -> tuple[int, ...]:
    """A sequence of numbers, checked one by one."""
    if isinstance(values, str) or not isinstance(values, (Sequence, np.ndarray)) or np.ndim(values) != 1:
        raise TypeError(f"{name}: expected a sequence of integers, got {values!r}")
    return tuple(check(f"{name}[{j}]", value) for j, value in enumerate(values))


#: The layers by name, for reading saved models.
LAYERS: dict[str, type[Layer]] = {
    layer.__name__: layer for layer in (Dense, Activation, Dropout, BatchNorm, LayerNorm, Embedding, TabularInput)
}
