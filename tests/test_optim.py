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
