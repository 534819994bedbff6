"""What every layer has: sizes, initial values and the op record that it is lowered to. No arithmetic.

A layer gets its arrays when a ``Sequential`` takes it: views on the model's flat buffers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from fastbp.core import plan
from fastbp.data.arrays import Array, Categories, check_array
from fastbp.parameters import Parameters
from fastbp.settings import Settings

Cost = tuple[int, int]  # floating-point operations, and how many numbers have to be moved


def kind_of(value: object) -> str:
    """What an error calls something that is no layer."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


class Work(NamedTuple):
    """What an op has done, for its cost: so many samples in so many steps, by an optimizer."""

    samples: int
    steps: int
    vectors: int  # that an update reads and writes: the parameters and the optimizer's state
    idle: bool  # whether a gradient of zero changes nothing
    density: float = 1.0  # the share of its input's entries that is stored


class Layer(Settings):
    """What every layer has: the op it is lowered to, its width, and its place in a model."""

    _instead: ClassVar[str] = (
        "a layer stays as it was made: make a new one, and a new model; to freeze it give the optimizer "
        "groups={'0.*': {'lr': 0}}"
    )
    #: The name of the op that it is lowered to, in the registries of the core.
    kind: ClassVar[str]
    #: Whether its op may apply the activation that follows it.
    applies_activation: ClassVar[bool] = False
    #: Whether its dx may include the derivative of the activation that gave its input.
    applies_input_derivative: ClassVar[bool] = False
    #: Whether it is nothing but an activation.
    is_activation: ClassVar[bool] = False
    #: Whether it changes nothing in inference.
    identity_in_inference: ClassVar[bool] = False
    #: Whether the gradients of its parameters come with its dx.
    gradients_with_dx: ClassVar[bool] = False
    #: Whether it looks up ids, which only the input of a model has.
    takes_ids: ClassVar[bool] = False
    #: Width of the input, or None where any will do.
    width: int | None = None

    #: Of a copy of a model's layer: its tensors, which a model that takes it begins with.
    copied: Mapping[str, Array] = MappingProxyType({})

    def __init__(self) -> None:
        self._parameters: Parameters | None = None
        self._name = ""

    def __getstate__(self) -> dict[str, Any]:
        """A copy stands alone, free of the model that the layer is a part of, but with the values of its tensors."""
        state = dict(vars(self))
        if self._parameters is not None:
            with self._parameters.shared():
                tensors = {name: self._parameters.value(f"{self._name}.{name}").copy() for name in self.shapes()}
                state["copied"] = tensors | {name: getattr(self, name).copy() for name in self.running_shapes()}
        return state | {"_parameters": None, "_name": ""}

    @classmethod
    def _setting_names(cls) -> tuple[str, ...]:
        """None may be set: models are made of what the layer was when it was made."""
        return ()

    @classmethod
    def runs_in_core(cls) -> bool:
        """Whether the core has its kind, and it has no passes of its own, which the core would not call."""
        kinds = [getattr(c, "kind", getattr(c, "join", None)) for c in (cls, cls._own_class())]
        return kinds[1] is not None and kinds[0] == kinds[1] and not {"forward", "backward", "__call__"} & {*dir(cls)}

    def check_dtype(self, access: str, dtype: np.dtype[Any]) -> None:
        """Raise if it cannot compute in this dtype; access is how a user writes the layer."""

    def outputs(self, inputs: int) -> int:
        """Width of the output for an input of width ``inputs``."""
        return inputs

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters by name."""
        return {}

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, for saving and copying."""
        return {}

    def config(self) -> dict[str, Any]:
        """The layer as data that JSON can hold, for ``from_config``."""
        return {"type": type(self).__name__, **self.settings()}

    @classmethod
    def from_config(cls, make: Callable[[Any], list[Layer]], **settings: Any) -> Self:
        """The layer of a ``config``; ``make`` gives the layers of a list of these."""
        return cls(**settings)

    def fields(self) -> dict[str, float]:
        """What the layer sets in its op record beyond sizes and offsets."""
        return {}

    def flop(self) -> int:
        """Floating-point operations of the matrix products of a prediction for one sample."""
        return 0

    @property
    def parameter_count(self) -> int:
        """How many numbers it learns itself, without the layers that it is made of."""
        return sum(map(math.prod, self.shapes().values()))

    def label(self, op: np.void) -> str:
        """What a profile calls its op."""
        return f"{type(self).__name__} {op['inputs']}"

    def costs(self, op: np.void, work: Work, has_dx: bool) -> tuple[Cost, Cost, Cost]:
        """The cost of its op's forward, dx, and dweight with the update.

        A gradient itself need not leave the caches; the parameters and the state are read and written.
        """
        product = int(work.samples * work.density * self.flop())
        numbers = int(work.samples * (work.density * op["inputs"] + op["outputs"]))
        count = self.parameter_count
        weight = math.prod(self.shapes().get("weight", (0,)))
        used = work.steps * count if work.density == 1 else min(work.steps * count, product // 2)  # a row for an entry
        updated = used if work.idle else work.steps * count
        update = (0 if self.gradients_with_dx else numbers) + 2 * work.vectors * updated
        return (
            (product, numbers + used),
            (product, numbers + work.steps * weight) if has_dx and not self.is_activation else (0, 0),
            (product, update) if count else (0, 0),
        )

    def statistics_shape(self) -> tuple[int, ...]:
        """The shape of the statistics that it needs in the model's buffer."""
        return (0,)

    def running_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes, by attribute, of those statistics that inference uses and files keep."""
        return {}

    def table_records(self, offsets: Mapping[str, int]) -> Array:
        """The TABLE records of its parameters, which begin at these offsets, if they are tables; else none."""
        return np.zeros(0, plan.TABLE)

    def categories(self) -> Categories | None:
        """What the last columns of its input may hold, if these are ids."""
        return None

    def means(self) -> dict[str, Array]:
        """By table, what predictions take for a reserved row that was never trained."""
        return {}

    def bind(self, parameters: Parameters, name: str) -> None:
        """Become the layer called ``name`` of the model that owns ``parameters``."""
        self._parameters, self._name = parameters, name

    def bind_statistics(self, statistics: Array) -> None:
        """Use this view of the model's statistics, of ``statistics_shape``, and set them to where they start."""

    @property
    def is_bound(self) -> bool:
        """Whether it is part of a model."""
        return self._parameters is not None

    def _owner(self) -> Parameters:
        if self._parameters is None:
            raise RuntimeError(f"{self!r} has no arrays yet: they come with the Sequential that takes it")
        return self._parameters

    def initial_values(self, rng: np.random.Generator) -> dict[str, Array]:
        """The parameters that do not start at zero, by name."""
        return {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.settings().items())})"


class Parametric(Layer):
    """A layer with a weight and perhaps a bias."""

    def _set(self, tensor: str, value: Any) -> None:
        view = self._owner().value(f"{self._name}.{tensor}")
        view[:] = check_array(tensor, value, view.shape, view.dtype)

    @property
    def weight(self) -> Array:
        """The weight, a view on the model's parameters; assigning copies into it."""
        return self._owner().value(f"{self._name}.weight")

    @weight.setter
    def weight(self, value: Any) -> None:
        self._set("weight", value)

    @property
    def bias(self) -> Array | None:
        """The bias, a view as well; None if the layer has none."""
        return self._owner().value(f"{self._name}.bias") if "bias" in self.shapes() else None

    @bias.setter
    def bias(self, value: Any) -> None:
        if "bias" not in self.shapes():
            raise ValueError(f"bias: {self!r} has none")
        self._set("bias", value)

    @property
    def dweight(self) -> Array:
        """The loss's gradient with respect to the weight, filled by ``backward``."""
        return self._owner().grad(f"{self._name}.weight")

    @property
    def dbias(self) -> Array | None:
        """The loss's gradient with respect to the bias, or None."""
        return self._owner().grad(f"{self._name}.bias") if "bias" in self.shapes() else None
