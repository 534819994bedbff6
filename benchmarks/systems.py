"""The systems that are compared: the same network, data and update rule, written the way each one is fastest.

A system is a class with ``place(X, y)``, which takes the data in once, ``epoch(data, shuffle)``, which trains for one
pass over it in batches and returns the mean of the batches' losses, ``step(xb, yb)`` for a single batch and
``predict(x)``. ``Worker`` runs one of them in a process of its own; this file is that process's program.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CORES = 2
# Losses are means over up to 4 steps, float32. Each step adds rounding of about 1e-7 times the root of the longest
# sum, and Adam's division by sqrt(v) turns a gradient that is nothing but rounding into a whole step; both stay below
# 1e-4 of the loss. A wrong learning rate, a missed step or another batch moves it by more than a hundredth.
TOLERANCE = 1e-3
LR = {"SGD": 0.01, "momentum": 0.01, "Adam": 1e-3}
# scikit-learn adds eps before the bias correction, the others after it: one that is far below any gradient makes no
# difference, and costs the same
BETA1, BETA2, EPS = 0.9, 0.999, 1e-12
MOMENTUM = 0.9
REPLY = "@@ "  # marks a worker's answers among whatever else the libraries print


@dataclass(frozen=True)
class Task:
    """One cell of the grid, and its data and first weights, which are the same for every system."""

    widths: Sequence[int]
    batch: int
    optimizer: str
    dtype: str = "float32"

    @property
    def classifies(self) -> bool:
        return self.widths[-1] > 1

    @property
    def lr(self) -> float:
        # Adam's first steps move every weight by the rate, and the sums over them the more, the wider the network
        return LR[self.optimizer] / (10 if self.optimizer == "Adam" and self.widths[0] > 1000 else 1)

    @property
    def momentum(self) -> float:
        return MOMENTUM if self.optimizer == "momentum" else 0.0

    def data(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(1)
        X = rng.standard_normal((self.batch * steps, self.widths[0]), dtype=self.dtype)
        if self.classifies:
            return X, rng.integers(0, self.widths[-1], len(X))
        return X, rng.standard_normal((len(X), 1), dtype=self.dtype)

    def weights(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        rng = np.random.default_rng(2)
        shapes = list(itertools.pairwise(self.widths))
        return (
            [rng.standard_normal(s, dtype=self.dtype) * np.sqrt(2 / s[0]).astype(self.dtype) for s in shapes],
            [np.zeros(outputs, self.dtype) for _, outputs in shapes],
        )


class FastBP:
    """``fit`` for the epoch, ``train_on_batch`` for the step."""

    def __init__(self, task: Task) -> None:
        import fastbp as fb

        layers = [fb.Dense(a, b, "relu") for a, b in itertools.pairwise(task.widths[:-1])]
        layers.append(fb.Dense(*task.widths[-2:]))
        self.model = fb.Sequential(layers, dtype=task.dtype, seed=0)
        for layer, weight, bias in zip(layers, *task.weights(), strict=True):
            layer.weight[:], layer.bias[:] = weight, bias
        params = self.model.parameters()
        if task.optimizer == "Adam":
            self.optimizer: Any = fb.Adam(params, lr=task.lr, betas=(BETA1, BETA2), eps=EPS)
        else:
            self.optimizer = fb.SGD(params, lr=task.lr, momentum=task.momentum)
        self.criterion: Any = fb.CrossEntropy() if task.classifies else fb.MSE()
        self.batch = task.batch

    def place(self, X: np.ndarray, y: np.ndarray) -> Any:
        return X, y

    def epoch(self, data: Any, shuffle: bool) -> float:
        history = self.model.fit(
            *data, self.criterion, self.optimizer, batch_size=self.batch, shuffle=shuffle, verbose=0
        )
        return history.history["loss"][0]

    def step(self, xb: np.ndarray, yb: np.ndarray) -> float:
        return self.model.train_on_batch(xb, yb, self.criterion, self.optimizer)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.model.predict(x)


class FourCalls(FastBP):
    """The explicit loop: forward, loss, backward, update."""

    def step(self, xb: np.ndarray, yb: np.ndarray) -> float:
        pred = self.model.forward(xb, training=True)
        loss, dpred = self.criterion(pred, yb)
        self.model.backward(dpred)
        self.optimizer.step()
        return loss


class NumPy:
    """By hand, with every buffer made once, one flat vector of parameters, and no temporary array."""

    def __init__(self, task: Task) -> None:
        self.task, self.batch = task, task.batch
        weights, biases = task.weights()
        count = sum(w.size for w in weights) + sum(b.size for b in biases)
        self.values, self.grads, self.scratch, self.first, self.second = np.zeros((5, count), task.dtype)
        self.weights, self.biases, self.dweights, self.dbiases = [], [], [], []
        at = 0
        for tensors, views, dviews in (
            (weights, self.weights, self.dweights),
            (biases, self.biases, self.dbiases),
        ):
            for tensor in tensors:
                views.append(self.values[at : at + tensor.size].reshape(tensor.shape))
                dviews.append(self.grads[at : at + tensor.size].reshape(tensor.shape))
                views[-1][:] = tensor
                at += tensor.size
        self.activations = [np.empty((task.batch, n), task.dtype) for n in task.widths]
        self.gradients = [np.empty((task.batch, n), task.dtype) for n in task.widths]
        self.active = [np.empty((task.batch, n), bool) for n in task.widths]
        self.rows = np.arange(task.batch)
        self.steps = 0
        self.rng = np.random.default_rng(0)

    def place(self, X: np.ndarray, y: np.ndarray) -> Any:
        return X, y

    def epoch(self, data: Any, shuffle: bool) -> float:
        X, y = data
        order = self.rng.permutation(len(X)) if shuffle else np.arange(len(X))
        total = 0.0
        for first in range(0, len(X), self.batch):
            rows = order[first : first + self.batch]
            total += self.step(np.take(X, rows, axis=0, out=self.activations[0]), y[rows])
        return total * self.batch / len(X)

    def step(self, xb: np.ndarray, yb: np.ndarray) -> float:
        self.activations[0] = xb
        self.forward()
        loss = self.loss(yb)
        self.backward()
        self.update()
        return loss

    def forward(self) -> None:
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            out = np.matmul(self.activations[i], weight, out=self.activations[i + 1])
            out += bias
            if i < last:
                np.maximum(out, 0, out=out)

    def loss(self, yb: np.ndarray) -> float:
        pred, gradient = self.activations[-1], self.gradients[-1]
        if not self.task.classifies:
            np.subtract(pred, yb, out=gradient)
            loss = float(np.vdot(gradient, gradient)) / gradient.size
            gradient *= 2 / gradient.size
            return loss
        np.subtract(pred, pred.max(axis=1, keepdims=True), out=gradient)
        right = gradient[self.rows, yb]
        np.exp(gradient, out=gradient)
        sums = gradient.sum(axis=1, keepdims=True)
        loss = float(np.log(sums).sum() - right.sum()) / len(yb)
        gradient /= sums * len(yb)
        gradient[self.rows, yb] -= 1 / len(yb)
        return loss

    def backward(self) -> None:
        for i in reversed(range(len(self.weights))):
            x, dy = self.activations[i], self.gradients[i + 1]
            np.matmul(x.T, dy, out=self.dweights[i])
            np.sum(dy, axis=0, out=self.dbiases[i])
            if i > 0:
                dx = np.matmul(dy, self.weights[i].T, out=self.gradients[i])
                np.multiply(dx, np.greater(x, 0, out=self.active[i]), out=dx)

    def update(self) -> None:
        self.steps += 1
        g, scratch = self.grads, self.scratch
        if self.task.optimizer != "Adam":
            if self.task.momentum:
                self.first *= self.task.momentum
                self.first += g
                g = self.first
            np.multiply(g, self.task.lr, out=scratch)
            self.values -= scratch
            return
        self.first *= BETA1
        self.first += np.multiply(g, 1 - BETA1, out=scratch)
        self.second *= BETA2
        np.multiply(g, g, out=scratch)
        scratch *= 1 - BETA2
        self.second += scratch
        np.sqrt(self.second, out=scratch)
        correction = (1 - BETA2**self.steps) ** 0.5
        scratch += EPS * correction
        np.divide(self.first, scratch, out=scratch)
        scratch *= self.task.lr * correction / (1 - BETA1**self.steps)
        self.values -= scratch

    def predict(self, x: np.ndarray) -> np.ndarray:
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = np.maximum(x @ weight + bias, 0)
        return x @ self.weights[-1] + self.biases[-1]


class Torch:
    """PyTorch eager with the fused optimizer."""

    compiled = False

    def __init__(self, task: Task) -> None:
        import torch

        self.torch, self.batch = torch, task.batch
        torch.set_num_threads(threads())
        torch._dynamo.reset()
        layers: list[Any] = []
        for weight, bias in zip(*task.weights(), strict=True):
            layers += [torch.nn.Linear(*weight.shape, dtype=getattr(torch, task.dtype)), torch.nn.ReLU()]
            with torch.no_grad():
                layers[-2].weight.copy_(torch.from_numpy(weight.T))
                layers[-2].bias.copy_(torch.from_numpy(bias))
        self.model = torch.nn.Sequential(*layers[:-1])
        criterion = torch.nn.CrossEntropyLoss() if task.classifies else torch.nn.MSELoss()
        params = self.model.parameters()
        if task.optimizer == "Adam":
            self.optimizer: Any = torch.optim.Adam(params, lr=task.lr, betas=(BETA1, BETA2), eps=EPS, fused=True)
        else:
            self.optimizer = torch.optim.SGD(params, lr=task.lr, momentum=task.momentum, fused=True)
        self.loss = lambda xb, yb: criterion(self.model(xb), yb)
        if self.compiled:
            self.loss = torch.compile(self.loss)

    def place(self, X: np.ndarray, y: np.ndarray) -> Any:
        return self.torch.from_numpy(X), self.torch.from_numpy(y)

    def epoch(self, data: Any, shuffle: bool) -> float:
        X, y = data
        order = self.torch.randperm(len(X)) if shuffle else self.torch.arange(len(X))
        total = 0.0
        for rows in order.split(self.batch):
            total += self.step(X.index_select(0, rows), y.index_select(0, rows))
        return total * self.batch / len(X)

    def step(self, xb: Any, yb: Any) -> float:
        loss = self.loss(xb, yb)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def predict(self, x: Any) -> Any:
        with self.torch.inference_mode():
            return self.model(x)


class TorchCompile(Torch):
    """PyTorch with forward, loss and backward through torch.compile, and the fused optimizer."""

    compiled = True


class JAX:
    """A jitted scan over the epoch's batches, the parameters donated from epoch to epoch."""

    def __init__(self, task: Task) -> None:
        import jax
        import jax.numpy as jnp

        self.jnp, self.batch = jnp, task.batch
        if task.dtype == "float64":
            jax.config.update("jax_enable_x64", True)
        self.params = [(jnp.asarray(w), jnp.asarray(b)) for w, b in zip(*task.weights(), strict=True)]
        self.rng = np.random.default_rng(0)

        def forward(params: Any, x: Any) -> Any:
            for weight, bias in params[:-1]:
                x = jnp.maximum(x @ weight + bias, 0)
            return x @ params[-1][0] + params[-1][1]

        def loss(params: Any, xb: Any, yb: Any) -> Any:
            pred = forward(params, xb)
            if not task.classifies:
                return jnp.mean((pred - yb) ** 2)
            return -jnp.mean(jax.nn.log_softmax(pred)[jnp.arange(len(yb)), yb])

        def moved(grads: Any, state: Any) -> tuple[Any, Any]:
            """What the parameters change by, and the state after it."""
            if task.optimizer == "SGD":
                return jax.tree.map(lambda g: task.lr * g, grads), state
            if task.optimizer == "momentum":
                state = jax.tree.map(lambda v, g: MOMENTUM * v + g, state, grads)
                return jax.tree.map(lambda v: task.lr * v, state), state
            count, first, second = state
            count += 1
            first = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, first, grads)
            second = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, second, grads)
            a, b = 1 - BETA1**count, 1 - BETA2**count
            change = jax.tree.map(lambda m, v: task.lr * (m / a) / (jnp.sqrt(v / b) + EPS), first, second)
            return change, (count, first, second)

        zeros = functools.partial(jax.tree.map, jnp.zeros_like)
        self.state: Any = {
            "SGD": lambda: (),
            "momentum": lambda: zeros(self.params),
            "Adam": lambda: (jnp.zeros((), task.dtype), zeros(self.params), zeros(self.params)),
        }[task.optimizer]()

        def one(carry: Any, batch: Any) -> tuple[Any, Any]:
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, *batch)
            change, state = moved(grads, state)
            return (jax.tree.map(jnp.subtract, params, change), state), value

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def epoch(params: Any, state: Any, X: Any, y: Any, order: Any) -> Any:
            (params, state), losses = jax.lax.scan(lambda c, rows: one(c, (X[rows], y[rows])), (params, state), order)
            return params, state, losses.mean()

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params: Any, state: Any, xb: Any, yb: Any) -> Any:
            (params, state), value = one((params, state), (xb, yb))
            return params, state, value

        self.jitted_epoch, self.jitted_step, self.jitted_forward = epoch, step, jax.jit(forward)

    def place(self, X: np.ndarray, y: np.ndarray) -> Any:
        return self.jnp.asarray(X), self.jnp.asarray(y)

    def epoch(self, data: Any, shuffle: bool) -> float:
        X, y = data
        order = (self.rng.permutation(len(X)) if shuffle else np.arange(len(X))).astype(np.int32)
        order = order.reshape(-1, self.batch)
        self.params, self.state, loss = self.jitted_epoch(self.params, self.state, X, y, order)
        return float(loss)

    def step(self, xb: Any, yb: Any) -> float:
        self.params, self.state, loss = self.jitted_step(self.params, self.state, xb, yb)
        return float(loss)

    def predict(self, x: Any) -> Any:
        return self.jitted_forward(self.params, x).block_until_ready()


class ScikitLearn:
    """MLPClassifier and MLPRegressor, one epoch per ``partial_fit``."""

    def __init__(self, task: Task) -> None:
        from sklearn.neural_network import MLPClassifier, MLPRegressor

        self.task = task
        # half the squared error is its loss: twice the rate, or half of Adam's eps, makes the same step
        half = 1 if task.classifies else 2
        adam = task.optimizer == "Adam"
        self.model = (MLPClassifier if task.classifies else MLPRegressor)(
            hidden_layer_sizes=task.widths[1:-1], solver="adam" if adam else "sgd", alpha=0, batch_size=task.batch,
            learning_rate_init=task.lr * (1 if adam else half), momentum=task.momentum, nesterovs_momentum=False,
            beta_1=BETA1, beta_2=BETA2, epsilon=EPS / half, random_state=0,
        )  # fmt: skip
        self.loss_factor = half
        X, y = self.place(*task.data(1))
        self.classes: dict[str, Any] = {"classes": range(task.widths[-1])} if task.classifies else {}
        self.model.partial_fit(X, y, **self.classes)
        for own, first in zip((self.model.coefs_, self.model.intercepts_), task.weights(), strict=True):
            for i, tensor in enumerate(first):
                own[i][...] = tensor
        del self.model._optimizer  # the next partial_fit begins with a new one

    def place(self, X: np.ndarray, y: np.ndarray) -> Any:
        return X, y if self.task.classifies else y[:, 0]

    def epoch(self, data: Any, shuffle: bool) -> float:
        self.model.shuffle = shuffle
        self.model.partial_fit(*data)
        return self.model.loss_ * self.loss_factor

    def step(self, xb: np.ndarray, yb: np.ndarray) -> float:
        return self.epoch((xb, yb), False)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.model.predict(x)


class OnnxRuntime:
    """Prediction alone."""

    def __init__(self, task: Task) -> None:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper

        nodes, tensors, x = [], [], "x"
        last = len(task.widths) - 2
        for i, (weight, bias) in enumerate(zip(*task.weights(), strict=True)):
            tensors += [numpy_helper.from_array(weight, f"w{i}"), numpy_helper.from_array(bias, f"b{i}")]
            nodes.append(helper.make_node("Gemm", [x, f"w{i}", f"b{i}"], [f"z{i}"]))
            if i < last:
                nodes.append(helper.make_node("Relu", [f"z{i}"], [f"a{i}"]))
            x = f"a{i}"
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", width])
            for name, width in (("x", task.widths[0]), (f"z{last}", task.widths[-1]))
        ]
        graph = helper.make_graph(nodes, "network", ends[:1], ends[1:], tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads()
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options)

    def place(self, X: np.ndarray, y: np.ndarray) -> Any:
        return X, y

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"x": x})[0]


SYSTEMS: dict[str, Any] = {
    "fastbp": FastBP,
    "fastbp, four calls": FourCalls,
    "NumPy": NumPy,
    "PyTorch": Torch,
    "torch.compile": TorchCompile,
    "JAX": JAX,
    "scikit-learn": ScikitLearn,
    "onnxruntime": OnnxRuntime,
}


_PACKAGES = {"NumPy": "numpy", "PyTorch": "torch", "torch.compile": "torch", "JAX": "jax", "scikit-learn": "sklearn"}


def installed(system: str) -> bool:
    """Whether what a system needs is here."""
    package = _PACKAGES.get(system, system.partition(",")[0])
    return package != "" and importlib.util.find_spec(package) is not None


def threads() -> int:
    """How many threads this process may use: its parent bound it to so many cores."""
    return len(os.sched_getaffinity(0))


class Session:
    """What a worker's process does; every method is called from the parent, by name."""

    def __init__(self, system: str) -> None:
        self.system = system

    def build(self) -> str:
        """Where fastbp is, and its backend."""
        import fastbp
        from fastbp.core import backend_name

        return f"{Path(fastbp.__file__).parent}, {backend_name()}"

    def prepare(self, **task: Any) -> None:
        """Make the network anew."""
        self.task = Task(**task)
        self.trainer = SYSTEMS[self.system](self.task)

    def losses(self, steps: int, epochs: int) -> list[float]:
        """The losses of the first epochs, each of so many steps, without shuffling."""
        data = self.trainer.place(*self.task.data(steps))
        return [float(self.trainer.epoch(data, False)) for _ in range(epochs)]

    def epochs(self, steps: int, seconds: float) -> list[float]:
        """Seconds per step of every shuffled epoch, for at least so long; the first one warms up."""
        data = self.trainer.place(*self.task.data(steps))
        self.trainer.epoch(data, True)
        return [elapsed / steps for elapsed in timed(lambda: self.trainer.epoch(data, True), seconds)]

    def step_losses(self, calls: int) -> list[float]:
        """The losses of so many single steps on one batch."""
        xb, yb = self.trainer.place(*self.task.data(1))
        return [float(self.trainer.step(xb, yb)) for _ in range(calls)]

    def steps(self, seconds: float) -> list[float]:
        """Seconds of every single step on one batch."""
        xb, yb = self.trainer.place(*self.task.data(1))
        return timed(lambda: self.trainer.step(xb, yb), seconds)

    def prediction(self) -> list[float]:
        """For the first row."""
        X, _ = self.trainer.place(*self.task.data(1))
        return [float(value) for value in np.asarray(self.trainer.predict(X[:1])).ravel()]

    def predictions(self, seconds: float, rows: int = 1) -> list[float]:
        """Seconds of every prediction of so many rows; the first one warms up."""
        X, _ = self.trainer.place(*self.task.data(-(-rows // self.task.batch)))
        batch = X[:rows]
        self.trainer.predict(batch)
        return timed(lambda: self.trainer.predict(batch), seconds)

    def peak(self) -> float:
        """FLOP/s of this process's threads: multiply-adds that touch no memory on one core, times the cores."""
        from fastbp.core import backend_name
        from fastbp.profiling import fma_peak

        return threads() * fma_peak(backend_name(), np.dtype(self.task.dtype))


def timed(function: Any, seconds: float) -> list[float]:
    """How long each call took, calling for so long and at least once."""
    elapsed, clock = [], time.perf_counter
    end = clock() + seconds
    while True:
        start = clock()
        function()
        now = clock()
        elapsed.append(now - start)
        if now > end:
            return elapsed


class Worker:
    """A system in a process of its own, bound to so many cores; methods of ``Session`` are called on it.

    While it is not asked it waits for its standard input and takes no time from the others.
    """

    def __init__(self, system: str, cores: int, python: str = sys.executable, path: str | None = None) -> None:
        """``path`` takes the place of PYTHONPATH: a tree whose fastbp comes before the one that is installed."""
        self.system = system
        paths = {} if path is None else {"PYTHONPATH": path}
        pools = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(cores))
        command = [python, str(Path(__file__)), system, str(cores)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | pools | paths
        )

    def __getattr__(self, method: str) -> Any:
        return functools.partial(self.ask, method)

    def ask(self, method: str, /, **arguments: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([method, arguments]), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith(REPLY):
                return json.loads(line.removeprefix(REPLY))
        raise SystemExit(f"{self.system}: {method} failed; its traceback is above")

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def serve(system: str, cores: int) -> None:
    """Answer the parent until it closes the pipe."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    session = Session(system)
    for line in sys.stdin:
        method, arguments = json.loads(line)
        print(REPLY + json.dumps(getattr(session, method)(**arguments)), flush=True)


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    serve(sys.argv[1], int(sys.argv[2]))
