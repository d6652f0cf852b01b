"""What is measured of a model of the image density."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_boltzmann.diagnostics import Metric, Truth, WeightedSamples, weight_metrics
from pyro_boltzmann.diagnostics.metrics import PlaneBins, image_kl, image_kl_floor
from pyro_boltzmann.energies.catalogue.image import LOG_Z, ImageDensity
from pyro_boltzmann.experiments.image_models import ImageModel
from pyro_boltzmann.guides import AutoStochasticFlow
from pyro_boltzmann.infer import FitResult, importance_sample

__all__ = ["SHADES", "Cells", "Scored", "score", "shade"]

NUM_BINS, SHADES = 50, 100
PSEUDO_COUNT = 0.5
BACKWARD_PATHS = 50_000


class Cells:
    """The bins of the picture's square, and one more for all that is outside it, with their exact probabilities.

    >>> from pyro_boltzmann.energies.catalogue import catalogue
    >>> cells = Cells(catalogue["image"])
    >>> cells.masses.shape, round(float(cells.masses.sum()), 9)
    ((2501, 1), 1.0)
    """

    def __init__(self, target: ImageDensity, num_bins: int = NUM_BINS) -> None:
        inside = target.bin_probabilities(num_bins).numpy().reshape(-1, 1)
        self.num_bins, self.bounds = num_bins, target.bounds[0]
        self.masses = np.concatenate([inside, [[1.0 - inside.sum()]]])
        count = len(self.masses)
        self._numbered = PlaneBins(((0.0, float(count)), (0.0, 1.0)), (count, 1))

    def number(self, x: Tensor) -> NDArray[np.float64]:
        """The number of the cell of each draw ``(N, 2)``."""
        low, high = self.bounds
        index = torch.floor((x.double() - low) * (self.num_bins / (high - low)))
        inside = ((index >= 0) & (index < self.num_bins)).all(-1)
        number = torch.where(inside, index[:, 0] * self.num_bins + index[:, 1], self.num_bins**2)
        return np.asarray(number.numpy(), dtype=np.float64)

    def kl(self, x: Tensor, log_weights: Tensor | None = None) -> float:
        """KL of the cells' exact probabilities against the shares of the draws."""
        middles = np.stack([self.number(x) + 0.5, np.full(len(x), 0.5)], -1)
        weights = None if log_weights is None else log_weights.numpy()
        return image_kl(middles, self.masses, self._numbered, weights, pseudo_count=PSEUDO_COUNT)

    def floor(self, num_samples: int) -> tuple[float, float]:
        """The same of exact draws: mean and standard deviation."""
        return image_kl_floor(self.masses, num_samples, pseudo_count=PSEUDO_COUNT)


@dataclass(frozen=True)
class Scored:
    """A trained model and what was measured of it.

    :ivar cost: CPU seconds of training and of drawing all draws.
    :ivar shades: histograms of the draws for a picture, raw and reweighted.
    """

    model: ImageModel
    guide: AutoStochasticFlow
    result: FitResult
    draws: WeightedSamples | None
    metrics: dict[str, Metric]
    cost: float
    shades: tuple[NDArray[np.float64], NDArray[np.float64]]

    def value(self, name: str) -> float:
        value = self.metrics[name].value
        return math.nan if value is None else float(value)


def score(
    program: Any,
    model: ImageModel,
    guide: AutoStochasticFlow,
    result: FitResult,
    target: ImageDensity,
    cells: Cells,
    exact: Tensor,
    *,
    floor: float,
    num_samples: int,
    seed: int,
    keep: bool = False,
) -> Scored:
    """Draw, and measure.

    :param exact: exact draws, from which paths run backwards.
    :param keep: keep the draws.
    """
    start = time.process_time()
    draws = importance_sample(program, guide, num_samples=num_samples, seed=seed)
    sampling = time.process_time() - start
    x = draws.samples["x"]
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed + 1)
        reverse = guide.reverse_paths(exact[:BACKWARD_PATHS], generator=generator).log_weight
    spent = draws.evaluations["sample"]
    metrics = {
        "image_kl_raw": Metric(cells.kl(x), floor=floor),
        "image_kl": Metric(cells.kl(x, draws.log_weights), floor=floor),
        **weight_metrics(draws, reverse_log_weights=reverse, log_z=Truth(LOG_Z)),
        "log_z_error": Metric(draws.log_normalizer - LOG_Z, draws.log_normalizer_error),
        "layers": Metric(float(model.num_layers)),
        "updates": Metric(float(result.steps)),
        "train_seconds": Metric(result.cpu_seconds),
        "sample_seconds": Metric(sampling * 1e5 / num_samples),
        "train_evaluations": Metric(float(result.evaluations.values + result.evaluations.gradients)),
        "draw_evaluations": Metric(sum(spent.values()) / num_samples),
    }
    shades = (shade(x, target), shade(x, target, draws.log_weights))
    cost = result.cpu_seconds + sampling
    return Scored(model, guide, result, draws if keep else None, metrics, cost, shades)


def shade(x: Tensor, target: ImageDensity, log_weights: Tensor | None = None) -> NDArray[np.float64]:
    """Density of the draws on a grid of the square, for a picture."""
    bins = PlaneBins((target.bounds[0], target.bounds[1]), (SHADES, SHADES))
    weights = None if log_weights is None else torch.softmax(log_weights.double(), 0).numpy()
    (low, high), _ = target.bounds
    return bins.masses(x.double().numpy(), weights) * (SHADES / (high - low)) ** 2
