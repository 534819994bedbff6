"""Sequential: the model that users build, train and ask. It validates what they pass, once, and documents.

The passes are those of ``Model``, the steps those of ``Trainer``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import numpy as np

from fastbp import losses
from fastbp.core import thread_limit
from fastbp.data.arrays import Array, Features, as_generator, cast, check_bool, check_choice, check_int, check_number
from fastbp.data.sampling import BUFFER_SIZE, Stream, epoch_key, steps_of
from fastbp.divergence import DivergenceError
from fastbp.formats import npz
from fastbp.formats.writing import name_of
from fastbp.layers import BatchNorm, Dense, Layer, make_layers
from fastbp.layers.tree import walk
from fastbp.losses import Loss, LossLike
from fastbp.metrics import Metric, Metrics, check_measurable, directions, resolve
from fastbp.model import Dtype, DtypeName, Model, check_tensors
from fastbp.optim import Optimizer
from fastbp.parameters import Parameters, copy_overlap
from fastbp.settings import Settings
from fastbp.summary import layer_table, program_table
from fastbp.training import run_state
from fastbp.training.callbacks import BestWeights, Callback, after_batches, called, check_callbacks
from fastbp.training.history import Bars, History, epoch_line
from fastbp.training.inputs import (
    Data,
    check_batch,
    open_evaluation,
    open_samples,
    open_validation,
    split_samples,
    weigh_classes,
)
from fastbp.training.trainer import EpochPlan, Trainer, evaluate

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from fastbp.data.arrays import Seed
    from fastbp.data.sampling import SlicedByRows, Source
    from fastbp.training.inputs import ValidationData

S = TypeVar("S", bound="Sequential")


class Sequential(Settings):
    """A feedforward network: layers, one after the other, of which some may have branches.

    Parameters
    ----------
    layers : sequence of Layer
        Each with the width that the one before gives.
    dtype : {"float32", "float64"}
        Of parameters and computation.
    seed : int or None
        Of initial weights, dropout, and the order of samples in ``fit``. The same seed gives the same bits on the same
        backend, for any number of threads.

    Attributes
    ----------
    layers : tuple of Layer
    dtype : dtype
    inputs, outputs : int
        Widths.
    model : Model
        What the layers were lowered to, with the passes over arrays that have been checked; for fastbp's own modules.

    Raises
    ------
    TypeError, ValueError
        If the layers do not fit each other, one is used twice, or the dtype is another.
    RuntimeError
        From all that predicts, trains, copies, pickles, saves or restores it while another thread trains it, and from
        training it while another thread reads it.
    """

    _kept = ("stop_training", "epochs", "history")
    _instead = "make a new model; astype gives one of another dtype"
    #: Set by a callback to end ``fit``.
    stop_training = False
    #: How many epochs ``fit`` has trained this model for.
    epochs = 0
    #: What the last ``fit`` returned or, after an interrupt or an error, its finished epochs.
    history: History | None = None

    def __init__(self, layers: Sequence[Layer], dtype: Dtype = "float32", seed: int | None = None):
        self.model = Model(layers, dtype, seed)

    @classmethod
    def _setting_names(cls) -> tuple[str, ...]:
        """None: what a model was made of it stays."""
        return ()

    def __repr__(self) -> str:
        """A line for each layer, and how many parameters they have."""
        lines = "".join(f"    {layer!r},\n" for layer in self.layers)
        count = f"{self.parameters().count:,} parameters"
        return f"{type(self).__name__}([\n{lines}], dtype={self.dtype.name!r})  # {count}"

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers."""
        return self.model.layers

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of parameters and computation."""
        return self.model.dtype

    @property
    def inputs(self) -> int:
        """The width of the input."""
        return self.model.inputs

    @property
    def outputs(self) -> int:
        """The width of the output."""
        return self.model.outputs

    def parameters(self) -> Parameters:
        """The parameters, for an optimizer."""
        return self.model.params

    def forward(self, x: ArrayLike, training: bool = False, upto: int | None = None) -> Array:
        """The outputs for a batch.

        Parameters
        ----------
        x : array_like (B, I)
            Kept by reference, if it is a C-contiguous array of the model's dtype, until ``backward`` has used it. Or a
            sparse matrix, see ``Dense``.
        training : bool
            Whether dropout drops, batch norm uses the batch's statistics, and ``backward`` may follow.
        upto : int or None
            Only the first so many layers, which gives hidden outputs; a negative number leaves out as many at the end.
            Not in training.

        Returns
        -------
        ndarray (B, O)

        Raises
        ------
        TypeError, ValueError
            If x is not numeric, has another width, no rows, NaN or infinite entries, or unknown categories.
        """
        features, training = self.model.check_features("x", x), check_bool("training", training)
        if upto is not None:
            layers = len(self.layers)
            if training:
                raise ValueError(f"upto: expected None in training, got {upto!r}")
            if isinstance(upto, bool) or not isinstance(upto, (int, np.integer)):
                raise TypeError(f"upto: expected a number of layers or None, got {upto!r}")
            if not (0 < upto <= layers or -layers < upto < 0):
                raise ValueError(f"upto: expected a number of the {layers} layers, got {upto}")
            with self.model.shared() as threads:
                return self.model.predict(features, threads, int(upto) % (layers + (upto > 0)))
        if not training:
            return self._predict(features)
        with self.model.exclusive():
            return self.model.forward(features, thread_limit())

    def backward(
        self,
        dy: ArrayLike,
        input_gradient: bool = False,
        parameter_gradients: bool = True,
        accumulate: bool = False,
    ) -> Array | None:
        """Backpropagation (Rumelhart, Hinton & Williams 1986): fill every parameter's gradient.

        Parameters
        ----------
        dy : array_like (B, O)
            The loss's gradient with respect to the outputs of the last ``forward(x, training=True)``.
        input_gradient : bool
            Whether to return the gradient with respect to x, (B, I), as well; zero for the ids of an embedding.
        parameter_gradients : bool
            Whether to compute the gradients of the parameters. Without, they stay as they are, and nothing is computed
            for them: what a saliency map or a critic's gradient for its actor needs.
        accumulate : bool
            Whether to add to the gradients that there are, so that a step has those of several batches.

        Raises
        ------
        RuntimeError
            If the last pass through the model was not ``forward(x, training=True)``; one serves one backward pass.
        ValueError
            If dy has another shape than the outputs, or there would be no gradient at all.
        """
        check_bool("input_gradient", input_gradient)
        check_bool("parameter_gradients", parameter_gradients)
        check_bool("accumulate", accumulate)
        if not input_gradient and not parameter_gradients:
            raise ValueError("parameter_gradients: expected True without input_gradient, got neither gradient")
        _, shape, x = self.model.expect_forward()
        gradient = cast("dy", dy, self.dtype)
        if gradient.shape != shape:
            raise ValueError(f"dy: expected the shape of the outputs, {shape}, got {gradient.shape}")
        dx = np.empty(x.shape, self.dtype) if input_gradient else None
        with self.model.exclusive():
            before = self.model.params.grads.copy() if accumulate and parameter_gradients else None
            self.model.backward(gradient, thread_limit(), dx, parameter_gradients)
            if before is not None:
                self.model.params.grads[:] += before
        return dx

    def predict(self, x: ArrayLike) -> Array:
        """The outputs (N, O) for any number of rows (N, I), none too, as in inference: the logits, for a classifier."""
        return self._predict(self.model.check_features("x", x, empty=True))

    def predict_proba(self, x: ArrayLike, loss: LossLike | None = None) -> Array:
        """The probabilities (N, O) of the classes after cross-entropy, of each output after the binary one.

        Parameters
        ----------
        x : array_like (N, I)
        loss : str, Loss or None
            Whose predictions the outputs are; None is the one that ``fit`` or ``train_on_batch`` last trained the model
            with, which files keep.

        Raises
        ------
        ValueError
            If the outputs are no logits of probabilities: of a regression, or of a callable of one's own.
        """
        link = self.model.expect_link() if loss is None else losses.resolve(loss).link
        if not link:
            raise ValueError(f"loss: expected 'cross_entropy' or 'binary_cross_entropy' or None, got {loss!r}")
        return losses.probabilities(link, self.predict(x))

    def _predict(self, x: Features) -> Array:
        with self.model.lock.shared(thread_limit()) as threads:
            return self.model.predict(x, threads)

    def evaluate(
        self,
        X: Source,
        y: ArrayLike | SlicedByRows | None,
        loss: LossLike,
        sample_weight: ArrayLike | SlicedByRows | None = None,
        metrics: Metrics = (),
    ) -> dict[str, float]:
        """The loss, for classification the accuracy, and the metrics, of the predictions for X (N, I).

        The data is given as for ``fit``. sample_weight (N,) weighs the loss; the accuracy is the share of the samples
        that are right, and metrics, as in ``fit``, count every sample alike.
        """
        criterion, measures = losses.resolve(loss), resolve(metrics)
        data = open_evaluation(self.model, criterion, (X, y, sample_weight))
        with self.model.shared():
            return evaluate(self.model, data, criterion, measures)

    def train_on_batch(
        self,
        xb: ArrayLike,
        yb: ArrayLike,
        loss: LossLike,
        optimizer: Optimizer,
        sample_weight: ArrayLike | None = None,
    ) -> float:
        """The four steps on one batch.

        Parameters
        ----------
        xb : array_like (B, I)
        yb : array_like
            (B,) integer labels for cross-entropy, (B, O) or, with one output, (B,) elsewhere.
        loss : str, Loss or callable
            A callable takes ``(pred, target)`` and returns ``(loss, dpred)``.
        optimizer : Optimizer
            Made for this model's parameters.
        sample_weight : array_like (B,) or None
            Non-negative, of the mean over the batch; a callable gets it as its third argument.

        Returns
        -------
        float
            The loss before the update.
        """
        model, criterion = self.model, losses.resolve(loss)
        trainer = Trainer(model, optimizer, criterion)
        batch = check_batch(model, criterion, xb, yb, sample_weight, ("xb", "yb", "sample_weight"))
        if trainer.loss_spec is None:
            return trainer.step([batch]).loss
        samples = len(batch[0])
        return trainer.run_steps(batch, None, 0, 1, samples).loss / samples

    def fit(
        self,
        X: Source,
        y: ArrayLike | SlicedByRows | None,
        loss: LossLike,
        optimizer: Optimizer,
        *,
        epochs: int = 1,
        batch_size: int = 32,
        validation_data: ValidationData = None,
        validation_split: float | None = None,
        callbacks: Iterable[Callback] = (),
        verbose: int | Literal["bar"] = 1,
        shuffle: bool = True,
        seed: Seed = None,
        sample_weight: ArrayLike | SlicedByRows | None = None,
        class_weight: ArrayLike | Mapping[int, float] | Literal["balanced"] | None = None,
        metrics: Metrics = (),
        train_metrics: bool = False,
        steps_per_epoch: int | None = None,
        drop_last: bool = False,
        accumulate: int = 1,
        buffer_size: int = BUFFER_SIZE,
        on_divergence: str = "raise",
        resume: npz.Path | None = None,
    ) -> History:
        """Train: for every epoch, for every batch, forward, loss, backward, update.

        Parameters
        ----------
        X : array_like (N, I), what is read by slices of rows, or what gives chunks
            Used without a copy if it lies in memory as a C-contiguous array of the model's dtype. ``np.memmap`` and,
            for example, HDF5 data sets are read in blocks of rows. A function that returns an iterable of chunks
            ``(X, y)`` or ``(X, y, sample_weight)`` is called in every epoch, in a thread of its own that reads ahead.
            SciPy's sparse matrices, chunks too, are never made dense, see ``Dense``.
        y : array_like
            (N,) integer labels for cross-entropy, (N, O) or, with one output, (N,) elsewhere; None with chunks.
        loss : str, Loss or callable
            ``"cross_entropy"``, ``fb.MSE()``, or a callable ``(pred, target) -> (loss, dpred)``.
        optimizer : Optimizer
            Made for this model's parameters; calling ``fit`` again goes on with its state.
        epochs, batch_size : int
            At least 1. The last batch of an epoch has what is left.
        validation_data : (Xv, yv), (Xv, yv, sample_weight), a function that gives chunks, or None
            Evaluated after every epoch; other iterables of chunks are given as ``(chunks, None)``.
        validation_split : float or None
            In (0, 1): the share of the samples, the last ones in their order, to validate with and not to train on.
        callbacks : sequence of Callback
            Called after every epoch.
        verbose : int or "bar"
            1 prints a line per epoch, n one after every n-th and the last, 0 nothing; "bar" shows a bar that moves
            within an epoch (needs tqdm).
        shuffle : bool
            Whether every epoch has a new order.
        seed : int, numpy.random.Generator or None
            Of the orders, as in ``fb.batches``; None goes on with the model's own generator.
        sample_weight : array_like (N,) or None
            Non-negative. A batch's loss is the mean weighted with these; the accuracy counts every sample alike. (N, O)
            weighs every entry, for losses that are means over these.
        class_weight : array_like (C,), mapping from label to weight, "balanced" or None
            What multiplies the weights of the samples in training, by their class; labels that a mapping leaves out
            weigh 1. With "balanced" all classes count alike: ``N / (classes * samples of the class)``. For
            cross-entropy, and for the binary one with one output.
        metrics : sequence of str, or mapping from name to callable
            Names in ``fb.metrics``, or ``{name: callable}`` with ``(pred, target) -> float``, of the predictions (N, O)
            for validation_data after every epoch: ``history["val_auc"]``. The targets are (N,) labels for
            cross-entropy and (N, O) elsewhere. NaN if the predictions are not finite.
        train_metrics : bool
            Whether these are computed of the training data too, in a pass of its own after every epoch:
            ``history["auc"]``.
        steps_per_epoch : int or None
            End every epoch after so many steps; with ``shuffle`` each has samples of its own.
        drop_last : bool
            Whether to leave out the last batch of an epoch where it has fewer samples.
        accumulate : int
            How many batches make a step, whose gradient is that of the mean over all of them: what a larger batch
            does, without its memory.
        buffer_size : int
            For data that is read: how many samples are shuffled together, which need three times their memory. Blocks
            of neighbouring rows are drawn at random, a sixteenth of it each; chunks come in their own order. An array
            that is no larger is shuffled as a whole.
        on_divergence : {"raise", "stop", "restore"}
            What happens when the loss, the gradient or the parameters are not finite any more: an error, or a warning
            and the end of the training, with the weights of the last step or with the best ones, by validation loss or,
            without it, by loss. The optimizer stays as it is.
        resume : str, path or None
            The file of a ``Checkpoint`` of the same run: it goes on after the epochs done, which ``epochs`` includes,
            as if it had never stopped, with that file's learning rate. From the beginning if there is no such file.

        Returns
        -------
        History

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit; nothing has changed then. Of data that is read each chunk is checked when it
            comes; one that does not fit ends ``fit`` after the steps before it.
        DivergenceError
            If training diverges; the step that shows it is left out.
        FileFormatError, OSError
            If the file to resume from is damaged, or cannot be read.
        """
        criterion, measures = losses.resolve(loss), resolve(metrics)
        trainer = Trainer(self.model, optimizer, criterion)
        epochs, batch_size = check_int("epochs", epochs), check_int("batch_size", batch_size)
        buffer_size, accumulate = check_int("buffer_size", buffer_size), check_int("accumulate", accumulate)
        shuffle, drop_last = check_bool("shuffle", shuffle), check_bool("drop_last", drop_last)
        train_metrics = check_bool("train_metrics", train_metrics)
        data = open_samples(self.model, criterion, (X, y, sample_weight), buffer_size)
        validation = open_validation(self.model, criterion, validation_data)
        if validation_split is not None:
            if validation is not None:
                raise ValueError("validation_split: expected None with validation_data")
            share = check_number("validation_split", validation_split, 0, 1, open_low=True)
            data, validation = split_samples(data, share, criterion, self.outputs)
        data = weigh_classes(data, criterion, self.outputs, class_weight)
        if measures and validation is None and not train_metrics:
            raise ValueError("metrics: expected validation_data to compute them from, or train_metrics=True, got None")
        if measures and validation is not None and not isinstance(validation, Stream):
            check_measurable(measures, criterion.labels(validation[1]), self.outputs)
        callbacks, verbose = check_callbacks(callbacks), check_verbose(verbose)
        check_choice("on_divergence", on_divergence, ("raise", "stop", "restore"))
        best = BestWeights() if on_divergence == "restore" else None
        callbacks = [best, *callbacks] if best else callbacks
        samples = data.samples if isinstance(data, Stream) else len(data[0])
        if batch_size == 1 or samples == 1:
            warn_of_single_rows(self.layers)
        warn_of_activation(self.layers, criterion)
        steps = check_steps(samples, batch_size, drop_last, accumulate, steps_per_epoch)
        if steps is None and optimizer.schedule.epochs is not None:
            raise ValueError("lr: expected a schedule in steps, or steps_per_epoch, for data whose length is not known")
        bars = Bars(epochs, samples) if verbose == "bar" else None
        rng = self.model.generator if seed is None else as_generator(seed)
        if resume is None:
            warn_of_ended_schedule(optimizer, steps)

        def run_epoch() -> dict[str, float]:
            if steps is not None and optimizer.schedule.epochs is not None:
                optimizer.schedule.bind(steps)
            plan = EpochPlan(
                epoch_key(shuffle, rng),
                batch_size,
                drop_last,
                steps_per_epoch,
                accumulate,
                bars,
                after_batches(callbacks),
            )
            logs = trainer.train_epoch(data, plan)
            if train_metrics:
                trained = evaluate(self.model, data, criterion, measures)
                logs |= {name: trained[name] for name in measures}
            if validation is not None:
                validated = evaluate(self.model, validation, criterion, measures)
                logs |= {f"val_{name}": value for name, value in validated.items()}
            return logs | {"lr": trainer.last_lr}

        with self.model.training():
            run, log_names = None, _log_names(criterion, measures, validation, train_metrics)
            if resume is not None:
                run = run_state.load_matching(resume, self, optimizer, callbacks, log_names)
                if run is not None and verbose:
                    print(f"resumes after epoch {len(run.history.get('loss', ()))}/{epochs}, from {name_of(resume)}")
            self.model.order_generator = rng
            try:
                with called(callbacks, self, optimizer, log_names, directions(measures)):
                    self.history = history = History()
                    if run is not None:
                        run_state.restore(run, self, optimizer, callbacks)
                    for epoch in range(len(history), epochs):
                        if self.stop_training:
                            break
                        self._run_epoch(epoch, epochs, run_epoch, history, callbacks, bars, verbose)
            except DivergenceError as error:
                error.epoch = len(history) + 1
                if on_divergence == "raise":
                    raise
                warnings.warn(str(error), RuntimeWarning, stacklevel=2)
                if best is not None:
                    best.restore()
            return history

    def _run_epoch(
        self,
        epoch: int,
        epochs: int,
        train: Callable[[], dict[str, float]],
        history: History,
        callbacks: list[Callback],
        bars: Bars | None,
        verbose: int | str,
    ) -> None:
        """Train for an epoch; record, show and tell the callbacks what it logs."""
        for callback in callbacks:
            callback.on_epoch_begin(epoch)
        logs = train() if bars is None else bars.shown(epoch, train)
        history.append(logs)
        self.epochs += 1
        if isinstance(verbose, int) and verbose and ((epoch + 1) % verbose == 0 or epoch + 1 == epochs):
            print(epoch_line(epoch, epochs, logs), flush=True)
        for callback in callbacks:
            callback.on_epoch_end(epoch, logs)

    def snapshot(self) -> tuple[Array, Array]:
        """Copies of all parameters and running statistics, for ``restore``."""
        with self.model.shared():
            return self.model.snapshot()

    def restore(self, snapshot: tuple[Array, Array]) -> None:
        """Go back to a ``snapshot`` of this model."""
        with self.model.exclusive():
            self.model.restore(snapshot)

    def summary(self, program: bool = False) -> str:
        """A table of the layers: output shape, parameters, and the FLOP of a prediction for one sample.

        FLOP are those of the matrix products, an addition and a multiplication for every weight. Below a layer that is
        made of others stand these.

        Parameters
        ----------
        program : bool
            Whether to show what the layers were lowered to instead: a line for each op with its slots, and a line for
            each slot, a value with its gradient. ``dx`` says whether the op assigns the gradient of what it reads or
            adds to it, ``derivative`` which op applies the derivative of its activation, ``memory`` what a slot may be
            a part of.
        """
        return program_table(self.model) if check_bool("program", program) else layer_table(self.model)

    def save(self, path: npz.File) -> None:
        """Write architecture, dtype, parameters and running statistics to one ``.npz`` file; ``fb.load`` reads it.

        The random streams of dropout are in it too: copies that are loaded and trained with one seed are alike. A file
        that is open for bytes may take the place of a path.

        Raises
        ------
        OSError
            If the file cannot be written; one that was there before is unharmed.
        """
        with self.model.shared():
            npz.write(path, self.model.header(), self.model.tensors() | {"random.keys": self.model.program["key"]})

    @classmethod
    def load(cls, path: npz.File) -> Self:
        """The model that ``save`` wrote, or that of a ``Checkpoint``.

        Raises
        ------
        FileFormatError
            If the file is damaged, cut short, of another kind, or from a newer fastbp.
        OSError
            If it cannot be read.
        """
        header, arrays = npz.read(path)
        try:
            keys = arrays.pop("random.keys", arrays.get("checkpoint.keys"))
            tensors = {name: array for name, array in arrays.items() if not name.startswith("checkpoint.")}
            sequential = cls._build(header["layers"], header["dtype"], tensors)
            if keys is not None:  # older files have none
                sequential.model.set_keys(keys)
            sequential.model.set_link(header.get("link", ""))
            return sequential
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise npz.unreadable(path, error) from error

    @classmethod
    def _build(cls, config: list[dict[str, Any]], dtype: DtypeName, tensors: dict[str, Array]) -> Self:
        layers = make_layers(config)
        check_tensors(layers, tensors)
        sequential = cls(layers, dtype=dtype)
        sequential.model.assign(tensors)
        return sequential

    def astype(self, dtype: DtypeName) -> Self:
        """A copy of the model that computes in another dtype."""
        with self.model.shared():
            other = self._build(self.model.config(), dtype, self.model.tensors())
            other.model.copy_randomness(self.model)
            other.epochs, other.history = self.epochs, copy.deepcopy(self.history)
        return other

    def with_outputs(self, outputs: int, seed: int | None = None) -> Self:
        """A copy with more outputs, for classes that come later; an optimizer's state follows by ``for_parameters``.

        Parameters
        ----------
        outputs : int
            At least as many as there are. The first ones are those of this model.
        seed : int or None
            Of the weights of the new ones.

        Raises
        ------
        ValueError
            If there would be fewer, or the last layer is no Dense.
        """
        if not isinstance(self.layers[-1], Dense):
            raise ValueError(f"outputs: expected a model that ends in a Dense, got {self.layers[-1]!r}")
        if check_int("outputs", outputs) < self.outputs:
            raise ValueError(f"outputs: expected at least the {self.outputs} that there are, got {outputs}")
        with self.model.shared():
            config = self.model.config()
            config[-1]["out_features"] = int(outputs)
            other = type(self)(make_layers(config), dtype=self.dtype, seed=seed)
            own = self.model.tensors()
            for name, tensor in other.model.tensors().items():
                copy_overlap(tensor, own[name])
            other.model.copy_randomness(self.model)
            other.epochs = self.epochs
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are built anew around the copied parameters, which an optimizer's copy shares."""
        rest = {name: value for name, value in dict(vars(self)).items() if name != "model"}  # another thread's fit adds
        return _rebuild, (type(self), self.model.config(), self.dtype.name, *self.model.contents()), rest


def _rebuild(cls: type[S], config: list[dict[str, Any]], dtype: DtypeName, *contents: Any) -> S:
    sequential = cls(make_layers(config), dtype=dtype)
    sequential.model.adopt(*contents)
    return sequential


def from_model(model: Model, epochs: int) -> Sequential:
    """The Sequential around a model that was trained for so many epochs."""
    sequential = Sequential.__new__(Sequential)
    vars(sequential).update(model=model, epochs=epochs, _constructed=True)
    return sequential


def check_model(model: object) -> Sequential:
    """``model`` if it is one, or that of a fitted estimator, for what writes models to files of other kinds."""
    if hasattr(type(model), "model_"):
        model = model.model_  # type: ignore[attr-defined]
    if not isinstance(model, Sequential):
        raise TypeError(f"model: expected a fastbp model, got {type(model).__name__}")
    return model


def warn_of_single_rows(layers: Sequence[Layer], stacklevel: int = 3) -> None:
    """Tell that training with one row per batch teaches nothing to what comes before a BatchNorm."""
    for _, access, layer in walk(layers):
        if isinstance(layer, BatchNorm):
            warnings.warn(
                f"batch_size: with one row per batch, {access} sees no difference between samples, so that its outputs "
                "are its bias and the layers before it learn nothing; take more rows, or a LayerNorm",
                RuntimeWarning,
                stacklevel=stacklevel,
            )
            return


def warn_of_activation(layers: Sequence[Layer], criterion: Loss) -> None:
    """Tell that a loss takes logits where the last layer gives something else."""
    last = next((layer for layer in reversed(layers) if not layer.identity_in_inference), layers[-1])
    name = getattr(last, "activation", None) or getattr(last, "name", None)
    if criterion.link and name in ("sigmoid", "relu"):
        warnings.warn(
            f"loss: {type(criterion).__name__} takes logits and applies the {criterion.link} itself, but the model "
            f"ends in a {name}; leave that out, and take predict_proba for probabilities",
            RuntimeWarning,
            stacklevel=3,
        )


def warn_of_ended_schedule(optimizer: Optimizer, steps_per_epoch: int | None) -> None:
    """Tell that a schedule has nothing left, as it counts the steps that the optimizer has done before it was given."""
    schedule = optimizer.schedule
    if steps_per_epoch is not None and schedule.epochs is not None:
        schedule.bind(steps_per_epoch)
    if schedule.ended(optimizer.steps):
        warnings.warn(
            f"lr: {schedule!r} has ended: it counts the optimizer's steps, {optimizer.steps} by now, and stays at "
            f"{schedule(optimizer.steps):g}; give it more of them, or make a new optimizer",
            RuntimeWarning,
            stacklevel=3,
        )


def check_verbose(verbose: int | Literal["bar"]) -> int | Literal["bar"]:
    """``verbose`` if it says how often to print a line, or to show bars."""
    if isinstance(verbose, (int, np.integer)) and verbose >= 0:
        return int(verbose)
    if not isinstance(verbose, str) or verbose != "bar":
        raise ValueError(f"verbose: expected a number of epochs, 0 or 'bar', got {verbose!r}")
    return verbose


def check_steps(
    samples: int | None, batch_size: int, drop_last: bool, accumulate: int, steps_per_epoch: int | None
) -> int | None:
    """The steps of an epoch of so many samples, or None where neither is known."""
    steps = None if samples is None else steps_of(samples, batch_size, drop_last, accumulate)
    if steps == 0:
        raise ValueError(f"drop_last: expected at least {batch_size} samples, which make a batch, got {samples}")
    if steps_per_epoch is None:
        return steps
    if check_int("steps_per_epoch", steps_per_epoch) > (steps or steps_per_epoch):
        raise ValueError(f"steps_per_epoch: expected at most {steps}, which the samples make, got {steps_per_epoch}")
    return steps_per_epoch


def _log_names(
    criterion: Loss, measures: Mapping[str, Metric], validation: Data | None, train_metrics: bool
) -> list[str]:
    """The names of the values that every epoch of ``fit`` logs."""
    names = ["loss", "accuracy"] if criterion.classifies else ["loss"]
    validated = [f"val_{name}" for name in dict.fromkeys([*names, *measures])]
    trained = dict.fromkeys([*names, *measures]) if train_metrics else names
    return [*trained, *(validated if validation is not None else ()), "lr", "samples_per_second"]
