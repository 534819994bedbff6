"""Clipping of gradients by value and by norm."""

import copy

import numpy as np
import pytest

import fastbp as fb

RNG = np.random.default_rng(0)


X = RNG.standard_normal((200, 5)).astype(np.float32)


Y = (3 * X[:, :1] + X[:, 1:3]).astype(np.float32)  # (200, 2)


OPTIMIZERS = [
    lambda params, **clip: fb.SGD(params, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.01, **clip),
    lambda params, **clip: fb.SGD(params, lr=0.01, **clip),
    lambda params, **clip: fb.AdamW(params, lr=0.01, **clip),
    lambda params, **clip: fb.RMSprop(params, lr=0.01, momentum=0.5, **clip),
    lambda params, **clip: fb.Adagrad(params, lr=0.01, decay_bias=False, weight_decay=0.1, **clip),
]


@pytest.mark.parametrize("clip", [{"clip_value": 0.01}, {"clip_norm": 0.1}])
@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("first", [None, fb.TabularInput(3, [20, 4], 2), fb.TabularInput(3, [2000, 4], 2)])
def test_clipping_is_the_same_in_fit_and_step(any_backend, dtype, make, clip, first):
    first = copy.deepcopy(first)
    data = X if first is None else np.column_stack([X[:, :3], RNG.integers(0, 20, 200), RNG.integers(0, 4, 200)])
    width = 5 if first is None else first.outputs(5)
    hidden = [fb.Dense(width, 70, activation="relu"), fb.Dense(70, 2)]
    fitted = fb.Sequential([*([first] if first else []), *hidden], dtype=dtype, seed=0)
    looped = copy.deepcopy(fitted)
    optimizer, other = make(fitted.parameters(), **clip), make(looped.parameters(), **clip)
    fitted.fit(data, Y, "mse", optimizer, epochs=2, batch_size=64, seed=1, verbose=0)
    rng = np.random.default_rng(1)
    for _ in range(2):
        for xb, yb in fb.batches(data, Y, batch_size=64, seed=rng):
            _, dy = fb.MSE()(looped.forward(xb, training=True), yb)
            looped.backward(dy)
            other.step()
    assert np.array_equal(fitted.parameters().values, looped.parameters().values)
    assert np.array_equal(fitted.parameters().grads, looped.parameters().grads)
    if "clip_value" in clip:
        assert np.abs(fitted.parameters().grads).max() == np.asarray(0.01, dtype)


def test_clip_value_is_pytorchs(compiled):
    torch = pytest.importorskip("torch")
    model = fb.Sequential([fb.Dense(5, 8, activation="tanh"), fb.Dense(8, 2)], dtype="float64", seed=0)
    optimizer = fb.Adam(model.parameters(), lr=0.01, clip_value=0.05)
    theirs = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
    for linear, layer in ((theirs[0], model.layers[0]), (theirs[2], model.layers[1])):
        linear.weight.data, linear.bias.data = torch.tensor(layer.weight.T), torch.tensor(layer.bias)
    other = torch.optim.Adam(theirs.parameters(), lr=0.01)
    inputs, targets = torch.tensor(X.astype(float)), torch.tensor(Y.astype(float))
    for _ in range(20):
        model.train_on_batch(X, Y, "mse", optimizer)
        other.zero_grad()
        torch.nn.functional.mse_loss(theirs(inputs), targets).backward()
        torch.nn.utils.clip_grad_value_(theirs.parameters(), 0.05)
        other.step()
    np.testing.assert_allclose(model.layers[0].weight.T, theirs[0].weight.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        ({"clip_value": 0}, r"clip_value: expected a number in \(0, inf\), got 0"),
        ({"clip_value": float("nan")}, r"clip_value: expected a number in \(0, inf\), got nan"),
        ({"clip_value": 1.0, "clip_norm": 1.0}, "clip_value: expected None together with clip_norm"),
    ],
)
def test_bad_clipping(clip, message):
    with pytest.raises(ValueError, match=message):
        fb.SGD(fb.Sequential([fb.Dense(2, 2)]).parameters(), lr=0.1, **clip)
