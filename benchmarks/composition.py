"""Branches: a step of a residual and of a split network beside the chain of their layers and beside PyTorch's.

    python benchmarks composition [--quick] [--write]

The chain has the same dense layers one after the other, so the same products. PyTorch trains from the same weights on
the same batches; the losses are compared before the times are.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from report import figure, in_rounds, machine, table, write

import fastbp as fb
from fastbp.core import backend_name
from fastbp.profiling import fma_peak

FEATURES, CLASSES, BLOCKS, STEPS = 64, 10, 3, 20
WIDTHS, BATCHES, THREADS = (64, 256, 512), (32, 256), (1, 2)
RELU = torch.nn.functional.relu


def pair(n: int) -> list[fb.Dense]:
    return [fb.Dense(n, n, "relu"), fb.Dense(n, n)]


def network(kind: str, n: int) -> fb.Sequential:
    """Three pairs of dense layers as a chain, each with a way around it, or each beside another pair of half its width.

    The layers of the split network have other shapes, and its chain is one of as many operations: see ``operations``.
    """
    blocks: list[fb.layers.Layer] = []
    for _ in range(BLOCKS):
        if kind == "residual":
            blocks.append(fb.Residual(pair(n)))
        elif kind == "split":
            blocks.append(fb.Concatenate([fb.Dense(n, n // 2, "relu")], [fb.Dense(n, n // 2, "relu")]))
        else:
            blocks += pair(n)
    return fb.Sequential([fb.Dense(FEATURES, n, "relu"), *blocks, fb.Dense(n, CLASSES)], seed=0)


def dense_layers(layers: tuple[fb.layers.Layer, ...]) -> list[fb.Dense]:
    """The dense layers of a tree in their order."""
    found: list[fb.Dense] = []
    for layer in layers:
        if isinstance(layer, fb.Residual):
            found += dense_layers(layer.layers)
        elif isinstance(layer, fb.Concatenate):
            found += [inner for branch in layer.branches.values() for inner in dense_layers(branch)]
        else:
            found.append(layer)
    return found


def operations(model: fb.Sequential, batch: int) -> int:
    """Of a step's products: forward, dweight, and dx for all layers but the first."""
    first, *rest = dense_layers(model.layers)
    return batch * (2 * first.flop() + 3 * sum(layer.flop() for layer in rest))


class Torch(torch.nn.Module):
    """PyTorch's layers with the weights of a fastbp model."""

    def __init__(self, model: fb.Sequential, kind: str) -> None:
        super().__init__()
        layers = dense_layers(model.layers)
        self.kind = kind
        self.linear = torch.nn.ModuleList(torch.nn.Linear(d.in_features, d.out_features) for d in layers)
        for linear, layer in zip(self.linear, layers, strict=True):
            linear.weight.data = torch.from_numpy(layer.weight.T.copy())
            linear.bias.data = torch.from_numpy(layer.bias.copy())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *inner, last = self.linear
        x = RELU(first(x))
        for a, b in zip(inner[::2], inner[1::2], strict=True):
            if self.kind == "residual":  # noqa: SIM108 two lines say it better
                x = x + b(RELU(a(x)))
            else:
                x = torch.cat([RELU(a(x)), RELU(b(x))], dim=1)
        return last(x)


def epoch_of_fastbp(model: fb.Sequential, X: np.ndarray, y: np.ndarray, batch: int) -> Callable[[], float]:
    optimizer = fb.SGD(model.parameters(), lr=0.01)
    return lambda: model.fit(X, y, "cross_entropy", optimizer, batch_size=batch, shuffle=False, verbose=0).history[
        "loss"
    ][0]


def epoch_of_torch(net: Torch, X: np.ndarray, y: np.ndarray, batch: int) -> Callable[[], float]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    batches = list(zip(torch.from_numpy(X).split(batch), torch.from_numpy(y).split(batch), strict=True))

    def epoch() -> float:
        total = 0.0
        for xb, yb in batches:
            loss = torch.nn.functional.cross_entropy(net(xb), yb)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        return total / STEPS

    return epoch


def measure(kind: str, n: int, batch: int, threads: int, rounds: int) -> list[str]:
    """The row of one network."""
    fb.set_num_threads(threads)
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((STEPS * batch, FEATURES), np.float32), rng.integers(0, CLASSES, STEPS * batch)
    model, chain = network(kind, n), network("chain", n)
    theirs = epoch_of_torch(Torch(model, kind), X, y, batch)
    ours, of_chain = (epoch_of_fastbp(m, X, y, batch) for m in (model, chain))
    np.testing.assert_allclose(ours(), theirs(), rtol=1e-4)
    best = dict.fromkeys([ours, of_chain, theirs], np.inf)
    for _ in range(rounds):
        for epoch in best:
            start = time.perf_counter()
            epoch()
            best[epoch] = min(best[epoch], (time.perf_counter() - start) / STEPS)
    peak = threads * fma_peak(backend_name(), np.dtype("float32"))
    shares = [operations(m, batch) / best[epoch] / peak for m, epoch in ((model, ours), (chain, of_chain))]
    times = [figure(1e6 * best[epoch]) for epoch in (ours, theirs)]
    ratios = [
        f"{shares[0]:.2f}",
        f"{shares[1]:.2f}",
        f"{shares[0] / shares[1]:.2f}",
        f"{best[theirs] / best[ours]:.1f}",
    ]
    return [kind, str(n), str(batch), str(threads), *times, *ratios]


def main(arguments: list[str]) -> None:
    chosen = in_rounds(__name__, __doc__, arguments, quick=10, rounds=30)
    rounds = chosen.rounds
    text = f"{machine('torch')} Microseconds a step with SGD, best of {rounds} rounds in turns, float32.\n\n"
    head = ["network", "units", "batch", "threads", "fastbp", "PyTorch", "of FMA peak", "chain's", "share / chain's"]
    rows = [
        measure(kind, n, batch, threads, rounds)
        for kind in ("residual", "split")
        for n in WIDTHS
        for batch in BATCHES
        for threads in THREADS
    ]
    text += table([*head, "PyTorch / fastbp"], rows, 4)
    print(text)
    if chosen.write:
        write("composition", text)
