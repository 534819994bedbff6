"""The layers' kernels in NumPy, one module per kind, as in core/layers/."""
