"""Attributes of public objects: setting one is checked and takes effect at the next step, or is refused with words."""

import copy
import pickle

import numpy as np
import pytest
from networks import bits, blobs, branching, everything

import fastbp as fb

X, Y = blobs(64)


# --- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["values", "grads"])
def test_assigning_parameters_copies_in(any_backend, dtype, name):
    """The code of a target network: what is assigned is what the layers have and what predicts."""
    model, other = everything(dtype.name), everything(dtype.name, seed=1)
    p, q = model.parameters(), other.parameters()
    flat, expected = getattr(p, name), 0.995 * getattr(p, name) + 0.005 * getattr(q, name)
    before = expected.copy()
    setattr(p, name, expected)
    assert getattr(p, name) is flat
    np.testing.assert_array_equal(flat, before)
    expected[:] = 7
    np.testing.assert_array_equal(flat, before)
    by_hand = everything(dtype.name)
    for mine, theirs in zip(by_hand.parameters(), other.parameters(), strict=True):
        mine[...] = dtype.type(0.995) * mine + dtype.type(0.005) * theirs
    if name == "values":
        np.testing.assert_array_equal(model.predict(X), by_hand.predict(X))
    np.testing.assert_array_equal(model.layers[0].weight if name == "values" else p.grad("0.weight"),
                                  by_hand.layers[0].weight if name == "values" else 0)  # fmt: skip


@pytest.mark.parametrize("name", ["values", "grads"])
def test_assigning_parameters_is_checked(name):
    model = everything()
    p, before = model.parameters(), bits(model)
    flat, size = getattr(p, name), len(model.parameters().values)
    setattr(p, name, flat.astype("f8"))  # cast, as a weight is
    setattr(p, name, np.ones(size))
    inside = sum(int(np.prod(shape)) for shape in p.shapes.values())
    assert np.count_nonzero(flat) == inside < size  # what is between the tensors stays zero
    setattr(p, name, np.zeros(size))
    p.values = np.frombuffer(before, "f4", count=size)
    for value, error, message in (
        (np.ones(size - 1), ValueError, f"{name}: expected shape"),
        (np.full(size, np.nan), ValueError, f"{name}: expected finite numbers"),
        (["a"] * size, TypeError, f"{name}: expected numbers"),
        (None, (TypeError, ValueError), f"{name}: expected"),
    ):
        with pytest.raises(error, match=message):
            setattr(p, name, value)
    assert bits(model) == before
    p.values *= 0.5
    np.testing.assert_array_equal(p.values, 0.5 * np.frombuffer(before, "f4", count=size))
    with pytest.raises(RuntimeError, match="in the middle of a step"):
        model.train_on_batch(X, Y, lambda *_: setattr(p, name, flat.copy()), fb.SGD(p, lr=0.1))


# --- what may be set, and what not ------------------------------------------------------------------------------------


def optimizers():
    p = everything().parameters()
    return [fb.SGD(p, 0.1, momentum=0.9), fb.Adam(p), fb.AdamW(p), fb.RMSprop(p), fb.Adagrad(p)]


def objects(tmp_path):
    s = fb.schedules
    yield from optimizers()
    yield from (s.Constant(0.1), s.Step(0.1, 2), s.Exponential(0.1, 0.9), s.Cosine(0.1, 9), s.OneCycle(0.1, 9))
    yield s.InverseScaling(0.1)
    yield from (fb.CrossEntropy(), fb.BinaryCrossEntropy(), fb.MSE(), fb.MAE(), fb.Huber(), fb.Quantile(), fb.Poisson())
    yield from (fb.EarlyStopping(), fb.ReduceLROnPlateau(), fb.Checkpoint(tmp_path / "run.npz"))
    for model in (everything(), branching()):
        yield from (model, model.parameters(), *model.layers)
    yield from (fb.Dense(3, 4), fb.Dropout(), fb.BatchNorm(3), fb.Residual([fb.Dense(3, 3)]), fb.Embedding(3, 4))
    yield from (fb.Concatenate([], []), fb.TabularInput(1, [2]), fb.LayerNorm(2), fb.Activation("relu"))
    model = everything()
    yield model.fit(X, Y, "cross_entropy", fb.SGD(model.parameters(), 0.1), verbose=0)


GARBAGE = [object(), -1, 2.0, "x", float("nan"), [1, 2, 3]]
FREE = {"stop_training", "epochs", "history", "best", "best_epoch", "model", "optimizer", "log_names", "callbacks",
        "greater_is_better"}  # fmt: skip


def error_of(task):
    """The error that the task raises for a wrong value, or None."""
    try:
        task()
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:  # the last of arrays that are not there yet
        return error
    return None


def test_every_attribute_is_checked_or_refused(tmp_path):
    """Whatever is set: it is what the constructor would take, or an error that names it, and nothing has changed."""
    tried = refused = 0
    for made in objects(tmp_path):
        names = {name for name in dir(made) if not name.startswith("_") and name not in FREE}
        for name in sorted(names | {"trainable", "typo"}):
            for value in GARBAGE:
                before = repr(vars(made).get(name))
                error = error_of(lambda made=made, name=name, value=value: setattr(made, name, value))
                tried += 1
                if error is not None:
                    refused += 1
                    named = str(error).startswith(("betas[", "lr" if name == "schedule" else name))
                    assert named or "has no arrays yet" in str(error)
                    assert repr(vars(made).get(name)) == before
                else:
                    stored = getattr(made, name)
                    stored = stored.lr if name == "schedule" else stored
                    assert np.array_equal(stored, value) or stored == bool(value), (made, name)
    assert tried > 2000
    assert refused / tried > 0.9


EFFECTS = {
    "weight_decay": (fb.SGD, {}, 0.5), "momentum": (fb.SGD, dict(momentum=0.5), 0.9), "clip_norm": (fb.SGD, {}, 0.01),
    "clip_value": (fb.Adam, {}, 1e-4), "nesterov": (fb.SGD, dict(momentum=0.9), True), "eps": (fb.Adam, {}, 0.1),
    "betas": (fb.Adam, {}, (0.5, 0.6)), "alpha": (fb.RMSprop, {}, 0.5),
    "decay_bias": (fb.AdamW, dict(weight_decay=0.5), False), "lr": (fb.Adam, {}, 0.3),
    "schedule": (fb.SGD, {}, fb.schedules.Step(0.3, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("way", ["fit", "train_on_batch", "step"])
def test_a_setting_of_an_optimizer_acts_from_the_next_step_on(any_backend, name, way):
    """As that of an optimizer that was made with it and has the same state."""
    kind, settings, value = EFFECTS[name]
    outcomes = []
    for change in ("none", "set", "made"):
        model = everything()
        optimizer = kind(model.parameters(), lr=0.01, **settings)
        model.fit(X, Y, "cross_entropy", optimizer, batch_size=16, verbose=0, seed=0)
        if change == "set":
            setattr(optimizer, name, value)
        elif change == "made":
            state = optimizer.state_dict()
            lr = value if name in ("lr", "schedule") else 0.01
            given = settings if name in ("lr", "schedule") else settings | {name: value}
            optimizer = kind(model.parameters(), lr=lr, **given)
            optimizer.load_state_dict(state)
        if way == "fit":
            model.fit(X, Y, "cross_entropy", optimizer, batch_size=16, verbose=0, seed=0)
        elif way == "train_on_batch":
            model.train_on_batch(X, Y, "cross_entropy", optimizer)
        else:
            model.backward(fb.CrossEntropy()(model.forward(X, training=True), Y)[1])
            optimizer.step()
        outcomes.append(bits(model))
    assert outcomes[1] == outcomes[2] != outcomes[0]


def test_settings_are_checked_together():
    p = everything().parameters()
    optimizer = fb.SGD(p, 0.1, clip_norm=1.0)
    for name, value, message in (
        ("clip_value", 1.0, "clip_value: expected None together with clip_norm"),
        ("nesterov", True, "nesterov: expected a momentum above 0"),
        ("momentum", 2.0, "momentum: expected a number in"),
        ("weight_decay", -1, "weight_decay: expected a number in"),
        ("lr", -1, "lr: expected a number in"),
        ("lr", "fast", "lr: expected a number"),
        ("steps", -1, "steps: expected a non-negative integer"),
        ("params", p, "params: it cannot be set; make a new optimizer"),
        ("state_vectors", {}, "state_vectors: it cannot be set"),
        ("weight_decy", 1, "weight_decy: SGD has no such attribute; did you mean 'weight_decay'"),
    ):
        with pytest.raises((TypeError, ValueError, AttributeError), match=message):
            setattr(optimizer, name, value)
    assert optimizer.settings() == fb.SGD(p, 0.1, clip_norm=1.0).settings()
    optimizer.clip_norm = None
    optimizer.clip_value = 1.0
    assert (optimizer.clip_norm, optimizer.clip_value) == (None, 1.0)


LOSSES = [
    (fb.Huber(), "delta", 0.1, fb.Huber(0.1)),
    (fb.Quantile(), "q", 0.9, fb.Quantile(0.9)),
    (fb.CrossEntropy(), "label_smoothing", 0.3, fb.CrossEntropy(0.3)),
    (fb.CrossEntropy(class_weight=[1, 2, 3, 4]), "class_weight", [4, 3, 2, 1], fb.CrossEntropy(0.0, [4, 3, 2, 1])),
    (fb.CrossEntropy(), "class_weight", {1: 5.0}, fb.CrossEntropy(0.0, {1: 5.0})),
]


@pytest.mark.parametrize(("loss", "name", "value", "expected"), LOSSES, ids=lambda value: str(value)[:20])
def test_a_setting_of_a_loss_acts_after_it_was_used(any_backend, loss, name, value, expected):
    loss = copy.deepcopy(loss)
    y = Y if isinstance(loss, fb.CrossEntropy) else np.eye(4)[Y]
    model = everything()
    before = model.evaluate(X, y, loss)["loss"]
    with pytest.raises(ValueError, match=f"{name}: "):
        setattr(loss, name, -1.0 if name != "class_weight" else [-1.0, 1, 1, 1])
    setattr(loss, name, value)
    assert model.evaluate(X, y, loss) == model.evaluate(X, y, expected)
    assert model.evaluate(X, y, loss)["loss"] != before


def test_class_weights_are_copied():
    """What the caller writes into its array, or its mapping, later changes nothing."""
    for weight in (np.array([1.0, 2, 3, 4]), {0: 2.0}):
        loss, model = fb.CrossEntropy(class_weight=weight), everything()
        expected = model.evaluate(X, Y, loss)["loss"]
        weight[0] = 100.0
        assert model.evaluate(X, Y, loss)["loss"] == expected
        assert model.astype("float64").evaluate(X, Y, loss)["loss"] == pytest.approx(expected, rel=1e-5)


def test_settings_of_schedules_and_callbacks_act():
    schedule = fb.schedules.Cosine(0.1, 10)
    schedule.steps = 20
    assert schedule(10) == fb.schedules.Cosine(0.1, 20)(10)
    with pytest.raises(ValueError, match="steps: "):
        schedule.steps = 0
    assert schedule.steps == 20
    stopping = fb.EarlyStopping(patience=1, monitor="loss")
    with pytest.raises(ValueError, match="patience: "):
        stopping.patience = 0
    with pytest.raises(AttributeError, match="patiense: EarlyStopping has no such attribute; did you mean 'patience'"):
        stopping.patiense = 3
    stopping.patience = 3
    model = everything()
    history = model.fit(X, Y, "cross_entropy", fb.SGD(model.parameters(), lr=0.0), epochs=20, verbose=0,
                        callbacks=[stopping])  # fmt: skip
    assert len(history) >= 4


def test_attributes_of_models_and_layers_say_what_to_do():
    model = everything()
    for made, name, message in (
        (model, "dtype", "dtype: it cannot be set; make a new model; astype gives one of another dtype"),
        (model, "outputs", "outputs: it cannot be set; make a new model"),
        (model, "trainable", "trainable: Sequential has no such attribute; make a new model"),
        (model.layers[0], "trainable", "trainable: Dense has no such attribute; a layer stays as it was made"),
        (fb.Dense(2, 3), "trainable", "trainable: Dense has no such attribute; a layer stays as it was made"),
        (fb.Dense(2, 3), "out_features", "out_features: it cannot be set; a layer stays as it was made"),
        (model.layers[1], "p", "p: it cannot be set; a layer stays as it was made"),
        (model.parameters(), "requires_grad", "requires_grad: Parameters has no such attribute"),
        (fb.MSE(), "reduction", "reduction: MSE has no such attribute; expected one of .*; make a new one"),
    ):
        with pytest.raises(AttributeError, match=message):
            setattr(made, name, False)
    model.layers[0].weight = np.zeros((7, 33))
    assert not model.layers[0].weight.any()


class MySchedule(fb.schedules.Constant):
    def __init__(self, lr, tag):
        super().__init__(lr)
        self.tag = tag

    def __call__(self, t):
        return self.lr / (t + 1)


class MyOptimizer(fb.SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.tag = "mine"


class MyStopping(fb.EarlyStopping):
    def __init__(self):
        super().__init__(patience=2)
        self.tag = "mine"


def test_classes_of_the_users_own_have_attributes_of_their_own():
    model = everything()
    mine = [MySchedule(0.1, "x"), MyOptimizer(model.parameters(), 0.1), MyStopping()]
    for made in mine:
        made.tag, made.another = "y", 3
        assert (made.tag, made.another) == ("y", 3)
        for copied in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
            copied.tag = "z"
            assert copied.another == 3
    mine[1].momentum = 0.5
    mine[2].patience = 7
    mine[0].lr = 0.3
    assert (mine[1].momentum, mine[2].patience, mine[0].lr) == (0.5, 7, 0.3)
    for made, name in zip(mine, ("lr", "momentum", "patience"), strict=True):
        with pytest.raises(ValueError, match=f"{name}: "):
            setattr(made, name, -1)


def test_a_subclass_of_constant_is_called(any_backend):
    """In fit as in the explicit loop."""
    models = [everything(), everything()]
    for model, loop in zip(models, (False, True), strict=True):
        optimizer = fb.SGD(model.parameters(), MySchedule(0.1, "x"))
        if loop:
            for xb, yb in fb.batches(X, Y, 10, seed=0):
                model.train_on_batch(xb, yb, "cross_entropy", optimizer)
        else:
            history = model.fit(X, Y, "cross_entropy", optimizer, batch_size=10, seed=0, verbose=0)
    assert bits(models[0]) == bits(models[1])
    assert history.history["lr"] == [0.1 / 7]
    with pytest.raises(ValueError, match="expected a constant learning rate"):
        models[0].fit(X, Y, "cross_entropy", optimizer_of(models[0]), callbacks=[fb.ReduceLROnPlateau()], verbose=0)


def optimizer_of(model):
    return fb.SGD(model.parameters(), MySchedule(0.1, "x"))


# --- schedules that fail, and states that are no states ---------------------------------------------------------------


class Fails(fb.schedules.Schedule):
    def __init__(self, step, how):
        self.step, self.how = step, how

    def __call__(self, t):
        if t < self.step:
            return 0.1 / (t + 1)
        if self.how == "raises":
            raise LookupError("no rate")
        return {"nan": float("nan"), "negative": -1.0, "text": "fast"}[self.how]


@pytest.mark.parametrize("how", ["raises", "nan", "negative", "text"])
@pytest.mark.parametrize("step", [0, 1, 5])
def test_a_schedule_that_fails_does_so_at_its_step(any_backend, how, step):
    """The steps before it are done, with the bits of a loop that ends there."""
    fitted, by_hand = everything(), everything()
    optimizer, its_optimizer = (fb.Adam(m.parameters(), Fails(step, how)) for m in (fitted, by_hand))
    with pytest.raises((LookupError, ValueError, TypeError), match="no rate" if how == "raises" else "lr: expected"):
        fitted.fit(X, Y, "cross_entropy", optimizer, batch_size=10, seed=0, verbose=0)
    for i, (xb, yb) in enumerate(fb.batches(X, Y, 10, seed=0)):
        if i < step:
            by_hand.train_on_batch(xb, yb, "cross_entropy", its_optimizer)
    assert optimizer.steps == fitted.model.training_step == step
    assert bits(fitted) == bits(by_hand)


@pytest.mark.parametrize("kind", [fb.Adam, fb.AdamW, fb.RMSprop, fb.Adagrad])
def test_states_without_second_moments_or_with_negative_ones(kind):
    model = everything()
    optimizer = kind(model.parameters())
    model.train_on_batch(X, Y, "cross_entropy", optimizer)
    state = optimizer.state_dict()
    (square,) = kind.squares
    before = {name: np.array(value) for name, value in optimizer.state_dict().items()}
    negative = state[square].copy()
    negative[3] = -1e-3
    for bad, message in (
        ({"steps": 5}, "state: expected vectors"),
        ({name: value for name, value in state.items() if name != square}, "state: expected vectors"),
        (state | {square: negative}, rf"state\['{square}'\]: expected means of squares, got -0.001"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(bad)
        for name, value in optimizer.state_dict().items():
            np.testing.assert_array_equal(value, before[name])
    optimizer.load_state_dict({"steps": 0})
    optimizer.load_state_dict(state)
    plain = fb.SGD(model.parameters(), 0.1)
    plain.load_state_dict({"steps": 7})


@pytest.mark.parametrize("make", [
    lambda p, eps: fb.Adam(p, eps=eps), lambda p, eps: fb.AdamW(p, eps=eps), lambda p, eps: fb.RMSprop(p, eps=eps),
    lambda p, eps: fb.Adagrad(p, eps=eps),
    lambda p, eps: fb.Sequential([fb.Dense(2, 3), fb.BatchNorm(3, eps=eps)], dtype=p.values.dtype.name),
    lambda p, eps: fb.Sequential([fb.Residual([fb.LayerNorm(3, eps=eps)])], dtype=p.values.dtype.name),
])  # fmt: skip
def test_eps_is_a_normal_number(dtype, make):
    """The core takes smaller ones for zero."""
    p = everything(dtype.name).parameters()
    tiny = float(np.finfo(dtype).tiny)
    for eps in (tiny / 2, 1e-39 if dtype == np.float32 else 1e-310, 1e-45 if dtype == np.float32 else 5e-324):
        with pytest.raises(ValueError, match="eps: expected a number from"):
            make(p, eps)
    make(p, tiny)


def test_eps_is_a_normal_number_in_another_dtype():
    model = fb.Sequential([fb.Dense(2, 3), fb.LayerNorm(3, eps=1e-100)], dtype="float64")
    with pytest.raises(ValueError, match=r"layers\[1\].eps: expected a number from"):
        model.astype("float32")


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_checkpoints_with_what_is_not_fastbps_are_refused_before_training(tmp_path):
    path = tmp_path / "run.npz"
    for make, message in (
        (lambda p: MyOptimizer(p, 0.1), "optimizer: expected one of fastbp's with Checkpoint"),
        (lambda p: fb.SGD(p, MySchedule(0.1, "x")), "lr: expected a number or one of fb.schedules with Checkpoint"),
    ):
        model = everything()
        optimizer = make(model.parameters())
        with pytest.raises(TypeError, match=message):
            model.fit(X, Y, "cross_entropy", optimizer, callbacks=[fb.Checkpoint(path)], verbose=0)
        assert optimizer.steps == 0
    assert not path.exists()


def test_what_is_set_is_in_checkpoints(tmp_path):
    model, path = everything(), tmp_path / "run.npz"
    optimizer = fb.Adam(model.parameters(), fb.schedules.Step(0.1, 3))
    optimizer.betas, optimizer.schedule.gamma = (0.8, 0.9), 0.7
    with pytest.raises(AttributeError, match="tag: Adam has no such attribute"):
        optimizer.tag = "x"
    with pytest.raises(AttributeError, match="tag: Step has no such attribute"):
        optimizer.schedule.tag = "x"
    model.fit(X, Y, "cross_entropy", optimizer, callbacks=[fb.Checkpoint(path)], verbose=0)
    loaded = fb.Checkpoint.load(path)[1]
    assert loaded.settings() == optimizer.settings()
    assert loaded.schedule.settings() == {"lr": 0.1, "steps": 3, "gamma": 0.7, "epochs": None, "warmup": 0.0}
