"""fastbp: dense neural networks on CPUs, trained by backpropagation and gradient descent in a compiled core."""

from fastbp import callbacks as callbacks
from fastbp import datasets, metrics, ops, schedules
from fastbp.checks import check_gradients
from fastbp.core import get_num_threads, set_num_threads, show_config, use_backend
from fastbp.data.sampling import batches
from fastbp.divergence import DivergenceError
from fastbp.formats.npz import FileFormatError
from fastbp.layers import Activation, BatchNorm, Dense, Dropout, Embedding, LayerNorm, TabularInput
from fastbp.losses import MAE, MSE, BinaryCrossEntropy, CrossEntropy, Huber, Poisson, Quantile
from fastbp.optim import SGD, Adagrad, Adam, AdamW, RMSprop
from fastbp.profiling import profile
from fastbp.tensorboard import TensorBoard
from fastbp.training import Sequential
from fastbp.training.callbacks import Callback, EarlyStopping, ReduceLROnPlateau
from fastbp.training.checkpoint import Checkpoint
from fastbp.training.history import History

__version__ = "0.1.0"

load = Sequential.load

__all__ = [
    "MAE",
    "MSE",
    "SGD",
    "Activation",
    "Adagrad",
    "Adam",
    "AdamW",
    "BatchNorm",
    "BinaryCrossEntropy",
    "Callback",
    "Checkpoint",
    "CrossEntropy",
    "Dense",
    "DivergenceError",
    "Dropout",
    "EarlyStopping",
    "Embedding",
    "FileFormatError",
    "History",
    "Huber",
    "LayerNorm",
    "Poisson",
    "Quantile",
    "RMSprop",
    "ReduceLROnPlateau",
    "Sequential",
    "TabularInput",
    "TensorBoard",
    "batches",
    "check_gradients",
    "datasets",
    "get_num_threads",
    "load",
    "metrics",
    "ops",
    "profile",
    "schedules",
    "set_num_threads",
    "show_config",
    "use_backend",
]
