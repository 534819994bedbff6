"""fastbp: dense neural networks on CPUs, trained by backpropagation and gradient descent in a compiled core."""

import types as _types
import typing as _typing

from fastbp import callbacks as callbacks
from fastbp import datasets as datasets
from fastbp import metrics as metrics
from fastbp import ops as ops
from fastbp import schedules as schedules
from fastbp.checks import check_gradients as check_gradients
from fastbp.core import get_num_threads as get_num_threads
from fastbp.core import set_num_threads as set_num_threads
from fastbp.core import show_config as show_config
from fastbp.core import use_backend as use_backend
from fastbp.data.sampling import batches as batches
from fastbp.divergence import DivergenceError as DivergenceError
from fastbp.formats.npz import FileFormatError as FileFormatError
from fastbp.layers import *  # noqa: F403 what stands in its __all__
from fastbp.losses import *  # noqa: F403 likewise
from fastbp.optim import *  # noqa: F403 likewise
from fastbp.profiling import profile as profile
from fastbp.tensorboard import TensorBoard as TensorBoard
from fastbp.training import Sequential as Sequential
from fastbp.training.callbacks import Callback as Callback
from fastbp.training.callbacks import EarlyStopping as EarlyStopping
from fastbp.training.callbacks import ReduceLROnPlateau as ReduceLROnPlateau
from fastbp.training.checkpoint import Checkpoint as Checkpoint
from fastbp.training.history import History as History

__version__ = "0.1.0"

load = Sequential.load

if _typing.TYPE_CHECKING:
    from fastbp import onnx as onnx
    from fastbp import safetensors as safetensors
    from fastbp import sklearn as sklearn
else:  # type checkers do not follow a list that is computed; they go by the imports above
    __all__ = ["callbacks", "datasets", "metrics", "ops", "schedules"]
    __all__ += sorted(k for k, v in globals().items() if not k.startswith("_") and not isinstance(v, _types.ModuleType))

    # Each needs the package of its name
    _ON_FIRST_USE = "onnx", "safetensors", "sklearn"

    def __getattr__(name):  # type checkers would take every name for one that there is
        """Import what needs another package when it is first asked for (PEP 562)."""
        from importlib import import_module

        from fastbp.data.hints import near_names

        if name in _ON_FIRST_USE:
            return import_module(f"fastbp.{name}")
        raise AttributeError(f"module 'fastbp' has no attribute {name!r}; {near_names(name, __dir__())}")

    def __dir__():
        """The public names; of the modules that need another package those that find it."""
        from importlib.util import find_spec

        return sorted([*__all__, "__version__", *(name for name in _ON_FIRST_USE if find_spec(name))])
