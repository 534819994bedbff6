"""The types: what a user's checker sees, and that the stubs of the compiled modules say what these are."""

import ast
import inspect
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import fastbp as fb
from fastbp.core import BACKENDS

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("typed_user.py")

# What stubtest finds, and is as it should be.
ALLOWED = r"""
# a machine builds the backends of its own architecture
fastbp\.core\._(avx512|avx2|neon)
# Cython's own, in every module of its making
fastbp\.core\._\w+\.(ReadWriteLock\.)?__(test|reduce_cython|setstate_cython)__
# computed: checkers go by the imports
fastbp\.__all__
# of "except ... as error" around an import: Python deletes the name afterwards
fastbp\.[\w.]+\.error
# only checkers see these: numpy.random and numpy.typing are imported when they are needed
fastbp\.data\.arrays\.Seed
fastbp\.layers\.dense\.Init
fastbp\.data\.sampling\.(SlicedByRows|Source)
fastbp\.training\.inputs\.ValidationData
fastbp\.model\.Contents
# a Literal is no class
fastbp\.[\w.]+\.(ActivationName|DtypeName|LossName|Missing|Mode|Ties)
# functools.cache keeps the signature from mypy
fastbp\.core\._load
fastbp\.profiling\._bandwidth
fastbp\.sklearn\.objective\.(batch_sizes|_equal_penalties)
# scikit-learn makes these methods when the class is made
fastbp\.sklearn(\.\w+)?\.\w+\.set_\w+_request
"""

# Features and targets of other libraries.
FOREIGN = """
import pandas as pd
import polars as pl
import torch

import fastbp as fb


def train(
    model: fb.Sequential, optimizer: fb.SGD, pandas: pd.DataFrame, price: pd.Series, polars: pl.DataFrame,
    column: pl.Series, tensor: torch.Tensor,
) -> None:
    model.fit(pandas, price, "mse", optimizer, validation_data=(polars, column), sample_weight=price)
    model.fit(tensor, tensor, "mse", optimizer, validation_data=(tensor, tensor, tensor))
    model.predict(polars)
    for xb, yb in fb.batches(pandas, column, batch_size=32):
        model.train_on_batch(xb, yb, "mse", optimizer)
"""


def check(*command):
    """Run a tool with this Python, from the root of the project, where it finds its settings."""
    environment = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}  # pyright asks the network for a newer one
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def need(*packages):
    for package in packages:
        pytest.importorskip(package)


def test_the_script_runs(capsys):
    need("sklearn", "onnx", "safetensors", "matplotlib", "tqdm", "tensorboard")
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert f"fastbp {fb.__version__} on Python" in capsys.readouterr().out


def test_the_script_has_everything_public():
    used = {ast.unparse(node) for node in ast.walk(ast.parse(SCRIPT.read_text())) if isinstance(node, ast.Attribute)}
    ops = {name for name, function in inspect.getmembers(fb.ops, inspect.isfunction) if name[0] != "_"}
    kinds = fb.schedules.Schedule.__subclasses__()
    public = {f"fb.{name}" for name in fb.__all__}
    public |= {f"fb.ops.{name}" for name in ops if getattr(fb.ops, name).__module__ == "fastbp.ops"}
    public |= {f"fb.schedules.{kind.__name__}" for kind in kinds if kind.__name__ in fb.schedules.SCHEDULES}
    assert public - used == set()


def test_mypy_strict():
    need("mypy", "sklearn", "onnx", "safetensors")
    check("mypy", "--strict", str(SCRIPT))


def test_pyright():
    """In strict mode, as the script says of itself."""
    need("pyright", "sklearn", "onnx", "safetensors")
    check("pyright", "--warnings", "--pythonpath", sys.executable, str(SCRIPT))


def test_arrays_of_other_libraries_are_arrays(tmp_path):
    need("pyright", "pandas", "polars", "torch")
    (tmp_path / "foreign.py").write_text(FOREIGN)
    check("pyright", "--warnings", "--pythonpath", sys.executable, str(tmp_path / "foreign.py"))


def test_every_compiled_module_has_a_stub():
    """stubtest does not miss one that is not there."""
    stubs = {path.stem for path in (Path(fb.__file__).parent / "core").glob("*.pyi")}
    assert stubs == {"_cpu", "_lock", *(f"_{name}" for name in BACKENDS if name != "numpy")}


def test_stubs_are_as_the_modules(tmp_path):
    need("mypy", "sklearn", "onnx", "safetensors")
    (tmp_path / "allowed").write_text(ALLOWED)
    check("mypy.stubtest", "fastbp", "--mypy-config-file", "pyproject.toml", "--allowlist", str(tmp_path / "allowed"))
