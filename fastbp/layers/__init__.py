"""Layers as descriptions: sizes, initial values and the op record that each is lowered to."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastbp.layers.activation import Activation
from fastbp.layers.composition import MAX_DEPTH, Concatenate, Residual
from fastbp.layers.dense import Dense
from fastbp.layers.dropout import Dropout
from fastbp.layers.embedding import Embedding, TabularInput
from fastbp.layers.embedding import Lookup as Lookup
from fastbp.layers.layer import Layer as Layer
from fastbp.layers.normalization import BatchNorm, LayerNorm

#: The public layers, which ``fastbp`` has too.
__all__ = [
    "Activation",
    "BatchNorm",
    "Concatenate",
    "Dense",
    "Dropout",
    "Embedding",
    "LayerNorm",
    "Residual",
    "TabularInput",
]

#: The layers by name, for reading saved models.
LAYERS: dict[str, type[Layer]] = {name: globals()[name] for name in __all__}


def make_layers(configs: list[dict[str, Any]], depth: int = 0) -> list[Layer]:
    """The layers that their ``config`` describes; depth is that of the branch that they stand in."""
    if depth > MAX_DEPTH:
        raise ValueError(f"layers: expected at most {MAX_DEPTH} layers of branches in each other, got more")
    if not isinstance(configs, list):
        raise TypeError(f"layers: expected a list, got {type(configs).__name__}")
    make = partial(make_layers, depth=depth + 1)
    return [LAYERS[settings.pop("type")].from_config(make, **settings) for settings in map(dict, configs)]
