"""What crosses into the core: codes and names that both sides share, and specs, of which a misspelt one is an error."""

from types import ModuleType

import numpy as np
import pytest

import fastbp as fb
from fastbp.core import backend, plan
from fastbp.layers import LAYERS
from fastbp.losses import LOSSES
from fastbp.optim import OPTIMIZERS


def other_build(**families):
    module = ModuleType("fastbp.core._other")
    module.CODES = backend().CODES | families
    return module


def test_every_backend_has_the_registered_codes_and_names(any_backend):
    plan.check_codes(backend())
    plan.check_names(
        backend(), "kinds", {"copy", "add", "sparse", *(la.kind for la in LAYERS.values() if hasattr(la, "kind"))}
    )
    plan.check_names(backend(), "losses", LOSSES)
    plan.check_names(backend(), "rules", {optimizer.rule for optimizer in OPTIMIZERS.values()})


def test_a_backend_with_other_codes_is_not_loaded(any_backend):
    exchanged = backend().CODES["activations"] | {"relu": 2, "elu": 1}
    missing = {name: code for name, code in backend().CODES["kinds"].items() if name != "dropout"}
    with pytest.raises(ImportError, match=r"_other has other activations than .*build fastbp again"):
        plan.check_codes(other_build(activations=exchanged))
    with pytest.raises(ImportError, match=r"_other has other kinds than .*build fastbp again"):
        plan.check_names(other_build(kinds=missing), "kinds", backend().CODES["kinds"])
    with pytest.raises(ImportError, match="other losses"):
        plan.check_names(backend(), "losses", [*LOSSES, "no_such_loss"])
    with pytest.raises(ImportError, match="other rules"):
        plan.check_names(backend(), "rules", ["sgd"])


def test_a_misspelt_setting_is_an_error():
    with pytest.raises(TypeError, match="momentun"):
        plan.UpdateSpec("sgd", (None,), 0.1, momentun=0.9)
    spec = plan.UpdateSpec("sgd", (None,), 0.1)
    with pytest.raises(AttributeError):
        spec.momentun = 0.9


def test_unknown_names_are_errors(any_backend, dtype):
    pred, target = np.zeros((2, 3), dtype), np.zeros((2, 3), dtype)
    with pytest.raises(ValueError, match=r"loss: expected one of cross_entropy, .*, got 'msee'"):
        backend().loss(np.empty_like(pred), pred, target, None, plan.LossSpec("msee"), 1)
    param = np.zeros(3, dtype)
    with pytest.raises(ValueError, match=r"rule: expected one of sgd, adam, .*, got 'adamm'"):
        backend().update(param, np.ones(3, dtype), plan.UpdateSpec("adamm", (None,), 0.1), 1.0, 1)
    assert (param == 0).all()


UNKNOWN = len(plan.ACTIVATIONS)


@pytest.mark.parametrize("code", [-1, UNKNOWN, 1000])
def test_unknown_activations_are_errors(any_backend, dtype, code):
    z = np.ones((2, 3), dtype)
    with pytest.raises(ValueError, match=f"activation: expected a code below {UNKNOWN}, got"):
        backend().activation_forward(np.empty_like(z), z, code, 1)
    with pytest.raises(ValueError, match=f"activation: expected a code below {UNKNOWN}, got"):
        backend().activation_backward(np.empty_like(z), z, z, z, code, 1)


def network(model, program):
    """A network of another program, over the arrays of a model."""
    flat = model.params.values, model.params.grads, model.statistics
    return backend().Network(program, model.slots, model.tables, *flat)


@pytest.mark.parametrize("kind", ["conv", "", "dense2"])
def test_a_program_with_an_unknown_kind_is_an_error(any_backend, kind):
    model = fb.Sequential([fb.Dense(3, 2)], seed=0).model
    program = model.program.copy()
    program["kind"] = kind
    with pytest.raises(ValueError, match=r"ops: expected .*dense"):
        network(model, program)


@pytest.mark.parametrize(("field", "code"), [("activation", UNKNOWN), ("input_activation", -1)])
def test_a_program_with_unknown_codes_is_an_error(compiled, field, code):
    model = fb.Sequential([fb.Dense(3, 2)], seed=0).model
    program = model.program.copy()
    program[field] = code
    with pytest.raises(ValueError, match="activation: expected a"):
        network(model, program)


def trained(spec=None, losses=1, steps=2):
    """A report of two steps over ten samples."""
    model = fb.Sequential([fb.Dense(3, 1)], seed=0).model
    X, y = np.ones((10, 3), "f4"), np.ones((10, 1), "f4")
    batches = plan.BatchPlan(None, 0, steps, 5, 1)
    update = spec or plan.UpdateSpec("sgd", (None,), 0.1)
    report = plan.Report()
    model.network().train(report, (X, y, None), batches, [plan.LossSpec("mse")] * losses, update, None, 1)
    return report


def test_a_report_says_what_was_done(any_backend):
    report = trained()
    assert (report.steps, report.correct) == (2, 0)
    assert report.loss > 0


def test_rates_of_every_step(any_backend):
    rates = np.array([0.1, 0.1])
    report, expected = trained(plan.UpdateSpec("sgd", (None,), rates, rates * 0)), trained()
    assert (report.loss, report.steps) == (expected.loss, expected.steps)


def test_one_loss_and_a_rate_for_every_step(compiled):
    with pytest.raises(ValueError, match="unpack"):
        trained(losses=2)
    with pytest.raises(ValueError, match="update: expected 2 rates, one for each step, got 3"):
        trained(plan.UpdateSpec("sgd", (None,), np.full(3, 0.1)))
    with pytest.raises(ValueError, match="state: expected at most 4 state vectors, got 5"):
        trained(plan.UpdateSpec("sgd", (None,) * 5, 0.1))


def test_arrays_of_another_size_are_errors(compiled, dtype):
    """A kernel for float64 over float32 would read what is not its own."""
    other = np.dtype("f4") if dtype == np.float64 else np.dtype("f8")
    with pytest.raises(TypeError, match="entries of"):
        backend().activation_forward(np.empty((2, 3), dtype), np.ones((2, 3), other), 1, 1)
