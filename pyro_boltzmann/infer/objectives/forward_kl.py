"""Forward KL: maximum likelihood through the inverse path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.infer.objectives.path_objective import PathObjective
from pyro_boltzmann.infer.objectives.weighted_data import WeightedData

__all__ = ["ForwardKL"]


class ForwardKL(PathObjective):
    r"""Maximum likelihood of data through the inverse path with fresh noise,

    .. math:: \mathcal L = -E_{data}\bigl[\log q(\text{path})\bigr],

    which is :math:`\mathrm{EUBO} + E_\pi[u]` for data from :math:`\pi`.

    :param data: unconstrained latents ``(n, latent_dim)``.
    :param log_weights: ``(n,)``, if the data are weighted draws.
    :param num_particles: minibatch size, drawn with replacement; weighted data are drawn by their weights.
    :param weight_power: the weights are raised to this power first: 1 for the data's target, less for a law in which
        small modes are larger.
    :param augment: ``(n, latent_dim) -> (n, latent_dim)``, applied anew to each minibatch: random symmetries of the
        target, such as :meth:`~pyro_boltzmann.transforms.ParticleSymmetry.augment`, for guides that do not know them.
    :raises ShapeError: if there are no data or the shapes do not match, those of ``augment`` included.
    :raises ValueError: if data or weights are not finite (a weight may be zero), or all weights are zero.

    Source: Wu, Koehler and Noe, arXiv 2002.06707, equation 20.

    >>> import torch, pyro_boltzmann as pb, pyro.distributions.transforms as T
    >>> model = pb.BoltzmannModel(lambda x: 0.5 * x.square().sum(-1), 2)
    >>> guide = pb.AutoStochasticFlow(model, lambda energy, dim: [])
    >>> ForwardKL(torch.zeros(5, 2)).loss(model, guide)  # -log N(0; 0, I) = log 2 pi
    1.837877...
    """

    looks_forward = False

    def __init__(
        self,
        data: Tensor,
        log_weights: Tensor | None = None,
        num_particles: int = 256,
        *,
        weight_power: float = 1.0,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(num_particles)
        self._data = WeightedData(data, log_weights, weight_power)
        self.augment = augment

    @property
    def data(self) -> Tensor:
        """All the data, ``(n, latent_dim)``."""
        return self._data.data

    def _minibatch(self) -> Tensor:
        rows = self._data.draw(self.num_particles)
        if self.augment is None:
            return rows
        moved = self.augment(rows)
        if moved.shape != rows.shape:
            raise ShapeError(
                f"augment must return the shape of its rows, {tuple(rows.shape)}, got {tuple(moved.shape)}"
            )
        return moved

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        paths = self._flow(guide).reverse_paths(self._minibatch(), *args, with_energy=False, **kwargs)
        return self._surrogate(-paths.log_q, paths)

    def settings(self) -> dict[str, Any]:
        if self.augment is None:
            return {}
        return {"augment": getattr(self.augment, "__qualname__", type(self.augment).__qualname__)}
