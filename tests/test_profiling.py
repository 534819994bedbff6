"""fb.profile: what it counts, that it watches nothing but its block, and that it changes no number. Never how fast."""

import sys

import numpy as np
import pytest

import fastbp as fb
from fastbp import profiling
from fastbp.core import backend_name


def small(dtype="float32", optimizer=fb.Adam, **settings):
    """A model of 4-3-2, its optimizer, and 10 samples."""
    rng = np.random.default_rng(3)
    X, y = rng.standard_normal((10, 4)).astype(dtype), rng.integers(0, 2, 10)
    model = fb.Sequential([fb.Dense(4, 3, activation="relu"), fb.Dense(3, 2)], dtype=dtype, seed=0)
    return model, optimizer(model.parameters(), **settings), X, y


def train(model, optimizer, X, y, loss="cross_entropy", batch_size=4, **settings):
    return model.fit(X, y, loss, optimizer, batch_size=batch_size, verbose=0, **settings)


def bits(model, optimizer):
    state = {name: np.asarray(value).tobytes() for name, value in optimizer.state_dict().items()}
    return (
        *(a.tobytes() for a in model.snapshot()),
        state,
        model.model.training_step,
        str(model.model.generator.bit_generator.state),
    )


def by_phase(table, what):
    return {(row.layer, row.phase): getattr(row, what) for row in table.rows()}


def test_operations_and_traffic_are_counted_by_hand(any_backend):
    model, optimizer, X, y = small()
    with fb.profile() as p:
        train(model, optimizer, X, y, epochs=2)
    (table,) = p.tables
    assert (table.steps, table.samples, table.batch_size, table.backend) == (6, 20, 4, any_backend)
    first, second, whole = "Dense 4x3 relu", "Dense 3x2", "4-3-2"
    assert {k: v for k, v in by_phase(table, "operations").items() if v} == {
        (first, "forward"): 20 * 2 * 12,
        (first, "backward dw + update"): 20 * 2 * 12,
        (second, "forward"): 20 * 2 * 6,
        (second, "backward dx"): 20 * 2 * 6,
        (second, "backward dw + update"): 20 * 2 * 6,
        (whole, "total"): 20 * 2 * (2 * 12 + 3 * 6),
    }
    numbers = {
        (whole, "gather"): 20 * (4 + 4),
        (first, "forward"): 20 * (4 + 3) + 6 * (12 + 3),
        (first, "backward dx"): 0,
        (first, "backward dw + update"): 20 * (4 + 3) + 6 * 2 * 3 * (12 + 3),  # parameters, m and v, both ways
        (second, "forward"): 20 * (3 + 2) + 6 * (6 + 2),
        (second, "backward dx"): 20 * (3 + 2) + 6 * 6,
        (second, "backward dw + update"): 20 * (3 + 2) + 6 * 2 * 3 * (6 + 2),
        (whole, "loss"): 20 * (2 + 2),
        (whole, "waiting"): 0,
    }
    assert by_phase(table, "bytes") == {
        k: 4 * v for k, v in (numbers | {(whole, "total"): sum(numbers.values())}).items()
    }


def test_traffic_follows_the_dtype_and_the_optimizers_state():
    model, optimizer, X, y = small("float64", fb.SGD, lr=0.1)
    with fb.profile() as p:
        train(model, optimizer, X, y)
    moved = by_phase(p.tables[0], "bytes")
    assert moved["Dense 4x3 relu", "backward dw + update"] == 8 * (10 * 7 + 3 * 2 * 15)
    assert (moved["4-3-2", "gather"], moved["4-3-2", "loss"]) == (8 * 10 * 8, 8 * 10 * 4)


def test_every_phase_is_charged(any_backend, rng):
    """All kinds of layers; an activation after a plain dense layer is a part of it."""
    layers = [
        fb.Dense(6, 5), fb.Activation("tanh"), fb.BatchNorm(5), fb.Activation("relu"), fb.Dense(5, 4, bias=False),
        fb.LayerNorm(4), fb.Dropout(0.2), fb.Dense(4, 1, activation="softplus"),
    ]  # fmt: skip
    model = fb.Sequential(layers, seed=0)
    optimizer = fb.SGD(model.parameters(), lr=0.01, momentum=0.9, clip_norm=1.0)
    with fb.profile() as p:
        train(model, optimizer, rng.standard_normal((4000, 6), dtype="f4"), rng.standard_normal((4000, 1)), "mse")
    (table,) = p.tables
    seconds = by_phase(table, "seconds")
    labels = [
        "Dense 6x5 tanh", "BatchNorm 5", "Activation 5 relu", "Dense 5x4", "LayerNorm 4", "Dropout 4",
        "Dense 4x1 softplus",
    ]  # fmt: skip
    assert list(dict.fromkeys(row.layer for row in table.rows())) == ["6-5-4-1", *labels]
    assert min(seconds.values()) >= 0
    charged = {(label, "forward") for label in labels} | {("6-5-4-1", "gather"), ("6-5-4-1", "loss")}
    charged |= {(label, "backward dx") for label in labels[1:] if label != "Activation 5 relu"}  # it is in Dense's
    charged |= {(label, "backward dw + update") for label in labels if label.startswith(("Dense", "Batch", "Layer"))}
    assert all(seconds[key] > 0 for key in charged)
    if any_backend == "numpy":  # its one update is shared out by the cache lines of parameters: both norms have two
        assert seconds["Dropout 4", "backward dw + update"] == seconds["Activation 5 relu", "backward dw + update"] == 0
        share = seconds["BatchNorm 5", "backward dw + update"] / seconds["LayerNorm 4", "backward dw + update"]
        assert share == pytest.approx(1)
    assert sum(seconds.values()) - table.seconds <= 1.01 * table.seconds
    operations = by_phase(table, "operations")
    assert operations["6-5-4-1", "total"] == 2 * 4000 * (2 * 30 + 3 * 20 + 3 * 4)
    numbers = {key: value // 4 for key, value in by_phase(table, "bytes").items()}
    assert numbers["BatchNorm 5", "backward dw + update"] == 2 * 2 * 10 * 1000
    assert numbers["LayerNorm 4", "backward dx"] == 4000 * 8 + 1000 * 4
    assert numbers["Dropout 4", "backward dw + update"] == numbers["Activation 5 relu", "backward dx"] == 0


@pytest.mark.parametrize("settings", [{}, {"clip_norm": 0.1}])
def test_profiling_changes_no_bit(any_backend, settings):
    plain, watched = small(**settings), small(**settings)
    history = train(*plain, epochs=3).history
    with fb.profile():
        assert train(*watched, epochs=3).history["loss"] == history["loss"]
    assert bits(*watched[:2]) == bits(*plain[:2])


class Recorder:
    """Stands before a network and notes when its times are recorded."""

    def __init__(self, network, error=None):
        self.network, self.error, self.recorded = network, error, []

    def record_times(self, times):
        self.recorded.append(times is not None)
        self.network.record_times(times)

    def train(self, *arguments):
        if self.error is not None:
            raise self.error
        return self.network.train(*arguments)

    def __getattr__(self, name):
        return getattr(self.network, name)


@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt])
def test_nothing_is_watched_after_the_block(any_backend, error):
    model, optimizer, X, y = small()
    recorder = model.model._networks[backend_name()] = Recorder(model.model.network(), error)
    if error is None:
        with fb.profile() as p:
            train(model, optimizer, X, y)
    else:
        with pytest.raises(error), fb.profile() as p:
            train(model, optimizer, X, y)
        assert p.tables == []  # an interrupted epoch does not count
    assert profiling.active() is None
    recorder.error = None
    train(model, optimizer, X, y)
    assert recorder.recorded == [True, False]


def test_threads_are_those_that_worked(rng):
    fb.set_num_threads(2)
    small_one, X = small(), rng.standard_normal((128, 256), dtype="f4")
    large = fb.Sequential([fb.Dense(256, 256)], seed=0)
    with fb.profile() as p:
        train(*small_one)
        train(large, fb.SGD(large.parameters(), lr=0.1), X, X, "mse", batch_size=128)
    assert [table.threads for table in p.tables] == ([1, 2] if backend_name() != "numpy" else [2, 2])


def test_one_table_for_each_model_and_batch_size():
    one, other = small(), small()
    with fb.profile() as p:
        train(*one)
        train(*other, epochs=2)
        train(*one, batch_size=5)
        train(*one)
        with fb.use_backend("numpy"):
            train(*one)
    assert [(table.model is one[0].model, table.batch_size, table.steps) for table in p.tables] == [
        (True, 4, 6),
        (False, 4, 6),
        (True, 5, 2),
        (True, 4, 3),
    ]
    assert p.tables[3].backend == "numpy"
    assert str(p).count("4-3-2, float32") == 4


def test_the_innermost_block_measures():
    with fb.profile() as outer:
        with fb.profile() as inner:
            train(*small())
        train(*small(), epochs=2)
    assert ([table.steps for table in outer.tables], [table.steps for table in inner.tables]) == ([6], [3])


def test_print(any_backend):
    with fb.profile() as p:
        train(*small())
    title, head, *lines = str(p).splitlines()
    assert (
        title
        == f"4-3-2, float32, {any_backend}, {p.tables[0].threads} thread{'s' * (p.tables[0].threads > 1)}, 3 steps x 4"
    )
    assert head.split() == ["layer", "phase", "ms", "share", "GFLOP/s", "of", "peak", "GB/s"]
    assert len({len(line) for line in [head, *lines]}) == 1
    assert [line.split("  ")[0] for line in lines if "forward" in line] == ["Dense 4x3 relu", "Dense 3x2"]
    assert lines[-1].startswith("4-3-2 ")
    assert "total" in lines[-1]
    assert "100.0%" in lines[-1]


@pytest.mark.parametrize("other", ["numpy", "generic"])
def test_compare_does_the_same_work_on_copies(any_backend, other):
    one, two = small(lr=fb.schedules.Exponential(0.1, 0.9)), small("float64", fb.SGD, lr=0.1, momentum=0.9)
    with fb.profile() as p:
        train(*one, epochs=2)
        train(*two, batch_size=3)
    before = bits(*one[:2]), bits(*two[:2])
    p.compare(other)
    assert (bits(*one[:2]), bits(*two[:2])) == before
    assert backend_name() == any_backend
    for table in p.tables:
        same = table.others[other]
        assert (same.backend, same.steps, same.samples) == (other, table.steps, table.samples)
        assert [(r.layer, r.phase, r.operations, r.bytes) for r in same.rows()] == [
            (r.layer, r.phase, r.operations, r.bytes) for r in table.rows()
        ]
    head = str(p).splitlines()[1].split()
    assert head[-3:] == [other, "ms", "ratio"]


def test_compare_trains_as_fit_would():
    """The copy's epoch has the batches of the epoch that was measured: unshuffled, that is the next epoch."""
    model, optimizer, X, y = small()
    with fb.profile() as p:
        train(model, optimizer, X, y, shuffle=False)
    p.compare(backend_name())
    copied = p.tables[0].others[backend_name()]
    train(model, optimizer, X, y, shuffle=False)
    assert copied.model.snapshot()[0].tobytes() == model.snapshot()[0].tobytes()
    assert copied.optimizer.steps == optimizer.steps


def test_a_comparison_ends_with_more_training():
    one = small()
    with fb.profile() as p:
        train(*one)
        p.compare("numpy")
        assert list(p.tables[0].others) == ["numpy"]
        train(*one)
    assert p.tables[0].others == {}


def test_what_is_not_covered():
    """A loss in Python and the explicit loop leave the profile empty."""
    model, optimizer, X, y = small()
    criterion = fb.CrossEntropy()
    with fb.profile() as p:
        train(model, optimizer, X, y, loss=lambda pred, target: criterion(pred, target))
        model.train_on_batch(X, y, "cross_entropy", optimizer)
        model.evaluate(X, y, "cross_entropy")
    nothing = "nothing was trained by fit with a built-in loss in this block"
    assert str(p) == nothing
    with pytest.raises(RuntimeError, match=f"compare: expected epochs in the profile, but {nothing}"):
        p.compare("numpy")
    with pytest.raises(RuntimeError, match="plot: expected epochs in the profile"):
        p.plot("roofline.png")


def test_compare_with_an_unknown_backend():
    with fb.profile() as p:
        train(*small())
    with pytest.raises(ValueError, match="expected one of avx512, avx2, neon, generic, numpy, got 'numba'"):
        p.compare("numba")


def test_plot(any_backend, tmp_path):
    pytest.importorskip("matplotlib")
    with fb.profile() as p:
        train(*small())
    p.plot(tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")


def test_plot_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with fb.profile() as p:
        train(*small())
    with pytest.raises(ImportError, match=r"pip install fastbp\[plot\]"):
        p.plot(tmp_path / "roofline.png")
