"""A stack of layers lowered to a plan over flat buffers: forward, backward, predict, summary, save.

This file knows nothing of losses and optimizers; ``training.Sequential`` adds them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from fastbp.core import backend, backend_name, get_num_threads, plan
from fastbp.core._gate import Gate
from fastbp.data.arrays import Array, Categories, as_generator, cast, check_array, check_features, check_memory
from fastbp.formats import npz
from fastbp.layers import LAYERS, BatchNorm, Dense, Layer, Lookup
from fastbp.parameters import Parameters

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

M = TypeVar("M", bound="Model")

_CHUNK = 1024  # rows that predict sends through the network at a time


class Model:
    """The layers' forward and backward pass; see ``Sequential``."""

    def __init__(self, layers: Sequence[Layer], dtype: str | np.dtype[Any] | type = "float32", seed: int | None = None):
        valid = ("float32", "float64", np.float32, np.float64)
        if not isinstance(dtype, (str, type, np.dtype)) or dtype not in valid:  # an array would compare its entries
            raise ValueError(f"dtype: expected float32 or float64, got {dtype!r}")
        self.dtype = np.dtype(dtype)
        self._rng = as_generator(seed)
        self._orders = self._rng  # of fit's last call
        if not isinstance(layers, Sequence):
            raise TypeError(f"layers: expected a list of layers, got {type(layers).__name__}")
        self.layers = tuple(layers)
        widths = _widths(self.layers)
        for i, layer in enumerate(self.layers):
            if layer._parameters is not None or layer in self.layers[:i]:
                raise ValueError(f"layers[{i}]: {layer!r} is in a model already")
        self.inputs, self.outputs = widths[0], widths[-1]
        self._row_bytes = sum(widths) * self.dtype.itemsize  # that a sample takes in a forward pass, at least
        _affordable(self.layers, self._row_bytes, self.dtype.itemsize)
        self._parameters = Parameters(_shapes(self.layers), self.dtype)
        self._stats = plan.aligned(sum(4 * la.n for la in self.layers if isinstance(la, BatchNorm)), self.dtype)
        self._tables = np.zeros(0, plan.TABLE)
        self._categories: Categories | None = None
        self._ops = self._lower(widths)
        for i, layer in enumerate(self.layers):
            for name, value in layer.initial_values(self._rng).items():
                view = self._parameters.value(f"{i}.{name}")
                view[:] = check_array(f"layers[{i}].{name}", value, view.shape, self.dtype)
        self._adopt(self._parameters)
        self._networks: dict[str, Any] = {}
        self._gate = Gate()
        self._step = 0
        self._ready: tuple[Any, tuple[int, ...], Array] | None = None  # see _pass

    def _adopt(self, parameters: Parameters) -> None:
        """Make these the model's parameters, and the layers' tensors views of them."""
        self._parameters = parameters
        for i, layer in enumerate(self.layers):
            layer.take(parameters, str(i))

    def _lower(self, widths: list[int]) -> Array:
        """The plan: one op per layer, but an activation after a plain dense layer becomes part of it."""
        ops: list[Any] = []
        self._layer_of_op: list[int] = []
        keys = self._rng.integers(0, 2**63, size=len(self.layers), dtype=np.uint64)
        stats = 0
        for i, layer in enumerate(self.layers):
            if layer.kind == plan.ACTIVATION and ops and ops[-1]["kind"] == plan.DENSE and not ops[-1]["activation"]:
                ops[-1]["activation"] = layer.fields()["activation"]
                continue
            op = np.zeros((), dtype=plan.OP)
            op["kind"], op["key"] = layer.kind, keys[i]
            op["inputs"], op["outputs"] = widths[i], widths[i + 1]
            for field, value in layer.fields().items():
                op[field] = value
            op["weight"] = op["bias"] = -1
            if isinstance(layer, Lookup):
                offsets = {name: self._parameters.offsets[f"{i}.{name}"] for name in layer.shapes()}
                self._tables, self._categories = layer.records(offsets), layer.categories()
            else:
                for tensor in layer.shapes():
                    op[tensor] = self._parameters.offsets[f"{i}.{tensor}"]
            op["stats"] = -1
            if isinstance(layer, BatchNorm):
                layer.take_stats(self._stats[stats : stats + 4 * layer.n].reshape(4, layer.n))
                op["stats"] = stats
                stats += 4 * layer.n
            if layer.kind == plan.DENSE and ops and ops[-1]["kind"] in (plan.DENSE, plan.ACTIVATION):
                op["prior"] = ops[-1]["activation"]
            ops.append(op)
            self._layer_of_op.append(i)
        return np.array(ops, dtype=plan.OP)

    def _network(self) -> Any:
        name = backend_name()
        network = self._networks.get(name)
        if network is None:
            network = backend().Network(
                self._ops, self._parameters.values, self._parameters.grads, self._stats, self._tables
            )
            network = self._networks.setdefault(name, network)  # another thread may have been first
        return network

    def _features(self, name: str, x: ArrayLike) -> Array:
        """``x`` as the model's input."""
        return check_features(name, x, self.inputs, self.dtype, self._categories)

    def _forward(self, x: Array, training: bool, threads: int | None = None) -> Array:
        """The forward pass for an array that was checked; the caller is inside the gate."""
        if x.shape[0] > _CHUNK:  # a few samples more or less are not the question
            check_memory("x", x.shape[0] * self._row_bytes)
        network, y = self._network(), np.empty((x.shape[0], self.outputs), self.dtype)
        if not training:
            network.forward(y, x, 0, False, threads or get_num_threads())
            return y
        self._ready = None
        network.forward(y, x, self._step + 1, True, get_num_threads())
        self._step += 1  # a pass that found no memory is none: the next one has its masks
        self._ready = (network, y.shape, x)
        return y

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep all other threads out."""
        self._gate.enter_alone()
        try:
            yield
        finally:
            self._gate.leave()

    def _pass(self) -> tuple[Any, tuple[int, ...], Array]:
        """The network, the output's shape and the input of the forward pass that a backward pass may follow."""
        if self._ready is None:
            raise RuntimeError("backward: call forward(x, training=True) first; another pass has run since, or none")
        return self._ready

    def _backward(self, dy: Array, dx: Array | None = None) -> None:
        """The backward pass for a gradient that was checked."""
        self._pass()[0].backward(dx, dy, get_num_threads())
        self._ready = None  # not before: without memory for the gradients nothing has happened, and it may be repeated

    def forward(self, x: ArrayLike, training: bool = False) -> Array:
        """The outputs for a batch.

        Parameters
        ----------
        x : array_like (B, I)
            Kept by reference, if it is a C-contiguous array of the model's dtype, until ``backward`` has used it.
        training : bool
            Whether dropout drops, batch norm uses the batch's statistics, and ``backward`` may follow.

        Returns
        -------
        ndarray (B, O)

        Raises
        ------
        TypeError, ValueError
            If x is not numeric, has another width, no rows, NaN or infinite entries, or unknown categories.
        """
        x = self._features("x", x)
        if not training:
            return self._predict(x)
        with self._alone():
            return self._forward(x, True)

    def backward(self, dy: ArrayLike, input_gradient: bool = False) -> Array | None:
        """Backpropagation (Rumelhart, Hinton & Williams 1986): fill every parameter's gradient.

        Parameters
        ----------
        dy : array_like (B, O)
            The loss's gradient with respect to the outputs of the last ``forward(x, training=True)``.
        input_gradient : bool
            Whether to return the gradient with respect to x, (B, I), as well; zero for the ids of an embedding.

        Raises
        ------
        RuntimeError
            If the last pass through the model was not ``forward(x, training=True)``; one serves one backward pass.
        ValueError
            If dy has another shape than the outputs.
        """
        _, shape, x = self._pass()
        gradient = cast("dy", dy, self.dtype)
        if gradient.shape != shape:
            raise ValueError(f"dy: expected the shape of the outputs, {shape}, got {gradient.shape}")
        dx = np.empty_like(x) if input_gradient else None
        with self._alone():
            self._backward(gradient, dx)
        return dx

    def predict(self, x: ArrayLike) -> Array:
        """The outputs (N, O) for any number of rows (N, I), as in inference: the logits, for a classifier."""
        return self._predict(self._features("x", x))

    def _predict(self, x: Array) -> Array:
        """The outputs for an array that was checked; threads that are here at the same time share the cores."""
        threads = max(1, get_num_threads() // self._gate.enter_shared())
        try:
            if x.shape[0] <= _CHUNK:
                return self._forward(x, False, threads)
            parts = range(0, x.shape[0], _CHUNK)
            return np.concatenate([self._forward(x[i : i + _CHUNK], False, threads) for i in parts])
        finally:
            self._gate.leave()

    def _outputs_in_training(self, x: Array, step: int) -> Iterator[tuple[int, Array]]:
        """For every op the number of its layer and its outputs in that training step; changes nothing."""
        from fastbp.core import reference  # an error has the time

        network = reference.Network(
            self._ops, self._parameters.values, self._parameters.grads, self._stats.copy(), self._tables
        )
        with np.errstate(all="ignore"):
            network.forward(np.empty((len(x), self.outputs), self.dtype), x, step, True, 1)
        return zip(self._layer_of_op, network._inputs[1:], strict=True)

    def parameters(self) -> Parameters:
        """The parameters, for an optimizer."""
        return self._parameters

    def summary(self) -> str:
        """A table of the layers: output shape, parameters, and the FLOP of a prediction for one sample.

        FLOP are those of the matrix products, an addition and a multiplication for every weight.
        """
        widths, total = _widths(self.layers)[1:], 0
        rows = [("layer", "output", "parameters", "FLOP")]
        for layer, width in zip(self.layers, widths, strict=True):
            shapes = layer.shapes()
            flop = 2 * math.prod(shapes["weight"]) if isinstance(layer, Dense) else 0
            count, total = sum(math.prod(shape) for shape in shapes.values()), total + flop
            rows.append((repr(layer), f"(B, {width})", f"{count:,}", f"{flop:,}"))
        rows.append(("total", self.dtype.name, f"{self._parameters.count:,}", f"{total:,}"))
        a, b, c, d = (max(map(len, column)) for column in zip(*rows, strict=True))
        return "\n".join(f"{row[0]:{a}}  {row[1]:{b}}  {row[2]:>{c}}  {row[3]:>{d}}" for row in rows)

    def _arrays(self) -> dict[str, Array]:
        arrays = {name: self._parameters.value(name) for name in self._parameters.shapes}
        for i, layer in enumerate(self.layers):
            if isinstance(layer, BatchNorm):
                arrays |= {f"{i}.running_mean": layer.running_mean, f"{i}.running_var": layer.running_var}
        return arrays

    def save(self, path: npz.Path) -> None:
        """Write architecture, dtype, parameters and running statistics to one ``.npz`` file; ``fb.load`` reads it.

        Raises
        ------
        OSError
            If the file cannot be written; one that was there before is unharmed.
        """
        npz.write(path, {"dtype": self.dtype.name, "layers": self._config()}, self._arrays())

    @classmethod
    def load(cls, path: npz.Path) -> Self:
        """The model that ``save`` wrote, or that of a ``Checkpoint``.

        Raises
        ------
        FileFormatError
            If the file is damaged, cut short, of another kind, or from a newer fastbp.
        OSError
            If it cannot be read.
        """
        header, arrays = npz.read(path)
        try:
            tensors = {name: array for name, array in arrays.items() if not name.startswith("checkpoint.")}
            return cls._build(header["layers"], header["dtype"], tensors)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise npz.unreadable(path, error) from error

    @classmethod
    def _build(cls, config: list[dict[str, Any]], dtype: str, arrays: dict[str, Array]) -> Self:
        layers = _layers(config)
        shapes = _shapes(layers)
        for i, layer in enumerate(layers):
            if isinstance(layer, BatchNorm):
                shapes |= {f"{i}.running_mean": (layer.n,), f"{i}.running_var": (layer.n,)}
        for name in shapes.keys() | arrays.keys():  # before any memory is taken that a file only claims to fill
            if name not in shapes or name not in arrays or shapes[name] != arrays[name].shape:
                raise ValueError(f"the tensors do not fit the layers: {name!r}")
        model = cls(layers, dtype=dtype)
        own = model._arrays()
        for name, array in arrays.items():
            own[name][:] = cast(name, array, model.dtype)
        return model

    def astype(self, dtype: str) -> Self:
        """A copy of the model that computes in another dtype."""
        model = self._build(self._config(), dtype, self._arrays())
        model._ops["key"], model._step, model._rng = self._ops["key"], self._step, copy.deepcopy(self._rng)
        return model

    def _config(self) -> list[dict[str, Any]]:
        """The layers as data: what ``_build`` makes them from."""
        return [{"type": type(layer).__name__, **layer.settings()} for layer in self.layers]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are built anew around the copied parameters, which an optimizer's copy shares."""
        state = (
            self._config(),
            self.dtype.name,
            self._parameters,
            self._stats,
            self._ops["key"],
            self._step,
            self._rng,
        )
        return _rebuild, (type(self), *state)


def checked(model: object) -> Model:
    """``model`` if it is one: the door of what writes models to files of other kinds."""
    if not isinstance(model, Model):
        raise TypeError(f"model: expected a fastbp model, got {type(model).__name__}")
    return model


def _layers(config: list[dict[str, Any]]) -> list[Layer]:
    """The layers that a model's ``_config`` describes."""
    return [LAYERS[settings.pop("type")](**settings) for settings in map(dict, config)]


def _rebuild(
    cls: type[M],
    config: list[dict[str, Any]],
    dtype: str,
    parameters: Parameters,
    stats: Array,
    keys: Array,
    step: int,
    rng: np.random.Generator,
) -> M:
    model = cls(_layers(config), dtype=dtype)
    model._adopt(parameters)
    model._stats[:], model._ops["key"], model._step = stats, keys, step
    model._rng = model._orders = rng
    return model


def _shapes(layers: Sequence[Layer]) -> dict[str, tuple[int, ...]]:
    """The shapes of all parameters by name."""
    return {f"{i}.{name}": shape for i, layer in enumerate(layers) for name, shape in layer.shapes().items()}


def _affordable(layers: tuple[Layer, ...], row_bytes: int, itemsize: int) -> None:
    """Raise if there is no memory for a sample, or for the parameters and their gradients; names the layer."""
    total = row_bytes
    for i, layer in enumerate(layers):
        total += 2 * sum(map(math.prod, layer.shapes().values())) * itemsize
        check_memory(f"layers[{i}]", total)


def _widths(layers: tuple[Layer, ...]) -> list[int]:
    """The width before the first layer and after each one; raises where two layers do not fit."""
    if not layers:
        raise ValueError("layers: expected at least one layer, got none")
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise TypeError(f"layers[{i}]: expected a layer, got {type(layer).__name__}")
        if isinstance(layer, Lookup) and i > 0:
            raise ValueError(f"layers[{i}]: {layer!r} takes ids, which only the input has; it can only come first")
    known = next((layer.width for layer in layers if layer.width is not None), None)
    if known is None:
        raise ValueError("layers: expected at least one layer with a width, such as Dense, got none")
    widths = [known]
    for i, layer in enumerate(layers):
        if layer.width is not None and layer.width != widths[-1]:
            raise ValueError(f"layers[{i}]: {layer!r} takes {layer.width} features, but gets {widths[-1]}")
        widths.append(layer.outputs(widths[-1]))
    return widths
