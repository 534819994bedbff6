"""TensorBoard reads what the callback writes."""

import numpy as np
import pytest

import fastbp as fb

pytest.importorskip("sklearn")


RNG = np.random.default_rng(0)


LOGITS = RNG.standard_normal((200, 4))


LABELS = (LOGITS + RNG.standard_normal((200, 4))).argmax(axis=1)


def test_tensorboard_shows_every_value(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = fb.Sequential([fb.Dense(4, 4)], seed=0)
    optimizer, board = fb.SGD(model.parameters(), lr=0.1), fb.TensorBoard(tmp_path / "runs")
    settings = dict(validation_data=(LOGITS, LABELS), metrics=["f1"], callbacks=[board], verbose=0)
    curves = [model.fit(LOGITS, LABELS, "cross_entropy", optimizer, epochs=n, **settings).history for n in (3, 2)]
    shown = {}
    for run in ("train", "validation"):
        events = EventAccumulator(str(tmp_path / "runs" / run))
        events.Reload()
        for name in events.Tags()["tensors"]:
            key = f"val_{name}" if run == "validation" else name
            shown[key] = [(e.step, e.tensor_proto.float_val[0]) for e in events.Tensors(name)]
            assert events.SummaryMetadata(name).plugin_data.plugin_name == "scalars"
    assert shown.keys() == curves[0].keys()
    for name, points in shown.items():
        steps, values = zip(*points, strict=True)
        assert steps == (1, 2, 3, 4, 5)
        assert values == pytest.approx([*curves[0][name], *curves[1][name]], rel=1e-6)
