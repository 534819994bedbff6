"""The committed figures: ``results/BACKEND.json`` for each instruction set, with a section for every benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastbp.core import backend_name

HERE = Path(__file__).parent


def path_of(backend: str) -> Path:
    return HERE / "results" / f"{backend}.json"


def read(path: Path) -> dict[str, Any]:
    """The sections of a file; of one that is not there, none."""
    return json.loads(path.read_text()) if path.exists() else {}


def committed(benchmark: str) -> dict[str, Any]:
    """What the file of the active backend has for a benchmark."""
    return read(path_of(backend_name())).get(benchmark, {})


def keep(benchmark: str, figures: dict[str, Any]) -> None:
    """Put the figures of a benchmark into the file of the active backend; the other sections stay."""
    path = path_of(backend_name())
    path.write_text(json.dumps(read(path) | {benchmark: figures}, indent=1) + "\n")
