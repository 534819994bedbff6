"""Model: what layers are lowered to, and the passes through it.

The arrays that it gets have been checked. This file knows nothing of losses and optimizers, and of no layer in
particular.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np

from fastbp.core import backend, backend_name, plan
from fastbp.core.sparse import CSR
from fastbp.data.arrays import Array, Features, as_generator, cast, check_array, check_features, check_memory
from fastbp.data.sparse import check_sparse, is_sparse
from fastbp.layers import Layer, make_layers
from fastbp.layers.tree import Place, leaves, walk
from fastbp.lowering import lower
from fastbp.lowering.tensors import (
    bytes_per_row,
    check_layers_memory,
    check_tree,
    infer_widths,
    parameter_owners,
    parameter_shapes,
    place_statistics,
    tensor_shapes,
)
from fastbp.parameters import Parameters, Unchanged

if TYPE_CHECKING:
    Contents = tuple[Parameters, Array, Array, int, str, np.random.Generator, Unchanged]

PREDICTION_ROWS = 1024  # that go through the network at a time
SMALL_BATCH = 1024  # rows, up to which the memory of a pass is not compared with the machine's


class PendingForward(NamedTuple):
    """A forward pass in training, which one backward pass may follow."""

    network: Any
    shape: tuple[int, ...]  # of the outputs
    x: Features


DtypeName = Literal["float32", "float64"]
Dtype = DtypeName | np.dtype[Any] | type

#: What makes probabilities of outputs.
LINKS = "softmax", "sigmoid"


class Model:
    """Layers, their flat parameters and statistics, and one network per backend over these.

    Attributes
    ----------
    layers : tuple of Layer
    dtype : dtype
    inputs, outputs : int
        Widths.
    params : Parameters
    statistics : ndarray
        The running and batch statistics of all layers, flat.
    program, slots, tables : ndarray
        The OP, SLOT and TABLE records.
    places : tuple of Place
        The layer of each op.
    generator, order_generator : Generator
        The model's own, and the one that the last ``fit`` drew its orders from.
    training_step : int
        Forward passes in training so far; dropout's masks follow from it.
    link : str
        Of the loss that it was last trained with: what makes probabilities of its outputs, or "".
    pending_forward : PendingForward or None
    lock : ReadWriteLock
        The parameters' own: keeps training and other threads apart.
    row_bytes : int
        That a sample needs in a forward pass, at least.
    """

    def __init__(self, layers: Sequence[Layer], dtype: Dtype = "float32", seed: int | None = None):
        if not isinstance(layers, Sequence):
            raise TypeError(f"layers: expected a list of layers, got {type(layers).__name__}")
        valid = ("float32", "float64", np.float32, np.float64)
        if not isinstance(dtype, (str, type, np.dtype)) or dtype not in valid:  # an array would compare its entries
            raise ValueError(f"dtype: expected float32 or float64, got {dtype!r}")
        self.dtype = np.dtype(dtype)
        self.generator = self.order_generator = as_generator(seed)
        self.layers = tuple(layers)
        check_tree(self.layers)
        widths = infer_widths(self.layers)
        self.inputs, self.outputs = widths[""], widths[str(len(self.layers) - 1)]
        self.widths = widths
        self.row_bytes = bytes_per_row(widths, self.dtype.itemsize)
        for _, access, layer in walk(self.layers):
            layer.check_dtype(access, self.dtype)
        check_layers_memory(self.layers, widths, self.dtype.itemsize)
        self.params = Parameters(parameter_shapes(self.layers), self.dtype, parameter_owners(self.layers))
        offsets, size = place_statistics(self.layers)
        self.statistics = plan.aligned(size, self.dtype)
        paths = [place.path for place in leaves(self.layers)]
        keys = self.generator.integers(0, 2**63, size=len(paths), dtype=np.uint64)
        program = lower(self.layers, widths, self.params, offsets, dict(zip(paths, keys, strict=True)))
        self.program, self.slots, self.tables, self.places = program
        others = (
            place
            for op, place in zip(self.program, self.places, strict=True)
            if op["src"] == 0 and op["kind"] != b"dense"
        )
        self._reads_dense = next(others, None)  # what reads the input and takes no sparse rows
        self._categories = self.layers[0].categories()
        self._initialise()
        self._bind(offsets)
        self._offsets = offsets
        self._networks: dict[str | tuple[str, int], Any] = {}
        self.lock = self.params.lock
        self.training_step, self.link = 0, ""
        self.pending_forward: PendingForward | None = None
        self._remember_buffers()

    def _remember_buffers(self) -> None:
        """The memory behind parameters, gradients and statistics, of which all tensors are views."""
        self._buffers = frozenset(id(array.base) for array in (self.params.values, self.params.grads, self.statistics))

    def check_apart(self, name: str, array: Features) -> None:
        """Raise if an array is a view of the model's own, which training changes while it is read."""
        array = array.values if isinstance(array, CSR) else array
        if id(array.base) in self._buffers and array.base is not None:
            raise ValueError(f"{name}: expected an array apart from the model's own, got a view of these; pass a copy")

    def _initialise(self) -> None:
        """Give the parameters that do not start at zero their first values."""
        for path, access, layer in walk(self.layers):
            values = layer.initial_values(self.generator)
            for name in layer.shapes() if layer.copied else ():
                values[name] = layer.copied[name]
            for name, value in values.items():
                view = self.params.value(f"{path}.{name}")
                view[:] = check_array(f"{access}.{name}", value, view.shape, self.dtype)

    def _bind(self, offsets: dict[str, int]) -> None:
        """Make the layers' arrays views of the flat buffers."""
        for path, _, layer in walk(self.layers):
            layer.bind(self.params, path)
            if path in offsets:
                shape = layer.statistics_shape()
                layer.bind_statistics(self.statistics[offsets[path] :][: math.prod(shape)].reshape(shape))
                for name in layer.running_shapes() if layer.copied else ():
                    getattr(layer, name)[:] = layer.copied[name]

    def network(self, upto: int | None = None) -> Any:
        """The network of the active backend, or that of the first layers alone, made when it is first used."""
        name = backend_name() if upto is None else (backend_name(), upto)
        network = self._networks.get(name)
        if network is None:
            network = backend().Network(*self._records(upto), self.statistics)
            network = self._networks.setdefault(name, network)  # another thread may have been first
        return network

    def _records(self, upto: int | None = None) -> tuple[Array, Array, Array, Array, Array]:
        """What a network is made of, up to the statistics; of the first layers, whose tensors lie where they do."""
        program, slots, tables = self.program, self.slots, self.tables
        if upto is not None:
            program, slots, tables, _ = lower(self.layers[:upto], self.widths, self.params, self._offsets, {})
        return program, slots, tables, self.params.values, self.params.grads

    def check_features(self, name: str, x: Any, empty: bool = False) -> Features:
        """``x`` as the model's input; empty: whether it may have no rows."""
        if type(x) is not np.ndarray and is_sparse(x):
            if self._reads_dense is not None:
                raise TypeError(
                    f"{name}: expected a dense array, got a sparse matrix, which Dense alone takes, and not "
                    f"{self._reads_dense.access}, {type(self._reads_dense.layer).__name__}; toarray() gives one"
                )
            return check_sparse(name, x, self.inputs, self.dtype, empty)
        return check_features(name, x, self.inputs, self.dtype, self._categories, empty)

    def check_rows(self, name: str, x: Features, rows: int) -> None:
        """Raise if there is no memory for a pass of so many rows of x."""
        check_memory(name, rows * (self.row_bytes - (x.dtype.itemsize * self.inputs if isinstance(x, CSR) else 0)))

    def training(self) -> AbstractContextManager[None]:
        """Keep other threads out from the first epoch to the last; within, this one may read and change the model."""
        return self.lock.training()

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep all else that changes or reads the model out: for a step, or another change."""
        return self.lock.exclusive()

    def shared(self, threads: int | None = None) -> AbstractContextManager[int]:
        """Keep out threads that train; gives how many threads of the core to use, see ``Parameters``."""
        if self.lock.in_step():  # a signal handler reads what an epoch has done so far
            for network in self._networks.values():
                network.publish()
        return self.params.shared(threads)

    def forward(self, x: Features, threads: int) -> Array:
        """The forward pass of a training step; the caller has exclusive access."""
        if x.shape[0] > SMALL_BATCH:
            self.check_rows("x", x, x.shape[0])
        network, y = self.network(), np.empty((x.shape[0], self.outputs), self.dtype)
        self.pending_forward, passes = None, network.passes
        try:
            network.forward(y, x, self.training_step + 1, True, threads)
        finally:  # a pass that fails for want of memory does not count; one that an interrupt follows does
            self.training_step += network.passes - passes
        self.pending_forward = PendingForward(network, y.shape, x)
        return y

    def expect_forward(self) -> PendingForward:
        """The forward pass that a backward pass may follow; raises if there is none."""
        if self.pending_forward is None:
            raise RuntimeError("backward: call forward(x, training=True) first; another pass has run since, or none")
        return self.pending_forward

    def backward(self, dy: Array, threads: int, dx: Array | None = None, parameter_gradients: bool = True) -> None:
        """Fill the gradients, unless these are to stay, and dx if it is not None; the caller has exclusive access."""
        self.expect_forward().network.backward(dx, dy, parameter_gradients, threads)
        self.pending_forward = None  # not before: one that fails for want of memory may be repeated

    def predict(self, x: Features, threads: int, upto: int | None = None) -> Array:
        """The outputs, or those of the first layers, with so many threads; the caller has shared access."""
        network = self.network(upto)
        y = np.empty((x.shape[0], self.outputs if upto is None else self.widths[str(upto - 1)]), self.dtype)
        if self._categories is not None and not isinstance(x, CSR) and self._categories.among(x):
            network = self._network_of_means(upto)
        if x.shape[0] <= PREDICTION_ROWS:
            if x.shape[0]:
                network.forward(y, x, 0, False, threads)
            return y
        for first in range(0, x.shape[0], PREDICTION_ROWS):
            rows = slice(first, first + PREDICTION_ROWS)
            network.forward(y[rows], x[rows], 0, False, threads)
        return y

    def _network_of_means(self, upto: int | None = None) -> Any:
        """A network in which reserved rows that were never trained are the mean of their table.

        It has parameters of its own: others may be predicting now. Made anew, as the weights may be others by then.
        """
        network, means = self.network(upto), self.layers[0].means()
        if not means:
            return network
        self.network().publish()
        values = plan.aligned(self.params.values.size, self.dtype)
        values[:] = self.params.values
        for name, mean in means.items():
            self.params.view(values, f"0.{name}")[-1] = mean
        program, slots, tables, _, grads = self._records(upto)
        return backend().Network(program, slots, tables, values, grads, self.statistics)

    def layer_outputs(self, x: Features, step: int) -> Iterator[tuple[Place, Array]]:
        """For every op its layer and its outputs in that training step; changes nothing."""
        from fastbp.core import reference  # here, as only an error needs it

        network = reference.Network(*self._records(), self.statistics.copy())
        with np.errstate(all="ignore"):
            network.forward(np.empty((len(x), self.outputs), self.dtype), x, step, True, 1)
        return zip(self.places, network.layer_outputs(), strict=True)

    def tensors(self) -> dict[str, Array]:
        """What a file keeps, by name: views of the parameters and of the running statistics."""
        arrays = {name: self.params.value(name) for name in self.params.shapes}
        for path, _, layer in walk(self.layers):
            arrays |= {f"{path}.{name}": getattr(layer, name) for name in layer.running_shapes()}
        return arrays

    def assign(self, tensors: dict[str, Array]) -> None:
        """Copy tensors, whose shapes were checked, into one's own."""
        own = self.tensors()
        for name, array in tensors.items():
            own[name][:] = cast(name, array, self.dtype)

    def snapshot(self) -> tuple[Array, Array]:
        """Copies of all parameters and statistics."""
        return self.params.values.copy(), self.statistics.copy()

    def restore(self, snapshot: tuple[Array, Array]) -> None:
        """Go back to a ``snapshot``."""
        self.params.values[:], self.statistics[:] = snapshot

    def config(self) -> list[dict[str, Any]]:
        """The layers as data, for ``make_layers``."""
        return [layer.config() for layer in self.layers]

    def header(self) -> dict[str, Any]:
        """What a file says of a model besides its tensors."""
        return {"dtype": self.dtype.name, "layers": self.config()} | ({"link": self.link} if self.link else {})

    def expect_link(self) -> str:
        """What makes probabilities of its outputs; raises if they are of none."""
        if not self.link:
            raise ValueError(
                "probabilities: expected a model that was last trained with 'cross_entropy' or 'binary_cross_entropy', "
                "got one with another loss, or none"
            )
        return self.link

    def set_link(self, link: object) -> None:
        """What a file says of it; raises if there is no such link."""
        if link not in ("", *LINKS):
            raise ValueError(f"link: expected one of {', '.join(LINKS)}, got {link!r}")
        self.link = str(link)

    def contents(self) -> Contents:
        """What else there is to a model, for ``adopt`` by one of the same layers and dtype."""
        unchanged = Unchanged(self.lock)
        return (
            self.params,
            self.statistics,
            self.program["key"],
            self.training_step,
            self.link,
            self.generator,
            unchanged,
        )

    def adopt(
        self,
        params: Parameters,
        statistics: Array,
        keys: Array,
        training_step: int,
        link: str,
        generator: np.random.Generator,
        _unchanged: object = None,
    ) -> None:
        """Take over the contents of another model: its parameters themselves, and copies of the rest."""
        self.params, self.lock = params, params.lock
        self._remember_buffers()
        self._networks.clear()  # they have the parameters of before
        for path, _, layer in walk(self.layers):
            layer.bind(params, path)
        self.statistics[:], self.program["key"], self.training_step = statistics, keys, training_step
        self.generator, self.order_generator, self.link = generator, generator, link

    def set_keys(self, keys: Array) -> None:
        """Use other random streams, one for each op; raises unless these are as many unsigned integers."""
        own = self.program["key"]
        if keys.shape != own.shape or keys.dtype.kind != "u":
            raise ValueError(f"keys: expected {own.shape} unsigned integers, got {keys.dtype} of {keys.shape}")
        own[:] = keys

    def copy_randomness(self, other: Model) -> None:
        """Go on with the random streams where another model of these layers is."""
        self.program["key"], self.training_step = other.program["key"], other.training_step
        self.generator, self.link = copy.deepcopy(other.generator), other.link

    def resume(self, other: Model) -> None:
        """Become what another model of the same layers and dtype is, with the orders where it has them."""
        self.restore(other.snapshot())
        self._networks.clear()  # they have keys of their own
        self.program["key"], self.training_step, self.link = other.program["key"], other.training_step, other.link
        self.order_generator.bit_generator.state = other.generator.bit_generator.state

    @classmethod
    def from_tensors(cls, config: list[dict[str, Any]], dtype: DtypeName, tensors: dict[str, Array]) -> Self:
        """The model of a ``config`` with these ``tensors``."""
        layers = make_layers(config)
        check_tensors(layers, tensors)
        model = cls(layers, dtype)
        model.assign(tensors)
        return model

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are built anew around the copied parameters, which an optimizer's copy shares."""
        return _rebuild, (self.config(), self.dtype.name, *self.contents())


def check_tensors(layers: Sequence[Layer], tensors: dict[str, Array]) -> None:
    """Raise unless these are the tensors of the layers, before memory is reserved that a file only claims to fill."""
    shapes = tensor_shapes(layers)
    for name in shapes.keys() | tensors.keys():
        if name not in shapes or name not in tensors or shapes[name] != tensors[name].shape:
            raise ValueError(f"the tensors do not fit the layers: {name!r}")


def _rebuild(config: list[dict[str, Any]], dtype: DtypeName, *contents: Any) -> Model:
    model = Model(make_layers(config), dtype)
    model.adopt(*contents)
    return model
