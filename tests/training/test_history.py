"""What fit shows and returns: lines, bars, plots."""

import copy
import re
import sys
import threading

import numpy as np
import pytest
from networks import blobs, everything

import fastbp as fb

X, Y = np.random.default_rng(0).standard_normal((3000, 5)), np.arange(3000) % 3


def fit(loss="cross_entropy", **settings):
    model = fb.Sequential([fb.Dense(5, 8, activation="relu"), fb.Dense(8, 3)], seed=0)
    history = model.fit(X, Y, loss, fb.SGD(model.parameters(), lr=0.1), epochs=2, seed=0, **settings)
    return model.parameters().values.tobytes(), history


@pytest.mark.parametrize("loss", ["cross_entropy", lambda *given: fb.CrossEntropy()(*given)])
def test_a_bar_changes_nothing(any_backend, capsys, loss):
    pytest.importorskip("tqdm")
    expected, _ = fit(loss, verbose=0)
    assert capsys.readouterr() == ("", "")
    got, history = fit(loss, verbose="bar", validation_data=(X, Y))
    assert got == expected
    shown = capsys.readouterr().err
    assert "epoch 1/2" in shown
    assert re.search(r"epoch 2/2: 100%.* 3.00k/3.00k .*samples/s", shown)
    assert f"val_loss={history.history['val_loss'][1]:.4f}" in shown


def test_a_bar_in_a_profile_moves_once(compiled, capsys):
    """Comparing trains the kept batches again, when the bar is gone."""
    pytest.importorskip("tqdm")
    with fb.profile() as profile:
        fit(verbose="bar")
    shown = capsys.readouterr().err
    assert re.search(r"epoch 2/2: 100%.* 3.00k/3.00k .*samples/s", shown)
    profile.compare("numpy")
    assert capsys.readouterr().err == ""


def test_a_bar_shows_the_loss_of_what_was_trained():
    class Bar:
        n = 0

        def set_postfix(self, figures=None, loss=None, refresh=True):
            self.loss = loss or figures["loss"]

        def update(self, samples):
            self.n += samples

        def close(self):
            pass

    pytest.importorskip("tqdm")
    from fastbp.training.history import Bars

    def train():
        bars.advance(10, 2.0)
        assert (bars._bar.n, bars._bar.loss) == (10, "2.0000")
        bars.advance(20, 1.0)
        assert (bars._bar.n, bars._bar.loss) == (30, "1.0000")
        return {"loss": 1.5}

    bars = Bars(1, 30)
    bars._new = lambda **settings: Bar()
    assert bars.shown(0, train) == {"loss": 1.5}
    assert bars._bar.loss == "1.5000"


def test_a_bar_is_closed_whatever_ends_its_epoch():
    tqdm = pytest.importorskip("tqdm").tqdm
    model, (X, y) = everything(), blobs()
    optimizer = fb.SGD(model.parameters(), lr=0.1)

    def loss(pred, target):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        model.fit(X, y, loss, optimizer, verbose="bar")
    assert not getattr(tqdm, "_instances", ())


def test_verbose_is_checked():
    for bad in ("bars", -1, 1.5, None):
        with pytest.raises(ValueError, match="verbose: expected a number of epochs, 0 or 'bar', got"):
            fit(verbose=bad)


@pytest.mark.parametrize("classifies", [False, True])
def test_plot(tmp_path, classifies):
    matplotlib = pytest.importorskip("matplotlib")
    history = fb.History()
    for epoch in range(3):
        logs = {"loss": 1 / (epoch + 1), "val_loss": 2 / (epoch + 1), "lr": 0.1}
        history.append(logs | ({"accuracy": epoch / 3} if classifies else {}))
    picture = history.plot(tmp_path / "history.png")
    assert isinstance(picture, matplotlib.figure.Figure)
    assert (tmp_path / "history.png").stat().st_size > 1000
    assert [axes.get_ylabel() for axes in picture.axes] == ["loss", "accuracy"][: 1 + classifies]
    curves = [(line.get_label(), line.get_xydata().tolist()) for line in picture.axes[0].lines]
    assert curves == [
        ("training", [[1, 1], [2, 1 / 2], [3, 1 / 3]]),
        ("validation", [[1, 2], [2, 1], [3, 2 / 3]]),
    ]
    with pytest.raises(RuntimeError, match="before the first epoch"):
        fb.History().plot()


@pytest.mark.parametrize(
    ("package", "act", "extra"),
    [("tqdm.auto", lambda: fit(verbose="bar"), "progress"), ("matplotlib", lambda: fit(verbose=0)[1].plot(), "plot"),
     ("sklearn.base", lambda: __import__("fastbp.sklearn"), "sklearn"),
     ("onnx", lambda: __import__("fastbp.onnx"), "onnx"),
     ("safetensors", lambda: __import__("fastbp.safetensors"), "safetensors"),
     ("tensorboard.summary", lambda: fb.TensorBoard("runs"), "tensorboard"),
     ("sklearn.metrics", lambda: fb.metrics.mae([[1.0]], [1.0]), "sklearn")],
)  # fmt: skip
def test_a_missing_package_is_named_with_its_extra(monkeypatch, package, act, extra):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"fastbp.{extra}", raising=False)
    monkeypatch.delitem(sys.modules, f"fastbp.formats.{extra}", raising=False)
    with pytest.raises(ImportError, match=rf"pip install fastbp\[{extra}\]"):
        act()


def test_history_and_verbose(capsys):
    X, y = blobs()
    model = everything()
    optimizer = fb.SGD(model.parameters(), lr=fb.schedules.Constant(0.1))
    history = model.fit(X, y, "cross_entropy", optimizer, epochs=2, validation_data=(X, y))
    names = {"loss", "accuracy", "val_loss", "val_accuracy", "lr", "samples_per_second"}
    assert set(history.history) == names
    assert all(len(values) == 2 for values in history.history.values())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("epoch 2/2  loss ")
    assert lines[1].endswith("samples/s")


def test_a_copy_is_whole_while_another_thread_adds_epochs():
    history, ended = fb.History(), threading.Event()

    def grow():
        while not ended.is_set():
            history.history.clear()
            for i in range(300):
                history.append({f"metric{i}": 1.0})

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        for _ in range(1000):
            copy.deepcopy(history)
    finally:
        ended.set()
        thread.join()
