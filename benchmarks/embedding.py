"""Categorical columns: a step of ``TabularInput`` and two dense layers beside PyTorch's, in microseconds.

    python benchmarks embedding [--quick] [--write]

Both train from the same weights in the order of the rows, in turns; the losses are compared before the times are.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch
from report import figure, in_rounds, machine, table, write

import fastbp as fb

NUMERIC, DIM, HIDDEN, STEPS = 8, 16, 64, 50
#: Categories of every column, and the batch size.
TASKS = [([40, 7, 1000], 128), ([5_000] * 4, 128), ([5_000] * 4, 512), ([200_000, 1_000], 512)]


class Torch(torch.nn.Module):
    """PyTorch's tables and layers with the weights of a fastbp model."""

    def __init__(self, model: fb.Sequential) -> None:
        super().__init__()
        first, *dense = model.layers
        tables = [torch.from_numpy(weight.copy()) for weight in first.weights]
        self.tables = torch.nn.ModuleList(torch.nn.Embedding.from_pretrained(t, freeze=False) for t in tables)
        self.dense = torch.nn.ModuleList(torch.nn.Linear(d.in_features, d.out_features) for d in dense)
        for linear, layer in zip(self.dense, dense, strict=True):
            linear.weight.data = torch.from_numpy(layer.weight.T.copy())
            linear.bias.data = torch.from_numpy(layer.bias.copy())

    def forward(self, numeric: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        rows = [numeric, *(embed(ids[:, j]) for j, embed in enumerate(self.tables))]
        return self.dense[1](torch.relu(self.dense[0](torch.cat(rows, dim=1))))


def measure(cardinalities: list[int], batch: int, optimizer: str, rounds: int) -> list[str]:
    """The row of one task and optimizer."""
    rng = np.random.default_rng(0)
    numeric = rng.standard_normal((STEPS * batch, NUMERIC), np.float32)
    ids = np.column_stack([rng.integers(0, n, STEPS * batch) for n in cardinalities])
    X, y = np.column_stack([numeric, ids]).astype(np.float32), rng.standard_normal((STEPS * batch, 1), np.float32)
    layers = [
        fb.TabularInput(NUMERIC, cardinalities, DIM),
        fb.Dense(NUMERIC + DIM * len(cardinalities), HIDDEN, activation="relu"),
        fb.Dense(HIDDEN, 1),
    ]
    model = fb.Sequential(layers, seed=0)
    theirs = Torch(model)
    ours = {"SGD": fb.SGD, "Adam": fb.Adam}[optimizer](model.parameters(), lr=1e-3)
    other = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam}[optimizer](theirs.parameters(), lr=1e-3, fused=True)
    parts = [torch.from_numpy(array).split(batch) for array in (numeric, ids, y)]

    def epoch_of_fastbp() -> float:
        return model.fit(X, y, "mse", ours, batch_size=batch, shuffle=False, verbose=0).history["loss"][0]

    def epoch_of_torch() -> float:
        total = 0.0
        for part, its_ids, target in zip(*parts, strict=True):
            loss = torch.nn.functional.mse_loss(theirs(part, its_ids), target)
            loss.backward()
            other.step()
            other.zero_grad()
            total += loss.item()
        return total / STEPS

    seconds: dict = {epoch_of_fastbp: [], epoch_of_torch: []}
    for i in range(rounds):
        losses = []
        for epoch, elapsed in seconds.items():
            start = time.perf_counter()
            losses.append(epoch())
            elapsed.append((time.perf_counter() - start) / STEPS)
        if i < 3:  # later, what float32 has rounded differently has grown
            np.testing.assert_allclose(*losses, rtol=1e-4)
    (best, median), (their_best, their_median) = ((1e6 * min(s), 1e6 * statistics.median(s)) for s in seconds.values())
    tables = " + ".join(f"{n:,}" for n in cardinalities)
    cells = [f"{figure(best)} ({figure(median)})", f"{figure(their_best)} ({figure(their_median)})"]
    return [tables, str(batch), optimizer, *cells, f"{their_best / best:.1f}"]


def main(arguments: list[str]) -> None:
    chosen = in_rounds(__name__, __doc__, arguments, quick=3, rounds=10)
    rounds = chosen.rounds
    torch.set_num_threads(fb.get_num_threads())
    text = f"{machine('torch')} Microseconds a step, best (median) of {rounds} rounds in turns, "
    text += f"{fb.get_num_threads()} threads, float32; {NUMERIC} numeric columns, rows of {DIM} numbers, {HIDDEN} "
    text += "hidden units.\n\n"
    head = ["categories", "batch", "optimizer", "fastbp", "PyTorch", "ratio"]
    rows = [measure(*task, optimizer, rounds) for task in TASKS for optimizer in ("SGD", "Adam")]
    text += table(head, rows, 3)
    print(text)
    if chosen.write:
        write("embedding", text)
