"""Data, networks and optimizers that several files of tests train."""

import numpy as np

import fastbp as fb


def blobs(samples=203, inputs=7, classes=4, dtype=np.float32):
    """Points around `classes` centres; 203 is no multiple of any batch size used here."""
    rng = np.random.default_rng(5)
    y = rng.integers(0, classes, samples)
    return (rng.standard_normal((classes, inputs))[y] * 2 + rng.standard_normal((samples, inputs))).astype(dtype), y


def everything(dtype="float32", seed=0):
    """A model with every kind of layer."""
    return fb.Sequential(
        [fb.Dense(7, 33, activation="relu"), fb.Dropout(0.2), fb.Dense(33, 20), fb.BatchNorm(20),
         fb.Activation("silu"), fb.Dense(20, 17, activation="gelu"), fb.LayerNorm(17), fb.Dense(17, 4)],
        dtype=dtype, seed=seed,
    )  # fmt: skip


def bits(model):
    return model.parameters().values.tobytes() + model.model.statistics.tobytes()


OPTIMIZERS = [
    lambda p: fb.SGD(p, lr=0.05),
    lambda p: fb.SGD(p, lr=fb.schedules.Cosine(0.05, 20), momentum=0.9, nesterov=True, clip_norm=1.0),
    lambda p: fb.Adam(p, lr=0.01),
    lambda p: fb.AdamW(p, lr=0.01),
    lambda p: fb.AdamW(p, lr=0.01, weight_decay=0.3, decay_bias=False),
    lambda p: fb.RMSprop(p, lr=0.01, momentum=0.5),
    lambda p: fb.Adagrad(p, lr=0.01),
]


def branching(dtype="float32", seed=0):
    """A model with every kind of join, in each other: sums and columns, with and without what a derivative needs."""
    narrow = [fb.Dense(24, 9), fb.BatchNorm(9), fb.Activation("silu"), fb.Residual([fb.Dense(9, 9, "tanh")])]
    policy = [fb.Residual([fb.Activation("elu"), fb.Dense(24, 24)]), fb.Dense(24, 5, "softplus")]
    return fb.Sequential(
        [fb.Dense(7, 24, "relu"),
         fb.Residual([fb.LayerNorm(24), fb.Dense(24, 40, "gelu"), fb.Dropout(0.2), fb.Dense(40, 24, "relu")]),
         fb.Concatenate([], narrow, policy=policy), fb.Dense(24 + 9 + 5, 4)],
        dtype=dtype, seed=seed,
    )  # fmt: skip
