"""Every optimizer against its published formulas, written out entry by entry in plain Python, over many steps.

float64 follows them to 1e-12; core/test_update_kernels compares the kernels in float32 with the reference.
"""

import math

import numpy as np
import pytest

import fastbp as fb

STEPS = 60


def model_of(seed=0):
    return fb.Sequential([fb.Dense(3, 4, activation="tanh"), fb.Dense(4, 2)], dtype="float64", seed=seed)


def sgd(p, g, s, t, lr, momentum=0.0, nesterov=False, weight_decay=0.0):
    g = g + weight_decay * p
    s["v"] = momentum * s.get("v", 0.0) + g
    return p - lr * (g + momentum * s["v"] if nesterov else s["v"])


def adam(p, g, s, t, lr, weight_decay=0.0, decoupled=False, b1=0.9, b2=0.999, eps=1e-8):
    """Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019, algorithm 2."""
    if not decoupled:
        g = g + weight_decay * p
    s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0.0) + (1 - b2) * g * g
    m_hat, v_hat = s["m"] / (1 - b1**t), s["v"] / (1 - b2**t)
    return p - lr * m_hat / (math.sqrt(v_hat) + eps) - (lr * weight_decay * p if decoupled else 0)


def rmsprop(p, g, s, t, lr, momentum=0.0, weight_decay=0.0, alpha=0.99, eps=1e-8):
    g = g + weight_decay * p
    s["s"] = alpha * s.get("s", 0.0) + (1 - alpha) * g * g
    s["v"] = momentum * s.get("v", 0.0) + g / (math.sqrt(s["s"]) + eps)
    return p - lr * s["v"]


def adagrad(p, g, s, t, lr, weight_decay=0.0, eps=1e-10):
    g = g + weight_decay * p
    s["s"] = s.get("s", 0.0) + g * g
    return p - lr * g / (math.sqrt(s["s"]) + eps)


CASES = [
    (fb.SGD, sgd, {}),
    (fb.SGD, sgd, {"weight_decay": 0.1}),
    (fb.SGD, sgd, {"momentum": 0.9}),
    (fb.SGD, sgd, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (fb.Adam, adam, {}),
    (fb.Adam, adam, {"weight_decay": 0.1}),
    (fb.AdamW, lambda *a, **k: adam(*a, **k, decoupled=True), {"weight_decay": 0.1}),
    (fb.RMSprop, rmsprop, {}),
    (fb.RMSprop, rmsprop, {"momentum": 0.9, "weight_decay": 0.01}),
    (fb.Adagrad, adagrad, {}),
    (fb.Adagrad, adagrad, {"weight_decay": 0.01}),
]
SCHEDULES = [0.01, fb.schedules.Cosine(0.05, 40, 0.001), fb.schedules.Step(0.05, 7, 0.5)]


@pytest.mark.parametrize(("kind", "formula", "settings"), CASES)
@pytest.mark.parametrize("lr", SCHEDULES, ids=lambda lr: type(lr).__name__)
def test_formulas(any_backend, rng, kind, formula, settings, lr):
    model = model_of()
    params = model.parameters()
    optimizer = kind(params, lr=lr, **settings)
    expected = {(name, i): v for name in params.shapes for i, v in enumerate(params.value(name).ravel())}
    state = {key: {} for key in expected}
    for t in range(1, STEPS + 1):
        params.grads[:] = 0
        for name in params.shapes:
            params.grad(name)[:] = rng.standard_normal(params.shapes[name])
        rate = lr if isinstance(lr, float) else lr(t - 1)
        assert optimizer.lr == rate
        for (name, i), value in expected.items():
            g = params.grad(name).ravel()[i]
            expected[name, i] = formula(value, g, state[name, i], t, rate, **settings)
        optimizer.step()
    got = np.array([params.value(name).ravel()[i] for name, i in expected])
    np.testing.assert_allclose(got, list(expected.values()), rtol=1e-12, atol=1e-13)


def test_clip_norm_scales_the_whole_gradient(any_backend, rng):
    model = model_of()
    params, start = model.parameters(), model.parameters().values.copy()
    for name in params.shapes:
        params.grad(name)[:] = 5 * rng.standard_normal(params.shapes[name])
    norm = np.linalg.norm(params.grads)
    fb.SGD(params, lr=1.0, clip_norm=0.5).step()
    moved = start - params.values
    assert np.linalg.norm(moved) == pytest.approx(0.5, rel=1e-6)
    np.testing.assert_allclose(moved, params.grads * (0.5 / (norm + 1e-6)), rtol=1e-9)
    start[:] = params.values
    fb.SGD(params, lr=1.0, clip_norm=2 * norm).step()  # shorter than that: untouched
    np.testing.assert_allclose(start - params.values, params.grads, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("kind", "settings"), [(k, s) for k, _, s in CASES])
def test_state_dict_resumes_with_the_same_bits(rng, kind, settings):
    gradients = rng.standard_normal((10, model_of().parameters().grads.size))

    def run(optimizer, steps):
        for g in steps:
            optimizer.params.grads[:] = g
            optimizer.step()

    whole, first, second = model_of(), model_of(), model_of()
    run(kind(whole.parameters(), lr=0.01, **settings), gradients)
    optimizer = kind(first.parameters(), lr=0.01, **settings)
    run(optimizer, gradients[:5])
    second.parameters().values[:] = first.parameters().values
    resumed = kind(second.parameters(), lr=0.01, **settings)
    resumed.load_state_dict(optimizer.state_dict())
    run(resumed, gradients[5:])
    assert whole.parameters().values.tobytes() == second.parameters().values.tobytes()


def test_a_wrong_state_dict_changes_nothing():
    model = model_of()
    optimizer = fb.Adam(model.parameters(), lr=0.1)
    model.parameters().grads[:] = 1
    optimizer.step()
    before = optimizer.state_dict()
    m = before["m"]
    for state, message in [
        ({"steps": 9, "m": np.zeros(3), "v": m}, r"state\['m'\]: expected shape .*, got \(3,\)"),
        ({"steps": 9, "m": m, "v": m * np.nan}, r"state\['v'\]: expected finite numbers"),
        ({"steps": 9, "m": m}, r"state: expected vectors \['m', 'v'\], got \['m'\]"),
        ({"steps": 9, "m": m, "v": m, "velocity": m}, "state: expected vectors"),
        ({"steps": -1, "m": m, "v": m}, "state: expected a number of steps under 'steps', got -1"),
        ({"m": m, "v": m}, "state: expected a number of steps under 'steps', got None"),
    ]:
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(state)
    after = optimizer.state_dict()
    assert after["steps"] == 1
    np.testing.assert_array_equal(after["m"], before["m"])


def network(dtype="float32"):
    layers = [fb.TabularInput(3, [20, 4], 2), fb.Dense(7, 40, "relu"), fb.BatchNorm(40), fb.Dense(40, 33, "tanh")]
    return fb.Sequential([*layers, fb.Dense(33, 2)], dtype=dtype, seed=0)


def table():
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.standard_normal((200, 3)), rng.integers(0, 20, 200), rng.integers(0, 4, 200)])
    return X, rng.integers(0, 2, 200)


GROUPS = {"1.*": {"lr": 0}, "*.bias": {"lr": 0.5, "weight_decay": 0}, "3.weight": {"l1": 3}, "0.weights.0": {"lr": 2}}
KINDS = [
    lambda p, **own: fb.SGD(p, 0.1, **own),
    lambda p, **own: fb.SGD(p, 0.1, momentum=0.9, **own),
    fb.Adam,
    fb.AdamW,
    fb.RMSprop,
    fb.Adagrad,
]


@pytest.mark.parametrize("own", [{}, {"clip_norm": 0.3}, {"clip_value": 0.01}, {"l1": 0.01, "weight_decay": 0.1}])
@pytest.mark.parametrize("kind", KINDS)
def test_groups_in_fit_are_those_of_the_loop_and_of_the_reference(any_backend, dtype, threads, kind, own):
    (X, y), (fitted, looped, plain) = table(), (network(dtype) for _ in range(3))
    frozen, fb_loss, order = fitted.layers[1].weight.copy(), fb.CrossEntropy(), np.random.default_rng(1)
    fb.set_num_threads(threads)
    optimizer, other = (kind(model.parameters(), groups=GROUPS, **own) for model in (fitted, looped))
    fitted.fit(X, y, "cross_entropy", optimizer, batch_size=64, epochs=2, seed=1, verbose=0)
    for _ in range(2):
        for xb, yb in fb.batches(X, y, 64, seed=order):
            looped.backward(fb_loss(looped.forward(xb, training=True), yb)[1])
            other.step()
    assert fitted.parameters().values.tobytes() == looped.parameters().values.tobytes()
    assert fitted.parameters().grads.tobytes() == looped.parameters().grads.tobytes()
    assert (fitted.layers[1].weight == frozen).all()
    with fb.use_backend("numpy"):
        plain.fit(X, y, "cross_entropy", kind(plain.parameters(), groups=GROUPS, **own), batch_size=64, epochs=2,
                  seed=1, verbose=0)  # fmt: skip
    # 8 steps, whose rates are up to 0.2, and a square root of a mean of squares near zero in some of them
    tolerance = 2e-3 if dtype == "float32" else 1e-9
    np.testing.assert_allclose(fitted.parameters().values, plain.parameters().values, atol=tolerance)


def test_frozen_state_does_not_move(any_backend):
    X, y = table()
    model = network()
    params = model.parameters()
    optimizer = fb.AdamW(params, 0.1, groups={"3.*": {"lr": 0}})
    model.fit(X, y, "cross_entropy", optimizer, verbose=0)
    for vector in optimizer.state_vectors.values():
        assert not params.view(vector, "3.weight").any()
        assert params.view(vector, "4.weight").any()
    optimizer.groups = None
    model.fit(X, y, "cross_entropy", optimizer, verbose=0)
    assert params.view(vector, "3.weight").any()


def test_the_last_pattern_with_a_setting_counts():
    params = network().parameters()
    optimizer = fb.SGD(params, 0.1, groups={"*": {"lr": 0.5, "l1": 2}, "*.bias": {"lr": 3}}, decay_bias=False, l1=1)
    records = {int(record["begin"]): record for record in optimizer.group_records}
    bias, weight = records[params.offsets["1.bias"]], records[params.offsets["1.weight"]]
    assert (bias["lr"], bias["weight_decay"], bias["l1"]) == (3, 0, 0)
    assert (weight["lr"], weight["weight_decay"], weight["l1"]) == (0.5, 1, 2)


def test_l1_makes_weights_exactly_zero_in_adamw(any_backend):
    """The lasso: of ten columns three have something to say."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((400, 10)).astype("f4")
    y = X[:, :3] @ np.array([1.0, -2.0, 3.0], "f4")
    model = fb.Sequential([fb.Dense(10, 1)], seed=0)
    optimizer = fb.AdamW(model.parameters(), fb.schedules.Cosine(0.05, 13 * 60), weight_decay=0, l1=0.5)
    model.fit(X, y, "mse", optimizer, epochs=60, verbose=0)
    weight = model.layers[0].weight[:, 0]
    assert (weight[3:] == 0).all()
    assert (np.abs(weight[:3]) > 0.5).all()


def test_groups_that_do_not_fit_are_refused():
    params = network().parameters()
    for groups, message in {
        (("9.*", (("lr", 0),)),): r"groups: expected patterns of 0.weights.0, .*, got '9.\*'",
        (("1.*", (("trainable", False),)),): r"groups\['1.\*'\]: expected multipliers of lr, .* freezes",
        (("1.*", (("lr", -1),)),): "groups.*lr",
        (("1.*", (("lr", float("nan")),)),): "groups.*lr",
    }.items():
        with pytest.raises(ValueError, match=message):
            fb.Adam(params, groups={pattern: dict(settings) for pattern, settings in groups})
    for wrong in ([("0.*", {"lr": 0})], "0.*", {"0.*": 0.1}):
        with pytest.raises(TypeError, match="groups: expected a mapping"):
            fb.Adam(params, groups=wrong)
    optimizer = fb.Adam(params)
    with pytest.raises(ValueError, match="patterns"):
        optimizer.groups = {"9": {"lr": 1}}
    assert optimizer.groups is None


@pytest.mark.parametrize("decoupled", [False, True])
def test_l1_is_its_formula(any_backend, decoupled):
    model = model_of()
    p, before = model.parameters(), model.parameters().values.copy()
    p.grads[:] = np.linspace(-1, 1, p.grads.size)
    grads = p.grads.copy()
    if decoupled:
        optimizer = fb.AdamW(p, 0.1, weight_decay=0.0, l1=0.3)
        moved = before - 0.1 * grads / (np.abs(grads) + 1e-8)
        expected = np.sign(moved) * np.maximum(np.abs(moved) - 0.03, 0)
    else:
        optimizer = fb.SGD(p, 0.1, l1=0.3)
        expected = before - 0.1 * (grads + 0.3 * np.sign(before))
    optimizer.step()
    for name in p.shapes:
        np.testing.assert_allclose(p.value(name), p.view(expected, name), atol=1e-12)
    assert (p.grads == grads).all()
