"""Layers as descriptions: sizes, initial values and the op record that each is lowered to."""

from fastbp.layers.activation import Activation
from fastbp.layers.dense import Dense
from fastbp.layers.dropout import Dropout
from fastbp.layers.embedding import Embedding, Lookup, TabularInput
from fastbp.layers.layer import Layer
from fastbp.layers.normalization import BatchNorm, LayerNorm

__all__ = [
    "LAYERS",
    "Activation",
    "BatchNorm",
    "Dense",
    "Dropout",
    "Embedding",
    "Layer",
    "LayerNorm",
    "Lookup",
    "TabularInput",
]

#: The layers by name, for reading saved models.
LAYERS: dict[str, type[Layer]] = {
    layer.__name__: layer for layer in (Dense, Activation, Dropout, BatchNorm, LayerNorm, Embedding, TabularInput)
}
