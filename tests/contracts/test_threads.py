"""Python threads: models of their own, one model, many that predict; and how many threads of the core there are."""

import contextvars
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import fastbp as fb
from fastbp.core import backend
from fastbp.core.threads import default_threads

X = np.random.default_rng(0).standard_normal((2000, 30)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


def run(*tasks):
    """Each task in a thread of its own, on the backend of this one; what they raised, in their order."""
    errors: list = [None] * len(tasks)
    barrier = threading.Barrier(len(tasks))

    def work(i):
        barrier.wait()
        try:
            tasks[i]()
        except Exception as error:
            errors[i] = error

    threads = [threading.Thread(target=contextvars.copy_context().run, args=(work, i)) for i in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def network(seed, dtype="float32"):
    layers = [fb.Dense(30, 70, activation="gelu"), fb.BatchNorm(70), fb.Dense(70, 2)]
    return fb.Sequential(layers, dtype=dtype, seed=seed)


def train(model, batch_size=50):
    optimizer = fb.Adam(model.parameters(), lr=0.01)
    model.fit(X, Y, "cross_entropy", optimizer, epochs=5, batch_size=batch_size, seed=0, verbose=0)
    return model.parameters().values.tobytes() + model.predict(X).tobytes()


def train_by_steps(model):
    optimizer = fb.Adam(model.parameters(), lr=0.01)
    for first in range(0, len(X), 50):
        model.train_on_batch(X[first : first + 50], Y[first : first + 50], "cross_entropy", optimizer)
    return model.parameters().values.tobytes()


@pytest.mark.parametrize("train", [train, train_by_steps])
def test_two_threads_train_two_models_as_one_would(any_backend, train):
    """A team for every epoch or step. Of the pool, where there is no OpenMP, one at a time: the other trains alone."""
    fb.set_num_threads(2)
    alone, together = [train(network(seed)) for seed in (0, 1)], {}
    tasks = [lambda seed=seed: together.setdefault(seed, train(network(seed))) for seed in (0, 1)]
    assert run(*tasks) == [None, None]
    assert [together[seed] for seed in (0, 1)] == alone


def test_more_threads_than_cores(compiled):
    fb.set_num_threads(1)
    expected = train(network(0), batch_size=200)
    fb.set_num_threads(8)
    model = network(0)
    assert train(model, batch_size=200) == expected
    assert model.model.network().threads == 8


def test_two_threads_in_one_model_are_an_error_for_one_of_them(compiled):
    """One trains on, with the bits that it has alone; the other is told, wherever it comes in."""
    expected = train(network(0))
    for _ in range(20):
        model, results = network(0), []
        errors = run(*[lambda model=model, results=results: results.append(train(model))] * 2)
        told = [str(error) for error in errors if error]
        assert all("another thread" in message for message in told)
        if len(told) == 1:  # else one began when the other had ended
            assert results == [expected]


def test_training_and_predicting_at_once_is_an_error(compiled):
    model, expected, told = network(0), [], []
    optimizer, ended = fb.SGD(model.parameters(), lr=0.01), threading.Event()

    def fit():
        try:
            model.fit(X, Y, "cross_entropy", optimizer, epochs=20, verbose=0)
        finally:
            ended.set()

    def predict():
        while not ended.is_set():
            try:
                model.predict(X[:500])
            except RuntimeError as error:
                told.append(str(error))

    expected = run(fit, predict)
    assert told or isinstance(expected[0], RuntimeError)
    assert all("another thread" in message for message in [*told, *(str(e) for e in expected if e)])
    assert np.isfinite(model.predict(X)).all()


def test_a_prediction_never_ends_a_training(any_backend):
    """Whoever comes second is told: between the passes of a loss in Python, and between epochs, the model is in use."""
    model, told, started = network(0), [], threading.Event()
    optimizer, ended = fb.SGD(model.parameters(), lr=0.01), threading.Event()

    def loss(pred, target):
        started.set()
        error = pred - np.eye(2, dtype=pred.dtype)[target]
        return float(np.mean(error**2)), 2 * error / error.size

    def fit():
        try:
            model.fit(X, Y, loss, optimizer, epochs=3, batch_size=100, verbose=0, validation_data=(X, Y))
        finally:
            ended.set()

    def predict():
        started.wait()
        while not ended.is_set():
            try:
                model.predict(X[:50])
            except RuntimeError as error:
                told.append(str(error))

    assert run(fit, predict) == [None, None]
    assert told
    assert all("in training in another thread" in message for message in told)
    assert optimizer.steps == model.model.training_step == 60


def test_eight_threads_predict_on_one_model(any_backend):
    model = network(0)
    train(model)
    expected = [model.predict(X[: 100 * i]).tobytes() for i in range(1, 9)]
    wrong = []

    def hammer(i):
        for _ in range(30):
            if model.predict(X[: 100 * i]).tobytes() != expected[i - 1]:
                wrong.append(i)

    assert run(*[lambda i=i: hammer(i) for i in range(1, 9)]) == [None] * 8
    assert wrong == []
    assert train(network(0)) == train(network(0))


def test_kernels_have_no_scratch_in_common(compiled):
    """Every function of fb.ops, with other numbers in every thread."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 60, 80)).astype("f4"), rng.standard_normal((4, 80, 50)).astype("f4")
    labels = rng.integers(0, 50, (4, 60))

    def once(i):
        c, dc = np.empty((60, 50), "f4"), np.empty((60, 50), "f4")
        fb.ops.matmul(c, a[i], b[i])
        y, da, db = np.empty_like(c), np.empty_like(a[i]), np.empty_like(b[i])
        fb.ops.dense_forward(y, None, a[i], b[i], c[0], "tanh")
        loss = fb.ops.cross_entropy(dc, y, labels[i])
        fb.ops.dense_backward(db, None, da, dc, a[i], None, b[i])
        fb.ops.adam_update(db.reshape(-1), *np.zeros((2, db.size), "f4"), db.reshape(-1).copy(), lr=0.1, step=1)
        return loss, c.tobytes() + da.tobytes() + db.tobytes()

    expected, wrong = [once(i) for i in range(4)], []
    tasks = [lambda i=i: [wrong.append(i) for _ in range(100) if once(i) != expected[i]] for i in range(4)]
    assert run(*tasks) == [None] * 4
    assert wrong == []


@pytest.fixture(params=[True, False], ids=["set", "not set"])
def threads_set(request, monkeypatch):
    """Whether the user has set the number of threads: if not, a team is tried and kept where it pays."""
    if not request.param:
        monkeypatch.setattr(fb.core, "_threads_set", False)
    return request.param


def test_trials_of_a_team_keep_the_bits(compiled, dtype, monkeypatch):
    """Of a network that is so small that the team is tried again and again, over calls of many sizes."""
    outcomes = []
    for threads, chosen in ((1, True), (2, True), (2, False), (3, False)):
        fb.set_num_threads(threads)
        monkeypatch.setattr(fb.core, "_threads_set", chosen)
        model = network(0, dtype.name)
        optimizer, losses = fb.Adam(model.parameters(), lr=0.01), []
        for epochs, batch_size in ((1, 150), (3, 50), (40, 100), (2, 300), (10, 100)):
            fit = dict(epochs=epochs, batch_size=batch_size, seed=0, verbose=0)
            losses += model.fit(X[:300], Y[:300], "cross_entropy", optimizer, **fit).history["loss"]
        losses += [model.train_on_batch(X[:300], Y[:300], "cross_entropy", optimizer) for _ in range(30)]
        outcomes.append((losses, model.parameters().values.tobytes(), model.predict(X).tobytes()))
        assert 1 <= model.model.network().threads <= threads
    assert all(outcome == outcomes[0] for outcome in outcomes)


def test_a_number_that_is_set_is_taken(compiled, monkeypatch):
    """Of work for two threads; without one, who reads the model is told a limit."""
    fb.set_num_threads(2)
    model = network(0)
    optimizer = fb.Adam(model.parameters())
    model.train_on_batch(X, Y, "cross_entropy", optimizer)
    assert model.model.network().threads == 2
    monkeypatch.setattr(fb.core, "_threads_set", False)
    assert (fb.core.thread_limit(), fb.get_num_threads()) == (-2, 2)
    with model.model.shared() as threads:
        assert threads == -2
        with model.model.shared() as same:
            assert same == -2


def test_a_disturbed_team_keeps_the_bits(compiled, threads_set):
    """Busy processes take the cores away, so that the team is disbanded and called together in the middle of epochs."""
    expected = train(network(0))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        model = network(0)
        optimizer = fb.Adam(model.parameters(), lr=0.01)
        for epochs in (5, 100, 5):
            model.fit(X, Y, "cross_entropy", optimizer, epochs=epochs, batch_size=50, seed=0, verbose=0)
        replica = network(0)
        fb.set_num_threads(1)
        optimizer = fb.Adam(replica.parameters(), lr=0.01)
        for epochs in (5, 100, 5):
            replica.fit(X, Y, "cross_entropy", optimizer, epochs=epochs, batch_size=50, seed=0, verbose=0)
        fb.set_num_threads(3)
        assert train(network(0)) == expected
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert model.parameters().values.tobytes() == replica.parameters().values.tobytes()
    assert model.history.history["loss"] == replica.history.history["loss"]


COUNT = "import fastbp as fb; print(fb.get_num_threads())"


def count(*command, **environment):
    """The number of threads that a new process begins with."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | environment
    result = subprocess.run([*command, sys.executable, "-c", COUNT], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.mark.skipif(not shutil.which("taskset"), reason="taskset is util-linux's")
def test_a_process_begins_with_its_cpus():
    cpus = sorted(os.sched_getaffinity(0))
    assert count() <= len(cpus)
    assert count("taskset", "-c", str(cpus[0])) == 1
    assert count(OMP_NUM_THREADS="1") == 1
    assert count(OMP_NUM_THREADS="many") == count()


GROUPS = [
    ({"0::/": {}}, None),
    ({"0::/app": {"app/cpu.max": "max 100000"}}, None),
    ({"0::/app": {"app/cpu.max": "200000 100000"}}, 2),
    ({"0::/app": {"app/cpu.max": "250000 100000"}}, 2),
    ({"0::/app": {"app/cpu.max": "50000 100000"}}, 1),
    ({"0::/": {"cpu.max": "100000 100000"}}, 1),
    ({"0::/outer/inner": {"outer/cpu.max": "300000 100000", "outer/inner/cpu.max": "max 100000"}}, 3),
    ({"0::/elsewhere": {"cpu.max": "200000 100000"}}, 2),
    ({"4:cpu,cpuacct:/job": {"cpu/job/cpu.cfs_quota_us": "150000", "cpu/job/cpu.cfs_period_us": "50000"}}, 3),
    ({"4:cpu,cpuacct:/job": {"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "50000"}}, None),
    ({"3:memory:/job": {"cpu/job/cpu.cfs_quota_us": "50000", "cpu/job/cpu.cfs_period_us": "50000"}}, None),
    ({"nonsense": {}}, None),
]


@pytest.mark.parametrize(("groups", "expected"), GROUPS)
def test_the_quota_of_a_control_group(groups, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(16), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for path, text in [("proc/self/cgroup", "\n".join(groups)), *groups.popitem()[1].items()]:
        file = tmp_path / (path if path.startswith("proc") else f"sys/fs/cgroup/{path}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    assert default_threads(tmp_path) == (expected or 16)
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    assert default_threads(tmp_path) == min(2, expected or 16)


openmps = pytest.mark.skipif(not backend().openmp(), reason="these threads are not OpenMP's")
pools = pytest.mark.skipif(backend().openmp() or not hasattr(os, "fork"), reason="of the pool of a system with fork")
on_linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of threads")


@openmps
def test_threadpoolctl_sees_and_limits_it():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    assert "openmp" in {library["user_api"] for library in threadpoolctl.threadpool_info()}
    fb.set_num_threads(7)
    with threadpoolctl.threadpool_limits(limits=1, user_api="openmp"):
        assert fb.get_num_threads() == (1 if len(os.sched_getaffinity(0)) > 1 else 7)
    assert fb.get_num_threads() == 7
    with threadpoolctl.threadpool_limits(limits=1, user_api="openmp"):
        fb.set_num_threads(3)  # the last word
        assert fb.get_num_threads() == 3


SCRIPT = """
import os, signal, time
import numpy as np
import fastbp as fb

def train(threads):
    fb.set_num_threads(threads)
    model = fb.Sequential([fb.Dense(30, 200, activation="relu"), fb.Dense(200, 2)], seed=0)
    X = np.ones((1000, 30), "f4")
    model.fit(X, np.zeros(1000, int), "cross_entropy", fb.SGD(model.parameters(), lr=0.1), batch_size=200, verbose=0)
    return model.parameters().values.tobytes()

def workers():
    return len(os.listdir("/proc/self/task")) - before

before = 0
before = workers() if os.path.exists("/proc/self/task") else None
"""


def script(code):
    """In a new process, in which nobody else has threads; an alarm ends one that waits for ever."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", SCRIPT + code]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 0, result.stderr


def test_threads_that_have_no_work_use_no_cpu():
    script("""
train(2)
time.sleep(0.1)
spent = time.process_time()
time.sleep(0.3)
assert time.process_time() - spent < 0.05
""")


@on_linux
def test_threads_begin_with_the_first_team():
    script("""
assert workers() == 0
train(1)
assert workers() == 0
train(2)
train(2)
assert workers() == 1
""")


@pools
@on_linux
def test_a_forked_child_may_have_a_team():
    """Of workers of its own, whether those of its parent were awake, asleep, or not there yet."""
    script("""
expected = train(1)
for pause in (0, 0, 0.1):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        before = before + workers()
        others, wrong = fb.get_num_threads() - 1, train(2) != expected
        while workers() < 1:  # on a crowded machine a team is one thread for a while
            wrong = wrong or train(2) != expected
        os._exit(others + wrong + (workers() != 1))
    assert os.waitpid(child, 0)[1] == 0
    assert train(2) == expected
    time.sleep(pause)
""")


@pools
@on_linux
def test_a_thread_that_cannot_start_makes_the_team_smaller():
    script("""
import resource

expected = train(1)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
_, most = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (size + 2**22, most))  # less than 31 stacks, even of 128 KiB
assert train(32) == expected
assert workers() < 31
resource.setrlimit(resource.RLIMIT_AS, (most, most))
assert train(32) == expected
assert workers() == 31
""")


@pools
def test_signals_are_not_the_workers():
    script("""
train(2)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
os.kill(os.getpid(), signal.SIGUSR1)  # would end the process in a thread that does not block it
assert signal.sigwait([signal.SIGUSR1]) == signal.SIGUSR1
""")


def test_one_model_in_two_threads_is_an_error_not_a_race(compiled):
    model = fb.Sequential([fb.Dense(300, 300, activation="relu"), fb.Dense(300, 200)], seed=0)
    X = np.random.default_rng(0).standard_normal((1000, 300)).astype("f4")
    expected, wrong, refused = model.predict(X).tobytes(), [], []

    def hammer():
        for _ in range(40):
            try:
                wrong.append(model.predict(X).tobytes() != expected)
            except RuntimeError as error:
                refused.append(str(error))

    # a new thread starts on the default backend: give it this test's
    threads = [threading.Thread(target=contextvars.copy_context().run, args=(hammer,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(wrong)
    assert all("another thread" in message for message in refused)
