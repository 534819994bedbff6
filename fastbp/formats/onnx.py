"""export: a model as an ONNX file, for onnxruntime and everything else that reads the format."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

try:
    import onnx
    from onnx import helper, numpy_helper
except ImportError as error:
    raise ImportError("fastbp.onnx needs the onnx package: pip install fastbp[onnx]") from error

from fastbp.core.plan import ACTIVATIONS
from fastbp.data.arrays import Array, check_bool
from fastbp.formats.writing import File, write_file
from fastbp.layers import Activation, BatchNorm, Concatenate, Dense, Dropout, LayerNorm, Lookup, Residual
from fastbp.layers.tree import Chain, Place, inside, whole
from fastbp.training.sequential import Sequential, check_model

OPSET, IR_VERSION = 17, 8  # the first with LayerNormalization; readers from 2022 on


class _Graph:
    """Nodes in their order, each with one value out; constants as initializers."""

    def __init__(self, dtype: np.dtype[Any], tensors: dict[str, Array]) -> None:
        self.dtype, self.tensors = dtype, tensors
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def chain(self, chain: Chain, x: str) -> str:
        """The nodes of a list of layers that gets x."""
        for place in chain.places():
            kind = next((kind for kind in type(place.layer).__mro__ if kind in _LAYERS), None)
            if kind is None:
                raise TypeError(f"model.{place.access}: expected a layer that ONNX has, got {place.layer!r}")
            x = _LAYERS[kind](self, x, place, place.layer)
        return x

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        output = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def tensor(self, name: str, value: Array | float) -> str:
        self.initializers.append(numpy_helper.from_array(np.array(value, self.dtype), name))
        return name

    def own(self, place: Place, name: str) -> str:
        """A tensor of a layer, under the name that it has in the model."""
        return self.tensor(f"{place.path}.{name}", self.tensors[f"{place.path}.{name}"])

    def integers(self, value: Array | list[int]) -> str:
        self.initializers.append(numpy_helper.from_array(np.array(value, np.int64), f"rows{len(self.initializers)}"))
        return str(self.initializers[-1].name)

    def number(self, value: float) -> str:
        return self.tensor(f"number{len(self.initializers)}", value)


def _leaky_relu(graph: _Graph, x: str) -> str:
    if graph.dtype == np.float32:
        return graph.add("LeakyRelu", x, alpha=0.01)
    return graph.add("Max", x, graph.add("Mul", x, graph.number(0.01)))


def _elu(graph: _Graph, x: str) -> str:
    if graph.dtype == np.float32:
        return graph.add("Elu", x)
    below = graph.add("Exp", graph.add("Min", x, graph.number(0)))
    return graph.add("Add", graph.add("Relu", x), graph.add("Sub", below, graph.number(1)))


def _softplus(graph: _Graph, x: str) -> str:
    if graph.dtype == np.float32:
        return graph.add("Softplus", x)
    small = graph.add("Exp", graph.add("Neg", graph.add("Abs", x)))
    return graph.add("Add", graph.add("Relu", x), graph.add("Log", graph.add("Add", small, graph.number(1))))


def _gelu(graph: _Graph, x: str) -> str:
    """``x / 2 (1 + erf(x / sqrt(2)))``; onnxruntime has erf in float32 alone."""
    erf = graph.add("Mul", x, graph.number(math.sqrt(0.5)))
    if graph.dtype == np.float64:
        erf = graph.add("Cast", erf, to=onnx.TensorProto.FLOAT)
    erf = graph.add("Erf", erf)
    if graph.dtype == np.float64:
        erf = graph.add("Cast", erf, to=onnx.TensorProto.DOUBLE)
    half = graph.add("Mul", x, graph.number(0.5))
    return graph.add("Mul", half, graph.add("Add", erf, graph.number(1)))


# Those that no single operator computes; in float64 onnxruntime lacks LeakyRelu, Elu, Softplus and Erf, and the first
# three are made of what it has.
_COMPOSED: dict[str, Callable[[_Graph, str], str]] = {
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "gelu": _gelu,
    "silu": lambda graph, x: graph.add("Mul", x, graph.add("Sigmoid", x)),
    "softplus": _softplus,
}


def _activate(graph: _Graph, x: str, name: str) -> str:
    """The activation of that name, by the operator that its registry entry names or by several."""
    operator = ACTIVATIONS[name].onnx
    return graph.add(operator, x) if operator else _COMPOSED[name](graph, x)


def _dense(graph: _Graph, x: str, place: Place, layer: Dense) -> str:
    y = graph.add("MatMul", x, graph.own(place, "weight"))
    if layer.has_bias:
        y = graph.add("Add", y, graph.own(place, "bias"))
    return y if layer.activation is None else _activate(graph, y, layer.activation)


def _batchnorm(graph: _Graph, x: str, place: Place, layer: BatchNorm) -> str:
    tensors = [graph.own(place, name) for name in ("weight", "bias", "running_mean", "running_var")]
    return graph.add("BatchNormalization", x, *tensors, epsilon=layer.eps)


def _layernorm(graph: _Graph, x: str, place: Place, layer: LayerNorm) -> str:
    tensors = [graph.own(place, name) for name in ("weight", "bias")]
    return graph.add("LayerNormalization", x, *tensors, epsilon=layer.eps, axis=1)


def _lookup(graph: _Graph, x: str, place: Place, layer: Lookup) -> str:
    """The numeric columns, then every table's rows for its columns of ids; a reserved row for what is no id."""
    parts = [graph.add("Gather", x, graph.integers(np.arange(layer.n_numeric)), axis=1)] if layer.n_numeric else []
    first, means = layer.n_numeric, layer.means()
    for name, (count, dim, columns) in layer.tables().items():
        ids = graph.add("Gather", x, graph.integers(np.arange(first, first + columns)), axis=1)
        if layer.unknown == "reserve":
            whole = graph.add("Equal", ids, graph.add("Floor", ids))
            inside = graph.add(
                "And", graph.add("GreaterOrEqual", ids, graph.number(0)), graph.add("Less", ids, graph.number(count))
            )
            ids = graph.add("Where", graph.add("And", whole, inside), ids, graph.number(count))
        ids = graph.add("Cast", ids, to=onnx.TensorProto.INT64)
        table = graph.tensors[f"{place.path}.{name}"]
        if name in means:
            table = np.concatenate([table[:-1], means[name][None]])
        rows = graph.add("Gather", graph.tensor(f"{place.path}.{name}", table), ids, axis=0)
        parts.append(graph.add("Reshape", rows, graph.integers([-1, columns * dim])))
        first += columns
    return parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=1)


def _residual(graph: _Graph, x: str, place: Place, layer: Residual) -> str:
    return graph.add("Add", x, graph.chain(inside(place)[0], x))


def _concatenate(graph: _Graph, x: str, place: Place, layer: Concatenate) -> str:
    return graph.add("Concat", *(graph.chain(branch, x) for branch in inside(place)), axis=1)


# By the layer's class, or one that it is a kind of; dropout is nothing in inference.
_LAYERS: dict[type[Any], Callable[[_Graph, str, Place, Any], str]] = {
    Dense: _dense,
    Activation: lambda graph, x, place, layer: _activate(graph, x, layer.name),
    Dropout: lambda graph, x, place, layer: x,
    BatchNorm: _batchnorm,
    LayerNorm: _layernorm,
    Lookup: _lookup,
    Residual: _residual,
    Concatenate: _concatenate,
}


def export(model: Sequential, path: File, probabilities: bool = False) -> None:
    """Write the model as it predicts to an ONNX file.

    The graph takes ``input`` (N, I) and gives ``output`` (N, O), what ``model.predict`` gives, for any number of rows
    N, in the model's dtype; dropout is not in it. In float64, ``gelu`` has the precision of float32, which is the only
    one that onnxruntime has its error function in, and ``eps`` is rounded to float32 by the format. Ids that an
    embedding does not know and has no reserved row for are an error of whoever runs the file, or undefined.

    Parameters
    ----------
    model : Sequential or fitted estimator
        Of an estimator its ``model_``.
    path : str, path, or a file that is open for bytes
    probabilities : bool
        Whether ``output`` is what ``model.predict_proba`` gives.

    Raises
    ------
    TypeError
        If it is no model.
    ValueError
        If it has no probabilities.
    OSError
        If the file cannot be written; one that was there before is unharmed.
    """
    model, probabilities = check_model(model), check_bool("probabilities", probabilities)
    with model.model.shared():
        write_file(path, _to_bytes(model, probabilities))


def _to_bytes(model: Sequential, probabilities: bool) -> bytes:
    """The file of ``export``."""
    graph = _Graph(model.dtype, model.model.tensors())
    value = graph.chain(whole(model.layers), "input")
    if probabilities:
        link = model.model.expect_link()
        value = graph.add("Softmax", value, axis=1) if link == "softmax" else graph.add("Sigmoid", value)
    graph.nodes.append(helper.make_node("Identity", [value], ["output"]))
    kind = helper.np_dtype_to_tensor_dtype(model.dtype)
    file = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "fastbp",
            [helper.make_tensor_value_info("input", kind, ["N", model.inputs])],
            [helper.make_tensor_value_info("output", kind, ["N", model.outputs])],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="fastbp",
    )
    onnx.checker.check_model(file, full_check=True)
    return bytes(file.SerializeToString())
