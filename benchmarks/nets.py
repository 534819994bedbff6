"""The networks that are trained here, all in one place: widths, batch size and steps per epoch."""

from __future__ import annotations

from collections.abc import Sequence

from fastbp import benchmark

Net = tuple[tuple[int, ...], int, int]

#: Those of ``python -m fastbp bench``, and a larger one.
NETS: dict[str, Net] = benchmark.NETS | {"huge": ((2048, 2048, 2048, 2048, 10), 1024, 8)}
#: What the script of the same name trains.
CONTENTION: Net = (*NETS["small"][:2], 200)
DENORMALS: Net = ((256, 256, 10), 64, 32)


def label(widths: Sequence[int]) -> str:
    return "-".join(map(str, widths))


def net_label(net: str) -> str:
    """The name, the widths and the batch size."""
    widths, batch, _ = NETS[net]
    return f"{net} {label(widths)}, {batch}"
