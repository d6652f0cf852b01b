"""Logistic regression on the Wisconsin breast-cancer data, which scikit-learn brings along."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_boltzmann.energies.catalogue.closed_form import ClosedForm
from pyro_boltzmann.energies.catalogue.posteriors import PosteriorTarget
from pyro_boltzmann.exceptions import MissingExtraError

__all__ = ["BreastCancer", "breast_cancer", "breast_cancer_data"]


PRIOR_SCALE = 10.0


def breast_cancer(features: Tensor, labels: Tensor | None = None) -> Tensor:
    r"""Bayesian logistic regression with a wide prior.

    .. math:: w \sim N(0, 10^2 I), \qquad P(y_i = 1) = 1 / (1 + e^{-x_i \cdot w})

    :param features: :math:`x_i`, shape ``(n, d)``; the column of ones is the caller's.
    :param labels: 0 or 1, shape ``(n,)``; drawn from the model when ``None``.
    :return: the weights ``w``.

    >>> breast_cancer(torch.ones(7, 3)).shape
    torch.Size([3])
    """
    zeros = features.new_zeros(features.shape[-1])
    weights: Tensor = pyro.sample("weights", dist.Normal(zeros, PRIOR_SCALE).to_event(1))
    logits = weights @ features.to(weights).mT
    seen = None if labels is None else labels.to(weights)
    pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=seen)
    return weights


def breast_cancer_data() -> dict[str, Tensor]:
    """Features ``(569, 31)``, a column of ones before the columns divided by their standard deviations, and labels.

    The columns are not centred, as in the published benchmark.

    :raises MissingExtraError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError as error:
        raise MissingExtraError(
            'the breast_cancer target takes its data from scikit-learn; pip install "pyro-boltzmann[sklearn]"'
        ) from error
    table, labels = load_breast_cancer(return_X_y=True)
    scaled = torch.from_numpy(table / table.std(0))
    features = torch.cat([torch.ones(len(scaled), 1), scaled.float()], -1)
    return {"features": features, "labels": torch.from_numpy(labels).float()}


class BreastCancer(ClosedForm, PosteriorTarget):
    r"""The posterior of :func:`breast_cancer` in 31 dimensions; the data are read when they are first needed.

    Its energy is written out, which saves running the program: up to a constant,

    .. math:: u(w) = \tfrac{1}{200} |w|^2 + \sum_i \left[ \log(1 + e^{x_i \cdot w}) - y_i\, x_i \cdot w \right] .

    >>> target = BreastCancer()
    >>> target.dim, target.log_z_bounds
    (31, (-79.2, -77.7))
    """

    def __init__(self) -> None:
        super().__init__(
            "breast_cancer",
            breast_cancer,
            breast_cancer_data,
            31,
            constants={
                "data": "sklearn.datasets.load_breast_cancer",
                "scaling": "standard deviation",
                "prior_scale": PRIOR_SCALE,
            },
            log_z_origin="interval",
            log_z_bounds=(-79.2, -77.7),
            log_z_note="two tempered SMC estimates, -79.2 +- 0.4 and -77.7 +- 0.2, that had not converged",
        )
        self._constant = self.dim * (math.log(PRIOR_SCALE) + 0.5 * math.log(2 * math.pi))

    def __call__(self, x: Tensor) -> Tensor:
        features, seen = self._tensors(x)
        return torch.nn.functional.softplus(x @ features.mT).sum(-1) - x @ seen + self._prior(x)

    def closed_form(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features, seen = self._tensors(x)
        logits = x @ features.mT
        u = torch.nn.functional.softplus(logits).sum(-1) - x @ seen + self._prior(x)
        gradient = logits.sigmoid_() @ features - seen
        return u, gradient.add_(x, alpha=PRIOR_SCALE**-2)

    def _tensors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The features, and their sum over the observations with label 1."""
        if "features" not in self._derived:
            features, labels = self.data["features"].double(), self.data["labels"].double()
            self._derived |= {"features": features, "seen": labels @ features}
        return self._on("features", like), self._on("seen", like)

    def _prior(self, x: Tensor) -> Tensor:
        return (0.5 * PRIOR_SCALE**-2) * x.square().sum(-1) + self._constant
