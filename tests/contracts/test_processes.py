"""Other processes and other libraries: forks after training, multiprocessing, joblib, and OpenMP's other users."""

import itertools
import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest

import fastbp as fb

X = np.random.default_rng(0).standard_normal((2000, 40)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


def train(seed=0):
    """The bits of a small training, enough work for a team."""
    model = fb.Sequential([fb.Dense(40, 100, activation="relu"), fb.Dense(100, 2)], seed=seed)
    optimizer = fb.Adam(model.parameters(), lr=0.01)
    model.fit(X, Y, "cross_entropy", optimizer, epochs=2, batch_size=200, seed=seed, verbose=0)
    return model.parameters().values.tobytes()


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_children_train_after_the_parent(method):
    """A forked child has none of the parent's threads: it trains alone instead of waiting for them."""
    fb.set_num_threads(2)
    expected = [train(seed) for seed in range(3)]
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map_async(train, range(3)).get(timeout=120) == expected
    assert train(1) == expected[1]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python warns of forks in processes with threads
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_fork_in_the_middle_of_training():
    """From a callback, with the parent's team alive; the child goes on with the very model that is in training."""

    class Fork(fb.Callback):
        def on_epoch_end(self, epoch, logs):
            if epoch == 0:
                child = os.fork()
                if child == 0:
                    os._exit(fb.get_num_threads() - 1 + (train() != expected))
                results.append(os.waitpid(child, 0)[1])

    fb.set_num_threads(2)
    expected, results = train(), []
    model = fb.Sequential([fb.Dense(40, 100, activation="relu"), fb.Dense(100, 2)], seed=0)
    model.fit(X, Y, "cross_entropy", fb.Adam(model.parameters()), epochs=2, verbose=0, callbacks=[Fork()])
    assert results == [0]


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_joblib(backend):
    joblib = pytest.importorskip("joblib")
    expected = [train(seed) for seed in range(4)]
    with joblib.parallel_config(backend=backend, n_jobs=2):
        assert joblib.Parallel()(joblib.delayed(train)(seed) for seed in range(4)) == expected


# Each imports a library and gives a function that computes with it on two threads.
LIBRARIES = {
    "fastbp": """
import fastbp as fb
fb.set_num_threads(2)
def fastbp():
    model = fb.Sequential([fb.Dense(40, 100, activation="relu"), fb.Dense(100, 2)], seed=0)
    model.fit(X, Y, "cross_entropy", fb.Adam(model.parameters()), epochs=2, batch_size=200, seed=0, verbose=0)
    return hash(model.parameters().values.tobytes())
""",
    "torch": """
import torch
torch.set_num_threads(2)
def torch_():
    w = torch.ones(40, 300, requires_grad=True)
    (torch.from_numpy(X) @ w).relu().sum().backward()
    return float(w.grad.sum())
""",
    "sklearn": """
from sklearn.ensemble import HistGradientBoostingClassifier
def sklearn_():
    return HistGradientBoostingClassifier(max_iter=5, random_state=0).fit(X, Y).score(X, Y)
""",
    "lightgbm": """
import lightgbm
def lightgbm_():
    settings = dict(objective="binary", num_threads=2, verbose=-1, deterministic=True, force_row_wise=True)
    return float(lightgbm.train(settings, lightgbm.Dataset(X, Y), 5).predict(X).sum())
""",
    "jax": """
import jax
def jax_():
    return float(jax.jit(lambda x: (x.T @ x).sum())(X))
""",
}
START = """
import numpy as np
X = np.random.default_rng(0).standard_normal((2000, 40)).astype("f4")
Y = (X[:, 0] > 0).astype("i8")
"""
END = """
names = [name for name in ("fastbp", "torch_", "sklearn_", "lightgbm_", "jax_") if name in globals()]
first = {name: globals()[name]() for name in names}
for _ in range(3):  # in turns, while the teams of the others are still awake
    assert first == {name: globals()[name]() for name in names}
print(len(names))
"""
ORDERS = list(itertools.permutations(LIBRARIES))
if not os.environ.get("FASTBP_EVERY_ORDER"):  # all 120 take ten minutes; these have every library first, and last
    ORDERS = [ORDERS[i] for i in (0, 33, 58, 81, 119)]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_libraries_live_together(order):
    """Imported in any order, all of them compute, on two threads each, and give the same again: no hang, no crash."""
    for library in order:
        pytest.importorskip(library)
    code = START + "".join(LIBRARIES[library] for library in order) + END
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "0"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("5\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_computes():
    """The parent has an OpenMP team by then, the child has not: it must not wait for one."""
    code = """if True:
        import os, signal, numpy as np, fastbp as fb
        fb.set_num_threads(2)
        X = np.ones((1000, 300), "f4")
        model = fb.Sequential([fb.Dense(300, 300), fb.Dense(300, 200)], seed=0)
        expected = model.predict(X)
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            os._exit(0 if fb.get_num_threads() == 1 and model.predict(X).tobytes() == expected.tobytes() else 1)
        assert os.waitpid(pid, 0)[1] == 0
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
