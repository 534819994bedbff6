"""Files of every kind and every released format load for ever, with the numbers that were put into them.

    python tests/contracts/test_files.py folder     writes today's files into a new folder beside this script

A folder of ``files/`` is what one version wrote. None is ever changed; a version with another format adds its own.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

import fastbp as fb

FILES = Path(__file__).with_name("files")
SAMPLES = 40


def every_layer():
    return [
        fb.TabularInput(3, [5, 40], embedding_dim=[2, 7], unknown="reserve"),
        fb.Dense(12, 8, "gelu"),
        fb.BatchNorm(8, momentum=0.2, eps=1e-4),
        fb.Activation("elu"),
        fb.Dropout(0.25),
        fb.Dense(8, 6, "tanh", bias=False),
        fb.LayerNorm(6, eps=1e-3),
        fb.Dense(6, 4),
    ]


def activations():
    names = ["relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid", "softplus"]
    return [fb.Embedding(30, 2, columns=5), fb.Dense(10, 4), *(fb.Dense(4, 4, name) for name in names)]


def small():
    return [fb.Dense(5, 6, "relu"), fb.BatchNorm(6), fb.Dropout(0.5), fb.Dense(6, 4)]


MODELS = {"every-layer-float32": (every_layer, "float32"), "activations-float64": (activations, "float64")}
TENSORS = {"dense-batchnorm-float32": (small, "float32"), "dense-float64": (lambda: [fb.Dense(5, 4)], "float64")}
OPTIMIZERS = {
    "sgd": lambda p: fb.SGD(p, 0.05),
    "momentum": lambda p: fb.SGD(p, fb.schedules.Step(0.05, 3), momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: fb.Adam(p, fb.schedules.Exponential(0.01, 0.99), betas=(0.8, 0.99), eps=1e-7, clip_norm=1.0),
    "adamw": lambda p: fb.AdamW(p, fb.schedules.Cosine(0.01, 50), weight_decay=0.1, decay_bias=False),
    "rmsprop": lambda p: fb.RMSprop(p, fb.schedules.OneCycle(0.01, 50), alpha=0.9, momentum=0.5, clip_value=0.5),
    "adagrad": lambda p: fb.Adagrad(p, fb.schedules.InverseScaling(0.05)),
}


def pattern(size, seed):
    """Sixteenths in (0, 2): exact in every dtype, and none is zero or negative, as a variance may not be."""
    return ((np.arange(1, size + 1) * (2 * seed + 3)) % 31 + 1) / 16


def fill(model):
    """Give every tensor its pattern, running statistics too."""
    for seed, array in enumerate(tensors(model).values()):
        array[...] = pattern(array.size, seed).reshape(array.shape)


def tensors(model):
    found = {name: model.parameters().value(name) for name in model.parameters().shapes}
    for i, layer in enumerate(model.layers):
        if isinstance(layer, fb.BatchNorm):
            found |= {f"{i}.running_mean": layer.running_mean, f"{i}.running_var": layer.running_var}
    return found


def check_filled(model, layers, dtype):
    assert model.dtype == dtype
    assert [repr(layer) for layer in model.layers] == [repr(layer) for layer in layers]
    for seed, (name, array) in enumerate(tensors(model).items()):
        np.testing.assert_array_equal(array, pattern(array.size, seed).reshape(array.shape), err_msg=name)


def data():
    X = pattern(SAMPLES * 5, 5).reshape(SAMPLES, 5) - 1
    return X, np.arange(SAMPLES) ** 2 % 4


def run(optimizer, epochs, path, resume=None):
    """A training that writes a checkpoint to path, and may go on from another one."""
    model = fb.Sequential(small(), seed=1)
    chosen = OPTIMIZERS[optimizer](model.parameters())
    X, y = data()
    callbacks = [fb.EarlyStopping(patience=9), *([fb.ReduceLROnPlateau(patience=9)] if optimizer == "sgd" else [])]
    model.fit(
        X, y, "cross_entropy", chosen, epochs=epochs, batch_size=7, validation_data=(X, y),
        callbacks=[*callbacks, fb.Checkpoint(path)], verbose=0, on_divergence="restore", resume=resume,
    )  # fmt: skip
    return model, chosen


def versions():
    return sorted(path.name for path in FILES.iterdir())


@pytest.mark.parametrize("version", versions())
@pytest.mark.parametrize("name", MODELS)
def test_models_load(version, name):
    layers, dtype = MODELS[name]
    check_filled(fb.load(FILES / version / f"model-{name}.npz"), layers(), dtype)


@pytest.mark.parametrize("version", versions())
@pytest.mark.parametrize("name", TENSORS)
def test_safetensors_load(version, name):
    pytest.importorskip("safetensors")
    import fastbp.safetensors

    layers, dtype = TENSORS[name]
    model = fb.Sequential(layers(), dtype=dtype, seed=0)
    fastbp.safetensors.load(model, FILES / version / f"{name}.safetensors")
    check_filled(model, layers(), dtype)


@pytest.mark.parametrize("version", versions())
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_checkpoints_load(version, name):
    path = FILES / version / f"checkpoint-{name}.npz"
    model, optimizer, epochs = fb.Checkpoint.load(path)
    expected = OPTIMIZERS[name](model.parameters())
    assert (epochs, optimizer.steps, type(optimizer)) == (2, 12, type(expected))
    assert (type(optimizer.schedule), vars(optimizer.schedule)) == (type(expected.schedule), vars(expected.schedule))
    settings = (
        "momentum",
        "nesterov",
        "betas",
        "eps",
        "alpha",
        "weight_decay",
        "decay_bias",
        "clip_norm",
        "clip_value",
    )
    for setting in settings:
        assert getattr(optimizer, setting, None) == pytest.approx(getattr(expected, setting, None)), setting
    assert [repr(layer) for layer in model.layers] == [repr(layer) for layer in small()]
    assert np.isfinite(model.parameters().values).all()
    assert all(np.abs(v).sum() > 0 for v in optimizer.state_dict().values() if isinstance(v, np.ndarray))


@pytest.mark.parametrize("version", versions())
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_checkpoints_go_on(version, name, tmp_path):
    """As a run that never stopped; the first epochs may have been another CPU's, so not to the bit."""
    path = FILES / version / f"checkpoint-{name}.npz"
    resumed, optimizer = run(name, 4, tmp_path / "resumed.npz", resume=path)
    straight, _ = run(name, 4, tmp_path / "straight.npz")
    assert (resumed.epochs, optimizer.steps) == (4, 24)
    assert len(resumed.history) == 4
    np.testing.assert_allclose(resumed.history.history["val_loss"], straight.history.history["val_loss"], rtol=1e-3)
    np.testing.assert_allclose(resumed.parameters().values, straight.parameters().values, rtol=1e-2, atol=1e-3)


def write(folder):
    import fastbp.safetensors

    folder.mkdir(parents=True)
    for name, (layers, dtype) in MODELS.items():
        model = fb.Sequential(layers(), dtype=dtype, seed=0)
        fill(model)
        model.save(folder / f"model-{name}.npz")
    for name, (layers, dtype) in TENSORS.items():
        model = fb.Sequential(layers(), dtype=dtype, seed=0)
        fill(model)
        fastbp.safetensors.save(model, folder / f"{name}.safetensors")
    for name in OPTIMIZERS:
        run(name, 2, folder / f"checkpoint-{name}.npz")


if __name__ == "__main__":
    write(FILES / sys.argv[1])
