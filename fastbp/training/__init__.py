"""Training: ``Sequential``, whose ``fit`` is a ``Trainer``, and what watches it."""

from fastbp.training.sequential import Sequential

__all__ = ["Sequential"]
