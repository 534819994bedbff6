"""A short run of the grid and of single calls beside the committed figures: every value now, and its ratio to theirs.

    python benchmarks compare [--against results/avx512.json] [--nets tiny,mnist] [--peers NumPy] [--rounds 2]

Absolute times move with the machine: the last columns have the rate of multiply-adds that touch no memory, and what of
it the step reaches; where the same peers were measured, their best time over fastbp's is compared as well.
"""

from __future__ import annotations

import math
from pathlib import Path

import latency
import train_grid
from nets import NETS, net_label
from report import HERE, figure, machine, options, table
from results import path_of, read
from systems import installed

from fastbp.core import backend_name

Pair = tuple[float, float]  # now, and then


def shown(pair: Pair | None) -> str:
    """The value, and in parentheses its ratio to the committed one."""
    return "-" if pair is None else f"{figure(pair[0])} ({pair[0] / pair[1]:.2f})"


def means(rows: list[dict[str, Pair]], columns: list[str]) -> list[str]:
    """The geometric mean of every column's ratios."""
    logs = [[math.log(row[c][0] / row[c][1]) for row in rows if c in row] for c in columns]
    return [f"({math.exp(sum(values) / len(values)):.3f})" if values else "-" for values in logs]


def pairs_of(now: dict, then: dict, peers: list[str]) -> dict[str, Pair]:
    """The columns of one cell of the grid."""
    best = [{name: times["best"] for name, times in cell["microseconds"].items()} for cell in (now, then)]
    pairs = {name: (value, best[1][name]) for name, value in best[0].items() if name in best[1]}
    shared = [peer for peer in peers if peer in pairs]
    if shared:
        pairs["best peer / fastbp"] = tuple(min(each[p] for p in shared) / each["fastbp"] for each in best)
    peaks = now["peak_gflops"], then["peak_gflops"]
    pairs["FMA peak, GFLOP/s"] = peaks
    pairs["of FMA peak"] = tuple(
        now["operations"] / each["fastbp"] / 1e3 / peak for each, peak in zip(best, peaks, strict=True)
    )
    return pairs


def grid(then: dict, nets: list[str], optimizers: list[str], peers: list[str], rounds: int) -> str:
    """The table of the grid; cells that were never committed are left out."""
    committed = train_grid.committed_cells(then)
    labels, rows = [], []
    for cell in train_grid.cells_of(train_grid.rivals_of(peers), nets, optimizers, rounds, seconds=0.2):
        if (cell["net"], cell["optimizer"]) in committed:
            labels.append([net_label(cell["net"]), cell["optimizer"]])
            rows.append(pairs_of(cell, committed[cell["net"], cell["optimizer"]], peers))
    own = ["one thread", "float64", "best peer / fastbp", "FMA peak, GFLOP/s", "of FMA peak"]
    columns = ["fastbp", *peers, *own]
    lines = [[*names, *(shown(row.get(c)) for c in columns)] for names, row in zip(labels, rows, strict=True)]
    lines.append(["geometric mean", "", *means(rows, columns)])
    return table(["net, batch", "optimizer", *columns], lines, 2)


def calls(then: dict, peers: list[str], rounds: int) -> str:
    """The tables of single calls."""
    text = ""
    for call in latency.CALLS:
        now, before = latency.measured(call, peers, rounds), then.get(call.title, {})
        lines = []
        for name in (name for name in now if name in before):
            best = now[name]["best"], before[name]["best"]
            relative = best[0] / now["fastbp"]["best"], best[1] / before["fastbp"]["best"]
            lines.append([name, shown(best), shown(relative)])
        text += f"\n{call.heading}\n\n" + table(["system", "best", "best / fastbp's"], lines, 1)
    return text


def main(arguments: list[str]) -> None:
    parser = options(__name__, __doc__)
    parser.add_argument("--against", help="the committed figures; those of the active backend if it is not given")
    parser.add_argument("--nets", default=",".join(NETS), help="some of the networks")
    parser.add_argument("--optimizers", default="SGD,Adam", help="some of the optimizers")
    parser.add_argument("--peers", default="NumPy,PyTorch,JAX,scikit-learn", help="some of the peers; '' is none")
    parser.add_argument("--rounds", type=int, default=2)
    chosen = parser.parse_args(arguments)
    given = Path(chosen.against or path_of(backend_name()))
    path = given if given.exists() else HERE / given
    then = read(path)
    if not then:
        parser.error(f"{given} is not there: python benchmarks train_grid --write and latency --write make it")
    peers = [peer for peer in chosen.peers.split(",") if installed(peer)]
    print(f"now:       {machine('numpy', 'torch', 'jax', 'scikit-learn')}")
    print(f"committed: {then.get('train_grid', then.get('latency', {})).get('machine', 'no grid and no calls')}\n")
    text = grid(then.get("train_grid", {}), chosen.nets.split(","), chosen.optimizers.split(","), peers, chosen.rounds)
    text += calls(then.get("latency", {}).get("microseconds", {}), peers, chosen.rounds)
    print(f"\nMicroseconds, best of {chosen.rounds} rounds; in parentheses the ratio to {path.name}.\n\n{text}")
