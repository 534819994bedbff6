"""The way through a tree of layers: what every layer's tensors are called, and how a user gets at it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fastbp.layers.composition import Composite
from fastbp.layers.layer import Layer


class Place(NamedTuple):
    """A layer and its place in a model.

    ``path`` is what names of tensors begin with, such as ``3.policy.0``; ``access`` what a user writes after the model,
    such as ``layers[3].branches["policy"][0]``.
    """

    path: str
    access: str
    layer: Layer


class Chain(NamedTuple):
    """A list of layers and its place: a model's own, or a branch."""

    path: str
    access: str
    layers: Sequence[Layer]

    def places(self) -> list[Place]:
        """The layers of the list."""
        return [Place(f"{self.path}{i}", f"{self.access}[{i}]", layer) for i, layer in enumerate(self.layers)]


def whole(layers: Sequence[Layer]) -> Chain:
    """The list of a model's own layers."""
    return Chain("", "layers", layers)


def inside(place: Place) -> list[Chain]:
    """The branches of the layer at a place, if it has any."""
    if not isinstance(place.layer, Composite):
        return []
    path, access = f"{place.path}.", f"{place.access}."
    return [Chain(path + branch.path, access + branch.access, branch.layers) for branch in place.layer.inner()]


def walk(layers: Sequence[Layer]) -> Iterator[Place]:
    """All layers of a model, in the order of the data; one that is made of layers comes before these."""
    return _walk(whole(layers))


def _walk(chain: Chain) -> Iterator[Place]:
    for place in chain.places():
        yield place
        for branch in inside(place):
            yield from _walk(branch)


def leaves(layers: Sequence[Layer]) -> list[Place]:
    """The single layers, in the order of the data."""
    return [place for place in walk(layers) if not isinstance(place.layer, Composite)]
