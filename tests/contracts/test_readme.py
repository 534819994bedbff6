"""Every Python block of the README and of the pages in docs runs, one after the other, as a reader would type them."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs(page, tmp_path, monkeypatch):
    for package in ("sklearn", "onnx", "safetensors", "tqdm", "matplotlib", "pyarrow", "tensorboard"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__main__"}
    for block in re.finditer(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M):
        line = page.read_text()[: block.start()].count("\n") + 1
        exec(compile("\n" * line + block.group(1), str(page), "exec"), names)
    if page.name == "README.md":
        assert len(list(tmp_path.iterdir())) >= 5
        assert "fastbp.sklearn" in sys.modules
