"""How an epoch deals out its samples: their order, the batches, and data of which only a part fits into memory.

Arrays are one part of an epoch, the whole of it. Data that comes in chunks is many: as many chunks as fill a buffer are
one part, whose samples are shuffled together, and a thread makes the next part while the core trains on this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

import numpy as np

from fastbp.core import backend
from fastbp.data.arrays import Array, Samples, as_array, as_generator, check_bool, check_int, check_length, take_rows
from fastbp.data.sparse import is_sparse, stack

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Protocol

    from numpy.typing import ArrayLike

    from fastbp.data.arrays import Seed

    class SlicedByRows(Protocol):
        """A memory map, an HDF5 data set and whatever else gives rows when it is sliced."""

        @property
        def shape(self) -> tuple[int, ...]: ...
        @property
        def dtype(self) -> Any: ...
        def __getitem__(self, rows: slice, /) -> Any: ...

    #: Features, or what gives chunks (X, y) or (X, y, sample_weight) anew whenever it is called or iterated.
    Source = ArrayLike | SlicedByRows | Callable[[], Iterable[tuple[Any, ...]]] | Iterable[tuple[Any, ...]]

T = TypeVar("T")

Names = tuple[str, str, str]
NAMES = "X", "y", "sample_weight"
Chunk = tuple[Any, Any, Any]  # what the user gave for them, some rows of it

BUFFER_SIZE = 65536  # samples
BLOCKS_PER_BUFFER = 16  # of neighbouring rows, that are drawn for a buffer


def epoch_key(shuffle: bool, rng: np.random.Generator) -> int | None:
    """The key of the next epoch's order, for the backend's ``order``."""
    return int(rng.integers(2**64, dtype=np.uint64)) if shuffle else None


def epoch_rows(first: int, count: int, samples: int, key: int | Array | None) -> Array:
    """The row numbers at positions first..first+count of an epoch's order, (count,) int64."""
    rows = np.empty(min(count, samples - first), np.int64)
    backend().batch_order(rows, first, samples, key)
    return rows


class Part(NamedTuple):
    """Samples in memory, of which an epoch takes the first ``size`` in the order of ``key``."""

    data: Samples
    key: int | Array | None
    size: int

    def batches(self, batch_size: int) -> Iterator[Array]:
        """The row numbers of its batches."""
        for first in range(0, self.size, batch_size):
            yield epoch_rows(first, batch_size, self.data[0].shape[0], self.key)


class Stream:
    """Data that is read chunk by chunk, anew in every epoch.

    read(key) gives an epoch's chunks, in an order that follows from key where it can choose one; check(i, chunk) makes
    samples of chunk number i or raises.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[int | None], Iterator[Chunk]],
        check: Callable[[int, Chunk], Samples],
        buffer_size: int,
        samples: int | None = None,
    ) -> None:
        self._name, self._read, self._check, self._buffer_size = name, read, check, buffer_size
        self.samples = samples  # in an epoch, where that is known

    def mapped(self, change: Callable[[Samples], Samples]) -> Stream:
        """The same data, changed when they have been checked."""

        def check(i: int, chunk: Chunk) -> Samples:
            return change(self._check(i, chunk))

        return Stream(self._name, self._read, check, self._buffer_size, self.samples)

    def parts(self, key: int | None, batch_size: int) -> Generator[Part]:
        """An epoch in parts of whole batches: what a buffer has left, less than a batch, opens the next one."""
        held: list[Samples] = []
        count, weighted, sparse = 0, None, None
        for i, chunk in enumerate(self._read(key)):
            if _is_empty(chunk[0]):
                continue
            samples = self._check(i, chunk)
            if weighted not in (None, chunk[2] is not None):
                raise ValueError(f"{self._name}: expected sample weights in every chunk or in none, chunk {i} differs")
            if sparse not in (None, is_sparse(samples[0])):
                raise TypeError(f"{self._name}: expected sparse matrices in every chunk or in none, chunk {i} differs")
            weighted, sparse = chunk[2] is not None, is_sparse(samples[0])
            count += samples[0].shape[0]
            if count < max(self._buffer_size, batch_size):
                held.append(_owned(samples, chunk))
                continue
            data = _concatenate([*held, samples]) if held else _owned(samples, chunk)
            whole = count - count % batch_size
            held.clear()
            del samples, chunk
            yield Part(data, key, whole)
            rest = epoch_rows(whole, batch_size, count, key)
            held, count = [take_rows(data, rest)] if len(rest) else [], len(rest)
            key = None if key is None else (key + 1) % 2**64
        if weighted is None:
            raise ValueError(f"{self._name}: expected at least one sample, got chunks without any, or none")
        if held:
            data = _concatenate(held)
            yield Part(data, key, data[0].shape[0])


def _is_empty(X: Any) -> bool:
    try:
        return X.shape[0] == 0 if is_sparse(X) else len(X) == 0
    except TypeError:  # no array at all, as the check will say
        return False


def _owned(samples: Samples, chunk: Chunk) -> Samples:
    """Samples that the user's code cannot change any more: it may use its arrays again for the next chunk."""

    def own(array: Any, given: Any) -> Any:
        owned = isinstance(given, np.ndarray) and not np.may_share_memory(array, given)
        return array if owned else array.copy()

    X, y, weight = samples
    return own(X, chunk[0]), own(y, chunk[1]), None if weight is None else own(weight, chunk[2])


def _concatenate(pieces: list[Samples]) -> Samples:
    if len(pieces) == 1:
        return pieces[0]
    X, y, weight = zip(*pieces, strict=True)
    return stack(X), np.concatenate(y), None if weight[0] is None else np.concatenate(weight)


def in_memory(value: object) -> bool:
    """Whether this is an array or becomes one; a memory map and, for example, an HDF5 data set is read by slices."""
    if isinstance(value, np.ndarray):
        return not isinstance(value, np.memmap)
    known = ("__dlpack__", "__array_interface__", "to_numpy", "toarray")
    lazy = all(hasattr(value, name) for name in ("shape", "dtype", "__getitem__"))
    return not lazy or any(hasattr(value, name) for name in known)


def read_blocks(data: Chunk, rows: int, names: Names) -> Callable[[int | None], Iterator[Chunk]]:
    """What reads arrays in blocks of neighbouring rows, which have another order in every epoch."""
    samples, columns = data[0].shape[0], [data[0]]
    for name, column in zip(names[1:], data[1:], strict=True):
        if column is not None:
            column = as_array(name, column) if in_memory(column) else column
            check_length(name, column, samples)
        columns.append(column)

    def read(key: int | None) -> Iterator[Chunk]:
        count = -(-samples // rows)
        for block in epoch_rows(0, count, count, key).tolist():
            part = slice(block * rows, min(samples, (block + 1) * rows))
            X, y, weight = (None if column is None else column[part] for column in columns)
            yield X, y, weight

    return read


def read_chunks(name: str, source: Any) -> Callable[[int | None], Iterator[Chunk]]:
    """What reads the chunks (X, y) or (X, y, sample_weight) that a function, or an iterable, gives in every epoch."""
    if hasattr(source, "__array__") or not (callable(source) or isinstance(source, Iterable)):
        raise TypeError(f"y: expected targets, got None; only a function that gives chunks, as {name}, brings its own")
    if isinstance(source, Iterator):
        raise TypeError(
            f"{name}: expected a function that gives the chunks of every epoch, got a {type(source).__name__}, which "
            "can be read once; pass the function that makes it"
        )

    def read(key: int | None) -> Iterator[Chunk]:
        given = source() if callable(source) else source
        if not isinstance(given, Iterable):
            raise TypeError(f"{name}: expected a function that gives an iterable of chunks, got {given!r} from it")
        for i, chunk in enumerate(given):
            if not isinstance(chunk, (tuple, list)) or len(chunk) not in (2, 3):
                raise TypeError(
                    f"{name}: expected chunks (X, y) or (X, y, sample_weight), got {type(chunk).__name__} as chunk {i}"
                )
            yield chunk[0], chunk[1], chunk[2] if len(chunk) == 3 else None

    return read


def open_data(
    data: Chunk, check: Callable[[Chunk, Names], Samples], buffer_size: int, names: Names = NAMES
) -> Samples | Stream:
    """The user's X, y and weights: arrays are checked at once, all else when it is read."""

    def check_chunk(i: int, chunk: Chunk) -> Samples:
        X, y, weight = (f"{name} of chunk {i}" for name in names)
        return check(chunk, (X, y, weight))

    X, y, weight = data
    if y is None:
        if weight is not None:
            raise TypeError(f"{names[2]}: expected None, as chunks bring their own, got {type(weight).__name__}")
        return Stream(names[0], read_chunks(names[0], X), check_chunk, buffer_size)
    if callable(X):
        raise TypeError(f"{names[1]}: expected None with a function as {names[0]}, whose chunks bring their own")
    if in_memory(X) or len(X.shape) == 0 or X.shape[0] <= buffer_size:
        X, y, weight = (column if in_memory(column) else column[...] for column in data)
        return check((X, y, weight), names)
    return Stream(
        names[0],
        read_blocks(data, max(1, buffer_size // BLOCKS_PER_BUFFER), names),
        check_chunk,
        buffer_size,
        X.shape[0],
    )


def steps_of(samples: int, batch_size: int, drop_last: bool = False, accumulate: int = 1) -> int:
    """The steps of an epoch."""
    batches = samples // batch_size if drop_last else -(-samples // batch_size)
    return -(-batches // accumulate)


def _whole_epoch(data: Samples | Stream, key: int | None, batch_size: int) -> Generator[Part]:
    """The parts of all samples."""
    if isinstance(data, Stream):
        yield from read_ahead(data.parts(key, batch_size))
    else:
        yield Part(data, key, data[0].shape[0])


def parts(
    data: Samples | Stream,
    key: int | None,
    batch_size: int,
    drop_last: bool = False,
    steps: int | None = None,
    accumulate: int = 1,
) -> Generator[Part]:
    """The parts of an epoch, of at most so many steps; close it to end the thread that reads ahead.

    A step takes ``accumulate`` batches; a part ends with a whole step, unless it is the last.
    """
    of_step, left, dealt = batch_size * accumulate, steps, False
    with closing(_whole_epoch(data, key, of_step)) as whole:
        for part in whole:
            size = part.size - (part.size % batch_size if drop_last else 0)
            if left is not None:
                size = min(size, left * of_step)
                left -= -(-size // of_step)
            if size:
                dealt = True
                yield Part(part.data, part.key, size)
            if left == 0:
                break
    if not dealt:
        raise ValueError(f"drop_last: expected at least {batch_size} samples, which make a batch, got fewer")


def read_ahead(items: Generator[T]) -> Generator[T]:
    """The items; a thread makes the next one while the caller works with this one.

    The thread may wait in the user's code for as long as that likes: nobody waits for it. It closes the items when it
    comes back and finds that no more are wanted; at the end of the process it is left where it is.
    """
    import contextvars  # here, as these would slow down the import of the package
    import queue
    import threading

    wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
    made: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def make() -> None:
        with closing(items):
            while wanted.get():
                try:
                    made.put((next(items, None), None))
                except BaseException as error:
                    made.put((None, error))

    thread = threading.Thread(target=contextvars.copy_context().run, args=(make,), name="fastbp-reader", daemon=True)
    try:
        thread.start()
        wanted.put(True)
        while True:
            try:
                item, error = made.get(timeout=0.1)  # in short pieces: an interrupt does not end a wait everywhere
            except queue.Empty:
                continue
            if error is not None:
                raise error
            if item is None:  # the user's code has come to its end
                wanted.put(False)
                thread.join()
                return
            wanted.put(True)
            yield item
    finally:
        error = None  # it would keep this frame alive, which its traceback has
        wanted.put(False)


@overload
def batches(
    X: ArrayLike | SlicedByRows,
    y: ArrayLike | SlicedByRows,
    batch_size: int,
    shuffle: bool = ...,
    seed: Seed = ...,
    sample_weight: None = ...,
    buffer_size: int = ...,
    drop_last: bool = ...,
) -> Iterator[tuple[Array, Array]]: ...
@overload
def batches(
    X: ArrayLike | SlicedByRows,
    y: ArrayLike | SlicedByRows,
    batch_size: int,
    shuffle: bool = ...,
    seed: Seed = ...,
    *,
    sample_weight: ArrayLike | SlicedByRows,
    buffer_size: int = ...,
    drop_last: bool = ...,
) -> Iterator[tuple[Array, Array, Array]]: ...
@overload
def batches(
    X: Source,
    y: None,
    batch_size: int,
    shuffle: bool = ...,
    seed: Seed = ...,
    *,
    buffer_size: int = ...,
    drop_last: bool = ...,
) -> Iterator[tuple[Array, ...]]: ...
def batches(
    X: Source,
    y: ArrayLike | SlicedByRows | None,
    batch_size: int,
    shuffle: bool = True,
    seed: Seed = None,
    sample_weight: ArrayLike | SlicedByRows | None = None,
    buffer_size: int = BUFFER_SIZE,
    drop_last: bool = False,
) -> Iterator[tuple[Array, ...]]:
    """Deal one epoch of (X, y) out in batches, in the order that ``Sequential.fit`` takes with the same seed.

    Parameters
    ----------
    X, y : array_like
        Features and targets with one row per sample; their dtypes are kept. Data that does not fit into memory is given
        as for ``Sequential.fit``.
    batch_size : int
        Rows per batch; the last batch has what is left.
    shuffle : bool
        Whether to draw a new order.
    seed : int, numpy.random.Generator or None
        An integer gives the same order each time. Pass one generator to every epoch to get a new order each time and
        the orders of ``fit(seed=...)`` with that seed.
    sample_weight : array_like or None
        One weight per sample, to be dealt with them.
    buffer_size : int
        As for ``Sequential.fit``.
    drop_last : bool
        Whether to leave out the last batch where it has fewer rows.

    Yields
    ------
    xb, yb : ndarray
        Copies of the rows of one batch; with sample weights ``xb, yb, wb``.

    Raises
    ------
    ValueError, TypeError
        If the lengths differ, there are no samples, or batch_size is not a positive integer; at the call, or for chunks
        when they are read.
    """
    check_int("batch_size", batch_size)
    data = open_data((X, y, sample_weight), _checked, check_int("buffer_size", buffer_size))
    check_bool("drop_last", drop_last)
    key = epoch_key(check_bool("shuffle", shuffle), as_generator(seed))

    def batch(part: Part, rows: Array) -> tuple[Any, ...]:
        return tuple(column for column in take_rows(part.data, rows) if column is not None)

    return (batch(part, rows) for part in parts(data, key, batch_size, drop_last) for rows in part.batches(batch_size))


def _checked(data: Chunk, names: Names) -> Samples:
    """Any arrays of one length."""
    X = data[0].tocsr() if is_sparse(data[0]) else as_array(names[0], data[0])
    y = as_array(names[1], data[1])
    if X.shape[:1] in ((), (0,)):
        raise ValueError(f"{names[0]}: expected at least one sample, got shape {X.shape}")
    check_length(names[1], y, X.shape[0])
    if data[2] is None:
        return X, y, None
    weight = as_array(names[2], data[2])
    check_length(names[2], weight, X.shape[0])
    return X, y, weight
