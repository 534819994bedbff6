"""Ops and slots: which op reads and writes which, and which slots are parts of others. Each pass is a pure function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fastbp.core import plan
from fastbp.data.arrays import Array
from fastbp.layers import Layer
from fastbp.layers.composition import Composite
from fastbp.layers.tree import Chain, Place, inside, whole

_NEEDS_INPUT = {activation.code for activation in plan.ACTIVATIONS.values() if activation.needs_input}


class Step(NamedTuple):
    """An op before it is a record: its layer's place, its kind, its fused activation, its slots and where it writes."""

    place: Place
    kind: str
    activation: int
    src: int
    dst: int
    z: int = -1
    column: int = 0


def fuse_activations(layers: Sequence[Layer]) -> list[tuple[int, int]]:
    """The layers of a list that become ops, and the activation of each; one after a plain dense layer joins that."""
    fused: list[tuple[int, int]] = []
    for i, layer in enumerate(layers):
        activation = int(layer.fields().get("activation", 0))
        if layer.is_activation and fused:
            before, own = fused[-1]
            if layers[before].applies_activation and not own:
                fused[-1] = before, activation
                continue
        fused.append((i, activation))
    return fused


class _Slots:
    """Gives every op of a tree its slots, in the order of the data."""

    def __init__(self, widths: Mapping[str, int]) -> None:
        self.by_path = widths
        self.widths = [widths[""]]
        self.steps: list[Step] = []

    def new(self, width: int) -> int:
        self.widths.append(width)
        return len(self.widths) - 1

    def chain(self, chain: Chain, src: int) -> int:
        """The ops of a list of layers that begins at slot src; gives the slot of its output."""
        places = chain.places()
        for i, activation in fuse_activations(chain.layers):
            layer = places[i].layer
            if isinstance(layer, Composite):
                src = self.branches(places[i], layer, src)
            else:
                src = self.single(places[i], activation, src)
        return src

    def single(self, place: Place, activation: int, src: int) -> int:
        width, z = self.by_path[place.path], -1
        if activation in _NEEDS_INPUT:
            z = src if place.layer.is_activation else self.new(width)
        dst = self.new(width)
        self.steps.append(Step(place, place.layer.kind, activation, src, dst, z))
        return dst

    def branches(self, place: Place, layer: Composite, src: int) -> int:
        """All branches, one after the other, and then the ops that join them."""
        ends = [self.chain(branch, src) for branch in inside(place)]
        dst, column = self.new(self.by_path[place.path]), 0
        for i, end in enumerate(ends):
            self.steps.append(Step(place, layer.join if i else "copy", 0, end, dst, column=column))
            if layer.join == "copy":
                column += self.widths[end]
        return dst


def assign_slots(layers: Sequence[Layer], widths: Mapping[str, int]) -> tuple[list[Step], list[int]]:
    """The steps of a tree, and the widths of its slots."""
    slots = _Slots(widths)
    slots.chain(whole(layers), 0)
    return slots.steps, slots.widths


def readers(ops: Array, slots: Array) -> list[list[int]]:
    """For every slot the ops that read it, in their order."""
    found: list[list[int]] = [[] for _ in slots]
    for i, op in enumerate(ops):
        found[op["src"]].append(i)
    return found


def share_memory(ops: Array, slots: Array, places: Sequence[Place]) -> Array:
    """The slots, with those marked that may be a part of another one, and those that a dropout leaves as they are.

    What an activation alone reads has its gradient in the place of the output's: the derivative is applied there. What
    a copy alone reads is the part of the output that it would be copied to.
    """
    slots, read_by = slots.copy(), readers(ops, slots)
    for op, place in zip(ops, places, strict=True):
        src, dst, alone = int(op["src"]), int(op["dst"]), len(read_by[op["src"]]) == 1
        if alone and place.layer.is_activation:
            slots[src]["parent"], slots[src]["keeps_value"] = dst, 1
        elif alone and op["kind"] == b"copy" and src > 0:
            slots[src]["parent"], slots[src]["column"] = dst, op["column"]
        if place.layer.identity_in_inference:
            slots[dst]["source"] = src
    return _keep_values(ops, slots, places)


def _keep_values(ops: Array, slots: Array, places: Sequence[Place]) -> Array:
    """The slots, where a part has a value of its own if something is added to the whole and a derivative needs it.

    The derivative of an activation needs what the activation gave.
    """
    slots = slots.copy()
    of_activation = {int(op["dst"]) for op in ops if op["activation"]}
    added_to = {
        int(op["dst"])
        for op, place in zip(ops, places, strict=True)
        if isinstance(place.layer, Composite) and op["kind"] != b"copy"
    }
    for number in of_activation:
        whole_slot = int(slots[number]["parent"])
        while whole_slot >= 0 and whole_slot not in added_to:
            whole_slot = int(slots[whole_slot]["parent"])
        if whole_slot >= 0:
            slots[number]["keeps_value"] = 1
    return slots
