"""The affine part of a flow map: exact for Gaussian transition laws."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LinearPath"]


class LinearPath(nn.Module):
    r"""An affine map :math:`w \mapsto \mu + L w` with :math:`\mu = A(t) f + b(t)` and lower triangular :math:`L(t)`.

    f are linear features of the initial state, its deterministic path and the parameters. The coefficients are
    constants plus, where the time varies, a small network of the time which is zero at first. A Gaussian law whose mean
    is affine in :math:`x_0` and whose covariance is no function of it, such as Brownian motion or an Ornstein-Uhlenbeck
    process, is this and nothing else; :meth:`regress` finds it by least squares.

    :param num_linear: number of features f.
    :param dim: d.
    :param num_time: number of time features, 0 for one time only.
    :param width: of the hidden layers of the network of the time.

    >>> path = LinearPath(2, 3, 0)
    >>> shift, lower = path.coefficients(torch.randn(5, 2), torch.zeros(5, 0))
    >>> w = torch.randn(5, 3)
    >>> u, ladj = path(w, shift, lower)
    >>> torch.allclose(path.inverse(u, shift, lower)[0], w, atol=1e-6)
    True
    """

    def __init__(self, num_linear: int, dim: int, num_time: int, *, width: int = 32) -> None:
        super().__init__()
        self.dim = dim
        self.slope = nn.Parameter(torch.zeros(dim, num_linear))
        self.offset = nn.Parameter(torch.zeros(dim))
        self.log_diagonal = nn.Parameter(torch.zeros(dim))
        rows, columns = torch.tril_indices(dim, dim, offset=-1)
        self.below = (rows.tolist(), columns.tolist())
        self.off_diagonal = nn.Parameter(torch.zeros(len(rows)))
        self.sizes = [dim * num_linear, dim, dim, len(rows)]
        self.of_time: nn.Sequential | None = None
        if num_time:
            self.of_time = nn.Sequential(
                nn.Linear(num_time, width),
                nn.Tanh(),
                nn.Linear(width, width),
                nn.Tanh(),
                nn.Linear(width, sum(self.sizes)),
            )
            self._forget_time()

    def coefficients(self, features: Tensor, time_features: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\mu` ``(*batch, d)`` and :math:`L`, ``(*batch, d, d)`` or, for one time only, ``(d, d)``."""
        slope, offset, log_diagonal, off_diagonal = self.slope, self.offset, self.log_diagonal, self.off_diagonal
        if self.of_time is not None:
            change = self.of_time(time_features).split(self.sizes, -1)
            slope = slope + change[0].unflatten(-1, slope.shape)
            offset, log_diagonal = offset + change[1], log_diagonal + change[2]
            off_diagonal = off_diagonal + change[3]
        shift = (slope @ features.unsqueeze(-1)).squeeze(-1) if slope.dim() > 2 else features @ slope.T
        lower = torch.diag_embed(log_diagonal.exp())
        if self.dim > 1:
            strict = torch.zeros_like(lower)
            strict[..., self.below[0], self.below[1]] = off_diagonal
            lower = lower + strict
        return shift + offset, lower

    def forward(self, w: Tensor, shift: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
        r"""``(*batch, d)`` to :math:`\mu + L w` and :math:`\log\det L`, which broadcasts to ``(*batch)``."""
        product = w @ lower.T if lower.dim() == 2 else (lower @ w.unsqueeze(-1)).squeeze(-1)
        return shift + product, lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def inverse(self, u: Tensor, shift: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`L^{-1}(u - \mu)` and :math:`-\log\det L`."""
        ladj = -lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        r = u - shift
        if self.dim == 1:
            return r / lower[..., 0], ladj
        if lower.dim() == 2:
            flat = torch.linalg.solve_triangular(lower.T, r.reshape(-1, self.dim), left=False, upper=True)
            return flat.reshape(r.shape), ladj
        return torch.linalg.solve_triangular(lower, r.unsqueeze(-1), upper=False).squeeze(-1), ladj

    @torch.no_grad()
    def regress(self, features: Tensor, u: Tensor) -> None:
        r"""Be the least-squares fit of u ``(n, d)`` on f ``(n, num_linear)`` and of its residuals, at all times."""
        self._forget_time()
        design = torch.cat([features, features.new_ones(len(features), 1)], -1).double()
        target = u.double()
        solution = torch.linalg.lstsq(design, target, driver="gelsd").solution
        residual = target - design @ solution
        variance = target.var(0).clamp_min(torch.finfo(torch.float32).eps)
        covariance = residual.T @ residual / len(residual) + torch.diag(1e-6 * variance)
        lower = torch.linalg.cholesky(covariance)
        self.slope.copy_(solution[:-1].T)
        self.offset.copy_(solution[-1])
        self.log_diagonal.copy_(lower.diagonal().log())
        self.off_diagonal.copy_(lower[self.below[0], self.below[1]])

    def _forget_time(self) -> None:
        if self.of_time is not None:
            last = self.of_time[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
