"""The reduction of a step over processes: what a reducer gets and when, and what becomes of what it gives back."""

import signal
import threading
import time

import numpy as np
import pytest
from networks import blobs, branching, everything

import fastbp as fb
from fastbp import losses
from fastbp.core.plan import BUCKET_BYTES
from fastbp.training.trainer import EpochPlan, Trainer

# NumPy, as a backend, says so when numbers overflow
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning")


class Alone:
    """There is no other process; keeps a record of its calls, and copies of the headers, whose array may be one."""

    def __init__(self):
        self.calls, self.headers, self.buckets = [], [], []

    def begin(self, header):
        self.calls.append("begin")
        self.header = header
        self.headers.append(header.copy())
        self.buckets.append([])

    def reduce(self, bucket):
        self.calls.append("reduce")
        self.buckets[-1].append(bucket)

    def wait(self):
        self.calls.append("wait")


class Twice(Alone):
    """Another process does the same work."""

    def wait(self):
        super().wait()
        for array in (self.header, *self.buckets[-1]):
            array *= 2


class Late(Twice):
    """The sums arrive while other gradients are computed, and some long after the last bucket, from other threads."""

    def begin(self, header):
        super().begin(header)
        self.threads = [self.sum(header, 0.01)]

    def reduce(self, bucket):
        super().reduce(bucket)
        self.threads.append(self.sum(bucket, 0.001 * len(self.threads)))

    def sum(self, array, seconds):
        def double():
            time.sleep(seconds)
            array[:] *= 2

        thread = threading.Thread(target=double)
        thread.start()
        return thread

    def wait(self):
        Alone.wait(self)
        for thread in self.threads:
            thread.join()


class Failing(Alone):
    """Fails in a call of the second step."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def fail(self, where):
        if where == self.where and len(self.headers) == 2:
            raise ZeroDivisionError(where)

    def begin(self, header):
        super().begin(header)
        self.fail("begin")

    def reduce(self, bucket):
        super().reduce(bucket)
        self.fail("reduce")

    def wait(self):
        super().wait()
        self.fail("wait")


class Telling(Alone):
    """Another process says something in the header of its third step."""

    def __init__(self, entry):
        super().__init__()
        self.entry = entry

    def wait(self):
        super().wait()
        if len(self.headers) == 3:
            self.header[self.entry] += 1


def kept(model):
    """What a step that is not applied leaves as it was; the last batch's own statistics are not a part of it."""
    return {name: array.tobytes() for name, array in model.model.tensors().items()}


def trainer(model, loss="cross_entropy", reducer=None, optimizer=None):
    criterion = losses.resolve(loss)
    optimizer = optimizer or fb.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Trainer(model.model, optimizer, criterion, reducer=reducer)


def data(dtype="float64", loss="cross_entropy", weighted=True):
    X, y = blobs(dtype=dtype)
    weight = np.random.default_rng(1).uniform(0.5, 2, len(X)).astype(dtype) if weighted else None
    return X, y if loss == "cross_entropy" or isinstance(loss, fb.CrossEntropy) else np.eye(4, dtype=dtype)[y], weight


LOSSES = {
    "cross_entropy": "cross_entropy",
    "smoothed": fb.CrossEntropy(0.1, [1, 2, 0.5, 3]),
    "mse": "mse",
    "huber": fb.Huber(0.5),
}
OPTIMIZERS = [
    lambda p: fb.SGD(p, lr=0.05, momentum=0.9, clip_norm=0.05),
    lambda p: fb.SGD(p, lr=0.05, clip_value=0.001),
    lambda p: fb.AdamW(p, lr=0.01, weight_decay=0.3, decay_bias=False, eps=1e-3, clip_norm=0.05),
]


@pytest.mark.parametrize("reducer", [Alone, Twice, Late])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("weighted", [False, True])
def test_processes_that_do_the_same_train_as_one(any_backend, dtype, reducer, loss, weighted):
    """The sums have twice the weight, and the mean is what it was but for rounding."""
    samples = data(dtype, loss, weighted)
    alone, together = everything(dtype), everything(dtype)
    one = trainer(alone, loss).run_steps(samples, 5, 0, 7, 32)
    other = trainer(together, loss, reducer()).run_steps(samples, 5, 0, 7, 32)
    assert other.correct == one.correct
    assert other.loss == pytest.approx(one.loss, rel=1e-4 if dtype == np.float32 else 1e-12)
    tolerance = dict(rtol=0, atol=1e-4 if dtype == np.float32 else 1e-12)
    for got, expected in (
        (together.parameters().values, alone.parameters().values),
        (together.parameters().grads, alone.parameters().grads),
        (together.model.statistics, alone.model.statistics),
    ):
        np.testing.assert_allclose(got, expected, **tolerance)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_gradients_are_clipped_as_those_of_the_mean(any_backend, make):
    samples = data()
    models = [branching("float64"), branching("float64")]
    for model, reducer in zip(models, [None, Twice()], strict=True):
        trainer(model, reducer=reducer, optimizer=make(model.parameters())).run_steps(samples, None, 0, 6, 40)
    np.testing.assert_allclose(models[1].parameters().values, models[0].parameters().values, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_how_steps_are_divided_into_calls_changes_no_bit(any_backend, make):
    """The last step of a call keeps its gradients in memory, and contention may end a call at any step."""
    samples, found = data(), []
    for calls in ([6], [3, 3], [1] * 6):
        model = branching("float64")
        together, first = trainer(model, reducer=Twice(), optimizer=make(model.parameters())), 0
        for steps in calls:
            together.run_steps(samples, None, first, steps, 30)
            first += 30 * steps
        found.append((model.parameters().values.tobytes(), model.parameters().grads.tobytes()))
    assert found[0] == found[1] == found[2]


def test_there_is_no_bucket_without_gradients(any_backend):
    layers = [fb.Dropout(0.1), fb.Dense(600, 600), fb.Dropout(0.1), fb.Activation("relu")]
    model, reducer = fb.Sequential([*layers, fb.Dropout(0.1)]), Alone()
    X = np.ones((4, 600), np.float32)
    trainer(model, "mse", reducer).run_steps((X, X, None), None, 0, 1, 4)
    assert [len(bucket) for bucket in reducer.buckets[0]] == [600 * 600 + 608]  # the bias ends on a cache line


def test_an_interrupt_in_the_core_leaves_no_exception_behind(compiled):
    """A handler runs while the core polls for signals, and the reducer is called after that."""
    model = fb.Sequential([fb.Dense(512, 2500, "relu"), fb.Dense(2500, 512)])
    X = np.ones((4096, 512), np.float32)
    together = trainer(model, "mse", Alone(), fb.SGD(model.parameters(), lr=1e-4))

    def train():
        for _ in range(100):
            together.run_steps((X, X, None), None, 0, 4, 1024)

    threading.Timer(0.3, lambda: signal.raise_signal(signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        train()
    assert np.isfinite(model.parameters().values).all()
    assert together.optimizer.steps == model.model.training_step


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_header_has_the_weight_and_the_sum_of_the_losses(any_backend, loss):
    samples, reducer, model = data(loss=loss), Alone(), everything("float64")
    total = trainer(model, loss, reducer).run_steps(samples, None, 0, 3, 50).loss
    _, y, weight = samples
    headers = reducer.headers
    assert all(header.dtype == np.float64 and header.shape == (4,) for header in headers)
    assert sum(50 * header[1] / header[0] for header in headers) == pytest.approx(total, rel=1e-12)
    of_class = np.array([1, 2, 0.5, 3])[y] if isinstance(loss, fb.CrossEntropy) else 1
    expected = (weight * of_class)[:150].reshape(3, 50).sum(axis=1)
    np.testing.assert_allclose([header[0] for header in headers], expected, rtol=1e-12)
    assert not np.array([header[2:] for header in headers]).any()


def test_the_weight_is_the_number_of_samples_without_weights(any_backend):
    reducer = Alone()
    trainer(everything("float64"), reducer=reducer).run_steps(data(weighted=False), None, 0, 5, 50)
    assert [header[0] for header in reducer.headers] == [50, 50, 50, 50, 3]


def test_buckets_cover_the_gradients_of_every_op(any_backend, dtype):
    """In their order, each of at least BUCKET_BYTES but for the last."""
    rng, wide = np.random.default_rng(0), 600
    layers = [fb.Dense(7, wide), fb.Residual([fb.Dense(wide, wide, "relu"), fb.Dropout()]), fb.Dense(wide, wide),
              fb.LayerNorm(wide), fb.Dense(wide, 4)]  # fmt: skip
    model, reducer = fb.Sequential(layers, dtype=dtype, seed=0), Alone()
    X = rng.standard_normal((20, 7)).astype(dtype)
    trainer(model, reducer=reducer).run_steps((X, rng.integers(0, 4, 20), None), None, 0, 2, 10)
    assert reducer.calls == ["begin", *["reduce"] * len(reducer.buckets[0]), "wait"] * 2
    grads = model.parameters().grads
    for buckets in reducer.buckets:
        assert len(buckets) == 3
        assert all(bucket.dtype == dtype and np.shares_memory(bucket, grads) for bucket in buckets)
        assert all(bucket.nbytes >= BUCKET_BYTES for bucket in buckets[:-1])
        begins = [(bucket.ctypes.data - grads.ctypes.data) // grads.itemsize for bucket in buckets]
        ends = [begin + bucket.size for begin, bucket in zip(begins, buckets, strict=True)]
        assert all(end <= begin for end, begin in zip(ends, begins[1:], strict=False))
        covered = np.zeros(grads.size, bool)
        for begin, end in zip(begins, ends, strict=True):
            covered[begin:end] = True
        ops = model.model.program
        assert all(covered[op["begin"] : op["end"]].all() for op in ops)
        assert set(begins) <= set(ops["begin"].tolist())  # an op is in one bucket


@pytest.mark.parametrize("where", ["begin", "reduce", "wait"])
def test_an_error_of_the_reducer_ends_the_epoch_after_whole_steps(any_backend, where):
    samples, model, expected = data(), everything("float64"), everything("float64")
    one = trainer(model, reducer=Failing(where))
    with pytest.raises(ZeroDivisionError, match=where):
        one.run_steps(samples, None, 0, 4, 50)
    trainer(expected, reducer=Alone()).run_steps(samples, None, 0, 1, 50)
    assert kept(model) == kept(expected)
    assert (one.optimizer.steps, model.model.training_step) == (1, 1)
    one.reducer = None  # it goes on
    one.run_steps(samples, None, 50, 3, 50)
    assert np.isfinite(model.parameters().values).all()


def test_another_process_stops(any_backend):
    samples, model, expected = data(), everything("float64"), everything("float64")
    one = trainer(model, reducer=Telling(3))
    with pytest.raises(KeyboardInterrupt, match="a process that shares the work has to stop"):
        one.run_steps(samples, None, 0, 4, 50)
    trainer(expected, reducer=Alone()).run_steps(samples, None, 0, 2, 50)
    assert kept(model) == kept(expected)
    assert (one.optimizer.steps, model.model.training_step) == (2, 2)


def test_another_process_diverges(any_backend):
    samples, model, expected = data(), everything("float64"), everything("float64")
    one = trainer(model, reducer=Telling(2))
    with pytest.raises(fb.DivergenceError) as caught:
        one.run_steps(samples, None, 0, 4, 50)
    assert (caught.value.what, caught.value.step) == ("loss", 3)
    assert not np.isfinite(caught.value.value)
    trainer(expected, reducer=Alone()).run_steps(samples, None, 0, 2, 50)
    assert kept(model) == kept(expected)


@pytest.mark.parametrize("reducer", [Alone, Twice, Late])
def test_one_that_diverges_tells_the_others(any_backend, reducer):
    samples, model, told = data(), everything("float64"), reducer()
    model.layers[0].weight[0, 0] = np.inf
    before = kept(model)
    with pytest.raises(fb.DivergenceError) as caught:
        trainer(model, reducer=told).run_steps(samples, None, 0, 4, 50)
    assert caught.value.layer == "layers[0].weight"
    assert told.headers[0][2] > 0
    assert (told.calls[0], told.calls[-1]) == ("begin", "wait")
    assert kept(model) == before


def test_a_batch_that_weighs_nothing(any_backend):
    X, y, _ = data()
    model, expected = branching("float64"), branching("float64")
    weight = np.zeros(len(X))
    for m, reducer in ((model, Twice()), (expected, None)):
        trainer(m, reducer=reducer).run_steps((X, y, weight), None, 0, 2, 50)
    assert kept(model) == kept(expected)
    assert not model.parameters().grads.any()


def test_without_a_core_there_is_no_reducer():
    model = everything("float64")
    one = trainer(model, lambda pred, target: (0.0, pred), Alone())
    X, y, _ = data(loss="mse")
    with pytest.raises(ValueError, match="loss: expected a built-in one with a reducer"):
        one.step((X, y, None))


def test_fit_hands_it_on(any_backend):
    """In an epoch, profiled or not; a comparison is done without it."""
    X, y, weight = data()
    model, reducer = everything("float64"), Alone()
    one = trainer(model, reducer=reducer)
    one.train_epoch((X, y, weight), EpochPlan(None, 50))
    with fb.profile() as profile:
        one.train_epoch((X, y, weight), EpochPlan(None, 50))
    assert len(reducer.headers) == 10
    profile.compare("numpy")
    assert len(reducer.headers) == 10
