"""Widths of layers; names, shapes and places of tensors. Each pass is a pure function of the tree."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastbp.data.arrays import check_memory
from fastbp.layers import Layer
from fastbp.layers.composition import Composite, input_width
from fastbp.layers.layer import kind_of
from fastbp.layers.tree import Chain, inside, leaves, walk, whole
from fastbp.parameters import Owners

Shapes = dict[str, tuple[int, ...]]
Widths = dict[str, int]


def check_tree(layers: Sequence[Layer]) -> None:
    """Raise unless these are layers, each in one place only, with ids at the input only."""
    if not layers:
        raise ValueError("layers: expected at least one layer, got none")
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise TypeError(f"layers[{i}]: expected a layer, got {kind_of(layer)}")
    seen: dict[int, str] = {}
    for path, access, layer in walk(layers):
        if not layer.runs_in_core():
            raise TypeError(
                f"{access}: expected one of fastbp's layers, got {kind_of(layer)}, a class of your own; layers run in "
                "the compiled core: compose them of those that there are, or put what is yours into the loss"
            )
        if layer.takes_ids and path != "0":
            raise ValueError(f"{access}: {layer!r} takes ids, which only the input has; it can only come first")
        if id(layer) in seen:
            raise ValueError(
                f"{access}: {layer!r} is at {seen[id(layer)]} already; make another one of the same settings"
            )
        if layer.is_bound:
            raise ValueError(f"{access}: {layer!r} is in a model already")
        seen[id(layer)] = access


def infer_widths(layers: Sequence[Layer]) -> Widths:
    """The width of the input, as "", and after each layer, by its path; raises where two layers do not fit."""
    inputs = input_width(layers)
    if inputs is None:
        raise ValueError("layers: expected at least one layer with a width, such as Dense, got none")
    widths = {"": inputs}
    _infer(whole(layers), inputs, widths)
    return widths


def _infer(chain: Chain, width: int, widths: Widths) -> int:
    """Add the widths of a list of layers and of those that they are made of; gives that of the last one."""
    for place in chain.places():
        layer = place.layer
        if isinstance(layer, Composite):
            given = [_infer(branch, width, widths) for branch in inside(place)]
            try:
                width = layer.joined(given)
            except ValueError as error:
                raise ValueError(f"{place.access}: {error}") from None
        elif layer.width is not None and layer.width != width:
            raise ValueError(f"{place.access}: {layer!r} takes {layer.width} features, but gets {width}")
        else:
            width = layer.outputs(width)
        widths[place.path] = width
    return width


def parameter_shapes(layers: Sequence[Layer]) -> Shapes:
    """The shapes of all parameters by name."""
    return {f"{path}.{name}": shape for path, _, layer in walk(layers) for name, shape in layer.shapes().items()}


def tensor_shapes(layers: Sequence[Layer]) -> Shapes:
    """The shapes of all that a file keeps of a model: parameters, then running statistics."""
    running = {f"{path}.{name}": shape for path, _, la in walk(layers) for name, shape in la.running_shapes().items()}
    return parameter_shapes(layers) | running


def parameter_owners(layers: Sequence[Layer]) -> Owners:
    """By the name of a parameter how a user writes the layer that has it, and what it is called there."""
    return {f"{path}.{name}": (access, name) for path, access, layer in walk(layers) for name in layer.shapes()}


def place_statistics(layers: Sequence[Layer]) -> tuple[dict[str, int], int]:
    """Where the statistics of each layer that has any begin in their flat buffer, by path, and its size."""
    offsets, size = {}, 0
    for path, _, layer in leaves(layers):
        count = math.prod(layer.statistics_shape())
        if count:
            offsets[path], size = size, size + count
    return offsets, size


def bytes_per_row(widths: Widths, itemsize: int) -> int:
    """What a sample needs in a forward pass, at least: the input, and what each layer gives."""
    return sum(widths.values()) * itemsize


def check_layers_memory(layers: Sequence[Layer], widths: Widths, itemsize: int) -> None:
    """Raise if there is no memory for a sample, or for the parameters and their gradients; names the layer."""
    total = widths[""] * itemsize
    for path, access, layer in walk(layers):
        own = 0 if isinstance(layer, Composite) else layer.parameter_count
        total += (widths[path] + 2 * own) * itemsize
        check_memory(access, total)
