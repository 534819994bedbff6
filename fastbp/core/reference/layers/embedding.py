"""Embedding: ids are replaced by rows of tables."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastbp.core.plan import Array
from fastbp.core.reference.layers.record import KINDS, Buffers, Call, Kind


def _numeric(x: Array, tables: Array) -> int:
    """How many columns of x (B, I) come before those of ids."""
    return int(x.shape[1] - tables["columns"].sum())


def _lookups(flat: Array, x: Array, tables: Array) -> Iterator[tuple[Array, Array, slice]]:
    """For each column of ids: its table, a view of flat (n,), its ids (B,), and the columns of y that they become."""
    i = j = _numeric(x, tables)  # the numeric columns are as many in y
    for rows, dim, offset, columns in tables.tolist():
        for _ in range(columns):
            yield flat[offset : offset + rows * dim].reshape(rows, dim), x[:, i].astype(np.int64), slice(j, j + dim)
            i, j = i + 1, j + dim


def embedding_forward(y: Array, x: Array, values: Array, tables: Array, threads: int) -> None:
    """y (B, O): the numeric columns of x (B, I), then for each column of ids their rows of its table.

    tables (T,) TABLE records say where in the flat values (n,) they lie; the last columns of x hold the ids, as whole
    numbers.
    """
    numeric = _numeric(x, tables)
    y[:, :numeric] = x[:, :numeric]
    for table, ids, columns in _lookups(values, x, tables):
        y[:, columns] = table[ids]


def embedding_gradients(grads: Array, dy: Array, x: Array, tables: Array) -> None:
    """The gradients of the tables in the flat grads (n,), column by column and row by row."""
    for table, _, _ in _lookups(grads, x, tables):
        table[:] = 0
    for table, ids, columns in _lookups(grads, x, tables):
        np.add.at(table, ids, dy[:, columns])


def embedding_dx(dx: Array, dy: Array, tables: Array) -> None:
    """dx (B, I) from dy (B, O): that of the numeric columns; ids have none, it is 0."""
    numeric = _numeric(dx, tables)
    dx[:, :numeric], dx[:, numeric:] = dy[:, :numeric], 0


def unknown_category(x: Array, categories: Array) -> int:
    """Of the last columns of x (B, I), read row by row: the first entry that is no id, or -1.

    An id of column j is a whole number from 0 to categories[j] - 1; categories (k,) int64.
    """
    ids = x[:, x.shape[1] - len(categories) :]
    wrong = ~((ids >= 0) & (ids < categories) & (ids == np.floor(ids)))
    return int(wrong.argmax()) if wrong.any() else -1


def _forward(call: Call) -> None:
    embedding_forward(call.y, call.x, call.buffers.values, call.buffers.tables, call.threads)


def _gradients(call: Call, dy: Array) -> None:
    embedding_gradients(call.buffers.grads, dy, call.x, call.buffers.tables)


def _backward(call: Call, dx: Array | None, dy: Array) -> None:
    if dx is not None:
        embedding_dx(dx, dy, call.buffers.tables)


def _check(x: Array, buffers: Buffers) -> int:
    rows, columns = buffers.tables["rows"], buffers.tables["columns"]
    entry = unknown_category(x, np.repeat(rows, columns))
    return entry // int(columns.sum()) if entry >= 0 else -1


KINDS["embedding"] = Kind(_forward, _backward, _gradients, _check)
