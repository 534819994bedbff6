"""What one call costs: a training step on a tiny network, and the prediction of one row.

    python benchmarks latency [--quick] [--write] [--peers JAX]

Every system has a process of its own, bound to the same two cores; results are compared first, then all run in turns.
Peers that are not installed are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from nets import NETS, label
from report import figure, machine, microseconds, options, table, write
from results import keep
from systems import CORES, SYSTEMS, TOLERANCE, Worker, installed

OURS = ["fastbp", "fastbp, four calls"]
PEERS = [name for name in SYSTEMS if name not in OURS]


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


class Call(NamedTuple):
    """What is called, the network, the systems that cannot, the check before it, and the method of the session."""

    title: str
    net: str
    without: tuple[str, ...]
    check: Callable[[list[Worker]], None]
    method: str

    @property
    def heading(self) -> str:
        widths, batch, _ = NETS[self.net]
        return f"{self.title}, {label(widths)}" + (f", batch {batch}" if self.method == "steps" else "")


CALLS = [
    Call("A step with SGD", "tiny", ("onnxruntime",), check_steps, "steps"),
    Call("A prediction of one row", "small", ("fastbp, four calls", "torch.compile"), check_predictions, "predictions"),
]


def measured(call: Call, peers: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds of a call: best, and the median of all."""
    widths, batch, _ = NETS[call.net]
    names = [name for name in [*OURS, *peers] if name not in call.without and installed(name)]
    workers = [Worker(name, CORES) for name in names]
    for worker in workers:
        worker.prepare(widths=widths, batch=batch, optimizer="SGD")
    call.check(workers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for worker in workers:
            seconds[worker.system] += getattr(worker, call.method)(seconds=0.2)
    for worker in workers:
        worker.close()
    return {name: microseconds(timings) for name, timings in seconds.items()}


def main(arguments: list[str]) -> None:
    parser = options(__name__, __doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds instead of ten")
    parser.add_argument("--write", action="store_true", help="put the results into benchmarks/")
    parser.add_argument("--peers", default=",".join(PEERS), help="some of the peers; '' is fastbp alone")
    chosen = parser.parse_args(arguments)
    head = machine("numpy", "torch", "jax", "scikit-learn", "onnxruntime")
    text = f"{head} Microseconds a call, two threads, float32, in turns.\n"
    results = {}
    for call in CALLS:
        results[call.title] = measured(call, chosen.peers.split(","), 2 if chosen.quick else 10)
        ours = results[call.title]["fastbp"]["best"]
        rows = [
            [name, figure(times["best"]), figure(times["median"]), f"{times['best'] / ours:.1f}"]
            for name, times in results[call.title].items()
        ]
        text += f"\n### {call.heading}\n\n" + table(["system", "best", "median", "best / fastbp's"], rows, 1)
    print(text)
    if chosen.write:
        keep("latency", {"machine": head, "threads": CORES, "microseconds": results})
        write("latency", text)
