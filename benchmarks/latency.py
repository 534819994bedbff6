"""What one call costs: a training step on a tiny network, and the prediction of one row.

    python benchmarks latency [--quick] [--write]

Every system has a process of its own, bound to the same two cores; results are compared first, then all run in turns.
Peers that are not installed are left out.
"""

from __future__ import annotations

import numpy as np
from nets import NETS, label
from report import figure, machine, microseconds, options, table, write, write_json
from systems import CORES, SYSTEMS, TOLERANCE, Worker, installed

STEP = [name for name in SYSTEMS if name != "onnxruntime"]
PREDICT = [name for name in SYSTEMS if name not in ("fastbp, four calls", "torch.compile")]


def check_steps(workers: list[Worker]) -> None:
    """Raise unless eight steps on one batch have the same losses."""
    expected = workers[0].step_losses(calls=8)
    for worker in workers[1:]:
        np.testing.assert_allclose(worker.step_losses(calls=8), expected, rtol=TOLERANCE, err_msg=worker.system)


def check_predictions(workers: list[Worker]) -> None:
    """Raise unless the logits of the first row agree; scikit-learn gives the class."""
    expected = workers[0].prediction()
    for worker in workers[1:]:
        got = worker.prediction()
        wanted = [float(np.argmax(expected))] if worker.system == "scikit-learn" else expected
        np.testing.assert_allclose(got, wanted, rtol=TOLERANCE, atol=1e-5, err_msg=worker.system)


def measured(workers: list[Worker], call: str, rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds of a call: best, and the median of all."""
    seconds: dict[str, list[float]] = {worker.system: [] for worker in workers}
    for _ in range(rounds):
        for worker in workers:
            seconds[worker.system] += getattr(worker, call)(seconds=0.2)
    return {name: microseconds(timings) for name, timings in seconds.items()}


def main(arguments: list[str]) -> None:
    parser = options(__name__, __doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds instead of ten")
    parser.add_argument("--write", action="store_true", help="put the results into benchmarks/")
    chosen = parser.parse_args(arguments)
    head = machine("numpy", "torch", "jax", "scikit-learn", "onnxruntime")
    text = f"{head} Microseconds a call, two threads, float32, in turns.\n"
    results = {}
    for title, net, names, check, call in (
        ("A step with SGD", "tiny", STEP, check_steps, "steps"),
        ("A prediction of one row", "small", PREDICT, check_predictions, "predictions"),
    ):
        widths, batch, _ = NETS[net]
        workers = [Worker(name, CORES) for name in names if installed(name)]
        for worker in workers:
            worker.prepare(widths=widths, batch=batch, optimizer="SGD")
        check(workers)
        results[title] = measured(workers, call, 2 if chosen.quick else 10)
        for worker in workers:
            worker.close()
        ours = results[title]["fastbp"]["best"]
        rows = [
            [name, figure(times["best"]), figure(times["median"]), f"{times['best'] / ours:.1f}"]
            for name, times in results[title].items()
        ]
        text += f"\n### {title}, {label(widths)}" + (f", batch {batch}\n\n" if call == "steps" else "\n\n")
        text += table(["system", "best", "median", "best / fastbp's"], rows, 1)
    print(text)
    if chosen.write:
        write("latency", text)
        write_json("latency.json", {"machine": head, "microseconds": results})
