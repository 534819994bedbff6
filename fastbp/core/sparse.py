"""CSR: features of which most are zero, as the core and the reference take them."""

from __future__ import annotations

import numpy as np

from fastbp.core.plan import Array

SAMPLED = 512  # entries that tell where the others are


class CSR:
    """A matrix (n, I) in compressed sparse rows.

    Row i has values[starts[i]:starts[i + 1]], of the model's dtype, in the columns (int32) at the same place, which are
    in ascending order; starts (n + 1,) int64. All else is zero.
    """

    __slots__ = "_sample", "columns", "shape", "starts", "values"

    def __init__(self, values: Array, columns: Array, starts: Array, width: int) -> None:
        self.values, self.columns, self.starts = values, columns, starts
        self.shape = len(starts) - 1, width
        self._sample: Array | None = None

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def dtype(self) -> np.dtype:
        """That of the values."""
        dtype: np.dtype = self.values.dtype
        return dtype

    @property
    def stored(self) -> slice:
        """Where the entries of these rows are."""
        return slice(int(self.starts[0]), int(self.starts[-1]))

    @property
    def density(self) -> float:
        """The share of the entries that is stored."""
        return int(self.starts[-1] - self.starts[0]) / (self.shape[0] * self.shape[1] or 1)

    def __getitem__(self, rows: slice | Array) -> CSR:
        """Some rows: copies but for neighbouring ones, whose entries stay where they are."""
        if isinstance(rows, slice):
            first, end, step = rows.indices(len(self))
            if step == 1:
                return CSR(self.values, self.columns, self.starts[first : max(first, end) + 1], self.shape[1])
            rows = np.arange(first, end, step)
        begins = self.starts[:-1][rows]
        counts = self.starts[1:][rows] - begins
        starts = np.concatenate([[0], np.cumsum(counts)])
        entries = np.repeat(begins - starts[:-1], counts) + np.arange(starts[-1])
        return CSR(self.values[entries], self.columns[entries], starts, self.shape[1])

    def copy(self) -> CSR:
        """The same in memory of its own."""
        values, columns = self.values[self.stored].copy(), self.columns[self.stored].copy()
        return CSR(values, columns, self.starts - self.starts[0], self.shape[1])

    def row_numbers(self) -> Array:
        """The row of every entry."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def toarray(self) -> Array:
        """The dense matrix."""
        dense = np.zeros(self.shape, self.dtype)
        dense[self.row_numbers(), self.columns[self.stored]] = self.values[self.stored]
        return dense

    @property
    def sample(self) -> Array:
        """The columns of some entries, in ascending order."""
        if self._sample is None:
            columns = self.columns[self.stored]
            self._sample = np.sort(columns[:: -(-len(columns) // SAMPLED) or 1])
        return self._sample
