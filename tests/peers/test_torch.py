"""The same training in PyTorch: initial weights, batch order, optimizer. Skipped where PyTorch is not installed."""

import copy

import numpy as np
import pytest

import fastbp as fb
from fastbp.layers.tree import walk

torch = pytest.importorskip("torch")
nn = torch.nn

# Fifty steps stay together to a few hundred roundings: the nets are smooth and the learning rates moderate.
RELATIVE = {"float32": 1e-4, "float64": 1e-9}
ACTIVATION = {
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(),
    "elu": nn.ELU(),
    "gelu": nn.GELU(),
    "silu": nn.SiLU(),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "softplus": nn.Softplus(),
}


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class Concatenate(nn.ModuleDict):
    def forward(self, x):
        return torch.cat([branch(x) for branch in self.values()], dim=1)


def replica(model):
    """The torch.nn.Sequential with the same layers and parameters."""
    return nn.Sequential(*replicas(model.layers, model.dtype))


def replicas(layers, dtype):
    modules = []
    for layer in layers:
        if isinstance(layer, fb.Residual):
            modules.append(Residual(*replicas(layer.layers, dtype)))
            continue
        if isinstance(layer, fb.Concatenate):
            branches = {str(key): nn.Sequential(*replicas(inside, dtype)) for key, inside in layer.branches.items()}
            modules.append(Concatenate(branches))
            continue
        if isinstance(layer, fb.Dense):
            module = nn.Linear(layer.in_features, layer.out_features, bias=layer.has_bias)
        elif isinstance(layer, fb.BatchNorm):
            module = nn.BatchNorm1d(layer.n, momentum=layer.momentum, eps=layer.eps)
        elif isinstance(layer, fb.LayerNorm):
            module = nn.LayerNorm(layer.n, eps=layer.eps)
        else:
            module = ACTIVATION[layer.name]
        module.to(getattr(torch, dtype.name))
        if hasattr(layer, "weight"):
            with torch.no_grad():
                module.weight.copy_(torch.tensor(layer.weight.T.copy()))
                if layer.bias is not None:
                    module.bias.copy_(torch.tensor(layer.bias))
        modules.append(module)
        if isinstance(layer, fb.Dense) and layer.activation:
            modules.append(ACTIVATION[layer.activation])
    return modules


def train_both(model, optimizer, make_torch_optimizer, loss, torch_loss, X, y, steps=50, batch=32, weight=None):
    net = replica(model)
    torch_optimizer = make_torch_optimizer(net.parameters())
    ours, theirs = [], []
    order = np.random.default_rng(3)
    for _ in range(steps):
        rows = order.integers(0, len(X), batch)
        of_rows = () if weight is None else (weight[rows],)
        ours.append(model.train_on_batch(X[rows], y[rows], loss, optimizer, *of_rows))
        torch_optimizer.zero_grad()
        value = torch_loss(net(torch.tensor(X[rows])), torch.tensor(y[rows]), *map(torch.tensor, of_rows))
        value.backward()
        torch_optimizer.step()
        theirs.append(value.item())
    tolerance = RELATIVE[model.dtype.name]
    np.testing.assert_allclose(ours, theirs, rtol=tolerance)
    dense = [place.layer for place in walk(model.layers) if isinstance(place.layer, fb.Dense)]
    for layer, module in zip(dense, (m for m in net.modules() if isinstance(m, nn.Linear)), strict=True):
        weight = module.weight.detach().numpy().T
        np.testing.assert_allclose(layer.weight, weight, rtol=0, atol=tolerance * np.abs(weight).max())
    return net


def classification(dtype, inputs=10, classes=5):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((500, inputs)).astype(dtype)
    return X, (X @ rng.standard_normal((inputs, classes))).argmax(axis=1)


def net_with(dtype, activation="tanh", extra=()):
    return fb.Sequential([fb.Dense(10, 32, activation=activation), *extra, fb.Dense(32, 5)], dtype=dtype, seed=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", list(ACTIVATION))
def test_activations(compiled, dtype, activation):
    model = net_with(dtype, activation)
    optimizer = fb.SGD(model.parameters(), lr=0.05)
    X, y = classification(dtype)
    train_both(model, optimizer, lambda p: torch.optim.SGD(p, lr=0.05), "cross_entropy", nn.CrossEntropyLoss(), X, y)


OPTIMIZERS = [
    (fb.SGD, torch.optim.SGD, dict(lr=0.05, momentum=0.9, weight_decay=0.01)),
    (fb.SGD, torch.optim.SGD, dict(lr=0.05, momentum=0.9, nesterov=True)),
    (fb.Adam, torch.optim.Adam, dict(lr=0.003, weight_decay=0.01)),
    (fb.AdamW, torch.optim.AdamW, dict(lr=0.003, weight_decay=0.1)),
    (fb.RMSprop, torch.optim.RMSprop, dict(lr=0.001, momentum=0.5, weight_decay=0.01)),
    (fb.Adagrad, torch.optim.Adagrad, dict(lr=0.01, weight_decay=0.01)),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("ours", "theirs", "settings"), OPTIMIZERS)
def test_optimizers(any_backend, dtype, ours, theirs, settings):
    model = net_with(dtype)
    X, y = classification(dtype)
    optimizer = ours(model.parameters(), **settings)
    train_both(model, optimizer, lambda p: theirs(p, **settings), "cross_entropy", nn.CrossEntropyLoss(), X, y)


@pytest.mark.parametrize(("ours", "theirs"), [(fb.SGD, torch.optim.SGD), (fb.AdamW, torch.optim.AdamW)])
def test_biases_and_normalisations_without_decay(any_backend, ours, theirs):
    """PyTorch's idiom is two groups of parameters."""
    model = net_with("float64", None, [fb.LayerNorm(32), fb.Activation("silu")])
    X, y = classification("float64")
    optimizer = ours(model.parameters(), lr=0.01, weight_decay=0.5, decay_bias=False)

    def make(parameters):
        parameters = list(parameters)
        groups = [dict(params=[p for p in parameters if p.ndim == n], weight_decay=0.5 * (n == 2)) for n in (1, 2)]
        return theirs(groups, lr=0.01)

    net = train_both(model, optimizer, make, "cross_entropy", nn.CrossEntropyLoss(), X, y)
    np.testing.assert_allclose(model.layers[1].weight, net[1].weight.detach(), rtol=RELATIVE["float64"])
    np.testing.assert_allclose(model.layers[0].bias, net[0].bias.detach(), rtol=0, atol=RELATIVE["float64"])


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normalisation(any_backend, dtype, norm):
    layer = fb.BatchNorm(32) if norm == "batch" else fb.LayerNorm(32)
    model = net_with(dtype, None, [layer, fb.Activation("silu")])
    X, y = classification(dtype)
    optimizer = fb.SGD(model.parameters(), lr=0.05)
    net = train_both(
        model, optimizer, lambda p: torch.optim.SGD(p, lr=0.05), "cross_entropy", nn.CrossEntropyLoss(), X, y
    )
    net.eval()
    expected = net(torch.tensor(X)).detach().numpy()
    np.testing.assert_allclose(model.predict(X), expected, rtol=RELATIVE[dtype], atol=10 * RELATIVE[dtype])
    if norm == "batch":
        np.testing.assert_allclose(layer.running_var, net[1].running_var, rtol=RELATIVE[dtype])


LOSSES = [
    (fb.MSE(), nn.MSELoss()),
    (fb.MAE(), nn.L1Loss()),
    (fb.Huber(0.5), nn.HuberLoss(delta=0.5)),
    (fb.Poisson(), nn.PoissonNLLLoss(log_input=True)),
    (fb.BinaryCrossEntropy(), nn.BCEWithLogitsLoss()),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("loss", "torch_loss"), LOSSES, ids=[type(a).__name__ for a, _ in LOSSES])
def test_losses(any_backend, dtype, loss, torch_loss):
    model = net_with(dtype)
    X, _ = classification(dtype)
    y = np.random.default_rng(1).random((500, 5)).astype(dtype)
    optimizer = fb.SGD(model.parameters(), lr=0.02)
    train_both(model, optimizer, lambda p: torch.optim.SGD(p, lr=0.02), loss, torch_loss, X, y)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weighted_smoothed_cross_entropy(any_backend, dtype):
    model = net_with(dtype)
    X, y = classification(dtype)
    weight = np.array([1, 0.5, 2, 0.1, 3])
    torch_loss = nn.CrossEntropyLoss(weight=torch.tensor(weight.astype(dtype)), label_smoothing=0.1)
    optimizer = fb.SGD(model.parameters(), lr=0.05)
    loss = fb.CrossEntropy(label_smoothing=0.1, class_weight=weight)
    train_both(model, optimizer, lambda p: torch.optim.SGD(p, lr=0.05), loss, torch_loss, X, y)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_samples_and_classes_with_weights(any_backend, dtype):
    model = net_with(dtype)
    X, y = classification(dtype)
    of_class, of_sample = np.array([1, 0.5, 2, 0.1, 3], dtype), np.random.default_rng(1).random(500).astype(dtype)

    def torch_loss(pred, target, weight):
        each = nn.functional.cross_entropy(pred, target, torch.tensor(of_class), label_smoothing=0.1, reduction="none")
        return (weight * each).sum() / (weight * torch.tensor(of_class)[target]).sum()

    optimizer = fb.SGD(model.parameters(), lr=0.05)
    loss = fb.CrossEntropy(label_smoothing=0.1, class_weight=of_class)
    train_both(model, optimizer, lambda p: torch.optim.SGD(p, lr=0.05), loss, torch_loss, X, y, weight=of_sample)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("loss", "torch_loss"), LOSSES, ids=[type(a).__name__ for a, _ in LOSSES])
def test_losses_with_sample_weights(any_backend, dtype, loss, torch_loss):
    model = net_with(dtype)
    X, _ = classification(dtype)
    y = np.random.default_rng(1).random((500, 5)).astype(dtype)
    weight = np.random.default_rng(2).random(500).astype(dtype)
    each = copy.copy(torch_loss)
    each.reduction = "none"

    def weighted(pred, target, weight):
        return (weight * each(pred, target).mean(dim=1)).sum() / weight.sum()

    optimizer = fb.SGD(model.parameters(), lr=0.02)
    train_both(model, optimizer, lambda p: torch.optim.SGD(p, lr=0.02), loss, weighted, X, y, weight=weight)


def masked_mse(pred, target):
    present = ~torch.isnan(target)
    return ((pred - torch.nan_to_num(target)) ** 2)[present].mean()


def soft_with_class_weights(pred, target):
    """PyTorch divides by the number of samples, fastbp by their weight, as both do for labels."""
    weight = torch.tensor([1, 0.5, 2, 0.1, 3], dtype=pred.dtype)
    return nn.functional.cross_entropy(pred, target, weight, reduction="sum") / (target @ weight).sum()


binary = nn.functional.binary_cross_entropy_with_logits


def weighted_binary(pred, target):
    return binary(pred, target, pos_weight=torch.tensor([1, 2, 3, 0.5, 0], dtype=pred.dtype))


def with_holes(y):
    return np.where(np.random.default_rng(2).random(y.shape) < 0.3, np.nan, y).astype(y.dtype)


def of_three_levels(pred, target):
    levels = torch.tensor([0.1, 0.5, 0.9, 0.5, 0.2], dtype=pred.dtype)
    e = target[:, :1] - pred
    return torch.maximum(levels * e, (levels - 1) * e).mean()


OPTIONS = {
    "pos_weight": (fb.BinaryCrossEntropy([1, 2, 3, 0.5, 0]), weighted_binary, None),
    "smoothed": (fb.BinaryCrossEntropy(label_smoothing=0.2), lambda p, y: binary(p, 0.8 * y + 0.1), None),
    "soft labels": (fb.CrossEntropy(0.1), nn.CrossEntropyLoss(label_smoothing=0.1),
                    lambda y: (y / y.sum(axis=1, keepdims=True)).astype(y.dtype)),
    "soft labels, classes": (fb.CrossEntropy(class_weight=[1, 0.5, 2, 0.1, 3]), soft_with_class_weights,
                             lambda y: (y / y.sum(axis=1, keepdims=True)).astype(y.dtype)),
    "missing": (fb.MSE(missing="ignore"), masked_mse, with_holes),
    "quantiles": (fb.Quantile([0.1, 0.5, 0.9, 0.5, 0.2]), of_three_levels, lambda y: y[:, :1].copy()),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_losses(any_backend, dtype, option):
    loss, torch_loss, changed = OPTIONS[option]
    model = net_with(dtype)
    X, _ = classification(dtype)
    y = np.random.default_rng(1).random((500, 5)).astype(dtype)
    y = y if changed is None else changed(y)
    optimizer = fb.SGD(model.parameters(), lr=0.02)
    train_both(model, optimizer, lambda p: torch.optim.SGD(p, lr=0.02), loss, torch_loss, X, y)


@pytest.mark.parametrize(("ours", "theirs", "settings"), OPTIMIZERS)
def test_groups(any_backend, ours, theirs, settings):
    """A frozen layer, biases with a rate and a decay of their own: PyTorch's groups, and requires_grad for its norm."""
    model = net_with("float64", None, [fb.Dense(32, 32, "tanh")])
    X, y = classification("float64")
    own, first = dict(lr=0.5, weight_decay=0), model.layers[0].weight.copy()
    groups = {"0.*": {"lr": 0}, "*.bias": own, "0.bias": {"lr": 0}}
    optimizer = ours(model.parameters(), **settings, groups=groups, clip_norm=0.3)

    def make(parameters):
        parameters = list(parameters)
        for frozen in parameters[:2]:
            frozen.requires_grad_(False)
        inner = theirs([
            dict(params=[p for p in parameters[2:] if p.ndim == 2]),
            dict(params=[p for p in parameters[2:] if p.ndim == 1], lr=settings["lr"] / 2, weight_decay=0),
        ], **settings)  # fmt: skip
        step = inner.step

        def clipped():
            nn.utils.clip_grad_norm_(parameters[2:], 0.3)
            step()

        inner.step = clipped
        return inner

    train_both(model, optimizer, make, "cross_entropy", nn.CrossEntropyLoss(), X, y)
    assert (model.layers[0].weight == first).all()


def test_one_cycle_is_pytorchs():
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=50)
    for t in range(50):
        assert fb.schedules.OneCycle(0.1, 50)(t) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        if t < 49:
            schedule.step()


def test_deep_network(compiled):
    model = fb.Sequential(
        [fb.Dense(10, 64, activation="gelu"), fb.Dense(64, 64, activation="relu"), fb.Dense(64, 33, activation="elu"),
         fb.Dense(33, 5)], dtype="float64", seed=1,
    )  # fmt: skip
    X, y = classification("float64")
    optimizer = fb.Adam(model.parameters(), lr=0.002)
    train_both(model, optimizer, lambda p: torch.optim.Adam(p, lr=0.002), "cross_entropy", nn.CrossEntropyLoss(), X, y)


def residual_layers(width=32):
    block = [fb.LayerNorm(width), fb.Dense(width, 48, "gelu"), fb.Dense(48, width)]
    normed = [fb.BatchNorm(width), fb.Activation("silu"), fb.Dense(width, width, "tanh")]
    return [fb.Dense(10, width, "elu"), fb.Residual(block), fb.Residual([fb.Residual(normed)]), fb.Dense(width, 5)]


def split_layers():
    """Heads that read what a residual block gives, one of which is the block's output itself, around another split."""
    inner = fb.Concatenate([fb.Dense(16, 8, "softplus")], [], [fb.Dense(16, 3), fb.Activation("tanh")])
    deep = [fb.Dense(24, 16, "tanh"), inner, fb.Residual([fb.Activation("silu"), fb.Dense(27, 27)])]
    return [
        fb.Dense(10, 24, "silu"), fb.Residual([fb.Dense(24, 24, "tanh")]),
        fb.Concatenate(deep, value=[fb.LayerNorm(24), fb.Dense(24, 7)], same=[]), fb.Activation("gelu"),
        fb.Concatenate(a=[fb.Dense(27 + 7 + 24, 3)], b=[fb.Dense(27 + 7 + 24, 2)]),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layers", [residual_layers, split_layers])
def test_trees(any_backend, dtype, layers):
    model = fb.Sequential(layers(), dtype=dtype, seed=0)
    X, y = classification(dtype)
    optimizer = fb.SGD(model.parameters(), lr=0.02, momentum=0.5)
    net = train_both(
        model, optimizer, lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.5), "cross_entropy", nn.CrossEntropyLoss(),
        X, y,
    )  # fmt: skip
    expected = net.eval()(torch.tensor(X)).detach().numpy()
    np.testing.assert_allclose(model.predict(X), expected, rtol=RELATIVE[dtype], atol=10 * RELATIVE[dtype])


@pytest.mark.parametrize("layers", [residual_layers, split_layers])
def test_trees_by_adam_in_fit(any_backend, layers):
    """The whole epoch in the core, for fifty steps of batches in their order; the gradient of the input at its end."""
    model = fb.Sequential(layers(), dtype="float64", seed=0)
    net, (X, y) = replica(model), classification("float64")
    optimizer, theirs = fb.Adam(model.parameters(), lr=0.002), torch.optim.Adam(net.parameters(), lr=0.002)
    losses = []
    for _ in range(5):
        for begin in range(0, 500, 50):
            theirs.zero_grad()
            value = nn.functional.cross_entropy(
                net(torch.tensor(X[begin : begin + 50])), torch.tensor(y[begin : begin + 50])
            )
            value.backward()
            theirs.step()
            losses.append(value.item())
    history = model.fit(X, y, "cross_entropy", optimizer, epochs=5, batch_size=50, shuffle=False, verbose=0)
    np.testing.assert_allclose(history.history["loss"], np.reshape(losses, (5, 10)).mean(axis=1), rtol=1e-7)
    x = torch.tensor(X[:50], requires_grad=True)
    nn.functional.cross_entropy(net(x), torch.tensor(y[:50])).backward()
    dlogits = fb.CrossEntropy()(model.forward(X[:50], training=True), y[:50])[1]
    dx = model.backward(dlogits, input_gradient=True, parameter_gradients=False)
    np.testing.assert_allclose(dx, x.grad, rtol=0, atol=1e-6 * float(x.grad.abs().max()))
