"""Memory that cannot be had: a MemoryError, and the model goes on as before; what fit needs, and what it keeps."""

import importlib
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import COMPILED

import fastbp as fb
from fastbp import ops, optim, parameters
from fastbp.core import plan


def wide():
    """Every kind of workspace: panels, z, moments, gradients that share memory, transposed weights."""
    layers = [fb.Activation("tanh"), fb.Dense(9, 300, activation="silu"), fb.BatchNorm(300), fb.Dropout(0.3),
              fb.Activation("relu"), fb.Dense(300, 70, activation="gelu"), fb.LayerNorm(70),
              fb.Dense(70, 3)]  # fmt: skip
    return fb.Sequential(layers, seed=0)


def squares(pred, target):
    return float(np.mean((pred - target) ** 2)), 2 * (pred - target) / pred.size


def data(samples):
    rng = np.random.default_rng(samples)
    return rng.standard_normal((samples, 9)).astype("f4"), rng.standard_normal((samples, 3)).astype("f4")


def pass_back(model, optimizer, samples):
    (X, dy), before = data(samples), (model.model.statistics.copy(), model.model.training_step)
    model.forward(X, training=True)
    try:
        model.backward(dy, input_gradient=True)
    except MemoryError:  # the forward pass was one
        model.model.statistics[:], model.model.training_step = before
        raise


CALLS = {
    "predict": lambda model, optimizer, n: model.predict(data(n)[0]),
    "backward": pass_back,
    "fit": lambda model, optimizer, n: model.fit(
        *data(n), "mse", optimizer, epochs=2, batch_size=n - 3, seed=1, verbose=0
    ),
    "train_on_batch": lambda model, optimizer, n: model.train_on_batch(*data(n), "mse", optimizer),
    "callable loss": lambda model, optimizer, n: model.train_on_batch(*data(n), squares, optimizer),
}


def state(model, optimizer):
    flat = model.parameters()
    moments = {name: array.tobytes() for name, array in optimizer.state_vectors.items()}
    return (
        flat.values.tobytes(),
        flat.grads.tobytes(),
        model.model.statistics.tobytes(),
        model.model.training_step,
        optimizer.steps,
        moments,
    )


@pytest.fixture
def allocations(monkeypatch):
    """The core's one source of memory, the same for all backends: ``left`` calls succeed, the next one raises."""

    class Allocations:
        left = 1_000_000

        def __call__(self, count, dtype):
            self.left -= 1
            if self.left < 0:
                raise MemoryError
            return aligned(count, dtype)

    aligned, counted = plan.aligned, Allocations()
    for module in (importlib.import_module(f"fastbp.core._{COMPILED[0]}"), optim, parameters, plan):
        monkeypatch.setattr(module, "aligned", counted)
    with fb.use_backend(COMPILED[0]):
        yield counted


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("warm", [False, True])
def test_every_allocation_of_a_call_may_fail(allocations, call, warm):
    """Each in its turn. Then a smaller call and the same call once more have the bits of one that never failed."""
    failed = 0
    while True:
        models = [wide(), wide()]
        optimizers = [fb.RMSprop(model.parameters(), lr=0.01, momentum=0.9) for model in models]
        for model, optimizer in zip(models, optimizers, strict=True):
            if warm:
                call(model, optimizer, 8)
        before = state(models[0], optimizers[0])
        allocations.left = failed
        try:
            call(models[0], optimizers[0], 40)
            break
        except MemoryError:
            allocations.left = 1_000_000
        flat, after = models[0].parameters(), state(models[0], optimizers[0])
        assert (after[0], *after[2:5]) == (before[0], *before[2:5])
        assert not any(np.frombuffer(m, "f4").any() for m in after[5].values()) or after[5] == before[5]
        for model, optimizer in zip(models, optimizers, strict=True):
            call(model, optimizer, 20)
            call(model, optimizer, 40)
        assert state(models[0], optimizers[0]) == state(models[1], optimizers[1])
        assert models[0].predict(data(50)[0]).tobytes() == models[1].predict(data(50)[0]).tobytes()
        assert np.isfinite(flat.values).all()
        failed += 1
    assert failed >= 1


def test_a_backward_pass_may_be_repeated(allocations):
    X, dy = data(40)
    models = wide(), wide()
    for model in models:
        model.forward(X, training=True)
    allocations.left = 0
    with pytest.raises(MemoryError):
        models[0].backward(dy)
    allocations.left = 1_000_000
    for model in models:
        model.backward(dy)
    assert models[0].parameters().grads.tobytes() == models[1].parameters().grads.tobytes()


def test_a_model_that_could_not_be_made_leaves_its_layers_free(allocations):
    for n in range(3):  # values, gradients, statistics
        layers = [fb.Dense(3, 4), fb.BatchNorm(4)]
        allocations.left = n
        with pytest.raises(MemoryError):
            fb.Sequential(layers)
        allocations.left = 1_000_000
        assert fb.Sequential(layers).predict(np.ones((1, 3))).shape == (1, 4)


def test_a_kernel_without_scratch_space(allocations, monkeypatch):
    a = np.ones((900, 900), "f4")
    c = np.empty_like(a)
    monkeypatch.setattr(ops._local, "scratch", np.empty(0), raising=False)
    allocations.left = 0
    with pytest.raises(MemoryError):
        ops.matmul(c, a, a)
    allocations.left = 1
    ops.matmul(c, a, a)
    assert (c == 900).all()


def run(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


on_linux = pytest.mark.skipif(
    not Path("/proc/self/statm").exists() or "t" in sys.abiflags,
    reason="needs Linux's counters of a process; free-threaded Python keeps freed memory for a while",
)

# The team exists before the limit is set: OpenMP ends a process in which it cannot start a thread. What is asked for
# afterwards is more than the limit leaves, and more than the 32 MiB that malloc may keep.
LIMITED = """
import copy, resource
import numpy as np
import fastbp as fb

def pages():
    return np.array(open("/proc/self/statm").read().split()[:2], int) * resource.getpagesize()

def failing(call, rounds=200):
    for i in range(rounds):
        if i == 3:
            before = pages()
        try:
            call()
        except MemoryError:
            continue
        raise AssertionError(f"call {calls.index(call)} did not fail")
    return (pages() - before).max()

fb.set_num_threads(2)
rng = np.random.default_rng(0)
X, y = rng.standard_normal((60_000, 8)).astype("f4"), rng.standard_normal((60_000, 4)).astype("f4")
layers = [fb.Dense(8, 512, activation="relu"), fb.BatchNorm(512), fb.Dropout(0.1), fb.Dense(512, 4)]
model = fb.Sequential(layers, seed=0)
waiting = fb.Sequential([fb.Dense(8, 512, activation="relu"), fb.Dense(512, 4)], seed=0)
large = fb.Sequential([fb.Dense(8, 4000), fb.Dense(4000, 4000)], seed=0)
long = fb.Sequential([fb.Dense(8, 20_000)], seed=0)
targets = np.zeros((8, 4000), "f4")
sgd, adam = fb.SGD(large.parameters(), lr=0.01), fb.Adam(large.parameters())
optimizer = fb.Adam(model.parameters())
model.fit(X[:2048], y[:2048], "mse", optimizer, batch_size=512, verbose=0)
large.fit(X[:8], targets, "mse", sgd, verbose=0)
long.predict(X[:1024])
replica, its_optimizer = copy.deepcopy((model, optimizer))
of_large = large.predict(X[:4]).tobytes()

calls = [
    lambda: fb.Sequential([fb.Dense(4000, 4000)], seed=0),
    lambda: large.fit(X[:8], targets, "mse", adam, verbose=0),
    lambda: model.fit(X, y, "mse", optimizer, batch_size=60_000, seed=0, verbose=0),
    lambda: model.train_on_batch(X, y, "mse", optimizer),
    lambda: model.train_on_batch(X, y, lambda p, t: (0.0, p - t), optimizer),
    lambda: long.predict(X[:4096]),
    lambda: large.snapshot(),
    lambda: copy.deepcopy(large),
    lambda: (waiting.model.expect_forward(), setattr(waiting.model, "pending_forward", kept), waiting.backward(y)),
]
waiting.forward(X, training=True)
kept = waiting.model.pending_forward
limit = int(pages()[0]) + 2**25 * 3 // 2
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
growth = [failing(call) for call in calls[:-1]]
assert max(growth) < 2**23, growth  # malloc may have two places for the one buffer of 7.7 MB that a failed call got
try:
    calls[-1]()
    raise AssertionError("the gradients fitted")
except MemoryError:
    pass
assert large.predict(X[:4]).tobytes() == of_large
try:
    large.fit(X[:8], targets, "mse", sgd, seed=0, verbose=0, callbacks=[fb.EarlyStopping(monitor="loss")])
    raise AssertionError("the snapshot fitted")
except MemoryError:
    assert sgd.steps == 2

for m, o in ((model, optimizer), (replica, its_optimizer)):
    m.fit(X[:2048], y[:2048], "mse", o, epochs=2, batch_size=512, seed=0, verbose=0)
assert replica.predict(X[:2048]).tobytes() == model.predict(X[:2048]).tobytes()
assert optimizer.steps == its_optimizer.steps
"""

# A quarter with a new model. What one fit kept of 64 bytes would be 500 KiB.
MANY = """
import resource
import numpy as np
import fastbp as fb

X, y = np.random.default_rng(0).standard_normal((2, 12, 3)).astype("f4")
def fits(count):
    for i in range(count):
        if i % 4 == 0:
            model = fb.Sequential([fb.Dense(3, 4, activation="relu"), fb.BatchNorm(4), fb.Dense(4, 3)], seed=0)
            optimizer = fb.Adam(model.parameters())
        model.fit(X, y, "mse", optimizer, batch_size=4 + i % 3, verbose=0)
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

before = fits(2000)
growth = fits(8000) - before
assert growth < 2**18, growth
"""


@on_linux
def test_a_limited_address_space():
    run(LIMITED)


@on_linux
def test_ten_thousand_fits():
    run(MANY)


def test_fit_takes_no_memory_per_sample(compiled):
    """The peak that the allocator counts for one epoch is that of ten times the samples."""

    def peak(samples):
        X, y = np.ones((samples, 8), "f4"), np.zeros((samples, 1), "f4")
        model = fb.Sequential([fb.Dense(8, 16, activation="relu"), fb.Dense(16, 1)], seed=0)
        optimizer = fb.Adam(model.parameters())
        model.fit(X[:64], y[:64], "mse", optimizer, batch_size=32, verbose=0)
        tracemalloc.start()
        model.fit(X, y, "mse", optimizer, batch_size=32, verbose=0)
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    assert abs(peak(200_000) - peak(20_000)) < 4096


def test_fit_takes_the_memory_that_it_should(compiled):
    """State, packed copies of the weights, and what a batch needs: its inputs for every thread, y, dy, and pred."""
    inputs, hidden, outputs, batch, threads = 300, 500, 10, 64, 2
    fb.set_num_threads(threads)
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((640, inputs)).astype("f4"), rng.integers(0, outputs, 640)
    model = fb.Sequential([fb.Dense(inputs, hidden, activation="relu"), fb.Dense(hidden, outputs)], seed=0)
    tracemalloc.start()
    model.fit(X, y, "cross_entropy", fb.Adam(model.parameters()), batch_size=batch, verbose=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    parameters = model.parameters().count
    activations = batch * (threads * inputs + 2 * (hidden + outputs) + 4 * outputs)
    blocks = threads * 32 * hidden  # for reordering the state, the rows of a panel
    # rounded up: panels are up to 32 columns wide, and the Python objects take some kilobytes
    assert peak < 1.1 * 4 * (2 * parameters + 2 * parameters + activations + blocks) + 2**16
