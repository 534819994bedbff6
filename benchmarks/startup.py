"""What fastbp costs before it trains and while it does: import time, size of the wheel, peak memory.

    python benchmarks startup [--quick] [--write]

Import times are those of fresh interpreters, in turns; memory is the peak resident set of a fresh process, what the
interpreter takes included (Linux only). Peers that are not installed are left out.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from nets import NETS, label
from report import HERE, figure, machine, options, table, write
from results import keep
from systems import SYSTEMS, installed

IMPORTS = {
    "NumPy": "import numpy",
    "fastbp": "import fastbp",
    "scikit-learn": "from sklearn.neural_network import MLPClassifier",
    "JAX": "import jax",
    "PyTorch": "import torch",
}
# getrusage would give a new process the peak of the one that started it
PEAK = """
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
"""
TRAIN = (
    PEAK
    + """
import json, sys
sys.path.insert(0, {here!r})
from systems import SYSTEMS, Task
task = Task({widths!r}, {batch!r}, "Adam")
data = task.data({steps!r})
before = peak()
trainer = SYSTEMS[{system!r}](task)
placed = trainer.place(*data)
for _ in range(3):
    trainer.epoch(placed, True)
print(json.dumps([before, peak()]))
"""
)


def python(code: str) -> str:
    """What a fresh interpreter prints last."""
    # an installed package is compiled to bytecode once, not in every process
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return result.stdout.splitlines()[-1]


def import_times(names: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of the import statement, and MiB at its end."""
    code = PEAK + "import time; t = time.perf_counter(); {}; print(1e3 * (time.perf_counter() - t), peak())"
    runs: dict[str, list[list[float]]] = {name: [] for name in names}
    for _ in range(rounds + 1):
        for name in names:
            runs[name].append([float(value) for value in python(code.format(IMPORTS[name])).split()])
    return {
        name: {
            "best_ms": min(run[0] for run in figures[1:]),  # the first round fills the disk's cache
            "median_ms": statistics.median(run[0] for run in figures[1:]),
            "mib": min(run[1] for run in figures),
        }
        for name, figures in runs.items()
    }


def wheel_bytes() -> int:
    """The size of the wheel built from this tree."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, HERE.parent]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        return wheel.stat().st_size


def memory(net: str, names: list[str]) -> dict[str, dict[str, float]]:
    """MiB that three epochs add at their peak to a process that has the data, and what the parameters need."""
    figures = {}
    widths, batch, steps = NETS[net]
    for name in names:
        code = TRAIN.format(here=str(HERE), widths=widths, batch=batch, steps=steps, system=name)
        before, after = json.loads(python(code))
        figures[name] = {"before_mib": before, "peak_mib": after}
    return figures


def main(arguments: list[str]) -> None:
    parser = options(__name__, __doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds instead of ten, and no wheel is built")
    parser.add_argument("--write", action="store_true", help="put the results into benchmarks/")
    chosen = parser.parse_args(arguments)
    rounds = 2 if chosen.quick else 10
    names = [name for name in IMPORTS if installed(name)]
    times = import_times(names, rounds)
    head = machine("numpy", "torch", "jax", "scikit-learn")
    text = f"{head} Import: fresh interpreters, best of {rounds} in turns.\n\n"
    rows = [[name, figure(t["best_ms"]), figure(t["median_ms"]), figure(t["mib"])] for name, t in times.items()]
    text += table(["import", "best, ms", "median, ms", "peak of the process, MiB"], rows, 1)
    beyond = times["fastbp"]["best_ms"] - times["NumPy"]["best_ms"]
    text += f"\nfastbp imports NumPy; its own part is {beyond:.1f} ms.\n"
    figures: dict = {"machine": head, "imports": times}
    if not chosen.quick:
        figures["wheel_bytes"] = wheel_bytes()
        text += f"\nThe wheel, with all backends of this machine's kind: {figures['wheel_bytes'] / 1e6:.2f} MB.\n"
    figures["memory"] = {}
    systems = [name for name in SYSTEMS if name in names]
    for net in ("mnist2",) if chosen.quick else ("mnist2", "wide"):
        found = figures["memory"][net] = memory(net, systems)
        widths = NETS[net][0]
        least = 3 * 4 * sum((a + 1) * b for a, b in itertools.pairwise(widths)) / 2**20
        text += f"\nTraining {net} {label(widths)} with Adam, whose parameters and state are "
        text += f"{least:.0f} MiB:\n\n"
        rows = [[name, figure(m["before_mib"]), figure(m["peak_mib"])] for name, m in found.items()]
        text += table(["system", "NumPy and the data, MiB", "peak of three epochs, MiB"], rows, 1)
    print(text)
    if chosen.write:
        write("startup", text)
        keep("startup", figures)
