"""Lowering: each pass on its own, and the records of whole stacks."""

import numpy as np
import pytest

import fastbp as fb
from fastbp import lowering
from fastbp.core import plan

DENSE, ACTIVATION, BATCHNORM, EMBEDDING = plan.DENSE, plan.ACTIVATION, plan.BATCHNORM, plan.EMBEDDING
RELU, TANH = plan.ACTIVATIONS["relu"].code, plan.ACTIVATIONS["tanh"].code


def lowered(layers):
    """The program, with parameters one after the other and the number of each layer as its key."""
    offsets, end = {}, 0
    for name, shape in lowering.parameter_shapes(layers).items():
        offsets[name], end = end, end + int(np.prod(shape))
    return lowering.lower(layers, offsets, lowering.place_statistics(layers)[0], range(len(layers)))


def test_widths_are_inferred_from_the_first_layer_that_has_one():
    assert lowering.infer_widths([fb.Dropout(), fb.Activation("relu"), fb.Dense(3, 5)]) == [3, 3, 3, 5]
    assert lowering.infer_widths([fb.TabularInput(2, [4, 5], [3, 1]), fb.Dense(6, 1)]) == [4, 6, 1]


@pytest.mark.parametrize(
    ("layers", "message"),
    [([], "at least one layer"), ([fb.Dropout()], "with a width"), ([fb.Dense(2, 3), fb.Dense(4, 1)], "but gets 3"),
     ([fb.Dense(2, 3), fb.Embedding(5, 1, columns=3)], "can only come first")],
)  # fmt: skip
def test_layers_that_do_not_fit(layers, message):
    with pytest.raises(ValueError, match=message):
        lowering.infer_widths(layers)


def test_tensors_have_the_names_and_shapes_that_files_have():
    layers = [fb.Dense(2, 3, bias=False), fb.BatchNorm(3), fb.Dropout(), fb.Dense(3, 1)]
    shapes = {"0.weight": (2, 3), "1.weight": (3,), "1.bias": (3,), "3.weight": (3, 1), "3.bias": (1,)}
    assert lowering.parameter_shapes(layers) == shapes
    assert lowering.tensor_shapes(layers) == shapes | {"1.running_mean": (3,), "1.running_var": (3,)}


def test_statistics_lie_one_after_the_other():
    layers = [fb.BatchNorm(3), fb.Dense(3, 5), fb.LayerNorm(5), fb.BatchNorm(5)]
    assert lowering.place_statistics(layers) == ([0, -1, -1, 12], 32)


def test_an_activation_joins_a_plain_dense_layer_before_it():
    stack = [
        fb.Activation("relu"),
        fb.Dense(2, 2),
        fb.Activation("relu"),
        fb.Activation("tanh"),
        fb.Dense(2, 2, "tanh"),
    ]
    assert lowering.fuse_activations(stack) == [(0, RELU), (1, RELU), (3, TANH), (4, TANH)]
    assert lowering.fuse_activations([fb.Dense(2, 2, "relu"), fb.Activation("tanh")]) == [(0, RELU), (1, TANH)]
    assert lowering.fuse_activations([fb.BatchNorm(2), fb.Activation("tanh")]) == [(0, 0), (1, TANH)]


def test_a_dense_op_has_the_derivative_of_the_activation_before_it():
    layers = [fb.Dense(2, 3), fb.Activation("relu"), fb.Dense(3, 3, "tanh"), fb.BatchNorm(3), fb.Dense(3, 1)]
    program = lowered(layers)
    assert program.layer_of_op == [0, 2, 3, 4]
    assert program.ops["kind"].tolist() == [DENSE, DENSE, BATCHNORM, DENSE]
    assert program.ops["activation"].tolist() == [RELU, TANH, 0, 0]
    assert program.ops["input_activation"].tolist() == [0, RELU, 0, 0]
    assert program.ops["key"].tolist() == [0, 2, 3, 4]
    assert program.ops["weight"].tolist() == [0, 9, 21, 27]
    assert program.ops["stats"].tolist() == [-1, -1, 0, -1]
    assert len(program.tables) == 0


def test_the_tensors_of_an_embedding_are_tables():
    program = lowered([fb.TabularInput(1, [4, 5], [3, 1], unknown="reserve"), fb.Dense(5, 2)])
    assert program.ops["kind"].tolist() == [EMBEDDING, DENSE]
    assert program.ops["weight"].tolist() == [-1, 21]
    assert program.ops["numeric"].tolist() == [1, 0]
    assert program.tables.tolist() == [(5, 3, 0, 1), (6, 1, 15, 1)]
