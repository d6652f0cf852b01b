"""Classifier two-sample test: can a classifier tell the draws from the reference?"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pyro_boltzmann.diagnostics.metrics.inputs import as_points, points_and_weights
from pyro_boltzmann.exceptions import ShapeError

__all__ = ["c2st"]


def c2st(x: ArrayLike, y: ArrayLike, *, num_folds: int = 5, seed: int = 0) -> float:
    r"""Cross-validated accuracy of a small neural network that separates two samples: 0.5 for equal laws, 1 at worst.

    Inputs are standardised by the pooled sample; the network has two layers of :math:`\max(10 d, 32)` units and stops
    early on a part of its training folds. For equal laws and 5000 draws each it lies within 0.5 +- 0.02. Sizes must be
    equal, or the larger sample would be the better guess; draws carry no weights: resample
    (:func:`~pyro_boltzmann.diagnostics.equal_weight_draws`).
    Source: Lopez-Paz and Oquab, arXiv 1610.06545; folds as in Lueckmann et al., arXiv 2101.04653.

    :param x: ``(N, d)``.
    :param y: ``(N, d)``.
    :raises ImportError: without scikit-learn (extra ``eval``).
    """
    first, _ = points_and_weights(as_points(x), None)
    second, _ = points_and_weights(as_points(y), None)
    if first.shape != second.shape or num_folds < 2 or len(first) < 10 * num_folds:
        raise ShapeError(
            f"expected two samples of one shape (N, d) with at least 10 draws a fold, got {first.shape}, "
            f"{second.shape} and {num_folds} folds"
        )
    model_selection, neural_network = _import_sklearn("model_selection"), _import_sklearn("neural_network")
    pooled = np.concatenate([first, second])
    scale = pooled.std(0)
    pooled = (pooled - pooled.mean(0)) / np.where(scale > 0, scale, 1.0)
    labels = np.repeat([0, 1], len(first))
    width = max(10 * first.shape[1], 32)
    network = neural_network.MLPClassifier(
        (width, width), learning_rate_init=3e-3, max_iter=200, early_stopping=True, random_state=seed
    )
    folds = model_selection.StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A network that has not converged is still a fair, only weaker, judge.
        warnings.simplefilter("ignore")
        scores = model_selection.cross_val_score(network, pooled, labels, cv=folds)
    return float(np.mean(scores))


def _import_sklearn(module: str) -> Any:
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise ImportError(
            'the classifier test needs scikit-learn: pip install "pyro-boltzmann[eval]", or use '
            "pyro_boltzmann.diagnostics.mmd_test, which needs nothing more"
        ) from error
