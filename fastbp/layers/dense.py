"""Dense: the fully connected layer, and how its weight starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastbp.core import plan
from fastbp.data.arrays import Array, check_bool, check_choice, check_int
from fastbp.layers.layer import Parametric

if TYPE_CHECKING:  # numpy.random is imported when a model is made
    Init = str | Callable[[np.random.Generator, tuple[int, int]], Array] | None

# Variance of the weights times (fan_in, fan_out) weights, and the distribution.
_INITS: dict[str, Callable[[int, int], float]] = {
    "glorot_uniform": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "glorot_normal": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "he_uniform": lambda fan_in, fan_out: 2 / fan_in,
    "he_normal": lambda fan_in, fan_out: 2 / fan_in,
    "lecun_uniform": lambda fan_in, fan_out: 1 / fan_in,
    "lecun_normal": lambda fan_in, fan_out: 1 / fan_in,
}


class Dense(Parametric):
    """A fully connected layer, ``y = activation(x @ weight + bias)``.

    As the first layer, or the first one of branches, it also takes SciPy's sparse matrices, of any format: a pass costs
    what their stored entries cost. A row of the weight that no entry of a batch meets has a gradient of zero; where SGD
    without momentum or Adagrad, without penalties, leave it as it is, ``fit`` and ``train_on_batch`` do not visit it.
    CSR of the model's dtype, with sorted indices of 32 bits and without duplicates, is used where it lies in memory.

    Parameters
    ----------
    in_features, out_features : int
        Widths I and O of input and output.
    activation : str or None
        ``relu``, ``leaky_relu`` (slope 0.01), ``elu`` (alpha 1), ``gelu`` (exact), ``silu``, ``tanh``, ``sigmoid``,
        ``softplus``, or None for none.
    bias : bool
        Whether there is a bias.
    init : str, callable or None
        ``he_uniform``, ``he_normal`` (He et al. 2015), ``glorot_uniform``, ``glorot_normal`` (Glorot & Bengio 2010),
        ``lecun_uniform``, ``lecun_normal``, or ``init(rng, (I, O)) -> array``. None is he_uniform for the ReLU family,
        GELU, SiLU and softplus, glorot_uniform otherwise. Biases start at zero.

    Attributes
    ----------
    weight, dweight : ndarray (I, O)
    bias, dbias : ndarray (O,) or None

    Raises
    ------
    TypeError, ValueError
        If a width is not a positive integer, or the activation or init is unknown.
    """

    kind = "dense"
    applies_activation = True
    applies_input_derivative = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: plan.ActivationName | None = None,
        bias: bool = True,
        init: Init = None,
    ) -> None:
        super().__init__()
        self.in_features = self.width = check_int("in_features", in_features)
        self.out_features = check_int("out_features", out_features)
        self.activation: plan.ActivationName | None = check_choice("activation", activation, plan.ACTIVATIONS)
        self.has_bias = check_bool("bias", bias)
        self.init: Init = init if callable(init) else check_choice("init", init, [None, *_INITS])

    def outputs(self, inputs: int) -> int:
        return self.out_features

    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.in_features, self.out_features)}
        return shapes | {"bias": (self.out_features,)} if self.has_bias else shapes

    def settings(self) -> dict[str, Any]:
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "activation": self.activation,
            "bias": self.has_bias,
        }

    def flop(self) -> int:
        return 2 * self.in_features * self.out_features

    def label(self, op: np.void) -> str:
        return f"Dense {self.in_features}x{self.out_features}"

    def fields(self) -> dict[str, float]:
        return {"activation": plan.ACTIVATIONS[self.activation].code}

    def initial_values(self, rng: np.random.Generator) -> dict[str, Array]:
        shape = (self.in_features, self.out_features)
        if callable(self.init):
            return {"weight": self.init(rng, shape)}
        name = self.init or plan.ACTIVATIONS[self.activation].init
        std = math.sqrt(_INITS[name](*shape))
        if name.endswith("normal"):
            return {"weight": rng.normal(0, std, shape)}
        return {"weight": rng.uniform(-std * math.sqrt(3), std * math.sqrt(3), shape)}
