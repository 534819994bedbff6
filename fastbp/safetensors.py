"""The public path of ``fastbp.formats.safetensors``."""

from fastbp.formats.safetensors import load, save

__all__ = ["load", "save"]
