"""MLPClassifier and MLPRegressor: scikit-learn's estimators on fastbp's core.

Parameters, attributes, warnings and errors are scikit-learn's, and so are the numbers: with the same ``random_state``
the initial weights are equal and every batch has the same samples, so that a fit follows scikit-learn's to rounding.
What scikit-learn lacks is a keyword away: dropout, batch normalisation, class weights, an activation per layer, a
validation set of the user's own, callbacks.
"""

try:
    import sklearn.base  # noqa: F401  (the modules below may be loaded already, from before it was missing)

    from fastbp.sklearn.classifier import MLPClassifier
    from fastbp.sklearn.regressor import MLPRegressor
except ImportError as error:
    if (error.name or "").startswith("fastbp"):  # an error of fastbp's own: scikit-learn is there
        raise
    raise ImportError("fastbp.sklearn needs scikit-learn 1.7 or later: pip install fastbp[sklearn]") from error

__all__ = ["MLPClassifier", "MLPRegressor"]
