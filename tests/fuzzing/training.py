"""Trainings drawn at random, and what has to hold of each of them.

Of one seed follow a network, its data, a loss, an optimizer and how it is trained. On the active backend threads,
explicit loops, streams, resumed runs, copies and files give the same bits; of a batch a row has the bits that it has
alone. Other backends and PyTorch give the same numbers but for rounding, and so do finite differences.
"""

import contextlib
import copy
import os
import pickle
import random
import tempfile
import time
import warnings

import numpy as np

import fastbp as fb
from fastbp.core import available_backends, backend_name

try:
    import scipy.sparse
except ImportError:
    scipy = None
try:
    import torch
except ImportError:
    torch = None

FOLDER = tempfile.TemporaryDirectory()
PATH = os.path.join(FOLDER.name, "run.npz")
ACTIVATIONS = ["relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid", "softplus"]
LOSSES = ["cross_entropy", "binary_cross_entropy", "mse", "mae", "huber", "quantile", "poisson"]
KINDS = ["dense", "dense", "activation", "dropout", "batchnorm", "layernorm", "residual", "concatenate"]
SMOOTH = ["gelu", "silu", "tanh", "sigmoid", "softplus"]  # of which a finite difference meets no kink


class Case:
    """What a seed stands for; ``model()`` and ``optimizer()`` make it anew, each time the same."""

    def __init__(self, seed):
        self.seed, self.rng = seed, random.Random(seed)
        rng = self.rng
        self.dtype = rng.choice(["float32", "float64"])
        self.activations = rng.choice([ACTIVATIONS, SMOOTH])
        self.samples, self.batch_size = rng.randint(2, 200), rng.choice([2, 3, 7, 16, 32, 50, 100])
        self.epochs, self.shuffle = rng.randint(1, 3), rng.random() < 0.7
        self.loss_name = rng.choice(LOSSES)
        self.smooth = self.activations is SMOOTH and self.loss_name not in ("mae", "huber", "quantile")
        self.outputs = rng.choice([1, 2, 5, 17]) if self.loss_name != "cross_entropy" else rng.choice([2, 3, 10, 33])
        self.layers_seed, self.optimizer_seed = rng.random(), rng.random()
        self.has_ids = rng.random() < 0.2
        self.X, self.y, self.weight = self._data(np.random.default_rng(seed))

    def _data(self, rng):
        inputs = self.model().inputs
        X = rng.standard_normal((self.samples, inputs)).astype(self.dtype)
        if self.has_ids:
            X[:, -2:] = rng.integers(0, 4, (self.samples, 2))
        if self.loss_name == "cross_entropy":
            y = rng.integers(0, self.outputs, self.samples)
        else:
            y = rng.standard_normal((self.samples, self.outputs)).astype(self.dtype)
            y = (y > 0).astype(self.dtype) if self.loss_name == "binary_cross_entropy" else y
            y = np.abs(y) if self.loss_name == "poisson" else y
        weight = rng.integers(0, 4, self.samples) / 2 + (np.arange(self.samples) == 0)
        return X, y, weight.astype(self.dtype) if self.rng.random() < 0.4 else None

    def width(self, rng):
        return rng.choice([1, 2, 3, 5, 8, 13, 16, 17, 31, 33, 40, 65])

    def layers(self):
        rng = random.Random(self.layers_seed)
        inputs = rng.choice([1, 2, 7, 16, 19, 50])
        made = []
        if self.has_ids:
            made.append(fb.TabularInput(inputs, [4, 5], [3, 2], unknown=rng.choice(["error", "reserve"])))
            inputs += 5
        chain, width = self.chain(rng, inputs, rng.randint(0, 4), 2)
        return [*made, *chain, fb.Dense(width, self.outputs)]

    def chain(self, rng, width, length, depth):
        """Layers, and the width that they end with."""
        made = []
        for _ in range(length):
            kind = rng.choice(KINDS)
            if kind in ("residual", "concatenate") and depth == 0:
                kind = "dense"
            if kind == "dense":
                out = self.width(rng)
                activation = rng.choice([None, *self.activations])
                made.append(fb.Dense(width, out, activation, bias=rng.random() < 0.8))
                width = out
            elif kind == "activation":
                made.append(fb.Activation(rng.choice(self.activations)))
            elif kind == "dropout":
                made.append(fb.Dropout(rng.choice([0.1, 0.5])))
            elif kind == "batchnorm":
                made.append(fb.BatchNorm(width))
            elif kind == "layernorm" and width > 1:
                made.append(fb.LayerNorm(width))
            elif kind == "residual":
                inner, end = self.chain(rng, width, rng.randint(1, 2), depth - 1)
                made.append(fb.Residual([*inner, fb.Dense(end, width)]))
            elif kind == "concatenate":
                branches = [self.chain(rng, width, rng.randint(0, 2), depth - 1) for _ in range(rng.randint(2, 3))]
                named = {"last": branches.pop()[0]} if rng.random() < 0.3 else {}
                ends = [end for _, end in branches]
                if named:
                    ends.append(self.end(named["last"], width))
                made.append(fb.Concatenate(*(layers for layers, _ in branches), **named))
                width = sum(ends)
        return made, width

    @staticmethod
    def end(layers, width):
        for layer in layers:
            width = layer.outputs(width)
        return width

    def model(self):
        return fb.Sequential(self.layers(), dtype=self.dtype, seed=self.seed % 1000)

    def loss(self):
        rng = random.Random(self.optimizer_seed)
        if self.loss_name == "cross_entropy":
            weights = [0.5 + i % 3 for i in range(self.outputs)]
            return fb.CrossEntropy(rng.choice([0.0, 0.1]), rng.choice([None, weights]))
        return {
            "binary_cross_entropy": fb.BinaryCrossEntropy, "mse": fb.MSE, "mae": fb.MAE, "poisson": fb.Poisson,
            "huber": lambda: fb.Huber(rng.choice([0.5, 2.0])), "quantile": lambda: fb.Quantile(rng.choice([0.1, 0.7])),
        }[self.loss_name]()  # fmt: skip

    def optimizer(self, model):
        rng = random.Random(self.optimizer_seed)
        kind = rng.choice([fb.SGD, fb.SGD, fb.Adam, fb.AdamW, fb.RMSprop, fb.Adagrad])
        lr = rng.choice([1e-3, 1e-2])
        lr = rng.choice([lr, fb.schedules.Exponential(lr, 0.99), fb.schedules.Cosine(lr, 10)])
        settings = dict(weight_decay=rng.choice([0.0, 1e-3]), decay_bias=rng.random() < 0.5)
        settings |= rng.choice([{}, {}, dict(clip_norm=0.5), dict(clip_value=0.1)])
        if kind in (fb.SGD, fb.RMSprop):
            settings["momentum"] = rng.choice([0.0, 0.9])
        if kind is fb.SGD and settings["momentum"]:
            settings["nesterov"] = rng.random() < 0.5
        return kind(model.parameters(), lr, **settings)

    def fit(self, model=None, optimizer=None, data=None, **settings):
        """The model after ``fit``, its optimizer, and the losses; those of an error up to there."""
        model = model or self.model()
        optimizer = optimizer or self.optimizer(model)
        X, y, weight = data or (self.X, self.y, self.weight)
        settings = dict(epochs=self.epochs, batch_size=self.batch_size, shuffle=self.shuffle, seed=3) | settings
        with warnings.catch_warnings(), contextlib.suppress(fb.DivergenceError):
            warnings.simplefilter("ignore", RuntimeWarning)
            model.fit(X, y, self.loss(), optimizer, sample_weight=weight, verbose=0, **settings)
        return model, optimizer, model.history.history.get("loss", [])

    def __str__(self):
        layers = ", ".join(map(repr, self.layers()))
        return (
            f"seed {self.seed}: {self.dtype}, {self.samples} samples in batches of {self.batch_size}, "
            f"{self.epochs} epochs, "
            f"shuffle={self.shuffle}, weights={self.weight is not None}, {self.loss_name}, "
            f"{type(self.optimizer(self.model())).__name__}\n  fb.Sequential([{layers}])"
        )


def bits(model, optimizer, losses=()):
    """All that a training has changed, padding between tensors left out."""
    state = optimizer.state_dict()
    p = model.parameters()
    vectors = [v for _, v in sorted(state.items()) if isinstance(v, np.ndarray)]
    kept = [*model.model.tensors().values(), *(p.view(flat, name) for flat in vectors for name in p.shapes)]
    return [array.tobytes() for array in kept], state["steps"], model.model.training_step, list(losses)


# --- what is compared -------------------------------------------------------------------------------------------------


def threads(case):
    """Any number of threads, set or not."""
    outcomes = []
    for number in (1, 2, 3, 7):
        fb.set_num_threads(number)
        outcomes.append(bits(*case.fit()))
    fb.set_num_threads(2)
    assert all(outcome == outcomes[0] for outcome in outcomes)


def loop(case):
    """The four steps by hand, and one batch after the other."""
    expected = bits(*case.fit())[:3]
    by_hand, by_batch = case.model(), case.model()
    optimizer, of_batch = case.optimizer(by_hand), case.optimizer(by_batch)
    generator, loss = np.random.default_rng(3), case.loss()
    with contextlib.suppress(fb.DivergenceError):
        for _ in range(case.epochs):
            seed = generator if case.shuffle else None
            data = dict(shuffle=case.shuffle, seed=seed, sample_weight=case.weight)
            for xb, yb, *wb in fb.batches(case.X, case.y, case.batch_size, **data):
                by_batch.train_on_batch(xb, yb, loss, of_batch, *wb)
                value, dpred = loss(by_hand.forward(xb, training=True), yb, *wb)
                if not np.isfinite(value):
                    break
                by_hand.backward(dpred)
                optimizer.step()
    assert bits(by_batch, of_batch)[:3] == expected
    if expected[1] == optimizer.steps:
        assert bits(by_hand, optimizer)[:3] == expected


def streams(case):
    """Chunks of any sizes, in one buffer or in many."""
    rng, sizes, at = random.Random(case.seed), [], 0
    while at < case.samples:
        sizes.append(min(case.samples - at, rng.randint(1, 60)))
        at += sizes[-1]

    def chunks():
        begin = 0
        for size in sizes:
            part = slice(begin, begin + size)
            yield (case.X[part], case.y[part]) + (() if case.weight is None else (case.weight[part],))
            begin += size

    model, optimizer, losses = case.fit(shuffle=False)
    for buffer_size in (1, 64, 10**6):
        other = case.fit(data=(chunks, None, None), shuffle=False, buffer_size=buffer_size)
        assert bits(*other)[:3] == bits(model, optimizer)[:3]
        np.testing.assert_allclose(other[2], losses, rtol=1e-9)


def resume(case):
    """A run that ends and goes on, from its checkpoint, as a copy, from a pickle."""
    if case.epochs == 1:
        return
    expected = bits(*case.fit())
    for way in ("checkpoint", "copy", "pickle"):
        with contextlib.suppress(FileNotFoundError):
            os.remove(PATH)
        model = case.model()
        optimizer = case.optimizer(model)
        if way == "checkpoint":
            case.fit(model, optimizer, epochs=1, callbacks=[fb.Checkpoint(PATH)])
            if not os.path.exists(PATH):
                return  # it has diverged
            model = case.model()
            _, optimizer, losses = case.fit(model, case.optimizer(model), callbacks=[fb.Checkpoint(PATH)], resume=PATH)
            assert bits(model, optimizer, losses) == expected
        else:
            generator = np.random.default_rng(3)
            case.fit(model, optimizer, epochs=1, seed=generator)
            pair = model, optimizer
            model, optimizer = copy.deepcopy(pair) if way == "copy" else pickle.loads(pickle.dumps(pair))
            case.fit(model, optimizer, epochs=case.epochs - 1, seed=generator)
            assert bits(model, optimizer)[:3] == expected[:3]


def files(case):
    """A saved model predicts and trains as the one that wrote it."""
    model, *_ = case.fit(epochs=1)
    model.save(PATH)
    loaded = fb.load(PATH)
    np.testing.assert_array_equal(loaded.predict(case.X), model.predict(case.X))
    os.remove(PATH)


def rows(case):
    """A row has the bits that it has alone, however many there are."""
    model, *_ = case.fit(epochs=1)
    whole = model.predict(case.X)
    for i in random.Random(case.seed).sample(range(case.samples), min(3, case.samples)):
        np.testing.assert_array_equal(model.predict(case.X[i : i + 1]), whole[i : i + 1])
    at = case.samples // 2
    np.testing.assert_array_equal(np.concatenate([model.predict(case.X[:at]), model.predict(case.X[at:])]), whole)


def errors(case):
    """After an error nothing has changed."""
    model, optimizer, _ = case.fit(epochs=1)
    before = bits(model, optimizer), str(model.model.generator.bit_generator.state)
    bad_y = np.full(case.samples, case.outputs) if case.loss_name == "cross_entropy" else case.y * np.nan
    for X, y in ((case.X[:, 1:], case.y), (case.X * np.nan, case.y), (case.X, bad_y), (case.X[1:], case.y)):
        for call in (
            lambda X=X, y=y: model.fit(X, y, case.loss(), optimizer, verbose=0),
            lambda X=X, y=y: model.train_on_batch(X, y, case.loss(), optimizer),
        ):
            try:
                call()
            except ValueError:
                continue
            if case.has_ids or case.X.shape[1] == 1:
                return  # an id that is not known may be one that is reserved
            raise AssertionError("there was no error")
    assert (bits(model, optimizer), str(model.model.generator.bit_generator.state)) == before


def gradients_of(model, case, samples):
    model.model.training_step = 5
    pred = model.forward(case.X[:samples], training=True)
    weight = None if case.weight is None else case.weight[:samples]
    value, dpred = case.loss()(pred, case.y[:samples], weight)
    dx = model.backward(dpred, input_gradient=True)
    p = model.parameters()
    return value, pred, dx, np.concatenate([p.grad(name).ravel() for name in p.shapes])


def backends(case):
    """One step on every backend, from the same weights."""
    samples = min(case.samples, 32)
    with fb.use_backend("numpy"):
        model = fb.Sequential(case.layers(), dtype="float64", seed=case.seed % 1000)
        exact = gradients_of(model, case, samples)
    # of sums of some dozen terms through at most a dozen layers, of which a norm over few entries may amplify
    tolerance = 2e-2 if case.dtype == "float32" else 1e-8
    for name in available_backends():
        with fb.use_backend(name):
            got = gradients_of(case.model(), case, samples)
        for one, other, what in zip(got, exact, ("loss", "outputs", "dx", "gradients"), strict=True):
            scale = np.abs(other).max() + 1e-3
            assert np.abs(one - other).max() <= tolerance * scale, (name, what, np.abs(one - other).max() / scale)


def differences(case):
    """Finite differences, where nothing has a kink."""
    if case.smooth and case.samples > 2:
        model = fb.Sequential(case.layers(), dtype="float64", seed=case.seed % 1000)
        few = min(case.samples, 8)
        weight = None if case.weight is None else case.weight[:few]
        assert fb.check_gradients(model, case.X[:few], case.y[:few], case.loss(), sample_weight=weight) < 1e-4


def sparse_rows(case):
    """The data as a sparse matrix, half of it zeros: every driver as above, and the numbers of an array."""
    if scipy is None:
        return
    zeroed = copy.copy(case)
    zeroed.X = case.X * (np.random.default_rng(case.seed).random(case.X.shape) < 0.5)
    given = copy.copy(zeroed)
    given.X = scipy.sparse.csr_array(zeroed.X)
    try:
        case.model().predict(given.X)
    except TypeError:
        return  # another layer than Dense reads the input
    for check in (threads, loop, streams, rows):
        check(given)
    samples, tolerance = min(case.samples, 32), 2e-2 if case.dtype == "float32" else 1e-8  # as for backends
    results = [gradients_of(form.model(), form, samples) for form in (given, zeroed)]
    for one, other in zip(*results, strict=True):
        assert np.abs(one - other).max() <= tolerance * (np.abs(other).max() + 1e-3)


def twin(layers):
    """The same in PyTorch, in float64; None if it has no such layer."""
    made = []
    for layer in layers:
        if isinstance(layer, fb.Dense):
            linear = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.has_bias, dtype=torch.float64)
            linear.weight.data = torch.tensor(layer.weight.T.astype("f8"))
            if layer.has_bias:
                linear.bias.data = torch.tensor(layer.bias.astype("f8"))
            made += [linear, *([activation_of(layer.activation)] if layer.activation else [])]
        elif isinstance(layer, fb.Activation):
            made.append(activation_of(layer.name))
        elif isinstance(layer, fb.BatchNorm):
            made.append(torch.nn.BatchNorm1d(layer.n, dtype=torch.float64))
        elif isinstance(layer, fb.LayerNorm):
            made.append(torch.nn.LayerNorm(layer.n, dtype=torch.float64))
        elif isinstance(layer, fb.Residual):
            made.append(Joined(sum, [[], layer.layers]))
        elif isinstance(layer, fb.Concatenate):
            made.append(Joined(lambda parts: torch.cat(list(parts), 1), list(layer.branches.values())))
        else:
            return None
    complete = all(not isinstance(module, Joined) or None not in module.parts for module in made)
    return torch.nn.Sequential(*made) if complete else None


if torch is not None:

    class Joined(torch.nn.Module):
        """Branches whose outputs are joined."""

        def __init__(self, join, branches):
            super().__init__()
            self.join, self.parts = join, [twin(branch) for branch in branches]
            self.inner = torch.nn.ModuleList(part for part in self.parts if part is not None)

        def forward(self, x):
            return self.join(part(x) for part in self.parts)


def activation_of(name):
    return {
        "relu": torch.nn.ReLU, "leaky_relu": torch.nn.LeakyReLU, "elu": torch.nn.ELU, "gelu": torch.nn.GELU,
        "silu": torch.nn.SiLU, "tanh": torch.nn.Tanh, "sigmoid": torch.nn.Sigmoid, "softplus": torch.nn.Softplus,
    }[name]()  # fmt: skip


def pytorch(case):
    """Outputs, and the gradients of the input and of the parameters, of PyTorch in float64."""
    if torch is None:
        return
    model = fb.Sequential(case.layers(), dtype="float64", seed=case.seed % 1000)
    other = twin(model.layers)
    if other is None or case.samples < 3:
        return
    x = torch.tensor(case.X.astype("f8"), requires_grad=True)
    pred = model.forward(case.X, training=True)
    dpred = np.random.default_rng(case.seed).standard_normal(pred.shape)
    dx = model.backward(dpred, input_gradient=True)
    theirs = other(x)
    theirs.backward(torch.tensor(dpred))
    ours = [layer.dweight.T for layer in dense(model.layers)]
    expected = [m.weight.grad.numpy() for m in other.modules() if isinstance(m, torch.nn.Linear)]
    assert len(ours) == len(expected)
    for one, its in ((pred, theirs.detach().numpy()), (dx, x.grad.numpy()), *zip(ours, expected, strict=True)):
        scale = np.abs(its).max() + 1e-6
        assert np.abs(one - its).max() <= 1e-7 * scale, np.abs(one - its).max() / scale


def dense(layers):
    """The dense layers of a tree, in the order in which PyTorch lists its modules."""
    for layer in layers:
        if isinstance(layer, fb.Dense):
            yield layer
        elif isinstance(layer, fb.Residual):
            yield from dense(layer.layers)
        elif isinstance(layer, fb.Concatenate):
            for branch in layer.branches.values():
                yield from dense(branch)


BITS = [threads, loop, streams, resume, files, rows, errors]
NUMBERS = [backends, differences, pytorch, sparse_rows]


def compared(seed):
    """Some of the comparisons for a seed; how many there were."""
    case = Case(seed)
    chosen = random.Random(seed + 1).sample(BITS, 2) + random.Random(seed + 2).sample(NUMBERS, 1)
    if backend_name() == "numpy":  # whose products have other bits for other numbers of rows
        chosen = [c for c in chosen if c is not rows]
    for comparison in chosen:
        try:
            comparison(case)
        except BaseException:
            print(f"{comparison.__name__} on {backend_name()}: {case}", flush=True)
            raise
    return len(chosen)


def main(seconds, seed=None):
    """Compare one configuration after the other for so many seconds; with a seed begin with its."""
    start, cases, comparisons = time.perf_counter(), 0, 0
    first = random.randrange(2**40) if seed is None else seed
    while cases == 0 or time.perf_counter() - start < seconds:
        comparisons += compared(first + cases)
        cases += 1
    print(f"{backend_name()}: {cases} configurations from seed {first} on, {comparisons} comparisons: as it should be")
