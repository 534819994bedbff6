"""Optimizers as descriptions: hyperparameters, state over the flat buffers, and which update kernel applies them.

Formulas, names and defaults are PyTorch's.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from fastbp import schedules
from fastbp.core import backend, thread_limit
from fastbp.core.plan import GROUP, UpdateSpec, aligned, check_names
from fastbp.core.threads import MAX_THREADS
from fastbp.data.arrays import LARGEST, Array, check_array, check_bool, check_int, check_normal, check_number
from fastbp.divergence import DivergenceError, in_gradient
from fastbp.parameters import Parameters, Unchanged, copy_overlap
from fastbp.settings import Settings

__all__: list[str] = []  # every public optimizer adds its name above its class

#: fastbp's own optimizers by the names of their classes, for reading checkpoints.
OPTIMIZERS: dict[str, type[Optimizer]] = {}


#: From a pattern of tensors' paths to what multiplies their settings.
Groups = Mapping[str, Mapping[str, float]]

_MULTIPLIED = "lr", "weight_decay", "l1"


def check_groups(groups: Any, params: Parameters) -> dict[str, dict[str, float]] | None:
    """A copy of ``groups``, if every pattern matches a tensor and multiplies settings that there are."""
    if groups is None:
        return None
    if not isinstance(groups, Mapping) or not all(isinstance(value, Mapping) for value in groups.values()):
        raise TypeError(f"groups: expected a mapping such as {{'*.bias': {{'lr': 0.1}}}}, got {groups!r}")
    for pattern, settings in groups.items():
        if not isinstance(pattern, str) or not any(fnmatch.fnmatchcase(name, pattern) for name in params.shapes):
            raise ValueError(f"groups: expected patterns of {', '.join(params.shapes)}, got {pattern!r}")
        for name in settings:
            if name not in _MULTIPLIED:
                raise ValueError(
                    f"groups[{pattern!r}]: expected multipliers of {', '.join(_MULTIPLIED)}, got {name!r}; {{'lr': 0}} "
                    "freezes a tensor"
                )
    return {
        pattern: {name: check_number(f"groups[{pattern!r}][{name!r}]", value, 0) for name, value in settings.items()}
        for pattern, settings in groups.items()
    }


def _group_records(params: Parameters, groups: dict[str, dict[str, float]] | None, decay_bias: bool) -> Array | None:
    """The multipliers of all tensors that have others than ones; None if there are none."""
    records = []
    for name, shape in params.shapes.items():
        own = dict.fromkeys(_MULTIPLIED, 1.0)
        for pattern, settings in (groups or {}).items():
            if fnmatch.fnmatchcase(name, pattern):
                own |= settings
        if not decay_bias and len(shape) == 1:
            own["weight_decay"] = own["l1"] = 0.0
        if any(value != 1 for value in own.values()):
            begin = params.offsets[name]
            records.append((begin, begin + math.prod(shape), *own.values()))
    return np.array(records, GROUP) if records else None


class Optimizer(Settings):
    """The base of all optimizers.

    Parameters
    ----------
    params : Parameters
        ``model.parameters()``.
    lr : float, Schedule or callable
        The learning rate, one of ``fb.schedules``, or a function of the number of steps done, 0 at first.
    weight_decay : float
        Times the parameter, added to its gradient (L2), unless the optimizer says otherwise.
    clip_norm : float or None
        Scale the whole gradient down to this Euclidean norm where it is longer (Pascanu et al. 2013).
    decay_bias : bool
        Whether weight decay acts on biases and the parameters of normalisations too.
    clip_value : float or None
        Bring every entry of the gradient into [-clip_value, clip_value] where it lies; not together with clip_norm.
    l1 : float
        Times the parameter's sign, added to its gradient, where weight decay acts; in AdamW it is decoupled as well,
        the soft threshold ``sign(param) max(|param| - lr l1, 0)`` after the update (Parikh & Boyd 2014, section 6.5.2).
    groups : mapping from pattern to mapping, or None
        ``{"*.bias": {"lr": 0.1, "weight_decay": 0}}`` multiplies settings, of ``"lr"``, ``"weight_decay"`` and
        ``"l1"``, for the tensors whose whole path, such as ``"3.1.0.weight"``, matches the pattern (``fnmatch``). Of
        several patterns with the same setting the last one counts. A multiplier of 0 for the learning rate freezes: no
        weight and no state of the optimizer moves, and ``clip_norm`` leaves the gradient out.

    Attributes
    ----------
    steps : int
        Steps done.
    state_vectors : dict of str to ndarray
        The state vectors that there are by now, by name.
    lr : float
        The learning rate of the next step. A number, a Schedule or a callable may be set, in a callback too.

    weight_decay, clip_norm and all other arguments
        May be set, and act from the next step on.

    Raises
    ------
    TypeError, ValueError
        If params is not a model's parameters, a number is out of range, or a pattern in groups matches no tensor.
    """

    _kept: ClassVar[tuple[str, ...]] = ("params", "steps", "state_vectors")
    _instead: ClassVar[str] = "make a new optimizer"
    #: The name of the update rule in the core.
    rule: ClassVar[str]
    #: Names of the state vectors, each as long as the parameters.
    state_names: ClassVar[tuple[str, ...]] = ()
    #: Those of them that are sums of squares.
    squares: ClassVar[tuple[str, ...]] = ()
    #: Whether ``fit(resume=)`` goes on with it, so that a ``Checkpoint`` keeps it; the estimators' own are not.
    resumable: ClassVar[bool] = True
    #: Whether a gradient of zero changes neither parameter nor state, but for penalties and momentum.
    _idles: ClassVar[bool] = False
    momentum = 0.0

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__module__ == __name__:  # a file can name no class of the user's own
            OPTIMIZERS[cls.__name__] = cls

    def __init__(
        self,
        params: Parameters,
        lr: schedules.LearningRate,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        decay_bias: bool = True,
        clip_value: float | None = None,
        l1: float = 0.0,
        groups: Groups | None = None,
    ) -> None:
        if not isinstance(params, Parameters):
            raise TypeError(f"params: expected model.parameters(), got {type(params).__name__}")
        self.params = params
        self.schedule = schedules.resolve(lr)
        self.weight_decay = check_number("weight_decay", weight_decay, 0)
        self.clip_norm = None if clip_norm is None else check_number("clip_norm", clip_norm, 0, open_low=True)
        self.clip_value = None if clip_value is None else check_number("clip_value", clip_value, 0, open_low=True)
        if self.clip_norm is not None and self.clip_value is not None:
            raise ValueError("clip_value: expected None together with clip_norm")
        self.decay_bias = check_bool("decay_bias", decay_bias)
        self.l1 = check_number("l1", l1, 0)
        self.groups = check_groups(groups, params)
        #: What the core knows of groups and decay_bias, plan.GROUP.
        self.group_records = _group_records(params, self.groups, self.decay_bias)
        self.steps = 0
        self.state_vectors: dict[str, Array] = {}

    @classmethod
    def _setting_names(cls) -> tuple[str, ...]:
        return tuple(name for name in super()._setting_names() if name not in ("params", "lr"))

    def __repr__(self) -> str:
        """``Adam(lr=0.001, weight_decay=0.1), 120 steps done``"""
        lr: Any = self.schedule
        if isinstance(lr, schedules.Constant) and not lr.warmup:
            lr = lr.lr
        settings = ", ".join(filter(None, (f"lr={lr!r}", self._shown())))
        return f"{type(self).__name__}({settings}), {self.steps} steps done"

    def _with(self, settings: dict[str, Any]) -> Settings:
        make: Any = self._own_class()
        made: Settings = make(self.params, self.schedule, **settings)
        return made

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments besides parameters and learning rate, for checkpoints."""
        return self._settings()

    def __setattr__(self, name: str, value: Any) -> None:
        if "_constructed" not in vars(self) or name not in ("lr", "schedule", *self._kept):
            super().__setattr__(name, value)
        elif name in ("lr", "schedule"):
            object.__setattr__(self, "lr", value)
        elif name == "steps":
            vars(self)["steps"] = check_int("steps", value, low=0)
        else:
            raise AttributeError(f"{name}: it cannot be set; make a new optimizer, or use load_state_dict")

    @property
    def lr(self) -> float:
        return check_number("lr", self.schedule(self.steps), 0)

    @lr.setter
    def lr(self, lr: schedules.LearningRate) -> None:
        vars(self)["schedule"] = schedules.resolve(lr)

    def state_vector(self, name: str) -> Array:
        """A state vector; the first step that needs it makes it, filled with zeros."""
        if name not in self.state_vectors:
            self.state_vectors[name] = aligned(self.params.values.size, self.params.values.dtype)
            self.state_vectors[name][:] = 0
        return self.state_vectors[name]

    def for_parameters(self, params: Parameters) -> Self:
        """An optimizer like this one for the parameters of another model, such as one with more outputs.

        It goes on after as many steps, with the state of every tensor that both models have, as far as its rows and
        columns go; what is new begins with zeros.
        """
        if not isinstance(params, Parameters):
            raise TypeError(f"params: expected model.parameters(), got {type(params).__name__}")
        make: Any = self._own_class()
        made: Self = make(params, self.schedule, **self._settings())
        with self.params.shared():
            for name, vector in self.state_vectors.items():
                for tensor, shape in params.shapes.items():
                    if len(self.params.shapes.get(tensor, ())) == len(shape):
                        copy_overlap(params.view(made.state_vector(name), tensor), self.params.view(vector, tensor))
            vars(made)["steps"] = self.steps
        return made

    def take_state(self, other: Optimizer) -> None:
        """Go on where another optimizer of the same kind is, with its vectors, which it does not use any more."""
        vars(self).update(steps=other.steps, state_vectors=other.state_vectors)

    def step(self, threads: int | None = None) -> None:
        """Update the parameters from their gradients, with so many threads; None is ``fb.get_num_threads()``.

        Raises
        ------
        TypeError, ValueError
            If threads is no integer from 1 to 1024.
        DivergenceError
            With clip_norm, if the gradient is not finite; nothing is updated then.
        RuntimeError
            If the model is in use in another thread.
        """
        threads = thread_limit() if threads is None else check_int("threads", threads, high=MAX_THREADS)
        with self.params.lock.exclusive():
            self.apply(threads)

    def apply(self, threads: int) -> float:
        """``step`` for who has exclusive access to the model; the learning rate."""
        lr, scale = self.lr, 1.0
        if self.clip_norm is not None:
            norm = math.sqrt(backend().squared_norm(self.params.grads, self.group_records, threads))
            if not math.isfinite(norm):
                raise DivergenceError("gradient", norm, in_gradient(self.params), self.steps + 1, lr)
            scale = min(1.0, self.clip_norm / (norm + 1e-6))
        spec = self.update_spec(lr)
        try:
            backend().update(self.params.values, self.params.grads, spec, scale, threads)
        finally:  # an interrupt comes before the update or after it: a call would be a place for one
            self.__dict__["steps"] += spec.applied
        return lr

    def rates(self, steps: int) -> tuple[Array | float, Exception | None]:
        """The learning rates of the next steps, or the one of all of them.

        Where the schedule fails at a later step these are the rates up to there, and its error.
        """
        schedule, rates = self.schedule, []
        if type(schedule) is schedules.Constant and not schedule.warmup:
            return schedule.lr, None  # which was checked when it was set
        for t in range(self.steps, self.steps + steps):
            try:
                rates.append(check_number("lr", schedule(t), 0))
            except Exception as error:
                if not rates:
                    raise
                return np.array(rates), error
        return np.array(rates), None

    def update_spec(self, lr: Array | float, weight_decay: Array | float | None = None) -> UpdateSpec:
        """What ``step`` and the core apply, at this learning rate, or these of several steps.

        weight_decay, if not None, replaces the optimizer's one.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The number of steps and copies of the state vectors: what ``load_state_dict`` needs to go on from here."""
        with self.params.shared():
            return {"steps": self.steps} | {name: array.copy() for name, array in self.state_vectors.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict`` of an optimizer of the same kind over parameters of the same sizes.

        Raises
        ------
        ValueError
            If a state vector is unknown, missing, not finite or of another length; nothing is changed then.
        """
        values = self.params.values
        given = {name: value for name, value in state.items() if name != "steps"}
        steps = state.get("steps")
        if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or not 0 <= steps <= LARGEST:
            raise ValueError(f"state: expected a number of steps under 'steps', got {steps!r}")
        used = self._used() - ({"velocity"} if not given else set())  # which there may be none of yet
        if given.keys() - set(self.state_names) or (not used <= given.keys() and (given or steps)):
            raise ValueError(f"state: expected vectors {sorted(self._used())}, got {sorted(given)}")
        arrays = {
            name: check_array(f"state[{name!r}]", value, values.shape, values.dtype) for name, value in given.items()
        }
        for name in self.squares:
            if name in arrays and arrays[name].size and arrays[name].min() < 0:
                raise ValueError(f"state[{name!r}]: expected means of squares, got {arrays[name].min()}")
        with self.params.exclusive():
            self.steps = int(steps)
            self.state_vectors.clear()
            for name, array in arrays.items():
                self.state_vector(name)[:] = array

    def __getstate__(self) -> dict[str, Any]:
        unchanged = Unchanged(self.params.lock)
        return {**vars(self), "state_vectors": dict(self.state_vectors), "unchanged": unchanged}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update((name, value) for name, value in state.items() if name != "unchanged")

    def _spec(
        self, state: tuple[Array | None, ...], lr: Array | float, weight_decay: Array | float | None
    ) -> UpdateSpec:
        """The rule with the settings that all rules have."""
        spec = UpdateSpec(self.rule, state, lr, self.weight_decay if weight_decay is None else weight_decay)
        if self.clip_norm is not None:
            spec.clip_norm = self.clip_norm
        if self.clip_value is not None:
            spec.clip_value = self.clip_value
        penalised = weight_decay is not None or self.weight_decay != 0 or self.l1 != 0
        if penalised or self.groups:
            spec.l1, spec.groups = self.l1, self.group_records
        spec.idle = self._idles and not penalised and not self.momentum
        return spec

    def _used(self) -> set[str]:
        """The state vectors that these settings need: a velocity only with momentum."""
        return {name for name in self.state_names if name != "velocity" or self.momentum}

    def _eps(self, eps: float) -> float:
        """``eps`` if it is above zero in the parameters' dtype: it is what keeps 0 / 0 away."""
        return check_normal("eps", check_number("eps", eps, 0, open_low=True), self.params.values.dtype)


__all__ += ["SGD"]


class SGD(Optimizer):
    """Gradient descent: ``v = momentum v + g``, ``param -= lr v``.

    Parameters
    ----------
    params, lr, weight_decay, clip_norm, decay_bias, clip_value, l1, groups
        See ``Optimizer``.
    momentum : float
        In [0, 1).
    nesterov : bool
        Step along ``g + momentum v`` (Sutskever et al. 2013); needs momentum.
    """

    rule = "sgd"
    _idles = True
    state_names = ("velocity",)

    def __init__(
        self,
        params: Parameters,
        lr: schedules.LearningRate,
        momentum: float = 0.0,
        *,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        decay_bias: bool = True,
        clip_value: float | None = None,
        l1: float = 0.0,
        groups: Groups | None = None,
    ) -> None:
        super().__init__(params, lr, weight_decay, clip_norm, decay_bias, clip_value, l1, groups)
        self.momentum = check_number("momentum", momentum, 0, 1)
        self.nesterov = check_bool("nesterov", nesterov)
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: expected a momentum above 0 with it, got momentum=0")

    def update_spec(self, lr: Array | float, weight_decay: Array | float | None = None) -> UpdateSpec:
        state = (self.state_vector("velocity") if self.momentum else None,)
        spec = self._spec(state, lr, weight_decay)
        spec.momentum, spec.nesterov = self.momentum, self.nesterov
        return spec


__all__ += ["Adam"]


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015), weight decay as L2.

    Parameters
    ----------
    params, lr, weight_decay, clip_norm, decay_bias, clip_value, l1, groups
        See ``Optimizer``.
    betas : (float, float)
        Decay of the gradient's and the squared gradient's running means, in [0, 1).
    eps : float
        Added to the root of the latter.
    """

    rule = "adam"
    state_names = ("m", "v")
    squares = ("v",)
    _decoupled = False

    def __init__(
        self,
        params: Parameters,
        lr: schedules.LearningRate = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        decay_bias: bool = True,
        clip_value: float | None = None,
        l1: float = 0.0,
        groups: Groups | None = None,
    ) -> None:
        super().__init__(params, lr, weight_decay, clip_norm, decay_bias, clip_value, l1, groups)
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(f"betas: expected a pair of numbers, got {betas!r}")
        self.betas = (check_number("betas[0]", betas[0], 0, 1), check_number("betas[1]", betas[1], 0, 1))
        self.eps = self._eps(eps)

    def update_spec(self, lr: Array | float, weight_decay: Array | float | None = None) -> UpdateSpec:
        spec = self._spec((self.state_vector("m"), self.state_vector("v")), lr, weight_decay)
        spec.beta1, spec.beta2 = self.betas
        spec.eps, spec.decoupled, spec.step = self.eps, self._decoupled, self.steps + 1
        return spec


__all__ += ["AdamW"]


class AdamW(Adam):
    """Adam with decoupled weight decay, ``param *= 1 - lr weight_decay`` (Loshchilov & Hutter 2019)."""

    _decoupled = True

    def __init__(
        self,
        params: Parameters,
        lr: schedules.LearningRate = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        clip_norm: float | None = None,
        decay_bias: bool = True,
        clip_value: float | None = None,
        l1: float = 0.0,
        groups: Groups | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            decay_bias=decay_bias,
            clip_value=clip_value,
            l1=l1,
            groups=groups,
        )


__all__ += ["RMSprop"]


class RMSprop(Optimizer):
    """RMSprop (Tieleman & Hinton 2012): ``param -= lr g / (sqrt(mean of g^2) + eps)``.

    Parameters
    ----------
    params, lr, weight_decay, clip_norm, decay_bias, clip_value, l1, groups
        See ``Optimizer``.
    alpha : float
        Decay of the running mean of squares, in [0, 1).
    eps : float
        Added to its root.
    momentum : float
        In [0, 1).
    """

    rule = "rmsprop"
    state_names = ("square", "velocity")
    squares = ("square",)

    def __init__(
        self,
        params: Parameters,
        lr: schedules.LearningRate = 1e-2,
        *,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        clip_norm: float | None = None,
        decay_bias: bool = True,
        clip_value: float | None = None,
        l1: float = 0.0,
        groups: Groups | None = None,
    ) -> None:
        super().__init__(params, lr, weight_decay, clip_norm, decay_bias, clip_value, l1, groups)
        self.alpha = check_number("alpha", alpha, 0, 1)
        self.eps = self._eps(eps)
        self.momentum = check_number("momentum", momentum, 0, 1)

    def update_spec(self, lr: Array | float, weight_decay: Array | float | None = None) -> UpdateSpec:
        state = (self.state_vector("square"), self.state_vector("velocity") if self.momentum else None)
        spec = self._spec(state, lr, weight_decay)
        spec.alpha, spec.eps, spec.momentum = self.alpha, self.eps, self.momentum
        return spec


__all__ += ["Adagrad"]


class Adagrad(Optimizer):
    """Adagrad (Duchi, Hazan & Singer 2011): ``param -= lr g / (sqrt(sum of g^2) + eps)``.

    Parameters
    ----------
    params, lr, weight_decay, clip_norm, decay_bias, clip_value, l1, groups
        See ``Optimizer``.
    eps : float
        Added to the root.
    """

    rule = "adagrad"
    _idles = True
    state_names = ("total",)
    squares = ("total",)

    def __init__(
        self,
        params: Parameters,
        lr: schedules.LearningRate = 1e-2,
        *,
        weight_decay: float = 0.0,
        eps: float = 1e-10,
        clip_norm: float | None = None,
        decay_bias: bool = True,
        clip_value: float | None = None,
        l1: float = 0.0,
        groups: Groups | None = None,
    ) -> None:
        super().__init__(params, lr, weight_decay, clip_norm, decay_bias, clip_value, l1, groups)
        self.eps = self._eps(eps)

    def update_spec(self, lr: Array | float, weight_decay: Array | float | None = None) -> UpdateSpec:
        spec = self._spec((self.state_vector("total"),), lr, weight_decay)
        spec.eps = self.eps
        return spec


check_names(backend(), "rules", (optimizer.rule for optimizer in OPTIMIZERS.values()))
