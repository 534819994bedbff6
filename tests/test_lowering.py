"""Lowering: each pass on its own, and the records of whole trees."""

import numpy as np
import pytest

import fastbp as fb
from fastbp.core import plan, reference
from fastbp.core.reference.activations import activation_backward
from fastbp.core.reference.layers.record import KINDS, Buffers, Call
from fastbp.layers.tree import leaves, walk
from fastbp.lowering import lower, tensors
from fastbp.lowering.gradients import fuse_derivatives, mark_accumulating, mark_learned
from fastbp.lowering.slots import assign_slots, fuse_activations, share_memory
from fastbp.parameters import Parameters

RELU, TANH, GELU = (plan.ACTIVATIONS[name].code for name in ("relu", "tanh", "gelu"))


def parameters_of(layers, dtype="float32"):
    return Parameters(tensors.parameter_shapes(layers), np.dtype(dtype), tensors.parameter_owners(layers))


def lowered(layers, dtype="float32"):
    """The program of layers; the key of each is its number in the tree."""
    keys = {place.path: i for i, place in enumerate(leaves(layers))}
    widths, statistics = tensors.infer_widths(layers), tensors.place_statistics(layers)[0]
    return lower(layers, widths, parameters_of(layers, dtype), statistics, keys)


def flow(program):
    """What the data goes through: path, kind, slots."""
    return [
        (place.path, op["kind"].decode(), int(op["src"]), int(op["dst"]))
        for op, place in zip(program.ops, program.places, strict=True)
    ]


def block(width=4, inside=6, activation="relu"):
    return fb.Residual([fb.Dense(width, inside, activation), fb.Dense(inside, width)])


# --- widths, names and places


def test_widths_are_inferred_from_the_first_layer_that_has_one():
    assert tensors.infer_widths([fb.Dropout(), fb.Activation("relu"), fb.Dense(3, 5)]) == {
        "": 3,
        "0": 3,
        "1": 3,
        "2": 5,
    }
    assert tensors.infer_widths([fb.TabularInput(2, [4, 5], [3, 1]), fb.Dense(6, 1)]) == {"": 4, "0": 6, "1": 1}
    assert tensors.infer_widths([fb.Residual([fb.Dropout()]), fb.Dense(3, 5)])[""] == 3
    assert tensors.infer_widths([fb.Concatenate([], [fb.Dense(3, 2)])])[""] == 3
    assert tensors.infer_widths([fb.Concatenate([], [fb.Activation("relu")]), fb.Dense(6, 2)])[""] == 3


def test_widths_of_a_tree_go_by_paths():
    layers = [fb.Dense(3, 4), block(), fb.Concatenate([], [fb.Dense(4, 2), fb.Dropout()], policy=[block(4, 5)])]
    assert tensors.infer_widths(layers) == {
        "": 3, "0": 4, "1.0": 6, "1.1": 4, "1": 4, "2.1.0": 2, "2.1.1": 2, "2.policy.0.0": 5, "2.policy.0.1": 4,
        "2.policy.0": 4, "2": 10,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "message"),
    [([fb.Dropout()], "layers: expected at least one layer with a width"),
     ([fb.Concatenate([], []), fb.Dense(5, 1)], r"^layers\[1\]: Dense.* takes 5 features, but gets 4"),
     ([fb.Dense(2, 3), fb.Dense(4, 1)], r"^layers\[1\]: Dense.* takes 4 features, but gets 3"),
     ([fb.Dense(2, 3), fb.Residual([fb.Dense(4, 3)])], r"^layers\[1\].layers\[0\]: Dense.* takes 4 .* gets 3"),
     ([fb.Dense(2, 3), fb.Residual([fb.Dense(3, 4)])], r"^layers\[1\]: Residual adds 4 .* to 3"),
     ([fb.Residual([fb.Concatenate([], [])]), fb.Dense(4, 1)], "layers: expected at least one layer with a width"),
     ([fb.Concatenate([fb.Dense(2, 3)], [fb.Dense(3, 3)])], r"^layers\[0\].branches\[1\]\[0\]: .* takes 3 .* gets 2"),
     ([fb.Concatenate([], policy=[block(), fb.Dense(3, 3)])],
      r'^layers\[0\].branches\["policy"\]\[1\]: .* takes 3 features, but gets 4')],
)  # fmt: skip
def test_layers_that_do_not_fit(layers, message):
    with pytest.raises(ValueError, match=message):
        tensors.infer_widths(layers)


def test_a_tree_has_each_layer_once_and_ids_at_the_input_only():
    twice = fb.Dense(2, 2)
    for layers, message in [
        ([], "layers: expected at least one layer"),
        ([twice, twice], r"^layers\[1\]: .* is at layers\[0\] already"),
        ([twice, fb.Residual([fb.Dense(2, 2), twice])], r"^layers\[1\].layers\[1\]: .* is at layers\[0\] already"),
        (
            [fb.Concatenate([twice], value=[twice])],
            r'^layers\[0\].branches\["value"\]\[0\]: .* is at layers\[0\].branches\[0\]\[0\] already',
        ),
        ([fb.Dense(2, 3), fb.Embedding(5, 1, columns=3)], r"^layers\[1\]: .* can only come first"),
        ([fb.Concatenate([fb.Embedding(5, 1)])], r"^layers\[0\].branches\[0\]\[0\]: .* can only come first"),
    ]:
        with pytest.raises(ValueError, match=message):
            tensors.check_tree(layers)
    with pytest.raises(TypeError, match=r"^layers\[1\]: expected a layer, got str"):
        tensors.check_tree([twice, "relu"])


def test_tensors_have_the_names_and_shapes_that_files_have():
    layers = [fb.Dense(2, 3, bias=False), fb.BatchNorm(3), fb.Dropout(), fb.Dense(3, 1)]
    shapes = {"0.weight": (2, 3), "1.weight": (3,), "1.bias": (3,), "3.weight": (3, 1), "3.bias": (1,)}
    assert tensors.parameter_shapes(layers) == shapes
    assert tensors.tensor_shapes(layers) == shapes | {"1.running_mean": (3,), "1.running_var": (3,)}


def test_names_of_tensors_are_paths():
    layers = [block(2, 2), fb.Concatenate([fb.BatchNorm(2)], policy=[block(2, 2)])]
    names = [
        "0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias", "1.0.0.weight", "1.0.0.bias", "1.policy.0.0.weight",
        "1.policy.0.0.bias", "1.policy.0.1.weight", "1.policy.0.1.bias",
    ]  # fmt: skip
    assert list(tensors.parameter_shapes(layers)) == names
    assert list(tensors.tensor_shapes(layers)) == [*names, "1.0.0.running_mean", "1.0.0.running_var"]
    assert tensors.parameter_owners(layers)["1.policy.0.1.bias"] == (
        'layers[1].branches["policy"][0].layers[1]',
        "bias",
    )


def test_what_a_user_writes_gets_at_the_layer():
    layers = [fb.Dense(2, 2), block(2, 2), fb.Concatenate([], [fb.Dense(2, 2)], policy=[block(2, 2)])]
    model = fb.Sequential(layers)
    places = list(walk(layers))
    assert [place.path for place in places] == [
        "0", "1", "1.0", "1.1", "2", "2.1.0", "2.policy.0", "2.policy.0.0", "2.policy.0.1"
    ]  # fmt: skip
    for place in places:
        assert eval(f"model.{place.access}", {"model": model}) is place.layer


def test_statistics_lie_one_after_the_other():
    layers = [fb.BatchNorm(3), fb.Dense(3, 5), fb.LayerNorm(5), fb.Residual([fb.BatchNorm(5)]), fb.BatchNorm(5)]
    assert tensors.place_statistics(layers) == ({"0": 0, "3.0": 12, "4": 32}, 52)


def test_parameters_begin_and_end_on_cache_lines():
    program = lowered([fb.Dense(3, 5), fb.Dropout(), fb.LayerNorm(5)])
    assert program.ops["begin"].tolist() == [0, 0, 32]
    assert program.ops["end"].tolist() == [32, 0, 64]
    assert lowered([fb.Dense(3, 5)], "float64").ops["end"].tolist() == [24]


# --- ops and slots


def test_an_activation_joins_a_plain_dense_layer_before_it():
    stack = [
        fb.Activation("relu"),
        fb.Dense(2, 2),
        fb.Activation("relu"),
        fb.Activation("tanh"),
        fb.Dense(2, 2, "tanh"),
    ]
    assert fuse_activations(stack) == [(0, RELU), (1, RELU), (3, TANH), (4, TANH)]
    assert fuse_activations([fb.Dense(2, 2, "relu"), fb.Activation("tanh")]) == [(0, RELU), (1, TANH)]
    assert fuse_activations([fb.BatchNorm(2), fb.Activation("tanh")]) == [(0, 0), (1, TANH)]
    assert fuse_activations([block(2, 2), fb.Activation("tanh")]) == [(0, 0), (1, TANH)]


def test_a_chain_reads_what_the_op_before_wrote():
    layers = [fb.Dense(2, 3), fb.Activation("relu"), fb.Dense(3, 3, "tanh"), fb.BatchNorm(3), fb.Dense(3, 1)]
    program = lowered(layers)
    assert flow(program) == [("0", "dense", 0, 1), ("2", "dense", 1, 2), ("3", "batchnorm", 2, 3), ("4", "dense", 3, 4)]
    assert program.ops["activation"].tolist() == [RELU, TANH, 0, 0]
    assert program.ops["key"].tolist() == [0, 2, 3, 4]
    assert program.ops["weight"].tolist() == [0, 32, 64, 96]
    assert program.ops["bias"].tolist() == [16, 48, 80, 112]
    assert program.ops["stats"].tolist() == [-1, -1, 0, -1]
    assert program.ops["inputs"].tolist() == [2, 3, 3, 3]
    assert program.ops["outputs"].tolist() == [3, 3, 3, 1]
    assert program.slots["width"].tolist() == [2, 3, 3, 3, 1]
    assert len(program.tables) == 0


def test_the_tensors_of_an_embedding_are_tables():
    program = lowered([fb.TabularInput(1, [4, 5], [3, 1], unknown="reserve"), fb.Dense(5, 2)])
    assert program.ops["kind"].tolist() == [b"embedding", b"dense"]
    assert program.ops["weight"].tolist() == [-1, 32]
    assert program.ops["numeric"].tolist() == [1, 0]
    assert program.ops["end"].tolist() == [32, 64]
    assert program.tables.tolist() == [(5, 3, 0, 1), (6, 1, 16, 1)]
    assert program.slots["first"].tolist() == [0, 1, 0]


def test_what_an_activation_is_applied_to_is_kept_where_its_derivative_needs_it():
    steps, widths = assign_slots(
        layers := [fb.Dense(2, 3, "gelu"), fb.LayerNorm(3), fb.Activation("gelu"), fb.Activation("relu")],
        tensors.infer_widths(layers),
    )
    assert [(step.src, step.dst, step.z) for step in steps] == [(0, 2, 1), (2, 3, -1), (3, 4, 3), (4, 5, -1)]
    assert widths == [2, 3, 3, 3, 3, 3]


def test_a_residual_block_is_its_layers_and_a_sum():
    program = lowered([fb.Dense(3, 4), block()])
    assert flow(program) == [
        ("0", "dense", 0, 1), ("1.0", "dense", 1, 2), ("1.1", "dense", 2, 3), ("1", "copy", 3, 4), ("1", "add", 1, 4)
    ]  # fmt: skip
    assert program.ops["inputs"].tolist()[-2:] == program.ops["outputs"].tolist()[-2:] == [4, 4]
    assert program.ops["key"].tolist() == [0, 1, 2, 0, 0]


def test_branches_lie_side_by_side():
    program = lowered([fb.Concatenate([fb.Dense(3, 2)], [], policy=[fb.Dense(3, 4), fb.Dense(4, 5)])])
    assert flow(program) == [
        ("0.0.0", "dense", 0, 1), ("0.policy.0", "dense", 0, 2), ("0.policy.1", "dense", 2, 3), ("0", "copy", 1, 4),
        ("0", "copy", 0, 4), ("0", "copy", 3, 4),
    ]  # fmt: skip
    assert program.ops["column"].tolist() == [0, 0, 0, 0, 2, 5]
    assert program.ops["outputs"].tolist() == [2, 4, 5, 2, 3, 5]
    assert program.slots["width"].tolist() == [3, 2, 4, 5, 10]


# --- memory


def parts(program):
    """Of every slot that may be a part of another one: that one, the column, and whether it keeps its value."""
    return {
        i: (int(slot["parent"]), int(slot["column"]), int(slot["keeps_value"]))
        for i, slot in enumerate(program.slots)
        if slot["parent"] >= 0
    }


def test_an_activation_works_in_place_of_the_gradient():
    assert parts(lowered([fb.LayerNorm(3), fb.Activation("relu"), fb.Dense(3, 1)])) == {1: (2, 0, 1)}
    assert parts(lowered([fb.Activation("relu"), fb.Dense(3, 1)])) == {0: (1, 0, 1)}
    # the way around reads it too, so its gradient is a sum
    assert parts(lowered([fb.LayerNorm(3), fb.Residual([fb.Activation("relu"), fb.LayerNorm(3)])])) == {3: (4, 0, 0)}


def test_what_only_a_copy_reads_is_a_part_of_the_whole():
    assert parts(lowered([fb.Concatenate([fb.Dense(3, 2, "relu")], [], [fb.Dense(3, 4)])])) == {
        1: (3, 0, 0), 2: (3, 5, 0)
    }  # fmt: skip
    # the input is memory of its own, and what two copies read is in one place only
    assert parts(lowered([fb.Concatenate([fb.Dropout()]), fb.Dense(3, 1)])) == {1: (2, 0, 0)}
    assert parts(lowered([fb.Concatenate([]), fb.Dense(3, 1)])) == {}
    assert parts(lowered([fb.Dense(3, 2), fb.Concatenate([], [])])) == {}


def test_a_value_that_a_derivative_needs_is_not_added_to():
    def last(activation):
        return [fb.Residual([fb.Dense(3, 3, activation)])]

    assert parts(lowered(last(None))) == {1: (2, 0, 0)}
    assert parts(lowered(last("relu"))) == {1: (2, 0, 1)}
    # through what is between: slot 1 is a part of 3, that of 4, to which the input is added
    nested = [fb.Residual([fb.Concatenate([fb.Dense(3, 2, "relu")], [fb.Dense(3, 1)])])]
    assert parts(lowered(nested)) == {1: (3, 0, 1), 2: (3, 2, 0), 3: (4, 0, 0)}
    # nothing is added to what is around a sum
    around = [fb.Concatenate([fb.Residual([fb.Dense(3, 3)])], [fb.Dense(3, 2, "relu")])]
    assert parts(lowered(around)) == {1: (2, 0, 0), 2: (4, 0, 0), 3: (4, 3, 0)}


def test_parts_have_lower_numbers_than_the_whole_and_do_not_overlap(rng):
    for _ in range(50):
        program = lowered([*random_tree(rng, 4, 3), fb.Dense(4, 2)])
        taken = {}
        for i, (parent, column, _) in parts(program).items():
            assert parent > i
            columns = range(column, column + int(program.slots["width"][i]))
            assert columns.stop <= program.slots["width"][parent]
            assert not taken.setdefault(parent, set()) & set(columns)
            taken[parent] |= set(columns)


def random_tree(rng, width, depth):
    """Layers that take and give the same width."""
    layers = []
    for _ in range(rng.integers(1, 4)):
        kind = rng.integers(0, 6 if depth else 4)
        if kind == 0:
            layers.append(fb.Dense(width, width, rng.choice([None, "relu", "gelu"])))
        elif kind < 4:
            layers.append([fb.LayerNorm(width), fb.Activation("silu"), fb.Dropout(0.1)][kind - 1])
        elif kind == 4:
            layers.append(fb.Residual(random_tree(rng, width, depth - 1)))
        else:
            branches = [random_tree(rng, width, depth - 1) if rng.random() < 0.8 else [] for _ in range(2)]
            layers += [fb.Concatenate(*branches), fb.Dense(2 * width, width)]
    return layers


def test_a_dropout_has_its_inputs_value_in_inference():
    program = lowered([fb.Dense(3, 3), fb.Dropout(), fb.Residual([fb.Dropout(), fb.Dense(3, 3)])])
    assert program.slots["source"].tolist() == [-1, -1, 1, 2, -1, -1]


# --- gradients


def test_gradients_are_needed_behind_parameters():
    layers = [fb.Dropout(), fb.Concatenate([], [fb.Dropout(), fb.LayerNorm(3)]), fb.Dense(6, 1)]
    program = lowered(layers)
    assert flow(program)[1:5] == [("1.1.0", "dropout", 1, 2), ("1.1.1", "layernorm", 2, 3), ("1", "copy", 1, 4),
                                  ("1", "copy", 3, 4)]  # fmt: skip
    assert program.slots["learned"].tolist() == [0, 0, 0, 1, 1, 1]


def test_what_an_activation_is_applied_to_has_no_gradient_of_its_own():
    program = lowered([fb.Dense(3, 4, "gelu"), fb.LayerNorm(4), fb.Activation("silu"), fb.Dense(4, 1)])
    assert program.ops["z"].tolist() == [1, -1, 3, -1]
    assert program.slots["learned"].tolist() == [0, -1, 1, 1, 1, 1]


def test_the_last_reader_assigns_a_gradient_and_the_others_add():
    program = lowered([fb.Dense(3, 4), block(), fb.Concatenate([], [fb.Dense(4, 1)], [])])
    assert flow(program)[5:] == [
        ("2.1.0", "dense", 4, 5),
        ("2", "copy", 4, 6),
        ("2", "copy", 5, 6),
        ("2", "copy", 4, 6),
    ]
    #                                           dense, 1.0, 1.1, copy, add
    assert program.ops["accumulates"].tolist() == [0, 1, 0, 0, 0, 1, 1, 0, 0]
    assert lowered([fb.Dense(3, 4), fb.LayerNorm(4), fb.Dense(4, 1)]).ops["accumulates"].tolist() == [0, 0, 0]


def derivatives(layers):
    """Of every op its activation's derivative: whether it applies it itself, and whose it applies as a reader."""
    program = lowered(layers)
    return [(int(op["derivative"]), int(op["input_activation"]), int(op["input_z"])) for op in program.ops]


def test_a_dense_op_has_the_derivative_of_the_activation_before_it():
    chain = [fb.Dense(2, 3, "relu"), fb.Dense(3, 3, "gelu"), fb.Dense(3, 1, "tanh")]
    assert derivatives(chain) == [(0, 0, -1), (0, RELU, -1), (1, GELU, 2)]
    assert derivatives([fb.LayerNorm(2), fb.Activation("gelu"), fb.Dense(2, 1)]) == [
        (0, 0, -1),
        (0, 0, -1),
        (0, GELU, 1),
    ]
    assert derivatives([fb.Dense(2, 3, "relu"), fb.BatchNorm(3)]) == [(1, 0, -1), (0, 0, -1)]
    assert derivatives([fb.Activation("tanh"), fb.Dense(2, 1)]) == [(0, 0, -1), (0, TANH, -1)]


def test_the_first_reader_applies_a_derivative_as_it_is_the_last_to_add():
    relu = fb.Dense(2, 2, "relu")
    assert derivatives([relu, fb.Residual([fb.Dense(2, 2)])]) == [(0, 0, -1), (0, RELU, -1), (0, 0, -1), (0, 0, -1)]
    assert derivatives([relu, fb.Residual([fb.LayerNorm(2)])])[0] == (1, 0, -1)
    # the input as the first branch: its copy comes after the other branch's op
    assert derivatives([relu, fb.Concatenate([], [fb.Dense(2, 1)])]) == [
        (0, 0, -1), (0, RELU, -1), (0, 0, -1), (0, 0, -1)
    ]  # fmt: skip
    assert derivatives([relu, fb.Concatenate([], [fb.Dropout(), fb.Dense(2, 1)])])[0] == (1, 0, -1)
    assert derivatives([fb.Concatenate([relu], [])])[0] == (1, 0, -1)


def test_every_derivative_is_applied_once(rng):
    for _ in range(50):
        program = lowered([*random_tree(rng, 4, 3), fb.Dense(4, 2, "tanh")])
        for op in program.ops:
            readers = program.ops[program.ops["src"] == op["dst"]]
            applied = int(op["derivative"]) + np.count_nonzero(readers["input_activation"])
            assert applied == (op["activation"] != 0)
            if len(readers):
                assert readers["accumulates"].tolist() == [1] * (len(readers) - 1) + [0]


def test_passes_change_nothing_that_they_are_given():
    program = lowered([fb.Dense(3, 4, "relu"), block(), fb.Activation("silu"), fb.Dense(4, 1)])
    before = program.ops.tobytes(), program.slots.tobytes()
    share_memory(program.ops, program.slots, program.places)
    mark_learned(program.ops, program.slots)
    mark_accumulating(program.ops, program.slots)
    fuse_derivatives(program.ops, program.slots, program.places)
    assert (program.ops.tobytes(), program.slots.tobytes()) == before


def test_the_output_is_that_of_the_last_op(rng):
    for _ in range(20):
        program = lowered([*random_tree(rng, 4, 3), fb.LayerNorm(4)])
        assert program.ops[-1]["dst"] == len(program.slots) - 1
        assert len(set(program.ops["dst"].tolist()) - set(program.ops["src"].tolist())) == 1


# --- what the marks allow: a network in which all memory is shared that may be, beside the reference, which shares none


class Sharing:
    """Runs a model's program with every part inside of its whole, so that a value or gradient is lost if it may not."""

    def __init__(self, model):
        self.model, self.buffers = (
            model,
            Buffers(model.params.values, model.params.grads, model.statistics, model.tables),
        )

    def memory(self, batch, inside):
        """An array for every slot, filled with NaN; one that is inside of another is a view of its columns."""
        arrays = {}
        for i in reversed(range(len(self.model.slots))):
            slot = self.model.slots[i]
            column, width = int(slot["column"]), int(slot["width"])
            if inside(slot):
                arrays[i] = arrays[int(slot["parent"])][:, column : column + width]
            else:
                arrays[i] = np.full((batch, width), np.nan)
        return arrays

    def run(self, x, dy):
        """The outputs, and the gradient of the input."""
        ops, values = self.model.program, self.memory(len(x), lambda s: s["parent"] >= 0 and not s["keeps_value"])
        gradients, calls = self.memory(len(x), lambda s: s["parent"] >= 0), []
        values[0][:] = x
        for op in ops:
            y = values[int(op["dst"])][:, op["column"] : op["column"] + op["outputs"]]
            z = values[int(op["z"])] if op["z"] >= 0 else None
            calls.append(Call(op, self.buffers, values[int(op["src"])], y, z, 1, True, 1))
            KINDS[op["kind"].decode()].forward(calls[-1])
        outputs = values[int(ops[-1]["dst"])].copy()
        gradients[int(ops[-1]["dst"])][:] = dy
        for op, call in reversed(list(zip(ops, calls, strict=True))):
            of_output = gradients[int(op["dst"])][:, op["column"] : op["column"] + op["outputs"]]
            of_input, dx, kind = gradients[int(op["src"])], np.empty_like(call.x), KINDS[op["kind"].decode()]
            if op["derivative"]:
                activation_backward(of_output, of_output, call.y, call.z, op["activation"], 1)
            if kind.gradients is not None:
                kind.gradients(call, of_output)
            kind.backward(call, dx, of_output)
            of_input[:] = of_input + dx if op["accumulates"] else dx
            if op["input_activation"]:
                z = values[int(op["input_z"])] if op["input_z"] >= 0 else None
                activation_backward(of_input, of_input, call.x, z, op["input_activation"], 1)
        return outputs, gradients[0]


def test_what_may_share_memory_loses_nothing(rng):
    makes = [lambda: [fb.Dense(4, 4, "tanh"), *random_tree(rng, 4, 3), fb.Dense(4, 3, "gelu")] for _ in range(150)]
    shared = 0
    for make in makes:
        model = fb.Sequential(make(), dtype="float64", seed=0).model
        x, dy = rng.standard_normal((5, 4)), rng.standard_normal((5, 3))
        y, dx = np.empty_like(dy), np.empty_like(x)
        model.params.values[:] += 0.1  # biases too
        network = reference.Network(
            model.program, model.slots, model.tables, model.params.values, model.params.grads, model.statistics
        )
        network.forward(y, x, 1, True, 1)
        network.backward(dx, dy, True, 1)
        expected = y, dx, model.params.grads.copy()
        model.params.grads[:] = 0
        got = (*Sharing(model).run(x, dy), model.params.grads)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
        shared += np.count_nonzero(model.slots["parent"] >= 0)
    assert shared > 300
