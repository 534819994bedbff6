"""What training goes on from, in a file: model, optimizer, schedule, random state, history, and callbacks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fastbp.data.arrays import check_int
from fastbp.formats import npz
from fastbp.model import Model
from fastbp.optim import OPTIMIZERS, Optimizer
from fastbp.schedules import SCHEDULES
from fastbp.training.callbacks import BestWeights, Callback, ModelInTraining

T = TypeVar("T")


#: Settings of schedules in files that were written before they had these names.
RENAMED = {"total_steps": "steps", "step_size": "steps"}


class Run(NamedTuple):
    """What a file says: a model and its optimizer as they were, and the rest of the run."""

    model: Model
    epochs: int
    optimizer: Optimizer
    history: dict[str, list[float]]
    callbacks: list[tuple[str, dict[str, Any]]]  # their kinds and states
    stopped: bool


def _kind(callback: Callback) -> str:
    """What files call a callback of this kind."""
    return "Best" if isinstance(callback, BestWeights) else type(callback).__name__


def check_storable(model: ModelInTraining, optimizer: Optimizer | None) -> None:
    """Raise a TypeError for what a file cannot hold: objects of the user's own kinds."""
    if optimizer is None or OPTIMIZERS.get(type(optimizer).__name__) is not type(optimizer):
        raise TypeError(f"optimizer: expected one of fastbp's with Checkpoint, got {optimizer!r}")
    if SCHEDULES.get(type(optimizer.schedule).__name__) is not type(optimizer.schedule):
        raise TypeError(f"lr: expected a number or one of fb.schedules with Checkpoint, got {optimizer.schedule!r}")
    if not isinstance(model.model.order_generator.bit_generator, np.random.PCG64):
        raise TypeError(f"seed: expected a generator on PCG64 with Checkpoint, got {model.model.order_generator!r}")


def write(path: npz.Path, model: ModelInTraining, optimizer: Optimizer, callbacks: Sequence[Callback]) -> None:
    """Replace the file by one that has everything as it is now."""
    with model.model.shared():
        _write(path, model, optimizer, callbacks)


def _write(path: npz.Path, model: ModelInTraining, optimizer: Optimizer, callbacks: Sequence[Callback]) -> None:
    arrays = {**optimizer.state_vectors, "keys": model.model.program["key"]}
    kept = []
    for i, callback in enumerate(callbacks):
        rest = {}
        for name, value in callback.state().items():
            if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
                arrays[f"{i}.{name}"] = value
            elif isinstance(value, (np.generic, float, int, str, type(None))):
                rest[name] = value.item() if isinstance(value, np.generic) else value
            else:
                raise TypeError(
                    f"callbacks[{i}]: expected numbers, strings, None and arrays of numbers in the state of a "
                    f"{type(callback).__name__}, got {value!r} as {name!r}"
                )
        kept.append([_kind(callback), rest])
    checkpoint = {
        "epoch": model.epochs,
        "optimizer": [type(optimizer).__name__, optimizer.settings()],
        "schedule": [type(optimizer.schedule).__name__, optimizer.schedule.settings()],
        "steps": optimizer.steps,
        "step": model.model.training_step,
        "orders": model.model.order_generator.bit_generator.state,
        "history": {} if model.history is None else model.history.history,
        "callbacks": kept,
        "stopped": bool(model.stop_training),
    }
    header = {**model.model.header(), "checkpoint": checkpoint}
    npz.write(path, header, model.model.tensors() | {f"checkpoint.{name}": array for name, array in arrays.items()})


def load(path: npz.File) -> Run:
    """What ``write`` wrote; a FileFormatError if it is something else."""
    header, arrays = npz.read(path)
    if "checkpoint" not in header:
        raise npz.FileFormatError(f"path: expected a checkpoint, got a model alone in {path!r}; use fb.load")
    state = {name: arrays.pop(name) for name in list(arrays) if name.startswith("checkpoint.")}
    try:
        return _run(header, arrays, {name.removeprefix("checkpoint."): a for name, a in state.items()})
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, IndexError) as error:
        raise npz.unreadable(path, error) from error


def _run(header: dict[str, Any], arrays: dict[str, Any], state: dict[str, Any]) -> Run:
    saved = header["checkpoint"]
    model = Model.from_tensors(header["layers"], header["dtype"], arrays)
    model.set_link(header.get("link", ""))
    model.set_keys(state.pop("keys"))
    model.training_step, epochs = (check_int(name, saved[name], low=0) for name in ("step", "epoch"))
    model.order_generator.bit_generator.state = saved["orders"]
    callbacks = []
    for i, (name, values) in enumerate(saved["callbacks"]):
        own = [key for key in state if key.startswith(f"{i}.")]
        callbacks.append((str(name), dict(values) | {key.removeprefix(f"{i}."): state.pop(key).copy() for key in own}))
    name, settings = saved["schedule"]
    settings = {RENAMED.get(name, name): value for name, value in settings.items()}
    schedule = _registered(SCHEDULES, name, "Schedule")(**settings)
    name, settings = saved["optimizer"]
    optimizer: Optimizer = _registered(OPTIMIZERS, name, "Optimizer")(model.params, schedule, **settings)
    optimizer.load_state_dict({"steps": saved["steps"], **state})
    history = {str(name): [float(value) for value in values] for name, values in saved["history"].items()}
    return Run(model, epochs, optimizer, history, callbacks, bool(saved["stopped"]))


def _registered(registry: dict[str, T], name: str, family: str) -> T:
    """The class of that name; a file can call no other."""
    if name not in registry:
        raise ValueError(f"{name!r} is no {family}")
    return registry[name]


def load_matching(
    path: npz.Path,
    model: ModelInTraining,
    optimizer: Optimizer,
    callbacks: Sequence[Callback],
    log_names: list[str],
) -> Run | None:
    """The run to resume with these, which have to be of the same kinds and settings; None if there is no file."""
    check_storable(model, optimizer)
    if not os.path.exists(path):
        return None
    run = load(path)
    pairs = [
        ("dtype", model.dtype, run.model.dtype),
        *((f"layers[{i}]", repr(a), repr(b)) for i, (a, b) in enumerate(zip_longest(model.layers, run.model.layers))),
        ("optimizer", type(optimizer).__name__, type(run.optimizer).__name__),
        *((name, value, run.optimizer.settings().get(name)) for name, value in optimizer.settings().items()),
        ("callbacks", [_kind(callback) for callback in callbacks], [name for name, _ in run.callbacks]),
        ("log_names", sorted(log_names), sorted(run.history or log_names)),
    ]
    for name, here, there in pairs:
        if here != there:
            raise ValueError(f"resume: expected {name} {here} as in this run, got {there} in {os.fsdecode(path)!r}")
    return run


def restore(run: Run, model: ModelInTraining, optimizer: Optimizer, callbacks: Sequence[Callback]) -> None:
    """Make them what they were when the file was written."""
    model.model.resume(run.model)
    model.epochs = run.epochs
    model.stop_training = run.stopped
    if model.history is not None:
        model.history.history.update(run.history)
    optimizer.steps, optimizer.schedule = run.optimizer.steps, run.optimizer.schedule
    optimizer.take_state(run.optimizer)
    for callback, (_, state) in zip(callbacks, run.callbacks, strict=True):
        callback.set_state(state)
