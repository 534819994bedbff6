"""Checkpoints go on bit for bit, in another process too; what is wrong with a file is said and harms nothing."""

import contextlib
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import fastbp as fb

SCRIPT = """
import sys, numpy as np, fastbp as fb
rng = np.random.default_rng(0)
X, y = rng.standard_normal((100, 6)), rng.integers(0, 3, 100)
def begin():
    model = fb.Sequential([fb.Dense(6, 20), fb.BatchNorm(20), fb.Activation("relu"), fb.Dropout(0.3), fb.Dense(20, 3)],
                          seed=4)
    schedule = fb.schedules.OneCycle(0.01, 40)
    return model, fb.AdamW(model.parameters(), lr=schedule, betas=(0.8, 0.99), decay_bias=False, clip_norm=1.0), 0
def train(model, optimizer, epochs, **settings):
    model.fit(X, y, "cross_entropy", optimizer, epochs=epochs, verbose=0, **settings)
    return model.parameters().values.tobytes() + model.model.statistics.tobytes()
"""


@pytest.mark.parametrize("settings", [{}, {"seed": 3}])
def test_an_interrupted_run_goes_on_in_another_process(settings, tmp_path):
    names: dict = {}
    exec(SCRIPT, names)
    begin, train, path = names["begin"], names["train"], tmp_path / "run.npz"
    whole = train(*begin()[:2], 5, **settings)
    train(*begin()[:2], 3, callbacks=[fb.Checkpoint(path)], **settings)
    code = SCRIPT + (
        f"model, optimizer, done = fb.Checkpoint.load({str(path)!r})\n"
        "assert done == 3 and optimizer.schedule.steps == 40\n"
        "sys.stdout.buffer.write(train(model, optimizer, 5 - done))"
    )
    resumed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert resumed == whole


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
def test_every_optimizer_and_many_checkpoints(kind, tmp_path):
    X, y, path = np.ones((20, 3)), np.ones((20, 2)), tmp_path / "run.npz"
    model = fb.Sequential([fb.Dense(3, 2)], dtype="float64", seed=0)
    optimizer = getattr(fb, kind)(model.parameters(), lr=0.01, weight_decay=0.1)
    for epochs in (2, 4):  # again from a checkpoint
        model.fit(X, y, "mse", optimizer, epochs=2, verbose=0, callbacks=[fb.Checkpoint(path)])
        np.testing.assert_array_equal(fb.load(path).predict(X), model.predict(X))
        expected = optimizer.state_dict()
        model, optimizer, done = fb.Checkpoint.load(path)
        assert (done, type(optimizer), optimizer.lr) == (epochs, getattr(fb, kind), 0.01)
        assert all(np.array_equal(value, expected[name]) for name, value in optimizer.state_dict().items())


def test_best_only(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "run.npz"
    X, y = rng.standard_normal((20, 5)), rng.standard_normal((20, 1))
    model = fb.Sequential([fb.Dense(5, 64, activation="relu"), fb.Dense(64, 1)], seed=0)
    watch = fb.Checkpoint(path, best_only=True)
    history = model.fit(
        X, y, "mse", fb.Adam(model.parameters(), lr=0.05), epochs=60, verbose=0, callbacks=[watch],
        validation_data=(X[::-1], y),
    ).history["val_loss"]  # fmt: skip
    assert watch.best == min(history) < history[-1]
    best, _, done = fb.Checkpoint.load(path)
    assert done == watch.best_epoch + 1
    assert best.evaluate(X[::-1], y, "mse")["loss"] == min(history)


def written(tmp_path):
    path = tmp_path / "run.npz"
    model = fb.Sequential([fb.Dense(3, 2)], seed=0)
    X, y = np.ones((20, 3)), np.ones((20, 2))
    model.fit(X, y, "mse", fb.Adam(model.parameters()), verbose=0, callbacks=[fb.Checkpoint(path)])
    return path


def test_damaged_files(tmp_path):
    """Every byte is covered by a checksum: a file with another byte reads as it was, or not at all."""
    path = written(tmp_path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    expected = fb.load(path).parameters().values.tobytes()
    for at in rng.integers(0, len(whole), 300):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.integers(8)]) + whole[at + 1 :])
        for load in (fb.load, lambda path: fb.Checkpoint.load(path)[0]):
            with contextlib.suppress(fb.FileFormatError):
                assert load(path).parameters().values.tobytes() == expected
    for at in rng.integers(0, len(whole), 50):
        path.write_bytes(whole[:at])
        with pytest.raises(fb.FileFormatError):
            fb.Checkpoint.load(path)


def rewritten(path, change):
    """The file with another header."""
    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(str(arrays["header"]))
    change(header)
    np.savez(path, **arrays | {"header": np.array(json.dumps(header))})


HEADERS = [
    (lambda h: h.update(format=99), "format 1 or older, got 99"),
    (lambda h: h.pop("checkpoint"), "expected a checkpoint, got a model alone"),
    (lambda h: h["checkpoint"].update(optimizer=["real_number", {}]), "'real_number' is no Optimizer"),
    (lambda h: h["checkpoint"].update(optimizer=["SGD", {"momentum": 7}]), "momentum: expected a number in"),
    (lambda h: h["checkpoint"].update(schedule=["math", {}]), "'math' is no Schedule"),
    (lambda h: h["checkpoint"].update(steps=-1), "expected a number of steps"),
    (lambda h: h["checkpoint"].update(orders={"bit_generator": "MT19937"}), "PRNG|PCG64"),
    (lambda h: h["layers"][0].update(in_features=10**9), "path: expected a model saved by fastbp"),
]


@pytest.mark.parametrize(("change", "message"), HEADERS)
def test_foreign_headers(change, message, tmp_path):
    path = written(tmp_path)
    rewritten(path, change)
    with pytest.raises(fb.FileFormatError, match=message):
        fb.Checkpoint.load(path)


def test_nothing_in_a_file_is_executed(tmp_path):
    path = tmp_path / "run.npz"
    np.savez(path, header=np.array([print], object))
    with pytest.raises(fb.FileFormatError, match="no array of numbers"):
        fb.load(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(
            "header.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (1" + b"0" * 14
        )
    with pytest.raises(fb.FileFormatError):
        fb.load(path)


class Own(fb.SGD):
    pass


def test_what_a_file_cannot_hold(tmp_path):
    X, y = np.ones((20, 3)), np.ones((20, 2))
    model = fb.Sequential([fb.Dense(3, 2)], seed=0)
    before = model.parameters().values.tobytes()
    halved = type("Halved", (fb.schedules.Schedule,), {"__call__": lambda self, t: 0.5**t})()
    twister = np.random.Generator(np.random.MT19937(0))
    for optimizer, seed, message in (
        (Own(model.parameters(), lr=0.1), None, "optimizer: expected one of fastbp's"),
        (fb.SGD(model.parameters(), lr=halved), None, "lr: expected a number or one of fb.schedules"),
        (fb.SGD(model.parameters(), lr=0.1), twister, "seed: expected a generator on PCG64"),
    ):
        with pytest.raises(TypeError, match=message):
            model.fit(X, y, "mse", optimizer, verbose=0, seed=seed, callbacks=[fb.Checkpoint(tmp_path / "run.npz")])
    assert model.parameters().values.tobytes() == before
    assert list(tmp_path.iterdir()) == []
