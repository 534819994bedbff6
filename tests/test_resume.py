"""A run that is killed and resumed ends with the bits of one that never stopped; a checkpoint is never half a file."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fastbp as fb

# What a user's script looks like: the same command starts and resumes the run.
SCRIPT = """
import hashlib, json, sys
import numpy as np
import fastbp as fb

path, kind, epochs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(0)
X, y = rng.standard_normal((600, 6)), rng.integers(0, 3, 600)
model = fb.Sequential(
    [fb.Dense(6, 40), fb.BatchNorm(40), fb.Activation("relu"), fb.Dropout(0.3), fb.Dense(40, 20, activation="gelu"),
     fb.LayerNorm(20), fb.Dense(20, 3)], seed=1)
params, s, steps = model.parameters(), fb.schedules, epochs * 10
optimizer, *callbacks = [
    lambda: [fb.SGD(params, lr=s.Cosine(0.1, steps), momentum=0.9, nesterov=True)],
    lambda: [fb.Adam(params, lr=s.OneCycle(0.01, steps), clip_norm=1.0), fb.EarlyStopping(patience=40)],
    lambda: [fb.AdamW(params, lr=s.Step(0.01, 50, gamma=0.5), decay_bias=False)],
    lambda: [fb.RMSprop(params, lr=s.Exponential(0.01, 0.99), momentum=0.5)],
    lambda: [fb.Adagrad(params, lr=s.InverseScaling(0.1), clip_value=0.1)],
    lambda: [fb.SGD(params, lr=s.Constant(0.1)), fb.ReduceLROnPlateau(factor=0.5, patience=2)],
    lambda: [fb.Adam(params, lr=0.01), fb.EarlyStopping(patience=6, monitor="val_accuracy")],
][kind]()
print("ready", flush=True)
checkpoint = fb.Checkpoint(path, every=1 + kind % 3)
history = model.fit(X[:500], y[:500], "cross_entropy", optimizer, epochs=epochs, batch_size=50,
                    validation_data=(X[500:], y[500:]), callbacks=[checkpoint, *callbacks],
                    seed=None if kind % 2 else 7, verbose=0, resume=path).history
del history["samples_per_second"]
norm = model.layers[1]
digest = hashlib.sha256(params.values.tobytes() + norm.running_mean.tobytes() + norm.running_var.tobytes())
for name, vector in sorted(optimizer.state_vectors.items()):
    digest.update(name.encode() + vector.tobytes())
with open(path + ".json", "w") as file:
    json.dump([digest.hexdigest(), optimizer.steps, optimizer.lr, model.epochs, history], file)
"""


def start(path, kind, epochs):
    command = [sys.executable, "-c", SCRIPT, str(path), str(kind), str(epochs)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def finish(path, process):
    """What the run ended with."""
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return Path(f"{path}.json").read_text()


KILLED = 1 if os.name == "nt" else -signal.SIGKILL  # what a process that was killed ends with


@pytest.mark.parametrize("kind", range(7))
def test_a_killed_run_goes_on_with_the_same_bits(kind, tmp_path):
    """Seven killings for each of seven runs, and one for luck: fifty moments, a new choice every time."""
    whole, path = tmp_path / "whole.npz", tmp_path / "run.npz"
    process, began = start(whole, kind, 40), time.perf_counter()
    expected = finish(whole, process)
    duration, killed = time.perf_counter() - began, 0
    for _ in range(7 + (kind == 0)):
        process = start(path, kind, 40)
        time.sleep(random.uniform(0, 0.8 * duration))
        process.kill()
        process.communicate()
        killed += process.returncode == KILLED
        if path.exists():
            fb.Checkpoint.load(path)  # never half a file
    assert killed > 0
    assert finish(path, start(path, kind, 40)) == expected
    assert finish(path, start(path, kind, 40)) == expected  # it is over: nothing more is trained


def trained(epochs, **settings):
    model = fb.Sequential([fb.Dense(3, 8, activation="relu"), fb.Dense(8, 1)], seed=0)
    optimizer = fb.Adam(model.parameters(), lr=0.01)
    X = np.random.default_rng(0).standard_normal((100, 3))
    history = model.fit(X, X[:, 0] ** 2, "mse", optimizer, epochs=epochs, verbose=0, **settings)
    return model.parameters().values.tobytes(), history.history["loss"]


def test_more_epochs_than_before(any_backend, tmp_path):
    path = tmp_path / "run.npz"
    trained(4, callbacks=[fb.Checkpoint(path, every=3)])  # and after the last one
    assert trained(9, callbacks=[fb.Checkpoint(path)], resume=path) == trained(9)


def test_without_a_file_a_run_begins(tmp_path):
    assert trained(3, resume=tmp_path / "none.npz") == trained(3)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_stop_stays_a_stop(stopped, tmp_path):
    class Stop(fb.Callback):
        def on_epoch_end(self, epoch, logs):
            self.model.stop_training = stopped and epoch == 2

    settings = dict(callbacks=[Stop(), fb.Checkpoint(tmp_path / "run.npz")], resume=tmp_path / "run.npz")
    trained(3, **settings)
    assert len(trained(5, **settings)[1]) == (3 if stopped else 5)


class Counter(fb.Callback):
    """A callback of the user's with a state of its own."""

    def __init__(self):
        self.seen = np.zeros(2)

    def on_epoch_end(self, epoch, logs):
        self.seen += [1, logs["loss"]]

    def state(self):
        return {"seen": self.seen}

    def set_state(self, state):
        self.seen = state["seen"]


def test_callbacks_go_on(tmp_path):
    path, whole, resumed = tmp_path / "run.npz", Counter(), Counter()
    trained(6, callbacks=[whole])
    trained(3, callbacks=[fb.Checkpoint(path), Counter()])
    trained(6, callbacks=[fb.Checkpoint(path), resumed], resume=path)
    assert np.array_equal(whole.seen, resumed.seen)
    board = pytest.importorskip("tensorboard") and fb.TensorBoard(tmp_path / "runs")
    trained(2, callbacks=[fb.Checkpoint(path), board])
    later = fb.TensorBoard(tmp_path / "runs")
    trained(4, callbacks=[fb.Checkpoint(path), later], resume=path)
    assert (board._epochs, later._epochs) == (2, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(layers=[fb.Dense(3, 4)]), r"resume: expected layers\[1\] None as in this run, got Dense\("),
        (dict(layers=[fb.Dense(3, 5), fb.Dense(5, 1)]), r"resume: expected layers\[0\] Dense\(in_features=3, out_f"),
        (dict(dtype="float64"), "resume: expected dtype float64 as in this run, got float32"),
        (dict(optimizer=fb.SGD), "resume: expected optimizer SGD as in this run, got Adam"),
        (dict(settings={"betas": (0.8, 0.9)}), r"resume: expected betas \(0.8, 0.9\) as in this run, got \(0.9, 0.999"),
        (dict(callbacks=[]), r"resume: expected callbacks \[\] as in this run, got \['Checkpoint'\]"),
        (dict(file=b"no checkpoint"), "path: expected a model saved by fastbp"),
    ],
)
def test_another_run_is_refused_and_nothing_changed(change, message, tmp_path):
    path = tmp_path / "run.npz"
    x, y = np.ones((4, 3)), np.ones((4, 1))
    model = fb.Sequential([fb.Dense(3, 4), fb.Dense(4, 1)], seed=0)
    model.fit(x, y, "mse", fb.Adam(model.parameters()), callbacks=[fb.Checkpoint(path)], verbose=0)
    if "file" in change:
        path.write_bytes(change["file"])
    model = fb.Sequential(change.get("layers", [fb.Dense(3, 4), fb.Dense(4, 1)]), change.get("dtype", "float32"), 0)
    optimizer = change.get("optimizer", fb.Adam)(model.parameters(), 0.1, **change.get("settings", {}))
    before = model.parameters().values.copy()
    with pytest.raises(ValueError, match=message):
        model.fit(
            x, np.ones((4, model.outputs)), "mse", optimizer, resume=path, verbose=0,
            callbacks=change.get("callbacks", [fb.Checkpoint(path)]),
        )  # fmt: skip
    assert np.array_equal(model.parameters().values, before)
    assert optimizer.steps == 0


FAILING = """
import os, resource, sys
import numpy as np
import fastbp as fb

path, way = sys.argv[1:]
model = fb.Sequential([fb.Dense(100, 50), fb.Dense(50, 1)], seed=0)
optimizer = fb.Adam(model.parameters())

class Break(fb.Callback):
    def on_epoch_end(self, epoch, logs):
        if epoch == 2 and way == "full":  # a disk with no room for another
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        elif epoch == 2:  # a directory that is not ours
            os.chmod(os.path.dirname(path), 0o500)
            if os.getuid() == 0:
                os.seteuid(65534)

try:
    model.fit(np.ones((10, 100)), np.ones(10), "mse", optimizer, 5, verbose=0, callbacks=[Break(), fb.Checkpoint(path)])
except OSError as error:
    print(type(error).__name__, error)
os.seteuid(os.getuid())
print(optimizer.steps, len(model.history), os.listdir(os.path.dirname(path)))
model.predict(np.ones((1, 100)))
"""


@pytest.mark.skipif(os.name != "posix", reason="limits and permissions of POSIX")
@pytest.mark.parametrize(("way", "error"), [("full", "OSError"), ("readonly", "PermissionError")])
def test_a_write_that_fails_leaves_the_last_good_checkpoint(way, error, tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    path = folder / "run.npz"
    command = [sys.executable, "-c", FAILING, str(path), way]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    folder.chmod(0o700)
    assert result.returncode == 0, result.stderr
    said, state = result.stdout.splitlines()
    assert said.startswith(f"{error} [Errno ")
    assert said.endswith(f": '{path}'")
    assert state == "3 3 ['run.npz']"
    assert fb.Checkpoint.load(path)[2] == 2


def test_two_checkpoints_and_any_state_go_on(tmp_path):
    """A file has the state of all callbacks after its epoch, whichever of them writes it, and arrays of any numbers."""

    class Flags(Counter):
        def state(self):
            return {"seen": self.seen, "flags": self.seen > 1, "bytes": self.seen.astype("u1"), "count": np.int64(3)}

    def keep(name):
        last, best = (
            fb.Checkpoint(tmp_path / f"{name}.npz"),
            fb.Checkpoint(tmp_path / f"{name}-best.npz", best_only=True),
        )
        return [last, best, Flags()]

    whole, part, resumed = keep("whole"), keep("run"), keep("run")
    trained(5, callbacks=whole)
    trained(2, callbacks=part)
    trained(5, callbacks=resumed, resume=tmp_path / "run.npz")
    assert (resumed[1].best, resumed[1].best_epoch) == (whole[1].best, whole[1].best_epoch)
    assert np.array_equal(resumed[2].seen, whole[2].seen)

    class Odd(fb.Callback):
        def state(self):
            return {"what": [1, 2]}

    with pytest.raises(TypeError, match=r"callbacks\[0\]: expected numbers, .* in the state of a Odd, got \[1, 2\]"):
        trained(1, callbacks=[Odd(), fb.Checkpoint(tmp_path / "odd.npz")])


@pytest.mark.filterwarnings("ignore:training has diverged:RuntimeWarning")
def test_the_best_weights_go_on_too(tmp_path):
    def run(epochs, **settings):
        model = fb.Sequential([fb.Dense(1, 1)], dtype="float64", seed=0)
        optimizer = fb.SGD(model.parameters(), fb.schedules.Exponential(0.01, 3.0))  # learns, then diverges
        x = np.linspace(-1, 1, 20)[:, None]
        model.fit(
            x, 2 * x, "mse", optimizer, epochs=epochs, batch_size=20, verbose=0, on_divergence="restore", **settings
        )
        return model.parameters().values.tobytes(), len(model.history)

    path = tmp_path / "run.npz"
    whole = run(500)
    run(whole[1] - 1, callbacks=[fb.Checkpoint(path)])
    assert run(500, callbacks=[fb.Checkpoint(path)], resume=path) == whole


def test_other_log_names_are_refused(tmp_path):
    path = tmp_path / "run.npz"
    trained(2, callbacks=[fb.Checkpoint(path)])
    with pytest.raises(ValueError, match=r"resume: expected log_names \[.*'val_loss'\] as in this run, got"):
        trained(3, callbacks=[fb.Checkpoint(path)], resume=path, validation_data=(np.ones((2, 3)), np.ones(2)))


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / "run.npz.tmp4711").write_bytes(b"half")
    trained(1, callbacks=[fb.Checkpoint(tmp_path / "run.npz")])
    assert os.listdir(tmp_path) == ["run.npz"]
    with pytest.raises(FileNotFoundError):
        trained(1, callbacks=[fb.Checkpoint(tmp_path / "none" / "run.npz")])
