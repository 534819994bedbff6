"""What other libraries call things, for the errors of those who come from there."""

from __future__ import annotations

from collections.abc import Iterable

#: Names elsewhere, and ours: losses, activations, metrics. Case, separators and an ending ``loss`` do not matter.
ELSEWHERE: dict[str, str | None] = {
    "bce": "binary_cross_entropy",
    "bce_with_logits": "binary_cross_entropy",
    "binary_crossentropy": "binary_cross_entropy",
    "ce": "cross_entropy",
    "nll": "cross_entropy",
    "log_loss": "cross_entropy",
    "softmax_cross_entropy": "cross_entropy",
    "sigmoid_cross_entropy": "binary_cross_entropy",
    "categorical_crossentropy": "cross_entropy",
    "sparse_categorical_crossentropy": "cross_entropy",
    "mean_squared_error": "mse",
    "squared_error": "mse",
    "l2": "mse",
    "mean_absolute_error": "mae",
    "absolute_error": "mae",
    "l1": "mae",
    "smooth_l1": "huber",
    "pinball": "quantile",
    "swish": "silu",
    "logistic": "sigmoid",
    "linear": None,
    "identity": None,
    "none": None,
    "acc": "accuracy",
    "categorical_accuracy": "accuracy",
    "sparse_categorical_accuracy": "accuracy",
    "binary_accuracy": "accuracy",
    "roc_auc": "auc",
    "roc_auc_score": "auc",
    "f1_score": "f1",
    "r2_score": "r2",
    "root_mean_squared_error": "rmse",
    "top_5_accuracy": "top_k_accuracy",
}

SOFTMAX = "a network ends in logits, which cross-entropy takes: leave it out, and take predict_proba for probabilities"
IDENTITY = "such a layer changes nothing: leave it out"


def _plain(name: str) -> str:
    """A name without that in which the libraries' spellings differ: ``NLLLoss`` and ``nll_loss`` are ``nll``."""
    return name.lower().replace("_", "").replace("-", "").replace(" ", "").removesuffix("loss")


def near_names(name: str, options: Iterable[object]) -> str:
    """Those of the options that a misspelt name, or one from elsewhere, may mean; or all."""
    import difflib  # here, as only an error needs it

    options, plain = list(options), _plain(name)
    own = [option for option in options if isinstance(option, str)]
    meant = {_plain(theirs): ours for theirs, ours in ELSEWHERE.items() if ours in options}
    meant |= {_plain(option): option for option in own}
    if plain in meant:
        return f"did you mean {meant[plain]!r}?"
    if "sigmoid" in own and plain in ("softmax", "logsoftmax"):
        return SOFTMAX
    if "sigmoid" in own and plain in ("linear", "identity"):
        return "did you mean 'identity'?" if "identity" in own else IDENTITY
    near = difflib.get_close_matches(name, own, n=3)
    return f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"expected one of {options}"
