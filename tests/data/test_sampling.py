"""Data that is read: memory maps and slices, chunks from a function."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import fastbp as fb

SAMPLES = 1000
X = np.random.default_rng(0).standard_normal((SAMPLES, 6)).astype(np.float32)
Y = (X[:, 0] + X[:, 1] ** 2 > 1).astype(np.int64) + (X[:, 2] > 1)
WEIGHT = np.random.default_rng(1).random(SAMPLES).astype(np.float32)


class Sliced:
    """What an HDF5 data set or a Zarr array is for fit: a shape, a dtype, and rows when it is sliced."""

    def __init__(self, array):
        self._array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, rows):
        assert isinstance(rows, slice) or rows is ...
        return self._array[rows].copy()


def chunked(*columns, sizes=(70, 1, 300, 0, 129)):
    """A function that gives the columns in chunks of these sizes, again and again."""

    def chunks():
        begin, i = 0, 0
        while begin < len(columns[0]):
            end = begin + sizes[i % len(sizes)]
            yield tuple(column[begin:end] for column in columns)
            begin, i = end, i + 1

    return chunks


def memory_map(array, path):
    np.save(path, array)
    return np.load(path, mmap_mode="r")


def trained(X, y, loss="cross_entropy", **settings):
    layers = [fb.Dense(6, 16, activation="relu"), fb.BatchNorm(16), fb.Dropout(0.2), fb.Dense(16, 3)]
    model = fb.Sequential(layers, seed=0)
    optimizer = fb.Adam(model.parameters(), lr=fb.schedules.Exponential(0.01, 0.999))
    settings = dict(epochs=3, batch_size=32, seed=3, verbose=0) | settings
    history = model.fit(X, y, loss, optimizer, **settings)
    del history.history["samples_per_second"]
    return model.parameters().values.tobytes() + model.model.statistics.tobytes(), history.history


def readers():
    """The threads that read ahead and do not end, though nobody wants more of them."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("fastbp-reader")]
    for thread in threads:
        thread.join(10)
    return [thread for thread in threads if thread.is_alive()]


def squared(pred, target, *weights):
    error = pred - np.eye(3, dtype=np.float32)[target]
    return float(np.mean(error**2)), 2 * error / error.size


@pytest.mark.parametrize("loss", ["cross_entropy", squared])
@pytest.mark.parametrize("buffer_size", [1, 200, 10**6])
def test_without_shuffling_a_stream_trains_as_arrays_do(any_backend, loss, buffer_size, tmp_path):
    settings = dict(loss=loss, shuffle=False)
    expected, curve = trained(X, Y, **settings, sample_weight=WEIGHT)
    mapped = memory_map(X, tmp_path / "X.npy")
    sources = [
        ((chunked(X, Y, WEIGHT), None), {}),
        ((list(chunked(X, Y, WEIGHT)()), None), {}),
        ((Sliced(X), Sliced(Y)), {"sample_weight": Sliced(WEIGHT)}),
        ((mapped, memory_map(Y, tmp_path / "Y.npy")), {"sample_weight": WEIGHT.tolist()}),
    ]
    for source, weights in sources:
        bits, history = trained(*source, **settings, **weights, buffer_size=buffer_size)
        assert bits == expected
        np.testing.assert_allclose(history["loss"], curve["loss"], rtol=1e-12)  # the same numbers in other sums
        assert history.keys() == curve.keys()


@pytest.mark.parametrize("buffer_size", [1, 100, 300])
@pytest.mark.parametrize("kind", ["chunks", "sliced"])
def test_the_four_steps_take_the_batches_of_fit(any_backend, kind, buffer_size):
    source = (Sliced(X), Y) if kind == "sliced" else (chunked(X, Y), None)
    expected, _ = trained(*source, buffer_size=buffer_size)
    layers = [fb.Dense(6, 16, activation="relu"), fb.BatchNorm(16), fb.Dropout(0.2), fb.Dense(16, 3)]
    model, criterion, rng = fb.Sequential(layers, seed=0), fb.CrossEntropy(), np.random.default_rng(3)
    optimizer = fb.Adam(model.parameters(), lr=fb.schedules.Exponential(0.01, 0.999))
    for _ in range(3):
        for xb, yb in fb.batches(*source, batch_size=32, seed=rng, buffer_size=buffer_size):
            _, dlogits = criterion(model.forward(xb, training=True), yb)
            model.backward(dlogits)
            optimizer.step()
    assert model.parameters().values.tobytes() + model.model.statistics.tobytes() == expected


def test_what_fits_into_the_buffer_is_shuffled_as_an_array(tmp_path):
    assert trained(memory_map(X, tmp_path / "X.npy"), Y) == trained(X, Y) != trained(X, Y, seed=4)


@pytest.mark.parametrize("kind", ["chunks", "sliced"])
def test_every_sample_comes_once_in_whole_batches_and_in_new_orders(kind):
    numbers = np.arange(SAMPLES)
    source = (Sliced(numbers), numbers) if kind == "sliced" else (chunked(numbers, numbers, sizes=(64,)), None)
    rng, orders = np.random.default_rng(0), []
    for _ in range(2):
        dealt = [xb for xb, _ in fb.batches(*source, batch_size=33, seed=rng, buffer_size=256)]
        assert [len(xb) for xb in dealt] == [33] * 30 + [10]
        orders.append(np.concatenate(dealt))
        assert np.array_equal(np.sort(orders[-1]), numbers)
    again = np.concatenate([xb for xb, _ in fb.batches(*source, batch_size=33, seed=0, buffer_size=256)])
    assert np.array_equal(again, orders[0])
    assert (orders[0] == orders[1]).mean() < 0.05
    distance = np.abs(np.diff(orders[0]))  # of neighbours: a third of a buffer on the mean, or of all of the data
    assert distance.mean() > {"chunks": 60, "sliced": 250}[kind]
    if kind == "chunks":  # those of the first buffer come first
        assert orders[0][:200].max() < 256


@pytest.mark.parametrize("criterion", [fb.CrossEntropy(class_weight=[1, 0, 5]), fb.CrossEntropy(), squared])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_evaluate(criterion, weight, monkeypatch):
    monkeypatch.setattr("fastbp.training.inputs.EVALUATION_BUFFER", 160)
    model = fb.Sequential([fb.Dense(6, 3)], seed=0)
    expected = model.evaluate(X, Y, criterion, weight)
    if criterion is squared and weight is not None:
        weight = np.ones(SAMPLES, np.float32)  # squared() does not look at them
    columns = (X, Y) if weight is None else (X, Y, weight)
    for result in (
        model.evaluate(chunked(*columns), None, criterion),
        model.evaluate(Sliced(X), Y, criterion, weight),
    ):
        assert result.keys() == expected.keys()
        for name, value in result.items():  # sums of float32 over chunks instead of all
            assert value == pytest.approx(expected[name], rel=1e-6)


def test_validation_data_may_be_read_too(monkeypatch):
    monkeypatch.setattr("fastbp.training.inputs.EVALUATION_BUFFER", 160)
    expected = trained(X, Y, validation_data=(X, Y))
    for validation in (chunked(X, Y), (Sliced(X), Y), (chunked(X, Y), None)):
        bits, history = trained(X, Y, validation_data=validation)
        assert bits == expected[0]
        np.testing.assert_allclose(history["val_loss"], expected[1]["val_loss"], rtol=1e-6)
        assert history["val_accuracy"] == expected[1]["val_accuracy"]


def test_parquet_by_pyarrows_own_batches(tmp_path):
    pa = pytest.importorskip("pyarrow")
    dataset, parquet = pytest.importorskip("pyarrow.dataset"), pytest.importorskip("pyarrow.parquet")
    columns = [f"x{i}" for i in range(6)]
    table = pa.table({name: X[:, i] for i, name in enumerate(columns)} | {"y": Y})
    for i in range(2):
        parquet.write_table(table.slice(500 * i, 500), tmp_path / f"{i}.parquet", row_group_size=128)
    files = dataset.dataset(tmp_path)

    def chunks():
        for batch in files.to_batches(batch_size=100):
            yield batch.select(columns), batch["y"]

    assert trained(chunks, None, shuffle=False, buffer_size=150)[0] == trained(X, Y, shuffle=False)[0]


def test_a_thread_reads_ahead_and_ends_with_the_epoch():
    threads, read = set(), []
    third = threading.Event()

    def chunks():
        for i in range(4):
            threads.add(threading.current_thread())
            read.append(i)
            if i == 2:
                third.set()
            yield X[:100], Y[:100]

    dealt = fb.batches(chunks, None, batch_size=100, buffer_size=100)
    next(dealt), next(dealt)
    assert third.wait(10)  # while the second batch is at work
    dealt.close()
    assert read == [0, 1, 2]
    assert threading.current_thread() not in threads
    trained(chunks, None, buffer_size=100)
    assert not any(thread.is_alive() for thread in threads)


def test_a_broken_chunk_ends_fit_after_whole_steps():
    def chunks():
        yield X[:128], Y[:128]
        yield X[:128], Y[:128]
        yield X[:128, :5], Y[:128]

    model = fb.Sequential([fb.Dense(6, 3)], seed=0)
    optimizer = fb.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"X of chunk 2: expected shape \(samples, 6\), got \(128, 5\)"):
        model.fit(chunks, None, "cross_entropy", optimizer, batch_size=64, shuffle=False, buffer_size=128)
    replica = fb.Sequential([fb.Dense(6, 3)], seed=0)
    for xb, yb in [(X[:64], Y[:64]), (X[64:128], Y[64:128])] * 2:
        replica.train_on_batch(xb, yb, "cross_entropy", fb.SGD(replica.parameters(), lr=0.1))
    assert optimizer.steps == 4
    assert np.array_equal(model.parameters().values, replica.parameters().values)
    assert not readers()


def no_chunks():
    return iter(())


BAD = [
    (dict(X=X, y=None), TypeError, "y: expected targets, got None; only a function that gives chunks"),
    (dict(X=3, y=None), TypeError, "y: expected targets, got None"),
    (dict(X=chunked(X, Y)(), y=None), TypeError, "X: expected a function .* got a generator, which can be read once"),
    (dict(X=no_chunks, y=None), ValueError, "X: expected at least one sample, got chunks without any, or none"),
    (dict(X=lambda: [(X[:0], Y[:0])], y=None), ValueError, "X: expected at least one sample"),
    (dict(X=lambda: [X], y=None), TypeError, r"X: expected chunks \(X, y\) .* got ndarray as chunk 0"),
    (dict(X=lambda: [(3, Y)], y=None), ValueError, r"X of chunk 0: expected shape \(samples, 6\), got \(\)"),
    (dict(X=lambda: [(X,)], y=None), TypeError, r"X: expected chunks \(X, y\) .* got tuple as chunk 0"),
    (dict(X=lambda: [(X, Y[:-1])], y=None), ValueError, "y of chunk 0: expected 1000 rows"),
    (dict(X=lambda: [(X, Y, -WEIGHT)], y=None), ValueError, "sample_weight of chunk 0: expected non-negative weights"),
    (dict(X=chunked(X, Y), y=None, sample_weight=WEIGHT), TypeError, "sample_weight: expected None, as chunks bring"),
    (dict(X=lambda: [(X * np.nan, Y)], y=None), ValueError, r"X of chunk 0: expected finite numbers, got nan"),
    (dict(X=Sliced(X), y=Y[:-1]), ValueError, r"y: expected 1000 rows, one per sample, got shape \(999,\)"),
    (dict(X=Sliced(X), y=Sliced(Y[:-1])), ValueError, r"y: expected 1000 rows"),
    (dict(X=Sliced(X), y=Y, sample_weight=WEIGHT[1:]), ValueError, "sample_weight: expected 1000 rows"),
    (dict(X=Sliced(X[:, :4]), y=Y), ValueError, r"X of chunk 0: expected shape \(samples, 6\), got \(6, 4\)"),
    (dict(X=Sliced(X), y=Y + 1), ValueError, r"y of chunk \d: expected labels from 0 to 2, got 3"),
    (dict(X=Sliced(X), y=Y, buffer_size=0), ValueError, "buffer_size: expected a positive integer, got 0"),
    (dict(X=X, y=Y, validation_data=[3, None]), TypeError, "y: expected targets, got None; .*, as validation_data"),
    (
        dict(X=lambda: None, y=None),
        TypeError,
        "X: expected a function that gives an iterable of chunks, got None from it",
    ),
    (dict(X=chunked(X, Y), y=Y), TypeError, "y: expected None with a function as X, whose chunks bring their own"),
    (dict(X=Sliced(np.array(3.0)), y=Y), ValueError, r"X: expected shape \(samples, 6\), got \(\)"),
    (dict(X=X, y=Y, validation_data=3), TypeError, "validation_data: expected .* got int"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_data_changes_nothing(change, error, message):
    model = fb.Sequential([fb.Dense(6, 3)], seed=0)
    optimizer, before = fb.Adam(model.parameters()), model.parameters().values.copy()
    arguments = dict(loss="cross_entropy", optimizer=optimizer, shuffle=False, verbose=0, buffer_size=100) | change
    with pytest.raises(error, match=message):
        model.fit(**arguments)
    assert np.array_equal(model.parameters().values, before)
    assert optimizer.steps == 0
    assert not readers()


def test_weights_in_a_later_chunk_alone():
    with pytest.raises(ValueError, match="X: expected sample weights in every chunk or in none, chunk 1 differs"):
        trained(lambda: [(X, Y), (X, Y, WEIGHT)], None, buffer_size=SAMPLES, batch_size=SAMPLES)


def test_an_error_of_the_function_is_raised_by_fit():
    def chunks():
        yield X, Y
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        trained(chunks, None)


def test_an_interrupt_ends_the_reader(compiled):
    def chunks():
        while True:
            yield X, Y

    model = fb.Sequential([fb.Dense(6, 16, activation="relu"), fb.Dense(16, 3)], seed=0)
    optimizer = fb.Adam(model.parameters())
    interrupt = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        model.fit(chunks, None, "cross_entropy", optimizer, verbose=0, buffer_size=1)
    interrupt.join()
    assert optimizer.steps > 0
    assert not readers()


class Blocked:
    """Chunks of which all but the first one wait until they are released, as for a queue or a network."""

    def __init__(self):
        self.released, self.asked, self.closed = threading.Event(), threading.Event(), threading.Event()

    def __call__(self):
        try:
            yield X, Y
            while True:
                self.asked.set()
                self.released.wait()
                yield X, Y
        finally:
            self.closed.set()

    def was_left_waiting(self):
        """Whether nobody has waited for it; it is closed when it comes back."""
        waiting = not self.closed.is_set() and len(threads := [
            thread for thread in threading.enumerate() if thread.name == "fastbp-reader"
        ]) == 1  # fmt: skip
        self.released.set()
        threads[0].join(10)
        return waiting and self.closed.is_set()


def interrupt_when(event):
    """Ctrl-C a moment after the event."""

    def interrupt():
        event.wait(10)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()


@pytest.mark.skipif(os.name != "posix", reason="signals are sent to the process")
@pytest.mark.parametrize("place", ["fit", "validation_data", "evaluate", "batches"])
def test_an_interrupt_does_not_wait_for_the_users_code(place):
    chunks, model = Blocked(), fb.Sequential([fb.Dense(6, 3)], seed=0)
    optimizer = fb.SGD(model.parameters(), lr=0.1)
    tasks = {
        "fit": lambda: model.fit(chunks, None, "cross_entropy", optimizer, verbose=0, buffer_size=1),
        "validation_data": lambda: model.fit(X, Y, "cross_entropy", optimizer, verbose=0, validation_data=chunks),
        "evaluate": lambda: model.evaluate(chunks, None, "cross_entropy"),
        "batches": lambda: list(fb.batches(chunks, None, 100, buffer_size=1)),
    }
    interrupt_when(chunks.asked)
    with pytest.raises(KeyboardInterrupt):
        tasks[place]()
    assert chunks.was_left_waiting()
    model.fit(X, Y, "cross_entropy", optimizer, verbose=0)


def test_an_error_in_the_loss_does_not_wait_for_the_users_code():
    chunks, model = Blocked(), fb.Sequential([fb.Dense(6, 3)], seed=0)

    def loss(pred, target):
        chunks.asked.wait(10)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        model.fit(chunks, None, loss, fb.SGD(model.parameters(), lr=0.1), verbose=0, buffer_size=1)
    assert chunks.was_left_waiting()


def test_batches_that_are_left_do_not_wait_for_the_users_code():
    chunks = Blocked()
    dealt = fb.batches(chunks, None, 100, buffer_size=1)
    next(dealt)
    chunks.asked.wait(10)
    dealt.close()
    assert chunks.was_left_waiting()


HANGS = """
import time
import numpy as np
import fastbp as fb

def chunks():
    yield np.ones((4, 2)), np.ones((4, 1))
    time.sleep(1000)

model = fb.Sequential([fb.Dense(2, 1)])
for xb, yb in fb.batches(chunks, None, 2, buffer_size=1):
    print("left", flush=True)
    break
"""


def test_a_process_ends_although_the_users_code_waits():
    result = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "left\n", "")


class RefilledSlices(Sliced):
    """Slices that are one and the same buffer."""

    def __init__(self, array):
        super().__init__(array)
        self._buffer = np.empty_like(array)

    def __getitem__(self, rows):
        part = self._array[rows]
        self._buffer[: len(part)] = part
        return self._buffer[: len(part)]


def refilled(*columns, size=100):
    """Chunks that are one and the same buffer."""

    def chunks():
        buffers = [np.empty_like(column[:size]) for column in columns]
        for begin in range(0, len(columns[0]), size):
            for buffer, column in zip(buffers, columns, strict=True):
                buffer[:] = column[begin : begin + size]
            yield tuple(buffers)
        for buffer in buffers:
            buffer[:] = 0

    return chunks


@pytest.mark.parametrize("buffer_size", [1, 100, 250, 10**6])
@pytest.mark.parametrize("dtypes", [("f4", "i8"), ("f8", "i4")])
@pytest.mark.parametrize("loss", ["cross_entropy", squared])
def test_a_buffer_that_is_refilled_is_read_in_time(buffer_size, dtypes, loss):
    columns = X.astype(dtypes[0]), Y.astype(dtypes[1]), WEIGHT.astype(dtypes[0])
    expected = trained(*columns[:2], loss=loss, shuffle=False, sample_weight=columns[2])
    got = trained(refilled(*columns), None, loss=loss, shuffle=False, buffer_size=buffer_size)
    assert got[0] == expected[0]
    assert got[1]["loss"] == pytest.approx(expected[1]["loss"], rel=1e-12)  # sums of other parts
    in_batches = [list(fb.batches(source, None, 64, seed=0, buffer_size=buffer_size))
                  for source in (refilled(*columns), lambda: iter([columns]))]  # fmt: skip
    if buffer_size == 10**6:
        for one, other in zip(*in_batches, strict=True):
            assert all(np.array_equal(*pair) for pair in zip(one, other, strict=True))
    model = fb.Sequential([fb.Dense(6, 3)], seed=0)
    evaluated = [model.evaluate(*data, loss)["loss"] for data in ((refilled(*columns), None), columns[:2])]
    if loss == "cross_entropy":
        evaluated[1] = model.evaluate(*columns[:2], loss, columns[2])["loss"]
        assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-6)


def test_slices_that_are_one_buffer():
    settings = dict(buffer_size=160, seed=1)
    got = trained(RefilledSlices(X), RefilledSlices(Y), **settings)
    assert got == trained(Sliced(X), Sliced(Y), **settings)


def test_a_bar_and_a_profile(capsys):
    pytest.importorskip("tqdm")
    expected = trained(chunked(X, Y), None, buffer_size=200)[0]
    with fb.profile() as profile:
        assert trained(chunked(X, Y), None, buffer_size=200, verbose="bar")[0] == expected
    profile.compare("numpy")
    (table,) = profile.tables
    assert (table.samples, table.steps, table.others["numpy"].samples) == (3 * SAMPLES, 3 * 32, 3 * SAMPLES)
    shown = capsys.readouterr().err
    assert "epoch 2/3: 100%" in shown
    assert "1.00k" in shown


LARGER = """
import resource, sys
import numpy as np
import fastbp as fb

MEGABYTE, path = 2**20, sys.argv[1]
model = fb.Sequential([fb.Dense(64, 32, activation="relu"), fb.Dense(32, 1)], seed=0)
optimizer = fb.Adam(model.parameters(), lr=1e-3)

def rows(begin, end):
    x = np.random.default_rng(begin).standard_normal((end - begin, 64), np.float32)
    return x, x[:, :3].sum(axis=1)

def chunks():
    mapped = np.load(path, mmap_mode="r")
    for begin in range(0, len(mapped), 10000):
        yield mapped[begin : begin + 10000], mapped[begin : begin + 10000, :3].sum(axis=1)

settings = dict(loss="mse", optimizer=optimizer, batch_size=128, verbose=0, buffer_size=4096)
count = 5 * 20 * MEGABYTE // (4 * 64)
X = np.lib.format.open_memmap(path, "w+", np.float32, (count, 64))
for begin in range(0, count, 4096):
    X[begin : begin + 4096] = rows(begin, min(count, begin + 4096))[0]
del X
X = np.load(path, mmap_mode="r")
y = np.concatenate([X[begin : begin + 4096, :3].sum(axis=1) for begin in range(0, count, 4096)])
model.fit(chunks, None, **settings)  # threads and their stacks are there now
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) * 1024
limit = used + 20 * MEGABYTE
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    np.array(X)
except MemoryError:
    print("the file is larger than the memory")
history = model.fit(X, y, **settings, validation_data=(X, y)).history
history = model.fit(chunks, None, **settings, validation_data=chunks).history
print(history["val_loss"][-1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA does not count mapped files on Linux")
def test_a_file_five_times_the_memory(tmp_path):
    """RLIMIT_DATA counts all memory that is written, but not the mapped file: 20 MB for a file of 100."""
    command = [sys.executable, "-c", LARGER, str(tmp_path / "X.npy")]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=alone)
    assert result.returncode == 0, result.stderr
    told, loss = result.stdout.splitlines()
    assert told == "the file is larger than the memory"
    assert float(loss) < 0.05  # of a variance of 3
