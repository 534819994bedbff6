"""How many threads may work: what the process is given, what the user sets, and what threadpoolctl allows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MAX_THREADS = 1024


def _quotas(root: Path) -> Iterator[float]:
    """The CPU quotas, in CPUs, of this process's control groups and of those around them."""
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        inner = Path(group.lstrip("/"))
        for place in (inner, *inner.parents):  # a container may see its group as the root
            with suppress(OSError, ValueError):  # not there, or "max": no quota
                if not controllers:  # version 2
                    quota, period = (root / "sys/fs/cgroup" / place / "cpu.max").read_text().split()
                    yield int(quota) / int(period)
                elif "cpu" in controllers.split(","):  # version 1, where -1 is none
                    folder = root / "sys/fs/cgroup/cpu" / place
                    quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                    if int(quota) > 0:
                        yield int(quota) / int(period)


def available_cpus() -> int:
    """The CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def requested_threads() -> int:
    """OMP_NUM_THREADS, or 0 if it is not set."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(first) if first.isdigit() else 0


def default_threads(root: Path = Path("/")) -> int:
    """As many as this process may run at once: its CPUs, the quota of its control group, and OMP_NUM_THREADS.

    A fraction of a CPU is not counted: a team waits for its slowest thread, and one would wait for its next time slice.
    """
    most = available_cpus()
    with suppress(OSError, ValueError):
        most = min([most, *(max(1, int(quota)) for quota in _quotas(root))])
    return min(requested_threads() or most, most)
