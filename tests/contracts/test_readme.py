"""Every Python block of the README runs, one after the other, as a reader would type them."""

import re
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def test_every_block_runs(tmp_path, monkeypatch):
    for package in ("sklearn", "onnx", "safetensors", "tqdm", "matplotlib", "pyarrow", "tensorboard"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__main__"}
    for block in re.finditer(r"^```python\n(.*?)^```", README.read_text(), re.S | re.M):
        line = README.read_text()[: block.start()].count("\n") + 1
        exec(compile("\n" * line + block.group(1), str(README), "exec"), names)
    assert len(list(tmp_path.iterdir())) >= 5
    assert "fastbp.sklearn" in sys.modules
