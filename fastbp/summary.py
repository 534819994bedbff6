"""What ``Sequential.summary`` prints: the tree of layers, or the program that it was lowered to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastbp.core.plan import ACTIVATIONS
from fastbp.layers.composition import Composite
from fastbp.layers.tree import Chain, inside, leaves, whole
from fastbp.lowering.tensors import Widths, infer_widths
from fastbp.model import Model

_ACTIVATIONS = {activation.code: name for name, activation in ACTIVATIONS.items()}

Row = tuple[str, ...]


def _table(rows: Sequence[Row], left: int) -> str:
    """Lines of one length; the first ``left`` columns begin on the left, all others end on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{c:{'<' if i < left else '>'}{widths[i]}}" for i, c in enumerate(r)) for r in rows)


def layer_table(model: Model) -> str:
    """The layers: output shape, parameters, and the FLOP of a prediction for one sample."""
    rows: list[Row] = [("layer", "output", "parameters", "FLOP")]
    _add_layers(rows, whole(model.layers), model.inputs, infer_widths(model.layers), "")
    total = sum(place.layer.flop() for place in leaves(model.layers))
    rows.append(("total", model.dtype.name, f"{model.params.count:,}", f"{total:,}"))
    return _table(rows, 2)


def _add_layers(rows: list[Row], chain: Chain, width: int, widths: Widths, indent: str) -> None:
    """A row for each layer of a list that gets so many features, and the rows of its branches below it."""
    for place in chain.places():
        before, width = width, widths[place.path]
        if not isinstance(place.layer, Composite):
            layer = place.layer
            rows.append((f"{indent}{layer!r}", f"(B, {width})", f"{layer.parameter_count:,}", f"{layer.flop():,}"))
            continue
        rows.append((f"{indent}{type(place.layer).__name__}", f"(B, {width})", "", ""))
        for branch, inner in zip(place.layer.inner(), inside(place), strict=True):
            within = indent + "  "
            if branch.path:
                layers = inner.places()
                end = widths[layers[-1].path] if layers else before
                rows.append((f"{within}{branch.path[:-1]}:{'' if layers else ' the input'}", f"(B, {end})", "", ""))
                within += "  "
            _add_layers(rows, inner, before, widths, within)


def program_table(model: Model) -> str:
    """The program: a line for each op, and one for each slot, which is a value with its gradient."""
    ops: list[Row] = [("op", "layer", "kind", "slots", "widths", "activation", "dx", "derivative")]
    for i, (op, place) in enumerate(zip(model.program, model.places, strict=True)):
        ops.append((
            str(i), place.path, op["kind"].decode(), _op_slots(op), _op_widths(op),
            _ACTIVATIONS[int(op["activation"])] or "", _dx(model, op), _derivative(model, i),
        ))  # fmt: skip
    slots: list[Row] = [("slot", "width", "memory", "gradient")]
    for i, slot in enumerate(model.slots):
        slots.append((str(i), str(slot["width"]), _memory(slot), _gradient(model, i)))
    return f"{_table(ops, 8)}\n\n{_table(slots, 4)}"


def _op_slots(op: np.void) -> str:
    """``3 -> 5``, or ``3 -> 5, z in 4`` where what its activation is applied to is kept."""
    return f"{op['src']} -> {op['dst']}" + (f", z in {op['z']}" if op["z"] >= 0 else "")


def _op_widths(op: np.void) -> str:
    """``64 -> 128``, or ``64 -> 64 at column 32`` where it writes a part of its slot."""
    at = f" at column {op['column']}" if op["column"] else ""
    return f"{op['inputs']} -> {op['outputs']}{at}"


def _dx(model: Model, op: np.void) -> str:
    """What an op does to the gradient of what it reads."""
    if not model.slots[op["src"]]["learned"] and op["src"] > 0:
        return ""
    return ("adds" if op["accumulates"] else "assigns") + (" (input)" if op["src"] == 0 else "")


def _derivative(model: Model, i: int) -> str:
    """Who applies the derivative of the op's activation."""
    op = model.program[i]
    if not op["activation"]:
        return ""
    if op["derivative"]:
        return "itself"
    (reader,) = np.flatnonzero((model.program["src"] == op["dst"]) & (model.program["input_activation"] > 0))
    return f"op {reader}"


def _memory(slot: np.void) -> str:
    """Which memory a slot may share."""
    shared = []
    if slot["parent"] >= 0:
        what = "gradient in" if slot["keeps_value"] else "in"
        shared.append(f"{what} slot {slot['parent']}" + (f" at column {slot['column']}" if slot["column"] else ""))
    if slot["source"] >= 0:
        shared.append(f"value of slot {slot['source']} in inference")
    return ", ".join(shared)


def _gradient(model: Model, i: int) -> str:
    """Whether a backward pass needs the gradient of a slot."""
    if i == 0:
        return "input"
    slot = model.slots[i]
    if slot["learned"] < 0:
        return ""
    first = f" from column {slot['first']}" if slot["first"] else ""
    return f"needed{first}" if slot["learned"] else "of the input alone"
