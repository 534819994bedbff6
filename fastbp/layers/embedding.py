"""Embeddings: ids in the input are replaced by rows of tables that are learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from fastbp.core import plan
from fastbp.data.arrays import Array, Categories, check_choice, check_int
from fastbp.layers.layer import Cost, Layer, Parametric, Work

_MAX_CATEGORIES = 2**24  # float32, in which ids travel, holds whole numbers up to here


class Lookup(Layer):
    """What embeddings share: ids in the last columns of the input are replaced by rows of tables that are learned."""

    kind = "embedding"
    takes_ids = True
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

    def label(self, op: np.void) -> str:
        return f"Embedding {op['inputs']}x{op['outputs']}"

    def costs(self, op: np.void, work: Work, has_dx: bool) -> tuple[Cost, Cost, Cost]:
        numbers = work.samples * int(op["inputs"] + op["outputs"])
        found = work.samples * int(op["outputs"] - op["numeric"])  # in the tables
        every = work.steps * self.parameter_count
        updated = min(found, every) if work.idle else every
        return (0, numbers + found), (0, 0), (0, numbers + 2 * work.vectors * updated)

    def initial_values(self, rng: np.random.Generator) -> dict[str, Array]:
        tables = {name: rng.normal(0, self._std, shape) for name, shape in self.shapes().items()}
        if self.unknown == "reserve":
            for table in tables.values():
                table[-1] = 0
        return tables

    def means(self) -> dict[str, Array]:
        """By table, the mean of its rows, for which a reserved row stands that was never trained: it is still zero."""
        if self.unknown != "reserve":
            return {}
        tables = {name: self._owner().value(f"{self._name}.{name}") for name in self.tables()}
        return {
            name: table[:-1].mean(axis=0, dtype=np.float64).astype(table.dtype)
            for name, table in tables.items()
            if not table[-1].any()
        }

    def table_records(self, offsets: Mapping[str, int]) -> Array:
        """The TABLE records of the program, for tables that begin at these offsets."""
        tables = self.tables().items()
        return np.array([(self._rows(n), dim, offsets[name], k) for name, (n, dim, k) in tables], plan.TABLE)

    def categories(self) -> Categories:
        """What the last columns of the input may hold."""
        counts, _, columns = np.array(list(self.tables().values()), np.int64).T
        return Categories(np.repeat(counts, columns), self.unknown == "reserve")


def _check_category_count(name: str, value: object) -> int:
    """``value`` as a number of categories."""
    count = check_int(name, value)
    if count > _MAX_CATEGORIES:
        raise ValueError(f"{name}: expected at most {_MAX_CATEGORIES} categories, got {count}")
    return count


class Embedding(Lookup, Parametric):
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
        the table has one more row. That starts at zero and learns from such entries in the training data; while there
        were none, and it is zero, predictions take the mean of all other rows for it.

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
        self.num_embeddings = _check_category_count("num_embeddings", num_embeddings)
        self.embedding_dim = check_int("embedding_dim", embedding_dim)
        self.columns = self.width = check_int("columns", columns)
        self.unknown: str = check_choice("unknown", unknown, ["error", "reserve"])

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
        ``cardinalities[j]``, for which every table has one more row, as for ``Embedding``.

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
        self.n_numeric = check_int("n_numeric", n_numeric, low=0)
        self.cardinalities = _check_each("cardinalities", cardinalities, _check_category_count)
        if not self.cardinalities:
            raise ValueError("cardinalities: expected at least one categorical column, got none")
        if embedding_dim is None:
            self.embedding_dim = tuple(min(600, round(1.6 * n**0.56)) for n in self.cardinalities)
        elif isinstance(embedding_dim, (int, np.integer)):
            self.embedding_dim = (check_int("embedding_dim", embedding_dim),) * len(self.cardinalities)
        else:
            self.embedding_dim = _check_each("embedding_dim", embedding_dim, check_int)
        if len(self.embedding_dim) != len(self.cardinalities):
            raise ValueError(
                f"embedding_dim: expected {len(self.cardinalities)} widths, one per categorical column, got "
                f"{len(self.embedding_dim)}"
            )
        self.width = self.n_numeric + len(self.cardinalities)
        self.unknown: str = check_choice("unknown", unknown, ["error", "reserve"])

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


def _check_each(name: str, values: Sequence[int], check: Callable[[str, object], int]) -> tuple[int, ...]:
    """A sequence of numbers, checked one by one."""
    if isinstance(values, str) or not isinstance(values, (Sequence, np.ndarray)) or np.ndim(values) != 1:
        raise TypeError(f"{name}: expected a sequence of integers, got {values!r}")
    return tuple(check(f"{name}[{j}]", value) for j, value in enumerate(values))
