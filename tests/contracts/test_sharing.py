"""One model and several Python threads: how many threads of the core each uses, and who is told that it is in use."""

import contextvars
import copy
import importlib
import pickle
import sys
import threading

import numpy as np
import pytest

import fastbp as fb
from fastbp.core import reference

X = np.random.default_rng(0).standard_normal((300, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
ADVICE = "in another thread; wait until that has ended, or give every thread a model of its own"


def network(seed=0):
    return fb.Sequential([fb.Dense(6, 20, activation="tanh"), fb.BatchNorm(20), fb.Dense(20, 2)], seed=seed)


def elsewhere(task):
    """Run the task in another thread to its end; what it raised."""
    errors: list = [None]

    def work():
        try:
            task()
        except BaseException as error:
            errors[0] = error

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
    thread.start()
    thread.join()
    return errors[0]


class Recorder:
    """A network that notes how many threads each pass may use."""

    def __init__(self, network, used):
        self._network, self._used = network, used

    def __getattr__(self, name):
        method = getattr(self._network, name)
        if name not in ("forward", "backward", "train"):
            return method

        def call(*arguments):
            self._used.append(arguments[-1])
            return method(*arguments)

        return call


@pytest.fixture
def used(monkeypatch):
    """The numbers of threads that passes through any network were given, one after the other."""
    numbers: list = []
    make = fb.model.Model.network
    monkeypatch.setattr(fb.model.Model, "network", lambda self, *upto: Recorder(make(self, *upto), numbers))
    return numbers


# --- how many threads of the core -------------------------------------------------------------------------------------


def chunks():
    yield from ((X[i : i + 50], Y[i : i + 50]) for i in range(0, len(X), 50))


class Asks(fb.Callback):
    """Predicts and evaluates, from within a training."""

    def on_epoch_end(self, epoch, logs):
        self.model.predict(X)
        self.model.forward(X)
        self.model.evaluate(X, Y, "cross_entropy")


def fit(model, loss="cross_entropy", **settings):
    optimizer = fb.SGD(model.parameters(), lr=0.01, clip_norm=1.0)
    model.fit(X, Y, loss, optimizer, epochs=2, verbose=0, callbacks=[Asks()], **settings)


def explicit_step(model):
    pred = model.forward(X, training=True)
    model.backward(fb.CrossEntropy()(pred, Y)[1], input_gradient=True)


def half_squares(pred, target):
    return float(np.mean(pred**2)), pred / pred.size


ALONE = {
    "predict": lambda model: model.predict(X),
    "forward": lambda model: model.forward(X),
    "evaluate": lambda model: model.evaluate(X, Y, "cross_entropy"),
    "evaluate what is read": lambda model: model.evaluate(chunks, None, "cross_entropy"),
    "a metric that predicts": lambda model: model.evaluate(
        X,
        Y,
        "cross_entropy",
        metrics={"again": lambda *_: float(len(model.predict(X)))},
    ),
    "fit": fit,
    "fit by steps": lambda model: fit(model, half_squares),
    "validation": lambda model: fit(model, validation_data=(X, Y)),
    "validation of what is read": lambda model: fit(model, validation_data=chunks),
    "train_on_batch": lambda model: model.train_on_batch(X, Y, "cross_entropy", fb.SGD(model.parameters(), lr=0.1)),
    "explicit step": explicit_step,
    "check_gradients": lambda model: fb.check_gradients(model, X[:5], Y[:5], "cross_entropy"),
}


@pytest.mark.parametrize("task", ALONE.values(), ids=ALONE)
def test_who_is_alone_uses_all_threads(compiled, used, task):
    fb.set_num_threads(4)
    task(network())
    assert set(used) == {4}


def test_those_that_read_at_once_share_the_threads(compiled, used):
    """However often each of them comes in; one that comes in alone has all of them again."""
    fb.set_num_threads(6)
    model = network()

    def three_read(pred, target):
        assert elsewhere(lambda: model.evaluate(X, Y, "cross_entropy", metrics={"third": two_more})) is None
        return 0.0

    def two_more(pred, target):
        assert elsewhere(lambda: model.predict(X)) is None
        model.predict(X)
        return 0.0

    model.evaluate(X, Y, "cross_entropy", metrics={"second": three_read})
    model.predict(X)
    assert used == [6, 3, 2, 3, 6]


def test_more_readers_than_threads_have_one_each(compiled, used):
    fb.set_num_threads(1)
    model = network()
    model.evaluate(
        X, Y, "cross_entropy", metrics={"other": lambda *_: float(elsewhere(lambda: model.predict(X)) is None)}
    )
    assert used == [1, 1]


def test_a_trainer_may_have_threads_of_its_own(any_backend, used, monkeypatch):
    """The passes, the loss and the update."""
    from fastbp.losses import CrossEntropy, resolve
    from fastbp.training.trainer import EpochPlan, Trainer

    fb.set_num_threads(2)
    sequential, seen = network(), []
    model, optimizer = sequential.model, fb.SGD(sequential.parameters(), lr=0.1, clip_norm=1.0)
    monkeypatch.setattr(fb.SGD, "apply", lambda self, threads: seen.append(threads))
    for threads, expected in ((3, 3), (None, 2)):
        for criterion in (CrossEntropy(), resolve(half_squares)):
            trainer = Trainer(model, optimizer, criterion, threads)
            data = X, criterion.check("y", Y, len(X), 2, X.dtype), None
            trainer.run_epoch(data, EpochPlan(None, 100))
        assert set(used) == {expected} == set(seen)
        used.clear()
        seen.clear()


# --- the estimators ---------------------------------------------------------------------------------------------------


def estimator(**settings):
    MLPClassifier = pytest.importorskip("fastbp.sklearn", exc_type=ImportError).MLPClassifier
    return MLPClassifier((20,), random_state=0, max_iter=3, tol=0, **settings)


@pytest.fixture
def used_by_losses(monkeypatch):
    """The threads of every call of the reference's loss from outside of it."""
    numbers: list = []
    compute = reference.loss
    monkeypatch.setattr(reference, "loss", lambda *arguments: (numbers.append(arguments[-1]), compute(*arguments))[1])
    return numbers


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer", "ignore:lbfgs failed")
@pytest.mark.parametrize("n_threads", [3, None])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    "settings",
    [dict(solver="sgd"), dict(early_stopping=True), dict(solver="lbfgs"), dict(alpha=0.1, warm_start=True)],
    ids=str,
)
def test_an_estimator_computes_with_its_own_threads(used, used_by_losses, settings, sparse, n_threads):
    fb.set_num_threads(2)
    process = []
    watch = fb.Callback()
    watch.on_epoch_end = lambda epoch, logs: process.append(fb.get_num_threads())
    data = pytest.importorskip("scipy.sparse").csr_matrix(X) if sparse else X
    with fb.use_backend("numpy"):
        clf = estimator(n_threads=n_threads, callbacks=[watch], **settings)
        clf.fit(data, Y, **({} if settings.get("solver") == "lbfgs" else {"eval_set": (data, Y)}))
        clf.score(data, Y)
        clf.predict_log_proba(data)
    assert len(used) > 5
    assert used_by_losses
    assert set(used) == set(used_by_losses) == {n_threads or 2}
    assert set(process) == {2}


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_two_estimators_at_once_leave_the_threads_of_the_process(compiled):
    """The one that began first ends first."""
    fb.set_num_threads(2)
    begun, ended, seen = threading.Event(), threading.Event(), []

    class First(fb.Callback):
        def on_epoch_end(self, epoch, logs):
            begun.wait(60)
            seen.append(fb.get_num_threads())

    class Second(fb.Callback):
        def on_epoch_end(self, epoch, logs):
            begun.set()
            ended.wait(60)
            seen.append(fb.get_num_threads())

    def first():
        estimator(n_threads=1, callbacks=[First()]).fit(X, Y)
        ended.set()

    last, thread = estimator(n_threads=3, callbacks=[Second()]), threading.Thread(target=first)  # or it is skipped here
    thread.start()
    last.fit(X, Y)
    thread.join()
    assert len(seen) == 6
    assert {*seen, fb.get_num_threads()} == {2}


# --- who reads while another trains -----------------------------------------------------------------------------------


class Case:
    """A model with all that belongs to it, and a folder with files of it."""

    def __init__(self, folder):
        self.folder, self.model = folder, network()
        self.optimizer = fb.Adam(self.model.parameters())
        self.model.train_on_batch(X, Y, "cross_entropy", self.optimizer)
        self.checkpoint = fb.Checkpoint(folder / "checkpoint.npz")
        self.snapshot, self.state = self.model.snapshot(), self.optimizer.state_dict()

    def file(self, name):
        return self.folder / name


def save_safetensors(case):
    importlib.import_module("fastbp.safetensors").save(case.model, case.file("weights"))


def load_safetensors(case):
    module = importlib.import_module("fastbp.safetensors")
    module.save(network(1), case.file("others"))
    module.load(case.model, case.file("others"))


def write_checkpoint(case):
    case.checkpoint.on_epoch_end(0, {"loss": 1.0})


READS = {
    "deepcopy": lambda case: copy.deepcopy(case.model),
    "copy": lambda case: copy.copy(case.model),
    "pickle": lambda case: pickle.dumps(case.model),
    "deepcopy of both": lambda case: copy.deepcopy((case.optimizer, case.model)),
    "deepcopy of the parameters": lambda case: copy.deepcopy(case.model.parameters()),
    "deepcopy of a layer": lambda case: copy.deepcopy(case.model.layers[0]),
    "deepcopy of the optimizer": lambda case: copy.deepcopy(case.optimizer),
    "pickle of the optimizer": lambda case: pickle.dumps(case.optimizer),
    "state_dict": lambda case: case.optimizer.state_dict(),
    "save": lambda case: case.model.save(case.file("model.npz")),
    "astype": lambda case: case.model.astype("float64"),
    "snapshot": lambda case: case.model.snapshot(),
    "check_gradients": lambda case: fb.check_gradients(case.model, X[:5], Y[:5], "cross_entropy"),
    "checkpoint": write_checkpoint,
    "safetensors": save_safetensors,
    "onnx": lambda case: importlib.import_module("fastbp.onnx").export(case.model, case.file("model.onnx")),
    "evaluate": lambda case: case.model.evaluate(X, Y, "cross_entropy"),
}
WRITES = {
    "restore": lambda case: case.model.restore(case.snapshot),
    "load_state_dict": lambda case: case.optimizer.load_state_dict(case.state),
    "load safetensors": load_safetensors,
    "step": lambda case: case.optimizer.step(),
    "train_on_batch": lambda case: case.model.train_on_batch(X, Y, "cross_entropy", case.optimizer),
    "fit": lambda case: case.model.fit(X, Y, "cross_entropy", case.optimizer, verbose=0),
}
ALL = READS | WRITES


@pytest.fixture(params=ALL)
def task(request):
    """Each task, if there is what it needs."""
    for extra in ("safetensors", "onnx"):
        if extra in request.param:
            pytest.importorskip(f"fastbp.{extra}", exc_type=ImportError)
    return ALL[request.param]


def test_whoever_comes_in_while_another_trains_is_told(tmp_path, task):
    """In the middle of a step and between two epochs; in the thread that trains all of it works between epochs."""
    case, told = Case(tmp_path), []

    def loss(pred, target):
        told.append(elsewhere(lambda: task(case)))
        return half_squares(pred, target)

    class Between(fb.Callback):
        def on_epoch_end(self, epoch, logs):
            told.append(elsewhere(lambda: task(case)))
            if task is not WRITES["fit"]:
                task(case)

    case.model.fit(
        X, Y, loss, case.optimizer, batch_size=150, verbose=0, callbacks=[Between(), case.checkpoint], epochs=2
    )
    assert {type(error) for error in told} == {RuntimeError}
    assert {str(error) for error in told} == {f"the model is in training {ADVICE}"}
    assert len(told) == 6
    assert elsewhere(lambda: task(case)) is None


def test_many_read_at_once_and_none_changes_what_they_read(tmp_path, task):
    case, told = Case(tmp_path), []
    case.model.fit(X, Y, "cross_entropy", case.optimizer, verbose=0, callbacks=[case.checkpoint])
    metrics = {"other": lambda *_: float(bool(told.append(elsewhere(lambda: task(case)))))}
    case.model.evaluate(X, Y, "cross_entropy", metrics=metrics)
    if task in READS.values():
        assert told == [None]
    else:
        assert [str(error) for error in told] == [f"the model is in use {ADVICE}"]
    assert elsewhere(lambda: task(case)) is None


def contents(model):
    return b"".join(array.tobytes() for array in model.snapshot()) + str(model.model.training_step).encode()


def of_pickle(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("replicate", [copy.deepcopy, of_pickle])
@pytest.mark.parametrize("by_steps", [False, True])
def test_a_copy_is_of_a_whole_step_or_an_error(compiled, replicate, by_steps):
    """While another thread trains, with pauses: for every copy there is a step, or an epoch, that ended with it."""
    model = fb.Sequential([fb.Dense(6, 300, activation="tanh"), fb.BatchNorm(300), fb.Dense(300, 2)], seed=0)
    optimizer = fb.Adam(model.parameters())
    states, ended = {contents(model)}, threading.Event()
    keep = fb.Callback()
    keep.on_epoch_end = lambda epoch, logs: states.add(contents(model))

    def train():
        try:
            for _ in range(60):
                if by_steps:
                    model.train_on_batch(X, Y, "cross_entropy", optimizer)
                    states.add(contents(model))
                else:
                    model.fit(X, Y, "cross_entropy", optimizer, epochs=2, verbose=0, callbacks=[keep])
        finally:
            ended.set()

    thread = threading.Thread(target=contextvars.copy_context().run, args=(train,))
    thread.start()
    replicas, told = [], []
    while not ended.is_set():
        try:
            replicas.append(replicate(model))
        except RuntimeError as error:
            told.append(str(error))
    thread.join()
    assert len(states) == (61 if by_steps else 121)
    assert set(told) <= {f"the model is in training {ADVICE}"}
    assert {contents(replica) for replica in replicas} <= states
    assert contents(replicate(model)) in states


@pytest.mark.parametrize("what", ["model", "optimizer", "callback", "history"])
def test_another_thread_may_add_to_what_is_copied(what):
    """Between any two instructions: the model's first history, an optimizer's vectors, what ``fit`` tells."""
    model = network()
    optimizer, callback = fb.Adam(model.parameters()), fb.EarlyStopping()
    model.fit(X, Y, "cross_entropy", optimizer, verbose=0)
    thing = {"model": model, "optimizer": optimizer, "callback": callback, "history": model.history}[what]
    grows = {"optimizer": optimizer.state_vectors, "history": model.history.history}.get(what, vars(thing))

    def add(frame, event, argument):
        frame.f_trace_opcodes = True
        grows[f"later{len(grows)}"] = np.zeros(1)
        return add

    before, tracer = len(grows), sys.gettrace()
    sys.settrace(add)
    try:
        state = thing.__reduce_ex__(4)[2]
    finally:
        sys.settrace(tracer)
    assert len(grows) > before + 10
    assert all(part is not grows for part in (state, *state.values()))


class Interrupted(dict):
    """A memo of ``deepcopy`` that trains the model in another thread at one of the many times that it is asked."""

    def __init__(self, when, train):
        super().__init__()
        self.when, self.train = when, train

    def get(self, *arguments):
        self.when -= 1
        if self.when == 0:
            assert elsewhere(self.train) is None
        return super().get(*arguments)


@pytest.mark.parametrize("what", ["model", "parameters", "optimizer"])
def test_a_training_in_the_middle_of_a_copy_ends_the_copy(what):
    """At whatever point: before anything is read, the copy is of the new state; after all is, of the old."""

    def bits(thing):
        if what == "model":
            return contents(thing)
        if what == "optimizer":
            return b"".join(v.tobytes() for v in thing.state_vectors.values()) + bits_of_values(thing.params)
        return bits_of_values(thing) + thing.grads.tobytes()

    def bits_of_values(parameters):
        return parameters.values.tobytes()

    told, when, interrupted = [], 0, True
    while interrupted:
        when += 1
        model = network()
        optimizer = fb.Adam(model.parameters())
        model.train_on_batch(X, Y, "cross_entropy", optimizer)
        thing = {"model": model, "parameters": model.parameters(), "optimizer": optimizer}[what]
        memo = Interrupted(when, lambda m=model, o=optimizer: m.train_on_batch(X, Y, "cross_entropy", o))
        before = bits(thing)
        try:
            replica = copy.deepcopy(thing, memo)
        except RuntimeError as error:
            told.append(str(error))
        else:
            assert bits(replica) in (before, bits(thing))
        interrupted = memo.when <= 0
    assert len(told) >= 3
    assert set(told) == {f"the model is in training {ADVICE}"}
