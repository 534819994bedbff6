"""Callbacks, to derive one's own from; they live in ``fastbp.training.callbacks``."""

from fastbp.training.callbacks import Callback, EarlyStopping, Monitor, ReduceLROnPlateau

__all__ = ["Callback", "EarlyStopping", "Monitor", "ReduceLROnPlateau"]
