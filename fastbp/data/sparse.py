"""The user's sparse matrices: SciPy's, of any format, become the core's CSR. SciPy itself is not needed here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastbp.core import backend
from fastbp.core.sparse import CSR
from fastbp.data.arrays import Array, cast, check_samples, check_width

WIDEST = 2**31 - 1  # columns that an int32 numbers


def is_sparse(value: object) -> bool:
    """Whether this is a sparse matrix, SciPy's or the core's."""
    if isinstance(value, np.ndarray):
        return False
    scipy = sys.modules.get("scipy.sparse")  # who has such a matrix has imported it
    return isinstance(value, CSR) or (scipy is not None and scipy.issparse(value))


def check_sparse(name: str, value: Any, width: int, dtype: np.dtype[Any], empty: bool = False) -> CSR:
    """A sparse matrix as finite (samples, width) rows: over the same memory where its format, order and types allow.

    empty: whether it may have no samples.
    """
    check_width(name, value, width)
    check_samples(name, value, empty)
    rows = value if isinstance(value, CSR) else _as_csr(name, value, width, dtype)
    values, columns = rows.values[rows.stored], rows.columns[rows.stored]
    if rows is value:
        _check_columns(name, columns, width)
    if not backend().all_finite(values):
        at = int(np.argmin(np.isfinite(values)))
        where = int(rows.row_numbers()[at]), int(columns[at])
        raise ValueError(f"{name}: expected finite numbers, got {values[at]} at index {where} (as {dtype})")
    return rows


def _as_csr(name: str, value: Any, width: int, dtype: np.dtype[Any]) -> CSR:
    """The rows of a matrix of SciPy's, with columns of the matrix, in ascending order and once each."""
    if width > WIDEST:
        raise ValueError(f"{name}: expected at most {WIDEST} columns in a sparse matrix, got {width}")
    rows = value.tocsr()
    starts, stored = np.array(rows.indptr, np.int64), min(len(rows.indices), len(rows.data))
    counts = np.diff(starts)
    if len(counts) != value.shape[0] or starts[0] != 0 or starts[-1] > stored or counts.min(initial=0) < 0:
        raise ValueError(
            f"{name}: expected a valid sparse matrix, got one whose indptr does not fit its shape and data"
        )
    count = int(starts[-1])
    _check_columns(name, rows.indices[:count], width)
    columns = np.require(rows.indices[:count], np.int32, ["C", "A"])
    values = cast(name, rows.data[:count], dtype)
    follows = columns[1:] > columns[:-1]
    follows[starts[1:-1][(starts[1:-1] > 0) & (starts[1:-1] < count)] - 1] = True  # the first entry of a row
    if not follows.all():
        rows = type(rows)((values, columns, starts), rows.shape, copy=True)
        rows.sum_duplicates()
        starts, columns = rows.indptr.astype(np.int64), rows.indices.astype(np.int32)
        values = rows.data
    return CSR(values, columns, starts, width)


def _check_columns(name: str, columns: Array, width: int) -> None:
    """Raise unless every entry is in a column that there is."""
    if len(columns) and not 0 <= columns.min() <= columns.max() < width:
        wrong = columns.min() if columns.min() < 0 else columns.max()
        raise ValueError(f"{name}: expected columns from 0 to {width - 1}, got an entry in column {wrong}")


def stack(pieces: Sequence[Any]) -> Any:
    """Features that were checked in chunks, one below the other."""
    if isinstance(pieces[0], CSR):
        counts = np.concatenate([np.diff(piece.starts) for piece in pieces])
        values = np.concatenate([piece.values[piece.stored] for piece in pieces])
        columns = np.concatenate([piece.columns[piece.stored] for piece in pieces])
        return CSR(values, columns, np.concatenate([[0], np.cumsum(counts)]), pieces[0].shape[1])
    if is_sparse(pieces[0]):
        return sys.modules["scipy.sparse"].vstack(pieces, format="csr")
    return np.concatenate(pieces)
