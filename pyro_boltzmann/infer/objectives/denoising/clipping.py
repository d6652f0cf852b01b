"""Bounds on the length of score targets."""

from __future__ import annotations

from torch import Tensor

from pyro_boltzmann.transforms.mean_free import MeanFreeBasis

__all__ = ["clip_scores"]


def clip_scores(score: Tensor, bound: float, basis: MeanFreeBasis | None = None) -> Tensor:
    r"""Shorten scores ``(*batch, dim)`` to length :math:`c`: :math:`s \min\bigl(1,\ c / (|s| + 10^{-6})\bigr)`.

    :param bound: :math:`c`.
    :param basis: for particles, whose scores are shortened one by one; the mean of what is left over them is removed.

    Source: Akhound-Sadegh et al., arXiv 2402.06121, appendix.

    >>> import torch
    >>> clip_scores(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
    tensor([[0.6000, 0.8000],
            [0.3000, 0.4000]])
    """
    vectors = score if basis is None else basis.to_particles(score)
    clipped = vectors * (bound / (vectors.norm(dim=-1, keepdim=True) + 1e-6)).clamp_max(1.0)
    return clipped if basis is None else basis.to_coordinates(clipped)
