"""The benchmarks of fastbp: ``python benchmarks`` lists them, ``python benchmarks NAME [options]`` runs one."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path


def benchmarks() -> dict[str, str]:
    """The names of the modules that have a ``main``, and the first lines of their docstrings; nothing is imported."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path != Path(__file__) and any(getattr(node, "name", "") == "main" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def main(name: str = "", *arguments: str) -> None:
    names = benchmarks()
    if name in names:
        importlib.import_module(name).main(list(arguments))
        return
    print("python benchmarks NAME [options], where --help shows the options and NAME is one of\n")
    for known, line in names.items():
        print(f"  {known:12} {line}")
    if name not in ("", "-h", "--help"):
        sys.exit(f"\nunknown benchmark {name!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
