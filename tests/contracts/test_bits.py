"""The bits of short trainings, compared with the committed ones: what must stay when only the structure changes.

    python tests/contracts/test_bits.py     writes bits.json anew, for the backends of this machine

A hash covers parameters, gradients, running statistics and predictions. A change of the arithmetic changes it and says
so in its commit; a change of the structure must not. The bits are those of GCC on x86-64 Linux.
"""

import hashlib
import json
import math
import platform
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import fastbp as fb
from fastbp.core import available_backends

BITS = Path(__file__).with_name("bits.json")
SAMPLES = 150

pytestmark = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="the committed bits are of another system"
)


def numbers(rows, columns, scale=16):
    """Fractions in [-2, 2] by a multiplicative congruence: no generator of NumPy's, whose streams may change."""
    i = np.arange(1, rows * columns + 1, dtype=np.uint64)
    return (((i * i * 2654435761 + i * 40503) >> 7) % 64).astype(np.float64).reshape(rows, columns) / scale - 2


def chain(*widths, activation="relu", **options):
    layers = [fb.Dense(a, b, activation, **options) for a, b in pairwise(widths[:-1])]
    return [*layers, fb.Dense(widths[-2], widths[-1])]


def tabular():
    return [
        fb.TabularInput(3, [5, 40], embedding_dim=[2, 7], unknown="reserve"),
        fb.Dense(12, 33, "gelu"),
        fb.Dense(33, 4),
    ]


def normalised():
    return [
        fb.Dense(12, 40),
        fb.BatchNorm(40),
        fb.Activation("silu"),
        fb.Dropout(0.25),
        fb.Dense(40, 17, "tanh"),
        fb.LayerNorm(17),
        fb.Dense(17, 4),
    ]


def residual():
    block = [fb.LayerNorm(64), fb.Dense(64, 70, "gelu"), fb.Dropout(0.25), fb.Dense(70, 64)]
    return [fb.Dense(12, 64, "relu"), fb.Residual(block), fb.Residual([fb.Dense(64, 64, "tanh")]), fb.Dense(64, 4)]


def split():
    """Parts that fill panels and parts that do not, nested, with several readers of one slot."""
    deep = [fb.Dense(96, 64), fb.BatchNorm(64), fb.Activation("silu"), fb.Residual([fb.Dense(64, 64)])]
    wide = fb.Concatenate(deep, [], head=[fb.Dense(96, 5, "relu")])
    return [fb.Concatenate([fb.Dense(12, 64, "relu")], [fb.Dense(12, 32)]), wide, fb.Dense(165, 4)]


LAYERS = {
    "chain": lambda: chain(12, 40, 17, 4),
    "wide": lambda: chain(12, 300, 160, 4),
    "deep k": lambda: chain(500, 130, 4),
    "one output": lambda: chain(12, 20, 1),
    "without bias": lambda: [fb.Dense(12, 70, "relu", bias=False), fb.Dense(70, 4, bias=False)],
    "normalised": normalised,
    "activation first": lambda: [fb.Activation("tanh"), fb.Dense(12, 4)],
    "batch norm last": lambda: [fb.Dense(12, 4), fb.BatchNorm(4)],
    "layer norm first": lambda: [fb.LayerNorm(12), fb.Dense(12, 4, "softplus")],
    "dropout first": lambda: [fb.Dropout(0.5), *chain(12, 40, 4)],
    "embedding": lambda: [fb.Embedding(30, 5, columns=12), fb.Dense(60, 4)],
    "tabular": tabular,
    "residual": residual,
    "split": split,
}
OPTIMIZERS = {
    "sgd": lambda p: fb.SGD(p, 0.05),
    "sgd decay": lambda p: fb.SGD(p, 0.05, weight_decay=0.01, decay_bias=False),
    "momentum": lambda p: fb.SGD(p, fb.schedules.Exponential(0.05, 0.99), momentum=0.9),
    "nesterov": lambda p: fb.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: fb.Adam(p, 0.01),
    "adam decay": lambda p: fb.Adam(p, fb.schedules.Cosine(0.01, 20), weight_decay=0.01),
    "adamw": lambda p: fb.AdamW(p, 0.01, weight_decay=0.1, decay_bias=False),
    "rmsprop": lambda p: fb.RMSprop(p, 0.01, weight_decay=0.01),
    "rmsprop momentum": lambda p: fb.RMSprop(p, 0.01, momentum=0.9),
    "adagrad": lambda p: fb.Adagrad(p, 0.05),
    "clip norm": lambda p: fb.SGD(p, 0.05, momentum=0.5, clip_norm=0.1),
    "clip value": lambda p: fb.Adam(p, 0.01, clip_value=0.01),
}
LOSSES = {
    "cross_entropy": fb.CrossEntropy,
    "smoothed": lambda: fb.CrossEntropy(label_smoothing=0.1, class_weight=[1, 2, 0.5, 3]),
    "binary_cross_entropy": fb.BinaryCrossEntropy,
    "mse": fb.MSE,
    "mae": fb.MAE,
    "huber": lambda: fb.Huber(0.5),
    "quantile": lambda: fb.Quantile(0.3),
    "poisson": fb.Poisson,
}
ACTIVATIONS = ["relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid", "softplus"]


def data(layers, loss):
    """X and y for layers, whose first one says what it takes, and a loss."""
    first = next(layer for layer in layers if layer.width is not None)
    X = numbers(SAMPLES, first.width)
    if isinstance(first, fb.Embedding):
        X = np.abs(X * 16).astype(int) % 30
    elif isinstance(first, fb.TabularInput):
        X[:, 3], X[:, 4] = np.arange(SAMPLES) % 6, np.arange(SAMPLES) ** 2 % 41
    outputs = 1 if isinstance(layers[-1], fb.Dense) and layers[-1].out_features == 1 else 4
    y = numbers(SAMPLES, outputs, 32)
    if loss in ("cross_entropy", "smoothed"):
        return X, np.arange(SAMPLES) ** 2 % 4
    if loss == "binary_cross_entropy":
        return X, (y > 0).astype(float)
    return X, np.abs(y) if loss == "poisson" else y


def digest(*arrays):
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()[:16]


def state(model, X):
    """Everything that a training changes, padding between tensors left out."""
    p = model.parameters()
    norms = [layer for layer in model.layers if isinstance(layer, fb.BatchNorm)]
    running = [array for layer in norms for array in (layer.running_mean, layer.running_var)]
    return [*p, *(p.grad(name) for name in p.shapes), *running, model.predict(X[:33])]


def trained(layers="chain", optimizer="adam", loss="cross_entropy", dtype="float32", batch_size=32, weighted=False):
    """Two epochs of fit, a step by train_on_batch, and a step of the explicit loop with the gradient of its input."""
    made = LAYERS[layers]() if isinstance(layers, str) else layers
    model = fb.Sequential(made, dtype=dtype, seed=3)
    X, y = data(made, loss)
    chosen, criterion = OPTIMIZERS[optimizer](model.parameters()), LOSSES[loss]()
    weight = np.arange(SAMPLES) % 5 / 2 if weighted else None
    history = model.fit(
        X, y, criterion, chosen, epochs=2, batch_size=batch_size, verbose=0, seed=5, sample_weight=weight
    ).history
    after_fit = state(model, X)
    lone = model.train_on_batch(X[:20], y[:20], criterion, chosen)
    pred = model.forward(X[:9], training=True)
    value, dpred = criterion(pred, y[:9])
    dx = model.backward(dpred, input_gradient=True)
    chosen.step()
    vectors = [v for v in chosen.state_dict().values() if isinstance(v, np.ndarray)]
    used = [model.parameters().offsets[name] for name in model.parameters().shapes]  # the padding has no bits to keep
    sizes = [math.prod(shape) for shape in model.parameters().shapes.values()]
    moments = [v[at : at + size] for v in vectors for at, size in zip(used, sizes, strict=True)]
    return digest(*after_fit, history["loss"], lone, pred, value, dpred, dx, *moments, *state(model, X))


def cases():
    """By name, what is trained: one thing varies at a time, and every pair that shares a kernel is met."""
    for dtype in ("float32", "float64"):
        for name in OPTIMIZERS:
            for layers in ("chain", "wide", "normalised", "tabular", "split"):
                yield f"{dtype} {layers} {name}", dict(layers=layers, optimizer=name, dtype=dtype)
        for name in LOSSES:
            for weighted in (False, True):
                mark = " weighted" if weighted else ""
                yield f"{dtype} loss {name}{mark}", dict(loss=name, dtype=dtype, weighted=weighted)
        for name in LAYERS:
            if name != "one output":
                for batch_size in (1, 7, 64, 200):
                    yield f"{dtype} {name} batch {batch_size}", dict(layers=name, batch_size=batch_size, dtype=dtype)
        for loss in ("binary_cross_entropy", "mse", "poisson"):
            yield f"{dtype} one output {loss}", dict(layers="one output", loss=loss, dtype=dtype, optimizer="momentum")
        for name in ACTIVATIONS:
            yield f"{dtype} fused {name}", dict(layers=chain(12, 40, 36, 4, activation=name), dtype=dtype)
            alone = [fb.Dense(12, 40), fb.LayerNorm(40), fb.Activation(name), fb.Dense(40, 4)]
            yield f"{dtype} alone {name}", dict(layers=alone, dtype=dtype)
            yield f"{dtype} last {name}", dict(layers=[fb.Dense(12, 4, name)], loss="mse", dtype=dtype)


@pytest.mark.parametrize("backend", ["avx512", "avx2", "generic"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.filterwarnings("ignore:batch_size. with one row per batch")
def test_bits_are_the_committed_ones(backend, threads):
    if backend not in available_backends():
        pytest.skip(f"{backend} cannot run here")
    expected = json.loads(BITS.read_text())[backend]
    fb.set_num_threads(threads)
    with fb.use_backend(backend):
        got = {name: trained(**case) for name, case in cases()}
    assert got.keys() == expected.keys()
    assert [name for name in got if got[name] != expected[name]] == []


def main():
    found = json.loads(BITS.read_text()) if BITS.exists() else {}
    for backend in available_backends():
        if backend != "numpy":  # its bits are those of whichever BLAS NumPy has
            with fb.use_backend(backend):
                found[backend] = {name: trained(**case) for name, case in cases()}
    BITS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
