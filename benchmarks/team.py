"""What a team of threads pays: a barrier, and a cache line that moves from one core to another.

    python benchmarks team [--write]

The core's own barrier is compiled and timed, best of 50. From these follows which work pays for a second thread: what
it saves has to be more than the barriers of a step and the lines that the threads exchange.
"""

from __future__ import annotations

import ctypes
import itertools
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import numpy as np
from report import HERE, figure, machine, options, table, write
from results import keep

from fastbp import benchmark
from fastbp.core import backend_name
from fastbp.profiling import fma_peak

LINES = 1024  # 64 KiB: more than L1, less than L2
BARRIERS_PER_STEP = 2
REPEATS, ROUNDS = 50, 200


def compiled(folder: str) -> ctypes.CDLL:
    """``team.c`` with the team of the core, by the compiler that builds extensions."""
    compiler, library = (sysconfig.get_config_var("CC") or "cc").split(), Path(folder) / "team.so"
    core = HERE.parent / "fastbp" / "core"
    command = [*compiler, "-O2", "-shared", "-fPIC", "-fopenmp", f"-I{core}", str(HERE / "team.c"), "-o", str(library)]
    subprocess.run(command, check=True)
    functions = ctypes.CDLL(str(library))
    functions.round_seconds.restype = ctypes.c_double
    functions.round_seconds.argtypes = [ctypes.c_int, ctypes.c_long, ctypes.c_long, ctypes.c_void_p]
    return functions


def lines_of_step(net: str) -> float:
    """Lines that two threads exchange in a step: half of every layer's x and dy, which the other has computed."""
    widths, batch, _ = benchmark.NETS[net]
    return sum((inputs + outputs) * batch * 4 / 64 / 2 for inputs, outputs in itertools.pairwise(widths))


def main(arguments: list[str]) -> None:
    parser = options("team", __doc__)
    parser.add_argument("--write", action="store_true", help="put the results into benchmarks/")
    chosen = parser.parse_args(arguments)
    memory = np.zeros(64 * LINES, np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        functions = compiled(folder)

        def best(threads: int, lines: int) -> float:
            return min(functions.round_seconds(threads, ROUNDS, lines, memory.ctypes.data) for _ in range(REPEATS))

        barrier, alone = best(2, 0), best(1, LINES)
        line = (best(2, LINES) - barrier - alone) / LINES
    peak = fma_peak(backend_name(), np.dtype(np.float32))
    rows = []
    for net in benchmark.NETS:
        work = benchmark.operations(*benchmark.NETS[net][:2])
        saved, paid = work / peak / 2, BARRIERS_PER_STEP * barrier + lines_of_step(net) * line
        rows.append([net, figure(1e6 * saved), figure(1e6 * paid), "two" if saved > paid else "one"])
    head = machine()
    text = (
        f"{head} A barrier of two threads takes {1e9 * barrier:.0f} ns, a line that the other core has written "
        f"{1e9 * max(line, 0):.1f} ns more than one's own, where lines follow each other; {peak / 1e9:.0f} GFLOP/s a "
        "core.\n\n"
    )
    text += table(["net", "saved by a second thread, us", "paid, us", "threads that pay"], rows, 1)
    print(text)
    if chosen.write:
        keep("team", {"machine": head, "barrier": barrier, "line": line, "peak": peak})
        write("team", text)
