"""Interrupts at any moment, and signal handlers that use the model: a step is whole or has not been.

Python runs signal handlers where a call, a function's first line or a loop's next turn begins or ends. ``interrupted``
raises at one of these places after the other, so that every one of them is tried.
"""

import contextlib
import copy
import dis
import functools
import signal
import sys
import threading

import numpy as np
import pytest
from networks import bits, blobs, everything

import fastbp as fb

X, Y = blobs(60)
ENDS = {"CALL", "CALL_KW", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD", "INSTRUMENTED_CALL"}


@functools.cache
def names(code):
    """The instructions of a function by offset."""
    return {instruction.offset: instruction.opname for instruction in dis.get_instructions(code)}


def interrupted(task, at):
    """Run the task, raise KeyboardInterrupt at place number ``at``, and return whether it came that far."""
    count, raised, last = 0, False, {}  # last: by frame, the name of the instruction before this one

    def trace(frame, event, _):
        nonlocal count, raised
        if "fastbp" not in frame.f_globals.get("__name__", ""):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and not raised:
            count += last.get(frame) in ENDS
            last[frame] = names(frame.f_code)[frame.f_lasti]
            if count > at:
                raised = True
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        task()
    except KeyboardInterrupt:
        assert raised
    finally:
        sys.settrace(before)
    return raised


class Pair:
    """A model and its optimizer, one forward pass with gradients on their way."""

    def __init__(self):
        self.model = everything()
        self.optimizer = fb.Adam(self.model.parameters(), lr=0.01)
        self.model.train_on_batch(X[:20], Y[:20], "cross_entropy", self.optimizer)
        self.model.backward(fb.CrossEntropy()(self.model.forward(X[:20], training=True), Y[:20])[1])

    def state(self):
        """All that a step changes."""
        moments = [self.optimizer.state_dict()[name].tobytes() for name in "mv"]
        return bits(self.model), *moments, self.optimizer.steps, self.model.model.training_step


def loss(pred, target):
    return fb.CrossEntropy()(pred, target)


def fit(pair, criterion):
    pair.model.fit(X, Y, criterion, pair.optimizer, batch_size=20, shuffle=False, verbose=0)


# What is done, and by how many steps.
TASKS = {
    "train_on_batch": lambda pair: pair.model.train_on_batch(X[:20], Y[:20], "cross_entropy", pair.optimizer),
    "train_on_batch, own loss": lambda pair: pair.model.train_on_batch(X[:20], Y[:20], loss, pair.optimizer),
    "step": lambda pair: pair.optimizer.step(),
    "fit": lambda pair: fit(pair, "cross_entropy"),
    "fit, own loss": lambda pair: fit(pair, loss),
    "forward": lambda pair: pair.model.forward(X[:20], training=True),
}
READS = {
    "predict": lambda pair: pair.model.predict(X[:3]),
    "evaluate": lambda pair: pair.model.evaluate(X, Y, "cross_entropy"),
    "snapshot": lambda pair: pair.model.snapshot(),
    "copy": lambda pair: copy.deepcopy((pair.model, pair.optimizer)),
    "state_dict": lambda pair: pair.optimizer.state_dict(),
}


def whole_states(task):
    """The states before the task and after each of its steps."""
    states = [Pair().state()]
    for steps in range(1, 4 if "fit" in task else 2):
        pair = Pair()
        if "fit" in task:
            for step in range(steps):
                rows = slice(20 * step, 20 * step + 20)
                pair.model.train_on_batch(X[rows], Y[rows], "cross_entropy", pair.optimizer)
        else:
            TASKS[task](pair)
        states.append(pair.state())
    return states


@pytest.mark.parametrize("task", TASKS)
def test_an_interrupt_anywhere_leaves_whole_steps(any_backend, task):
    states, places_tried, at = whole_states(task), 0, 0
    while True:
        pair = Pair()
        came_so_far = interrupted(lambda pair=pair: TASKS[task](pair), at)
        assert pair.state() in states, at
        pair.model.fit(X, Y, "cross_entropy", pair.optimizer, verbose=0)  # nothing is held any more
        if not came_so_far:
            break
        places_tried += 1
        at += 1 if any_backend != "numpy" or at < 40 else 7  # the reference is Python from end to end
    assert places_tried > 10
    assert pair.optimizer.steps >= 2


@pytest.mark.parametrize("task", READS)
def test_an_interrupt_anywhere_gives_the_model_back(task):
    pair, at = Pair(), 0
    while interrupted(lambda: READS[task](pair), at):
        at += 1 + at // 50  # copies are made by a great many lines
    assert at > 2
    pair.model.fit(X, Y, "cross_entropy", pair.optimizer, verbose=0)


def test_an_interrupt_anywhere_leaves_the_backend_and_the_profile():
    def work():
        with fb.use_backend("numpy"), fb.profile():
            fb.core.backend()

    before, at = fb.core.backend_name(), 0
    while interrupted(work, at):
        assert fb.core.backend_name() == before
        assert fb.profiling.active() is None, at
        at += 1
    assert at > 5


class InterruptError(Exception):
    pass


def test_exceptions_of_a_handler_leave_no_lock_behind(compiled, alarms):
    """Compiled code and real signals, which may fall where no line of Python is."""

    def handler(*_):
        raise InterruptError

    model = everything()
    optimizer = fb.SGD(model.parameters(), lr=0.01)
    tasks = [
        lambda: model.predict(X[:1]),
        lambda: model.train_on_batch(X[:4], Y[:4], "cross_entropy", optimizer),
        lambda: model.evaluate(X[:4], Y[:4], "cross_entropy"),
        lambda: optimizer.step(),
    ]
    for i in range(120):
        try:
            alarms(handler, 0.002 + 1e-5 * i, again=1.0)
            while True:
                tasks[i % len(tasks)]()
        except InterruptError:
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert optimizer.steps >= model.model.training_step or i % len(tasks) != 3
        model.fit(X[:4], Y[:4], "cross_entropy", optimizer, verbose=0)


def large():
    """Its weights are in panels in an epoch, on every backend."""
    return fb.Sequential([fb.Dense(7, 96, "relu"), fb.BatchNorm(96), fb.Dense(96, 96, "tanh"), fb.Dense(96, 4)], seed=0)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_handler_that_predicts_sees_whole_steps_and_changes_nothing(any_backend, alarms, threads, tmp_path):
    fb.set_num_threads(threads)
    rows, path = X[:5], tmp_path / "model.npz"
    quiet, disturbed = large(), large()
    seen, saved, refused, busy, snapshot = [], [], [], [], disturbed.snapshot()

    def handler(*_):
        if not disturbed.model.lock.in_step() or busy:  # or this one is disturbed itself
            return
        busy.append(True)
        seen.append(disturbed.predict(rows).tobytes())
        assert disturbed.evaluate(rows, Y[:5], "cross_entropy")["loss"] > 0
        if len(saved) < 3:
            disturbed.save(path)
            saved.append(fb.load(path).predict(rows).tobytes())
        for forbidden in (
            lambda: disturbed.train_on_batch(X, Y, "cross_entropy", optimizer),
            lambda: disturbed.forward(X, training=True),
            lambda: disturbed.restore(snapshot),
            lambda: optimizer.state_dict(),
            lambda: copy.deepcopy(disturbed),
            lambda: optimizer.step(),
            lambda: disturbed.fit(X, Y, "cross_entropy", optimizer, verbose=0),
        ):
            try:
                forbidden()
            except RuntimeError as error:
                refused.append(str(error))
        busy.clear()

    its_optimizer, states, times = fb.Adam(quiet.parameters()), [], 400 if any_backend == "numpy" else 4000
    for step in range(2 * times):
        part = slice(step % 2 * 30, step % 2 * 30 + 30)
        states.append(quiet.predict(rows).tobytes())
        quiet.train_on_batch(X[part], Y[part], "cross_entropy", its_optimizer)
    optimizer = fb.Adam(disturbed.parameters())
    alarms(handler, 0.02, again=0.02)
    disturbed.fit(np.tile(X, (times, 1)), np.tile(Y, times), "cross_entropy", optimizer, batch_size=30, verbose=0,
                  shuffle=False)  # fmt: skip
    signal.setitimer(signal.ITIMER_REAL, 0)
    if any_backend != "numpy":  # which is Python, so that a handler may run between two lines of a step
        assert set(seen) | set(saved) <= {*states, quiet.predict(rows).tobytes()}
    assert len(set(seen)) > 1
    assert len(refused) >= 6 * len(seen)
    assert bits(disturbed) == bits(quiet)
    assert its_optimizer.steps == optimizer.steps


def test_a_handler_between_the_calls_of_an_explicit_step(any_backend, alarms):
    """A prediction keeps what ``backward`` waits for."""
    quiet, disturbed = everything(), everything()
    for model in (quiet, disturbed):
        optimizer = fb.Adam(model.parameters())
        for _ in range(30):
            pred = model.forward(X, training=True)
            dpred = fb.CrossEntropy()(pred, Y)[1]
            if model is disturbed:
                model.predict(X[:7])
                model.evaluate(X, Y, "cross_entropy")
            model.backward(dpred)
            optimizer.step()
    assert bits(quiet) == bits(disturbed)


def test_a_reducer_may_predict(any_backend):
    """It is called in the middle of a step."""
    from fastbp import losses
    from fastbp.training.trainer import Trainer

    class Reads:
        def __init__(self, model=None):
            self.model, self.seen = model, []

        def begin(self, header):
            if self.model is not None:
                self.seen.append(self.model.predict(X[:5]))

        def reduce(self, bucket):
            self.begin(None)

        def wait(self):
            self.begin(None)

    quiet, disturbed = large(), large()
    for model, reducer in ((quiet, Reads()), (disturbed, Reads(disturbed))):
        trainer = Trainer(model.model, fb.Adam(model.parameters()), losses.resolve("cross_entropy"), 2, reducer=reducer)
        trainer.run_steps((X, Y, None), None, 0, 3, 20)
    assert len(reducer.seen) >= 9
    if any_backend != "numpy":  # whose running statistics are ahead until the step ends
        np.testing.assert_array_equal(reducer.seen[0], large().predict(X[:5]))
    assert bits(quiet) == bits(disturbed)


# --- data that others write to while the model is trained on it -------------------------------------------------------


class Writes(fb.Callback):
    def __init__(self, array, row, value):
        self.array, self.row, self.value = array, row, value

    def on_epoch_end(self, epoch, logs):
        if epoch == 1:
            self.array[self.row] = self.value


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("value", [4, -1, 10**9, -(2**63)])
def test_labels_that_change_between_epochs(any_backend, threads, value):
    fb.set_num_threads(threads)
    labels = Y.astype(np.int64).copy()
    expected, model = everything(), everything()
    expected.fit(X, Y, "cross_entropy", fb.Adam(expected.parameters()), epochs=2, batch_size=9, seed=0, verbose=0)
    optimizer = fb.Adam(model.parameters())
    with pytest.raises(ValueError, match=f"y: expected labels from 0 to 3, got {value}, in row 17, which was written"):
        model.fit(X, labels, "cross_entropy", optimizer, epochs=4, batch_size=9, seed=0, verbose=0,
                  callbacks=[Writes(labels, 17, value)])  # fmt: skip
    assert len(model.history) == 2
    assert optimizer.steps == model.model.training_step < 3 * 7
    assert np.isfinite(model.parameters().values).all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("value", [5, -1, 1e9, float("nan"), 1.5])
def test_ids_that_change_between_epochs(any_backend, dtype, threads, value):
    fb.set_num_threads(threads)
    ids = np.random.default_rng(0).integers(0, 5, (60, 3)).astype(dtype)
    model = fb.Sequential([fb.Embedding(5, 4, columns=3), fb.Dense(12, 4)], dtype=dtype.name, seed=0)
    optimizer = fb.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"X: .*in row 17, which was written"):
        model.fit(ids, Y, "cross_entropy", optimizer, epochs=4, batch_size=9, seed=0, verbose=0,
                  callbacks=[Writes(ids, (17, 1), value)])  # fmt: skip
    assert len(model.history) == 2
    assert np.isfinite(model.parameters().values).all()


def test_ids_that_change_between_forward_and_backward(any_backend):
    """The core keeps what it has read; the reference says that they are others. Neither reads beyond a table."""
    ids = np.zeros((6, 2), np.float32)
    model = fb.Sequential([fb.Embedding(5, 4, columns=2), fb.Dense(8, 4)], seed=0)
    pred = model.forward(ids, training=True)
    ids[:] = 10**6
    if any_backend == "numpy":
        with pytest.raises(IndexError):
            model.backward(np.ones_like(pred))
    else:
        model.backward(np.ones_like(pred))
        assert model.layers[0].dweight[0].any()
        assert not model.layers[0].dweight[1:].any()


def test_a_thread_that_writes_ids_all_the_time_cannot_crash_a_prediction(compiled):
    ids, stop = np.zeros((4000, 2), np.float32), threading.Event()
    model = fb.Sequential([fb.Embedding(5, 4, columns=2), fb.Dense(8, 4)], seed=0)

    def write():
        while not stop.is_set():
            ids[::7] = 3e9
            ids[::7] = 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(200):
            with contextlib.suppress(ValueError):  # of the check, if it comes when they are wrong
                assert np.isfinite(model.predict(ids)).all()
    finally:
        stop.set()
        thread.join()
