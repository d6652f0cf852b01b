"""The probability that a trajectory has reached an absorbing end."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["ExitHead", "crossing_logit"]

_LEAST = 1e-12
_MOST = 1.0 - 1e-6


def crossing_logit(ratios: Tensor) -> Tensor:
    r"""The log-odds that Brownian motion has reached one of K planes,

    .. math:: \log\frac{P}{1 - P}, \qquad 1 - P = \prod_k \operatorname{erf}\frac{\rho_k}{\sqrt 2}, \qquad
              \rho_k = \frac{|a_k - x_0|}{\sigma \sqrt t} .

    Exact for one plane (the reflection principle); for two, up to paths that reach both.

    :param ratios: :math:`\rho`, ``(*batch, K)``; probabilities are kept between 1e-12 and 1 - 1e-6.
    :return: ``(*batch)``.

    Source: Karatzas and Shreve, Brownian Motion and Stochastic Calculus (1991), equation 2.8.3.

    >>> crossing_logit(torch.tensor([[1.0]])).sigmoid()
    tensor([0.3173])
    """
    crossed = torch.erfc(ratios.clamp_min(0.0) / math.sqrt(2.0)).clamp(_LEAST, _MOST)
    log_stay = torch.log1p(-crossed).sum(-1)
    return (-torch.expm1(log_stay)).log() - log_stay


class ExitHead(nn.Module):
    r"""The log-odds of exit: :func:`crossing_logit`, whose coefficients are frozen, plus a network, zero at first.

    Where a step is short, what the network has to learn is small and smooth, and errors that repeated steps would add
    up are too.

    :param width: of the embedding and of the hidden layer.
    :param num_ends: K absorbing planes whose ratios are known, 0 if the diffusion is not given: then the network is
        all there is.

    >>> head = ExitHead(8, 1)
    >>> head(torch.randn(5, 8), torch.ones(5, 1)).sigmoid()
    tensor([0.3173, 0.3173, 0.3173, 0.3173, 0.3173], grad_fn=<SigmoidBackward0>)
    """

    def __init__(self, width: int, num_ends: int = 0) -> None:
        super().__init__()
        self.num_ends = num_ends
        self.net = nn.Sequential(nn.Linear(width + 2 * num_ends, width), nn.SiLU(), nn.Linear(width, 1))
        if num_ends:
            self.reset()

    def forward(self, embedding: Tensor, ratios: Tensor | None) -> Tensor:
        """Embeddings ``(*batch, width)`` and ratios ``(*batch, K)`` to ``(*batch)``."""
        if not self.num_ends or ratios is None:
            logits: Tensor = self.net(embedding).squeeze(-1)
            return logits
        features = torch.cat([embedding, (0.5 * ratios).tanh(), (ratios / 6.0).tanh()], -1)
        change: Tensor = self.net(features).squeeze(-1)
        return crossing_logit(ratios) + change

    @torch.no_grad()
    def reset(self, share: float = 0.5) -> None:
        """Forget what was learned. A head without ratios starts from the overall share of exits."""
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        if self.num_ends:
            nn.init.zeros_(last.weight)
        last.bias.fill_(0.0 if self.num_ends else math.log(share) - math.log1p(-share))
