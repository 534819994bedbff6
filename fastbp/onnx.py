"""The public path of ``fastbp.formats.onnx``."""

from fastbp.formats.onnx import export

__all__ = ["export"]
