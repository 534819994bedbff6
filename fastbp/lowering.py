"""From layers to the records of the core: small passes, each a pure function.

Infer the widths, name and shape the tensors, place the statistics, fuse activations, build the OP and TABLE records.
``Parameters`` places the parameters in their flat buffers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from fastbp.core import plan
from fastbp.data.arrays import Array, check_memory
from fastbp.layers import Layer

Shapes = dict[str, tuple[int, ...]]


class Program(NamedTuple):
    """The OP records in the order of the data flow, the TABLE records beside them, and each op's layer by number."""

    ops: Array
    tables: Array
    layer_of_op: list[int]


def infer_widths(layers: Sequence[Layer]) -> list[int]:
    """The width before the first layer and after each one; raises where two layers do not fit."""
    if not layers:
        raise ValueError("layers: expected at least one layer, got none")
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise TypeError(f"layers[{i}]: expected a layer, got {type(layer).__name__}")
        if layer.takes_ids and i > 0:
            raise ValueError(f"layers[{i}]: {layer!r} takes ids, which only the input has; it can only come first")
    inputs = next((layer.width for layer in layers if layer.width is not None), None)
    if inputs is None:
        raise ValueError("layers: expected at least one layer with a width, such as Dense, got none")
    widths = [inputs]
    for i, layer in enumerate(layers):
        if layer.width is not None and layer.width != widths[-1]:
            raise ValueError(f"layers[{i}]: {layer!r} takes {layer.width} features, but gets {widths[-1]}")
        widths.append(layer.outputs(widths[-1]))
    return widths


def parameter_shapes(layers: Sequence[Layer]) -> Shapes:
    """The shapes of all parameters by name."""
    return {f"{i}.{name}": shape for i, layer in enumerate(layers) for name, shape in layer.shapes().items()}


def tensor_shapes(layers: Sequence[Layer]) -> Shapes:
    """The shapes of all that a file keeps of a model: parameters, then running statistics."""
    running = {f"{i}.{name}": shape for i, la in enumerate(layers) for name, shape in la.running_shapes().items()}
    return parameter_shapes(layers) | running


def check_layers_memory(layers: Sequence[Layer], row_bytes: int, itemsize: int) -> None:
    """Raise if there is no memory for a sample, or for the parameters and their gradients; names the layer."""
    total = row_bytes
    for i, layer in enumerate(layers):
        total += 2 * sum(map(math.prod, layer.shapes().values())) * itemsize
        check_memory(f"layers[{i}]", total)


def place_statistics(layers: Sequence[Layer]) -> tuple[list[int], int]:
    """Where the statistics of each layer begin in their flat buffer, minus one without any, and its size."""
    offsets, size = [], 0
    for layer in layers:
        count = math.prod(layer.statistics_shape())
        offsets.append(size if count else -1)
        size += count
    return offsets, size


def fuse_activations(layers: Sequence[Layer]) -> list[tuple[int, int]]:
    """The layers that become ops, by number, and the activation of each; one after a plain dense layer joins that."""
    fused: list[tuple[int, int]] = []
    for i, layer in enumerate(layers):
        activation = int(layer.fields().get("activation", 0))
        if layer.kind == plan.ACTIVATION and fused:
            before, own = fused[-1]
            if layers[before].kind == plan.DENSE and not own:
                fused[-1] = before, activation
                continue
        fused.append((i, activation))
    return fused


def fuse_derivatives(ops: Sequence[Any]) -> None:
    """A dense op multiplies its dx with the derivative of the activation that its input came through."""
    for previous, op in pairwise(ops):
        if op["kind"] == plan.DENSE and previous["kind"] in (plan.DENSE, plan.ACTIVATION):
            op["prior"] = previous["activation"]


def lower(
    layers: Sequence[Layer], offsets: Mapping[str, int], statistics: Sequence[int], keys: Sequence[int] | Array
) -> Program:
    """The program of the layers.

    offsets are those of the parameters by name, statistics those of each layer's statistics, keys the random streams of
    the layers.
    """
    widths = infer_widths(layers)
    ops: list[Any] = []
    tables = [np.zeros(0, plan.TABLE)]
    fused = fuse_activations(layers)
    for i, activation in fused:
        layer = layers[i]
        op = np.zeros((), plan.OP)
        op["kind"], op["key"], op["stats"] = layer.kind, keys[i], statistics[i]
        op["inputs"], op["outputs"] = widths[i], widths[i + 1]
        for field, value in layer.fields().items():
            op[field] = value
        op["activation"] = activation
        op["weight"] = op["bias"] = -1
        own = {name: offsets[f"{i}.{name}"] for name in layer.shapes()}
        records = layer.table_records(own)
        if len(records):
            tables.append(records)
        else:
            for name, offset in own.items():
                op[name] = offset
        ops.append(op)
    fuse_derivatives(ops)
    return Program(np.array(ops, plan.OP), np.concatenate(tables), [i for i, _ in fused])
