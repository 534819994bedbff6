"""Hostile input: an array of any layout is refused with nothing changed, or computed as any other of its numbers.

More of the same, with other examples every time: ``FASTBP_EXAMPLES=2000 pytest tests/contracts/test_hostile.py``.
"""

import contextlib
import decimal
import fractions
import os
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastbp as fb
from fastbp.core import available_backends
from fastbp.data.arrays import MEMORY

LONG = os.environ.get("FASTBP_EXAMPLES")
hostile = settings(
    max_examples=int(LONG or 300), derandomize=not LONG, database=None, deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
backends = st.sampled_from(available_backends())

# --- arrays -----------------------------------------------------------------------------------------------------------


class Subclass(np.ndarray):
    """An array with a mind of its own."""

    def __mul__(self, other):
        raise AssertionError("an array of the user's class computes")

    __add__ = __sub__ = __matmul__ = __array_ufunc__ = __mul__


def offset(a):
    """The same numbers one byte off."""
    return np.frombuffer(b"x" + a.tobytes(), np.int8)[1:].view(a.dtype).reshape(a.shape)


def every_other(a):
    return np.repeat(a, 2, axis=0)[::2] if a.ndim else a


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def backwards(a):
    flip = (slice(None, None, -1),) * a.ndim
    return a[flip].copy()[flip] if a.ndim else a


def equal_rows(a):
    return np.broadcast_to(a[:1], a.shape) if a.ndim and len(a) else a


#: Ways in which an array can lie in memory; the numbers stay, but for those of equal rows.
LAYOUTS = {
    "as it is": lambda a: a,
    "fortran": lambda a: np.asfortranarray(a) if a.ndim else a,
    "every other": every_other,
    "backwards": backwards,
    "equal rows": equal_rows,
    "other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "offset": lambda a: a if a.dtype.hasobject else offset(a),
    "read-only": read_only,
    "matrix": lambda a: a.view(np.matrix) if a.ndim == 2 else a,
    "masked array": lambda a: np.ma.masked_array(a),
    "subclass": lambda a: a.view(Subclass),
    "list": lambda a: a.tolist(),
    "object": lambda a: a.astype(object),
    "memory view": lambda a: a if a.dtype.hasobject or a.dtype.kind in "mMU" else memoryview(a),
}
layouts = st.sampled_from(sorted(LAYOUTS))

FLOATS = ["f2", "f4", "f8", "g"]
INTEGERS = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]
OTHERS = ["c8", "c16", "U3", "S3", "M8[s]", "m8[s]", "V4", "O", [("a", "f4"), ("b", "i4")]]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, np.nan, np.inf, -np.inf, 1e-45, 5e-324, 1e38, 1e39, 1e308, 2.0**24 + 1, 1e19]


def good(rng, shape, kind):
    """Numbers that are accepted."""
    if kind == "labels":
        return rng.integers(0, 2, shape).astype(rng.choice(INTEGERS))
    if kind == "weights":
        return rng.integers(1, 4, shape).astype(rng.choice([*FLOATS, *INTEGERS]))
    if rng.random() < 0.5:
        return rng.integers(0, 2, shape).astype(rng.choice([*FLOATS, *INTEGERS]))
    return rng.random(shape).astype(rng.choice(FLOATS))


@st.composite
def arrays(draw, shape):
    """Any array at all, often of this shape."""
    if draw(st.booleans()):
        shape = tuple(draw(st.lists(st.sampled_from([0, 1, 2, 3, 6]), max_size=3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    a = np.array(rng.integers(0, 2, shape), draw(st.sampled_from(["f4", "f8", "i8"])))
    if a.size and a.dtype.kind == "f":
        with np.errstate(all="ignore"):
            a.flat[rng.integers(a.size)] = draw(st.sampled_from(SPECIAL))
    dtype = draw(st.sampled_from([*FLOATS, *INTEGERS, *OTHERS]))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            a = a.astype(dtype)
        except (TypeError, ValueError):
            a = np.zeros(shape, dtype)
        if a.dtype.kind == "O" and a.size:
            a.flat[rng.integers(a.size)] = draw(
                st.sampled_from([None, "x", 10**400, 1e300, [], 1j, fractions.Fraction(1)])
            )
        return LAYOUTS[draw(layouts)](a)


def plain(value, dtype=None):
    """The same numbers in a new array."""
    with np.errstate(all="ignore"):
        return np.array(np.asarray(value), dtype, order="C", copy=True, subok=False)


def bytes_of(value):
    """What must not change in the caller's array."""
    if not isinstance(value, np.ndarray):
        return bytes(value) if isinstance(value, memoryview) else repr(value)
    array = np.asarray(value)
    padded = array.dtype.hasobject or array.dtype.char == "g"  # with anything
    return repr(array.tolist()) if padded else array.tobytes(), value.flags.writeable


# --- calls: functions of a model and one array that they are given ----------------------------------------------------

N = 6
X = np.random.default_rng(0).standard_normal((N, 3)).astype("f4")
Y = np.arange(N) % 2


def new(backend_dtype="float32"):
    model = fb.Sequential(
        [fb.Dense(3, 4, activation="gelu"), fb.BatchNorm(4), fb.Dropout(0.2), fb.Dense(4, 2)], backend_dtype, seed=0
    )
    optimizer = fb.Adam(model.parameters(), lr=0.01)
    model.fit(X, Y, "cross_entropy", optimizer, batch_size=4, verbose=0)
    return model, optimizer


def state(model, optimizer):
    """Everything that training changes."""
    slots = [optimizer.state_vectors[name] for name in sorted(optimizer.state_vectors)]
    arrays = [model.parameters().values, model.model.statistics, *slots]
    return b"".join(a.tobytes() for a in arrays), optimizer.steps, model.model.training_step, model.epochs


def fitted(model, optimizer, **change):
    arguments = dict(X=X, y=Y, loss="cross_entropy", optimizer=optimizer, batch_size=4, verbose=0, seed=1) | change
    history = model.fit(**arguments).history
    history.pop("samples_per_second")
    return repr(history)


def backward(model, optimizer, dy):
    stats, step = model.model.statistics.copy(), model.model.training_step
    model.forward(X, training=True)
    grads = model.parameters().grads.copy()
    try:
        dx = model.backward(dy, input_gradient=True)
    except Exception:
        assert model.parameters().grads.tobytes() == grads.tobytes()
        model.model.statistics[:], model.model.training_step = stats, step  # of the forward pass, which was in order
        raise
    return dx, model.parameters().grads


def set_state(model, optimizer, v):
    optimizer.load_state_dict(optimizer.state_dict() | {"v": v})
    optimizer.step()


def dealt(*data, **settings):
    return repr([[c.tolist() for c in batch] for batch in fb.batches(*data, batch_size=4, seed=0, **settings)])


def elsewhere(loss, argument):
    """A loss called by hand."""

    def call(model, optimizer, a):
        arguments = {"pred": X[:, :2], "target": Y if loss.classifies and loss.name == "cross_entropy"
                     else np.eye(2, dtype="f4")[Y], "sample_weight": None} | {argument: a}  # fmt: skip
        return loss(**arguments)

    return call


LOSSES = [fb.CrossEntropy(), fb.BinaryCrossEntropy(), fb.MSE(), fb.MAE(), fb.Huber(0.5), fb.Quantile(0.3), fb.Poisson()]

# name of the argument: shape and kind of what it takes, and the call
CALLS = {
    "forward": ("x", (N, 3), "floats", lambda m, o, a: m.forward(a)),
    "predict": ("x", (N, 3), "floats", lambda m, o, a: m.predict(a)),
    "backward": ("dy", (N, 2), "floats", backward),
    "evaluate X": ("X", (N, 3), "floats", lambda m, o, a: m.evaluate(a, Y, "cross_entropy")),
    "evaluate y": ("y", (N,), "labels", lambda m, o, a: m.evaluate(X, a, "cross_entropy")),
    "evaluate weight": (
        "sample_weight", (N,), "weights", lambda m, o, a: m.evaluate(X, Y, "cross_entropy", sample_weight=a)
    ),
    "fit X": ("X", (N, 3), "floats", lambda m, o, a: fitted(m, o, X=a)),
    "fit y": ("y", (N,), "labels", lambda m, o, a: fitted(m, o, y=a)),
    "fit targets": ("y", (N, 2), "floats", lambda m, o, a: fitted(m, o, y=a, loss="mse")),
    "fit weight": ("sample_weight", (N,), "weights", lambda m, o, a: fitted(m, o, sample_weight=a)),
    "fit validation X": ("validation_data[0]", (N, 3), "floats", lambda m, o, a: fitted(m, o, validation_data=(a, Y))),
    "fit validation y": ("validation_data[1]", (N,), "labels", lambda m, o, a: fitted(m, o, validation_data=(X, a))),
    "fit class weight": (
        "class_weight", (2,), "weights", lambda m, o, a: fitted(m, o, loss=fb.CrossEntropy(class_weight=a))
    ),
    "train_on_batch xb": ("xb", (N, 3), "floats", lambda m, o, a: m.train_on_batch(a, Y, "cross_entropy", o)),
    "train_on_batch yb": ("yb", (N,), "labels", lambda m, o, a: m.train_on_batch(X, a, "cross_entropy", o)),
    "train_on_batch weight": (
        "sample_weight", (N,), "weights", lambda m, o, a: m.train_on_batch(X, Y, "cross_entropy", o, sample_weight=a)
    ),
    "a callable's loss": (
        "dpred", (N, 2), "floats", lambda m, o, a: m.train_on_batch(X, Y, lambda pred, target: (1.0, a), o)
    ),
    "check_gradients X": ("X", (N, 3), "doubles", lambda m, o, a: fb.check_gradients(m, a, Y, "cross_entropy")),
    "check_gradients y": ("y", (N,), "labels", lambda m, o, a: fb.check_gradients(m, X, a, "cross_entropy")),
    "batches X": ("X", (N, 3), "anything", lambda m, o, a: dealt(a, Y)),
    "batches y": ("y", (N,), "anything", lambda m, o, a: dealt(X, a)),
    "batches weight": ("sample_weight", (N,), "anything", lambda m, o, a: dealt(X, Y, sample_weight=a)),
    "weight": ("weight", (3, 4), "floats", lambda m, o, a: setattr(m.layers[0], "weight", a)),
    "bias": ("bias", (2,), "floats", lambda m, o, a: setattr(m.layers[3], "bias", a)),
    "load_state_dict": ("state['v']", None, "weights", set_state),
}  # fmt: skip
CALLS |= {
    f"{type(loss).__name__} {argument}": (argument, shape, kind, elsewhere(loss, argument))
    for loss in LOSSES
    for argument, shape, kind in [
        ("pred", (N, 2), "pred"),
        ("target", (N,) if loss is LOSSES[0] else (N, 2), "labels" if loss is LOSSES[0] else "zero or one"),
        ("sample_weight", (N,), "weights"),
    ]
}
calls = st.sampled_from(sorted(CALLS))
OTHERS_ROWS = "y", "yb", "target", "sample_weight", "validation_data[1]"  # which are wrong if X has other ones


def says(error, *names):
    """The message begins with the argument's name."""
    assert str(error).startswith(names), error


def outcome(backend, call, array, dtype):
    """The bits of the result and of all that training changes, or the error after which nothing has changed."""
    with fb.use_backend(backend):
        model, optimizer = new(dtype)
        before, given = state(model, optimizer), bytes_of(array)
        try:
            result = call(model, optimizer, array)
        except (TypeError, ValueError) as error:
            assert (state(model, optimizer), bytes_of(array)) == (before, given)
            return error
        assert bytes_of(array) == given
        return bits(result), state(model, optimizer)


def bits(result):
    if isinstance(result, (tuple, list)):
        return [bits(part) for part in result]
    if isinstance(result, np.ndarray):
        assert type(result) is np.ndarray
        return result.dtype.str, result.shape, result.tolist() if result.dtype.hasobject else result.tobytes()
    return repr(result)


def right_dtype(kind, a, dtype):
    """The dtype in which the numbers are the same."""
    array = np.asarray(a)
    if kind in ("labels", "anything"):
        return array.dtype if kind == "anything" else "i8"
    if kind == "pred":
        return array.dtype.newbyteorder("=") if array.dtype.type in (np.float32, np.float64) else "f4"
    return "f8" if kind == "doubles" else dtype


@hostile
@given(
    entry=calls,
    layout=layouts,
    backend=backends,
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_an_array_in_any_layout_is_read_as_its_numbers(entry, layout, backend, seed, dtype):
    name, shape, kind, call = CALLS[entry]
    shape = shape or new(dtype)[0].parameters().values.shape
    a = LAYOUTS[layout](good(np.random.default_rng(seed), shape, kind))
    expected = outcome(backend, call, plain(a, right_dtype(kind, a, dtype)), dtype)
    found = outcome(backend, call, a, dtype)
    if kind == "labels" and layout == "object":  # objects are no integers, even if they hold some
        assert isinstance(found, TypeError)
        hint = "; y.astype(int) makes integers of them"
        assert str(found) == f"{name}: expected integer class labels, got dtype object{hint}"
    else:
        assert not isinstance(expected, Exception), expected
        assert found == expected


@hostile
@given(entry=calls, data=st.data(), backend=backends, dtype=st.sampled_from(["float32", "float64"]))
def test_any_array_is_refused_or_read_as_its_numbers(entry, data, backend, dtype):
    name, shape, kind, call = CALLS[entry]
    shape = shape or new(dtype)[0].parameters().values.shape
    a = data.draw(arrays(shape))
    with np.errstate(all="ignore"):  # of huge numbers on the NumPy backend
        found = outcome(backend, call, a, dtype)
        if isinstance(found, Exception):
            of_other_lengths = (
                ("y", "yb", "target", "sample_weight", "validation_data[1]") if np.shape(a) != shape else ()
            )
            assert str(found).startswith((name, *of_other_lengths)), found
        elif kind != "anything":
            assert found == outcome(backend, call, plain(a, right_dtype(kind, a, dtype)), dtype)


def test_masked_entries_are_no_numbers():
    masked = np.ma.masked_array(Y, Y == 1)
    model, optimizer = new()
    for call in (
        lambda: fb.batches(X, masked, 4),
        lambda: fb.CrossEntropy()(X, masked),
        lambda: model.train_on_batch(X, masked, lambda pred, target: (0.0, pred), optimizer),
    ):
        with pytest.raises(ValueError, match="expected numbers, got a masked array"):
            call()


def test_objects_too_large_for_the_dtype_are_infinite():
    for huge in (1e300, 10**400):
        with pytest.raises(ValueError, match="X: expected finite numbers"):
            new()[0].evaluate(np.full((N, 3), huge, object), Y, "cross_entropy")


@hostile
@given(name=st.sampled_from(sorted(fb.metrics.METRICS)), which=st.booleans(), data=st.data())
def test_metrics_refuse_any_array_or_read_its_numbers(name, which, data):
    pytest.importorskip("sklearn")
    several = name in ("mae", "rmse", "r2")
    shapes = {"pred": (N, 2), "target": (N, 2) if several else (N,)}
    argument = "pred" if which else "target"
    a = data.draw(arrays(shapes[argument]))
    arguments = {"pred": X[:, :2], "target": X[:, 1:] if several else Y} | {argument: a}

    def measured(**arguments):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # scikit-learn's, of a class that is not there
            return repr(fb.metrics.METRICS[name](**arguments))

    before = bytes_of(a)
    try:
        found = measured(**arguments)
    except (TypeError, ValueError) as error:
        assert bytes_of(a) == before
        with contextlib.suppress(TypeError, ValueError):  # of numbers that do not fit each other scikit-learn speaks
            if np.isfinite(np.array(a)).all():
                return
        says(error, "pred", "target")
    else:
        assert found == measured(**arguments | {argument: plain(a)})
    assert bytes_of(a) == before


# --- single kernels ---------------------------------------------------------------------------------------------------

B, I, O = 5, 3, 4  # noqa: E741
ROWS, COLUMN, GRID = (B, I), (I,), (B, I)
# what is written, what is read, and the other arguments; shapes of the arrays by name
OPS = {
    "matmul": (dict(c=(B, O)), dict(a=(B, I), b=(I, O)), {}),
    "dense_forward": (dict(y=(B, O), z=(B, O)), dict(x=(B, I), weight=(I, O), bias=(O,)), dict(activation="gelu")),
    "dense_backward": (
        dict(dweight=(I, O), dbias=(O,), dx=(B, I)), dict(dz=(B, O), x=(B, I), x_z=(B, I), weight=(I, O)),
        dict(input_activation="silu"),
    ),
    "activation_forward": (dict(y=(B, I)), dict(z=(B, I)), dict(name="tanh")),
    "activation_backward": (dict(dz=(B, I)), dict(dy=(B, I), y=(B, I), z=(B, I)), dict(name="gelu")),
    "dropout": (dict(y=(B, I)), dict(x=(B, I)), dict(p=0.4, key=5, step=2)),
    "batchnorm_forward": (
        dict(y=(B, I), stats=(4, I)), dict(x=(B, I), weight=(I,), bias=(I,)), dict(momentum=0.1, eps=1e-5)
    ),
    "batchnorm_backward": (
        dict(dweight=(I,), dbias=(I,), dx=(B, I)), dict(dy=(B, I), x=(B, I), stats=(4, I), weight=(I,)), {}
    ),
    "layernorm_forward": (dict(y=(B, I), rows=(B, 2)), dict(x=(B, I), weight=(I,), bias=(I,)), dict(eps=1e-5)),
    "layernorm_backward": (
        dict(dweight=(I,), dbias=(I,), dx=(B, I)), dict(dy=(B, I), x=(B, I), rows=(B, 2), weight=(I,)), {}
    ),
    "cross_entropy": (
        dict(dlogits=(B, I)), dict(logits=(B, I), class_weight=(I,), sample_weight=(B,)),
        dict(target=np.array([0, 1, 2, 1, 0]), label_smoothing=0.1),
    ),
    "elementwise_loss": (
        dict(dpred=(B, I)), dict(pred=(B, I), target=(B, I), sample_weight=(B,)), dict(name="huber", parameter=0.5)
    ),
    "sgd_update": (
        dict(param=(B,), velocity=(B,)), dict(grad=(B,)), dict(lr=0.1, momentum=0.9, weight_decay=0.1, grad_scale=0.5)
    ),
    "adam_update": (
        dict(param=(B,), m=(B,), v=(B,)), dict(grad=(B,)),
        dict(lr=0.1, step=3, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1, grad_scale=0.5),
    ),
    "rmsprop_update": (
        dict(param=(B,), square=(B,), velocity=(B,)), dict(grad=(B,)),
        dict(lr=0.1, alpha=0.9, eps=1e-8, momentum=0.9, weight_decay=0.1, grad_scale=0.5),
    ),
    "adagrad_update": (
        dict(param=(B,), total=(B,)), dict(grad=(B,)), dict(lr=0.1, eps=1e-8, weight_decay=0.1, grad_scale=0.5)
    ),
}  # fmt: skip
kernels = st.sampled_from(sorted(OPS))


def computed(kernel, arrays, settings):
    """The bits of all that a kernel writes and returns."""
    outputs = OPS[kernel][0]
    loss = getattr(fb.ops, kernel)(**arrays, **settings)
    return [arrays[name].tobytes() for name in outputs], loss


def operands(kernel, seed, dtype):
    outputs, inputs, settings = OPS[kernel]
    rng = np.random.default_rng(seed)
    return {name: rng.random(shape).astype(dtype) for name, shape in (outputs | inputs).items()}, dict(settings)


@hostile
@given(
    kernel=kernels, data=st.data(), backend=backends, seed=st.integers(0, 2**32), dtype=st.sampled_from(["f4", "f8"])
)
def test_kernels_take_memory_that_overlaps_or_refuse_it(kernel, data, backend, seed, dtype):
    given_arrays, settings = operands(kernel, seed, dtype)
    output = data.draw(st.sampled_from(sorted(OPS[kernel][0])))
    other = data.draw(st.sampled_from(sorted(given_arrays.keys() - {output})))
    a, b = given_arrays[output], given_arrays[other]
    at = data.draw(st.integers(0, a.size))
    both = np.random.default_rng(seed).random(a.size + b.size).astype(dtype)
    arrays = given_arrays | {
        output: both[b.size :][: a.size].reshape(a.shape) if at == a.size else both[: a.size].reshape(a.shape),
        other: both[at:][: b.size].reshape(b.shape),
    }
    apart = {name: array.copy() for name, array in arrays.items()}
    before = both.copy()
    with fb.use_backend(backend):
        try:
            found = computed(kernel, arrays, settings)
        except ValueError as error:
            says(error, output, other)
            assert both.tobytes() == before.tobytes()
            assert np.may_share_memory(arrays[output], arrays[other])
        else:
            assert found == computed(kernel, apart, settings)


@hostile
@given(kernel=kernels, data=st.data(), backend=backends, dtype=st.sampled_from(["f4", "f8"]))
def test_kernels_refuse_arrays_that_they_cannot_use(kernel, data, backend, dtype):
    arrays_, settings = operands(kernel, 0, dtype)
    name = data.draw(st.sampled_from(sorted(arrays_)))
    if data.draw(st.booleans()):
        bad = LAYOUTS[data.draw(layouts)](arrays_[name])
    else:
        bad = data.draw(arrays(arrays_[name].shape))
    copy = plain(bad) if isinstance(bad, np.ndarray) else None
    before = {key: bytes_of(array) for key, array in (arrays_ | {name: bad}).items()}
    with fb.use_backend(backend), np.errstate(all="ignore"):
        try:
            found = computed(kernel, arrays_ | {name: bad}, settings)
        except (TypeError, ValueError) as error:
            fits = isinstance(bad, np.ndarray) and (bad.shape, bad.dtype) == (arrays_[name].shape, dtype)
            says(error, name, *(() if fits else arrays_))  # where two arrays differ, either may be the wrong one
            assert before == {key: bytes_of(array) for key, array in (arrays_ | {name: bad}).items()}
        else:
            fresh, settings = operands(kernel, 0, dtype)
            assert found == computed(kernel, fresh | {name: copy}, settings)


# --- numbers ----------------------------------------------------------------------------------------------------------

SCALARS = [
    *(float("nan"), float("inf"), -float("inf"), -1, -1.0, 0, -0.0, 0.5, 1, 1.0, 2, 1e-320, 1e308, 2**31, 2**63, 2**64),
    *(2**70, -(2**70), 10**400, True, False, None, "", "1", b"1", 1j, [], [1], (1,), {}, object(), np.nan, np.zeros(2)),
    *(np.float16(0.1), np.float32(0.1), np.int8(3), np.uint64(2**64 - 1), np.bool_(True), np.array(1), np.array([1])),
    *(np.longdouble("1e-4000"), 1 - np.longdouble(1e-19), np.str_("relu"), np.datetime64("2020")),
    *(fractions.Fraction(1, 2), decimal.Decimal("0.5"), decimal.Decimal("nan")),
]


def params():
    return new()[0].parameters()


MADE = {
    fb.Dense: (dict(in_features=2, out_features=2), ["in_features", "out_features", "activation", "init"]),
    fb.Activation: (dict(name="relu"), ["name"]),
    fb.Dropout: (dict(), ["p"]),
    fb.BatchNorm: (dict(n=2), ["n", "momentum", "eps"]),
    fb.LayerNorm: (dict(n=2), ["n", "eps"]),
    fb.Embedding: (
        dict(num_embeddings=2, embedding_dim=2), ["num_embeddings", "embedding_dim", "columns", "unknown"]
    ),
    fb.TabularInput: (
        dict(n_numeric=1, cardinalities=[2]), ["n_numeric", "cardinalities", "embedding_dim", "unknown"]
    ),
    fb.SGD: (dict(lr=0.1), ["params", "lr", "momentum", "weight_decay", "clip_norm"]),
    fb.Adam: (dict(), ["params", "lr", "betas", "eps", "weight_decay", "clip_norm"]),
    fb.AdamW: (dict(), ["params", "lr", "betas", "eps", "weight_decay", "clip_norm"]),
    fb.RMSprop: (dict(), ["params", "lr", "alpha", "eps", "momentum", "weight_decay", "clip_norm"]),
    fb.Adagrad: (dict(), ["params", "lr", "eps", "weight_decay", "clip_norm"]),
    fb.schedules.Constant: (dict(lr=0.1), ["lr"]),
    fb.schedules.Step: (dict(lr=0.1, steps=2), ["lr", "steps", "gamma"]),
    fb.schedules.Exponential: (dict(lr=0.1, gamma=0.9), ["lr", "gamma"]),
    fb.schedules.Cosine: (dict(lr=0.1, steps=9), ["lr", "steps", "min_lr"]),
    fb.schedules.OneCycle: (
        dict(max_lr=0.1, steps=9), ["max_lr", "steps", "pct_start", "div_factor", "final_div_factor"]
    ),
    fb.schedules.InverseScaling: (dict(lr=0.1), ["lr", "power"]),
    fb.CrossEntropy: (dict(), ["label_smoothing"]),
    fb.Huber: (dict(), ["delta"]),
    fb.Quantile: (dict(), ["q"]),
    fb.EarlyStopping: (dict(), ["patience", "min_delta"]),
    fb.ReduceLROnPlateau: (dict(), ["factor", "patience", "min_delta", "min_lr"]),
    fb.Checkpoint: (dict(path="x"), ["min_delta"]),
    fb.Sequential: (dict(layers=None), ["layers", "dtype", "seed"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", MADE, ids=lambda kind: kind.__name__)
def test_settings_are_refused_by_name_or_work(kind):
    arguments, names = MADE[kind]
    for name in names:
        for value in SCALARS:
            given_ = arguments | {"params": params()} if "params" in names else dict(arguments)
            if kind is fb.Sequential:
                given_["layers"] = [fb.Dense(3, 2)]
            try:
                made = kind(**given_ | {name: value})
            except (TypeError, ValueError) as error:
                says(error, name)
                continue
            if isinstance(made, fb.schedules.Schedule):
                made = fb.SGD(params(), lr=made)
            for steps in (0, 1, 8, 10_000) if hasattr(made, "step") else ():
                made.steps = steps
                made.params.grads[:] = 0.5
                try:
                    made.step()
                except ValueError as error:  # a rate that grows without bound
                    says(error, "lr: expected a number in [0, inf)")


class OneEpoch(fb.Callback):
    def on_epoch_end(self, epoch, logs):
        self.model.stop_training = True


@pytest.mark.parametrize("name", ["epochs", "batch_size", "buffer_size", "seed", "verbose"])
def test_settings_of_fit_are_refused_by_name_or_work(name):
    for value in SCALARS:
        if value is None and name == "verbose":
            continue
        model, optimizer = new()
        before = state(model, optimizer)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "batch_size: with one row per batch")
                fitted(model, optimizer, callbacks=[OneEpoch()], **{name: value})
        except (TypeError, ValueError) as error:
            says(error, name)
            assert state(model, optimizer) == before
        if name in ("batch_size", "buffer_size", "seed"):
            try:
                dealt_ = list(fb.batches(X, Y, **dict(batch_size=4) | {name: value}))
            except (TypeError, ValueError) as error:
                says(error, name)
            else:
                assert sum(len(x) for x, _ in dealt_) == N


@hostile
@given(kernel=kernels, data=st.data(), value=st.sampled_from(SCALARS), backend=backends)
def test_settings_of_kernels_are_refused_by_name_or_work(kernel, data, value, backend):
    given_arrays, settings = operands(kernel, 0, "f4")
    name = data.draw(st.sampled_from(sorted([*settings, "threads"])))
    with fb.use_backend(backend), np.errstate(all="ignore"):
        try:
            computed(kernel, given_arrays, settings | {name: value})
        except (TypeError, ValueError) as error:
            says(error, name)


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: [fb.Dense(2**70, 1)], "in_features: expected an integer of at most 4611686018427387904, got"),
        (lambda: [fb.Dense(1, 10**400)], "out_features: expected an integer of at most"),
        (lambda: [fb.Dense(2**32, 2**32)], r"layers\[0\]: expected what fits into the .* bytes of this machine"),
        (lambda: [fb.Dense(1, 2), fb.Dense(2, 2**61)], r"layers\[1\]: expected what fits"),
        (lambda: [fb.Dense(8, 8), fb.Dense(8, 2**20), fb.Dense(2**20, 2**30)], r"layers\[2\]: expected what fits"),
        (lambda: [fb.BatchNorm(2**62)], r"layers\[0\]: expected what fits"),
        (lambda: [fb.Embedding(2**24, 2**40)], r"layers\[0\]: expected what fits"),
        (lambda: [fb.Embedding(2, 1, columns=2**62)], r"layers\[0\]: expected what fits"),
        (lambda: [fb.TabularInput(2**62, [3]), fb.Dropout()], r"layers\[0\]: expected what fits"),
        (lambda: [fb.TabularInput(1, [2**24] * 9, 2**50)], r"layers\[0\]: expected what fits"),
    ],
)  # fmt: skip
def test_models_that_no_machine_can_hold(make, message):
    with pytest.raises(ValueError, match=message):
        fb.Sequential(make())


def test_batches_that_the_machine_cannot_hold():
    width = 2**20
    model = fb.Sequential([fb.Embedding(2, width)], seed=0)
    optimizer = fb.SGD(model.parameters(), lr=0.1)
    rows = MEMORY // (4 * width) + 1
    x, y = np.zeros((rows, 1), "f4"), np.zeros(rows, int)
    before = state(model, optimizer)
    for call, name in [
        (lambda: model.forward(x, training=True), "x"),
        (lambda: model.train_on_batch(x, y, "cross_entropy", optimizer), "batch_size"),
        (lambda: model.fit(x, y, "cross_entropy", optimizer, batch_size=rows, verbose=0), "batch_size"),
        (lambda: model.fit(x, y, "cross_entropy", optimizer, batch_size=2**62, verbose=0), "batch_size"),
    ]:
        with pytest.raises(ValueError, match=f"{name}: expected what fits into the"):
            call()
        assert state(model, optimizer) == before
    assert model.fit(x[:2], y[:2], "cross_entropy", optimizer, batch_size=2**62, verbose=0).history["loss"]


def test_a_training_step_that_has_no_memory_is_no_step(monkeypatch):
    model, optimizer = new()
    network, before = model.model.network(), state(model, optimizer)

    class Full:
        passes = 0

        def forward(self, *_):
            raise MemoryError

    monkeypatch.setattr(model.model, "network", Full)
    with pytest.raises(MemoryError):
        model.forward(X, training=True)
    assert state(model, optimizer) == before
    monkeypatch.setattr(model.model, "network", lambda: network)
