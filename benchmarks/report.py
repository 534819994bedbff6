"""What the benchmarks print, and write between the markers of benchmarks/README.md."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import fastbp as fb
from fastbp.core import backend_name

HERE = Path(__file__).parent
#: The tables of the README are this one's; ``results/`` has the figures of others.
OF_README = "avx512"


def options(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of a benchmark's command line."""
    return argparse.ArgumentParser(
        prog=f"python benchmarks {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def in_rounds(name: str, description: str | None, arguments: list[str], quick: int, rounds: int) -> argparse.Namespace:
    """Of a benchmark that has no other options: how many ``rounds``, and whether to ``write``."""
    parser = options(name, description)
    parser.add_argument("--quick", action="store_const", dest="rounds", const=quick, default=rounds,
                        help=f"{quick} rounds instead of {rounds}")  # fmt: skip
    parser.add_argument("--write", action="store_true", help="put the results into benchmarks/README.md")
    return parser.parse_args(arguments)


def machine(*packages: str) -> str:
    """The versions of fastbp and of the peers, and the kind of machine."""
    versions = [f"fastbp {fb.__version__}, backend {backend_name()}"]
    for package in packages:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return f"{'; '.join(versions)}; {os.cpu_count()} cores, {cpu()}."


def cpu() -> str:
    """What the CPU calls itself, and its family and model: virtual machines often give a name without a number."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    number = f"family {fields.get('cpu family', '?')}, model {fields.get('model', '?')}"
    return f"{platform.machine()}, {fields.get('model name', platform.processor())}, {number}"


def figure(value: float) -> str:
    """Three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def microseconds(seconds: list[float]) -> dict[str, float]:
    """The best and the median of some timings."""
    return {"best": 1e6 * min(seconds), "median": 1e6 * statistics.median(seconds)}


def table(head: list[str], rows: list[list[str]], text_columns: int) -> str:
    """A Markdown table whose columns after the first ones are numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(head) - text_columns)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *rows))


def write(marker: str, text: str) -> None:
    """Put text between ``<!-- marker -->`` and the next ``<!-- end -->`` of the README, if it is about this backend."""
    if backend_name() != OF_README:
        print(f"README.md stays as it is: its tables are of {OF_README}")
        return
    readme = HERE / "README.md"
    head, opening, rest = readme.read_text().partition(f"<!-- {marker} -->\n")
    if not opening:
        raise SystemExit(f"{readme} has no marker {marker!r}")
    _, closing, tail = rest.partition("<!-- end -->\n")
    readme.write_text(f"{head}{opening}{text}{closing}{tail}")
