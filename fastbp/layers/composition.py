"""Layers that are made of branches of layers: side by side, or around a branch; they nest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from fastbp.layers.layer import Cost, Layer, Work, kind_of

MAX_DEPTH = 50  # of composites in each other: every pass over the tree is a recursion


class Branch(NamedTuple):
    """A list of layers in a composite: what its paths begin with, and the attribute that has it."""

    path: str  # "" or "policy."
    access: str  # "layers" or 'branches["policy"]'
    layers: tuple[Layer, ...]


class Composite(Layer):
    """What layers that are made of branches share: all branches get the input, and their outputs are joined.

    The first branch is copied into the output, each other one joins it by an op of the kind ``join``.
    """

    #: ``copy`` puts the branches' outputs side by side; an op such as ``add`` puts them on top of each other.
    join: ClassVar[str]

    def __init__(self, branches: Sequence[Branch]) -> None:
        super().__init__()
        self._branches = tuple(branches)
        inner = [layer for branch in branches for layer in branch.layers]
        self._depth: int = 1 + max((layer._depth for layer in inner if isinstance(layer, Composite)), default=0)
        if self._depth > MAX_DEPTH:
            raise ValueError(f"layers: expected at most {MAX_DEPTH} layers of branches in each other, got more")
        self.width = next((width for b in branches if (width := input_width(b.layers)) is not None), None)

    def inner(self) -> tuple[Branch, ...]:
        """The branches in the order in which they are joined."""
        return self._branches

    def joined(self, widths: Sequence[int]) -> int:
        """The width of the output for those of the branches; raises if they do not fit each other."""
        raise NotImplementedError

    def label(self, op: np.void) -> str:
        return f"{type(self).__name__} {op['inputs']} {op['kind'].decode()}"

    def costs(self, op: np.void, work: Work, has_dx: bool) -> tuple[Cost, Cost, Cost]:
        moved = 2 if op["kind"] == b"copy" else 3  # read and written; what is there already is read too
        numbers = work.samples * int(op["inputs"])
        return (0, moved * numbers), (0, (2 + int(op["accumulates"])) * numbers if has_dx else 0), (0, 0)

    def outputs(self, inputs: int) -> int:
        widths = []
        for branch in self._branches:
            width = inputs
            for layer in branch.layers:
                width = layer.outputs(width)
            widths.append(width)
        return self.joined(widths)


class Residual(Composite):
    """``x + layers(x)``: a chain of layers and the way around it (He et al. 2016).

    Parameters
    ----------
    layers : sequence of Layer
        At least one; the last gives as many features as the first gets.

    Attributes
    ----------
    layers : tuple of Layer

    Raises
    ------
    TypeError, ValueError
        If these are no layers, or none.

    Examples
    --------
    >>> block = [fb.LayerNorm(64), fb.Dense(64, 128, "gelu"), fb.Dense(128, 64)]
    >>> model = fb.Sequential([fb.Dense(10, 64), fb.Residual(block), fb.Dense(64, 1)])
    """

    join = "add"

    def __init__(self, layers: Sequence[Layer]) -> None:
        inside = _check_layers("layers", layers)
        if not inside:
            raise ValueError("layers: expected at least one layer, got none")
        super().__init__([Branch("", "layers", inside), Branch("", "layers", ())])

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers that the input goes around."""
        return self._branches[0].layers

    def joined(self, widths: Sequence[int]) -> int:
        given, around = widths
        if given != around:
            raise ValueError(f"Residual adds {given} features, which its layers give, to {around}, which they get")
        return around

    def config(self) -> dict[str, Any]:
        return {"type": type(self).__name__, "layers": _configs(self.layers)}

    @classmethod
    def from_config(cls, make: Callable[[Any], list[Layer]], **settings: Any) -> Self:
        return cls(make(settings.pop("layers")), **settings)

    def __repr__(self) -> str:
        return f"Residual({list(self.layers)!r})"


class Parallel(Composite):
    """Branches that the user numbers by their order, or names."""

    def __init__(self, /, *branches: Sequence[Layer], **named_branches: Sequence[Layer]) -> None:
        if not branches and not named_branches:
            raise ValueError("branches: expected at least one branch, got none")
        for name in named_branches:
            if not name.isidentifier():
                raise ValueError(f"branches: expected names that are identifiers, such as 'policy', got {name!r}")
        keys: list[int | str] = [*range(len(branches)), *named_branches]
        inside: list[Branch] = []
        for key, layers in zip(keys, [*branches, *named_branches.values()], strict=True):
            access = f'branches["{key}"]' if isinstance(key, str) else f"branches[{key}]"
            inside.append(Branch(f"{key}.", access, _check_layers(access, layers)))
        super().__init__(inside)
        self._keys = tuple(keys)

    @property
    def branches(self) -> Mapping[int | str, tuple[Layer, ...]]:
        """The branches by number and by name, in their order; read-only."""
        pairs = zip(self._keys, self._branches, strict=True)
        return MappingProxyType({key: branch.layers for key, branch in pairs})

    def config(self) -> dict[str, Any]:
        numbered = [_configs(layers) for key, layers in self.branches.items() if isinstance(key, int)]
        named = {key: _configs(layers) for key, layers in self.branches.items() if isinstance(key, str)}
        return {"type": type(self).__name__, "branches": numbered, "named_branches": named}

    @classmethod
    def from_config(cls, make: Callable[[Any], list[Layer]], **settings: Any) -> Self:
        numbered, named = settings.pop("branches"), settings.pop("named_branches")
        if settings:
            raise TypeError(f"{cls.__name__}: unknown settings {', '.join(settings)}")
        return cls(*map(make, numbered), **{name: make(configs) for name, configs in named.items()})

    def __repr__(self) -> str:
        lists = {key: list(layers) for key, layers in self.branches.items()}
        written = [f"{key}={inside!r}" if isinstance(key, str) else repr(inside) for key, inside in lists.items()]
        return f"{type(self).__name__}({', '.join(written)})"


class Concatenate(Parallel):
    """Branches that all get the input, their outputs side by side.

    Parameters
    ----------
    *branches, **named_branches : sequence of Layer
        At least one; all for the same width. An empty list is the input itself. The names become a part of the names of
        tensors, as in ``3.policy.0.weight``; without one it is the number, as in ``3.1.0.weight``.

    Attributes
    ----------
    branches : mapping to tuple of Layer
        By number and by name, in their order.

    Raises
    ------
    TypeError, ValueError
        If these are no layers, there is no branch, or a name is no identifier.

    Examples
    --------
    >>> wide_and_deep = fb.Concatenate([], [fb.Dense(10, 32, "relu"), fb.Dense(32, 16, "relu")])
    >>> model = fb.Sequential([wide_and_deep, fb.Dense(10 + 16, 1)])
    """

    join = "copy"

    def joined(self, widths: Sequence[int]) -> int:
        return sum(widths)


def input_width(layers: Sequence[Layer]) -> int | None:
    """The width that a list of layers takes, or None where any will do."""
    factor = 1  # of the width, by the layers so far, which take any
    for layer in layers:
        if layer.width is not None:
            return max(1, layer.width // factor)
        factor *= _growth(layer)
        if factor == 0:
            return None
    return None


def _growth(layer: Layer) -> int:
    """How many times its input's width a layer gives that takes any; 0 where that cannot be said."""
    try:
        one, two = layer.outputs(1), layer.outputs(2)
    except ValueError:  # of branches that do not fit each other, whatever the width
        return 0
    return one if two == 2 * one else 0


def _check_layers(name: str, layers: object) -> tuple[Layer, ...]:
    """The layers of a branch, as a tuple."""
    if isinstance(layers, str) or not isinstance(layers, Sequence):
        raise TypeError(f"{name}: expected a list of layers, got {type(layers).__name__}")
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise TypeError(f"{name}[{i}]: expected a layer, got {kind_of(layer)}")
    return tuple(layers)


def _configs(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    return [layer.config() for layer in layers]
