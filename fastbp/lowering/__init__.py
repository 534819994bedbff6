"""From layers to the program of the core, by small passes, each a pure function with tests of its own.

``tensors``: infer widths, name and place tensors. ``slots``: fuse activations, assign slots, share memory.
``gradients``: which are needed, who assigns and who adds, fused derivatives.
``Parameters`` places the parameters in their flat buffers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fastbp.core import backend, plan
from fastbp.data.arrays import Array
from fastbp.layers import LAYERS, Layer
from fastbp.layers.composition import Composite
from fastbp.layers.tree import Place
from fastbp.lowering.gradients import fuse_derivatives, mark_accumulating, mark_learned
from fastbp.lowering.slots import Step, assign_slots, share_memory
from fastbp.parameters import Parameters

_KINDS = {layer.join if issubclass(layer, Composite) else layer.kind for layer in LAYERS.values()}
plan.check_names(backend(), "kinds", _KINDS | {"copy", "sparse"})


class Program(NamedTuple):
    """The OP records in the order of the data, the SLOT and TABLE records beside them, and the layer of each op."""

    ops: Array
    slots: Array
    tables: Array
    places: tuple[Place, ...]


def lower(
    layers: Sequence[Layer],
    widths: Mapping[str, int],
    parameters: Parameters,
    statistics: Mapping[str, int],
    keys: Mapping[str, int],
) -> Program:
    """The program of a tree of layers.

    widths are those of ``infer_widths``; parameters have the places of the tensors; statistics and keys say where a
    layer's statistics begin and what its random stream is, by path.
    """
    steps, slot_widths = assign_slots(layers, widths)
    places = tuple(step.place for step in steps)
    slots = np.zeros(len(slot_widths), plan.SLOT)
    slots["width"], slots["parent"], slots["source"] = slot_widths, -1, -1
    ops = np.zeros(len(steps), plan.OP)
    tables = [np.zeros(0, plan.TABLE)]
    for op, step in zip(ops, steps, strict=True):
        describe(op, step, slot_widths)
        tables.append(place_parameters(op, step.place, parameters))
        op["stats"], op["key"] = statistics.get(step.place.path, -1), keys.get(step.place.path, 0)
    slots = mark_learned(ops, share_memory(ops, slots, places))
    ops = fuse_derivatives(mark_accumulating(ops, slots), slots, places)
    return Program(ops, slots, np.concatenate(tables), places)


def describe(op: np.void, step: Step, widths: Sequence[int]) -> None:
    """Fill in what a record has of its step and of its layer's settings."""
    op["inputs"] = widths[step.src]
    op["outputs"] = widths[step.src] if isinstance(step.place.layer, Composite) else widths[step.dst]
    for field, value in step.place.layer.fields().items():
        op[field] = value
    op["kind"], op["activation"], op["column"] = step.kind, step.activation, step.column
    op["src"], op["dst"], op["z"], op["input_z"] = step.src, step.dst, step.z, -1


def place_parameters(op: np.void, place: Place, parameters: Parameters) -> Array:
    """Fill in where a layer's parameters lie; its TABLE records, where these say so."""
    names = {f"{place.path}.{name}": name for name in place.layer.shapes()}
    own = {name: parameters.offsets[full] for full, name in names.items()}
    op["weight"] = op["bias"] = -1
    if own:
        op["begin"], op["end"] = min(own.values()), max(parameters.ends[full] for full in names)
    records = place.layer.table_records(own)
    if not len(records):
        for name, offset in own.items():
            op[name] = offset
    return records
