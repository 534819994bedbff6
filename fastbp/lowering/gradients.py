"""Gradients: which are needed, who assigns and who adds, who applies a derivative. Each pass is a pure function.

A backward pass runs the ops in reverse: of the readers of a slot the last in the program reaches its gradient first.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastbp.data.arrays import Array
from fastbp.layers.tree import Place
from fastbp.lowering.slots import readers


def mark_learned(ops: Array, slots: Array) -> Array:
    """The slots, with those marked whose gradient a backward pass needs: parameters lie before them.

    What an activation was applied to and no op reads has no gradient of its own.
    """
    slots = slots.copy()
    slots["learned"], slots[0]["learned"] = -1, 0
    for op in ops:
        learned = int(op["begin"] < op["end"] or slots[op["src"]]["learned"] > 0)
        slots[op["dst"]]["learned"] = max(learned, slots[op["dst"]]["learned"])
        slots[op["dst"]]["first"] = op["numeric"]
    return slots


def mark_accumulating(ops: Array, slots: Array) -> Array:
    """The ops, with those marked that add to a gradient: the last reader of a slot assigns it, the others add."""
    ops = ops.copy()
    for of_slot in readers(ops, slots):
        for i in of_slot[:-1]:
            ops[i]["accumulates"] = 1
    return ops


def fuse_derivatives(ops: Array, slots: Array, places: Sequence[Place]) -> Array:
    """The ops, with who applies the derivative of each activation.

    It is the first reader of what the activation gave, where its dx can include that: all other gradients have been
    added by then. Else it is the op itself.
    """
    ops, read_by = ops.copy(), readers(ops, slots)
    for op in ops:
        if not op["activation"]:
            continue
        first = next(iter(read_by[op["dst"]]), None)
        if first is not None and places[first].layer.applies_input_derivative:
            ops[first]["input_activation"], ops[first]["input_z"] = op["activation"], op["z"]
        else:
            op["derivative"] = 1
    return ops
