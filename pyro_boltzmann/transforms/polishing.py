"""Newton's method for z = h(c, y): an inverse where only the map is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_boltzmann.transforms.tanh_network import ConditionalMap

__all__ = ["PolishResult", "polish"]

SMALLEST_STEP = 2.0**-10


@dataclass(frozen=True)
class PolishResult:
    r"""Solutions of :math:`h(c, y) = z`, and which of them are none.

    :ivar y: ``(*batch, dim)``; where :attr:`accepted` is false, the last iterate, which follows no density.
    :ivar converged: ``(*batch)``: whether the residual is below the tolerance.
    :ivar is_fold: ``(*batch)``: whether the determinant at y has the sign of the minority, so that h folds there and z
        has other solutions.
    :ivar residual: ``(*batch)``: the largest component of :math:`|h(c, y) - z|`.
    :ivar evaluations: evaluations of h, each over the rows that were not done.
    """

    y: Tensor
    converged: Tensor
    is_fold: Tensor
    residual: Tensor
    evaluations: int

    @property
    def accepted(self) -> Tensor:
        """Converged, and not in a fold."""
        return self.converged & ~self.is_fold

    @property
    def num_failed(self) -> int:
        """Rows that did not converge."""
        return int((~self.converged).sum())

    @property
    def num_folds(self) -> int:
        """Converged rows in a fold."""
        return int((self.converged & self.is_fold).sum())


@torch.no_grad()
def polish(
    h: ConditionalMap,
    context: Tensor,
    z: Tensor,
    start: Tensor,
    *,
    orientation: int = 0,
    tolerance: float | None = None,
    max_evaluations: int = 30,
) -> PolishResult:
    r"""Solve :math:`h(c, y) = z` for each row by damped Newton steps :math:`y - \alpha J^{-1} (h(c, y) - z)`.

    A step that does not reduce the residual is halved; a step that does is followed by a full one. Each evaluation of h
    is one trial for all rows that are not done.

    :param h: the map, whose Jacobian in y is :math:`J`.
    :param context: ``(rows, context_dim)``.
    :param z: ``(rows, dim)``.
    :param start: first iterate, ``(rows, dim)``.
    :param orientation: the sign that the determinant has where h does not fold; 0 for that of most rows.
    :param tolerance: largest residual of a row that converged; by default 1e-9 in double precision and 1e-5 in single.
    :param max_evaluations: trials.
    :return: with y of shape ``(rows, dim)``.

    >>> from pyro_boltzmann.transforms import TanhNetwork
    >>> h = TanhNetwork(1, 2, hidden_dims=[8], skip=True).double()
    >>> c, z = torch.zeros(5, 1).double(), torch.randn(5, 2).double()
    >>> result = polish(h, c, z, start=z)
    >>> bool(result.converged.all()), bool((h(c, result.y) - z).abs().max() < 1e-9)
    (True, True)
    """
    if tolerance is None:
        tolerance = 1e-9 if z.dtype == torch.float64 else 1e-5
    y = start.clone()
    values, jacobian = h.value_and_jacobian(context, y)
    difference = values - z
    residual = _size(difference)
    step = torch.linalg.solve_ex(jacobian, difference)[0]
    sign = torch.linalg.slogdet(jacobian)[0]
    damping = torch.ones_like(residual)
    evaluations = 1
    while evaluations < max_evaluations:
        active = ((residual > tolerance) & (damping > SMALLEST_STEP)).nonzero()[:, 0]
        if not len(active):
            break
        trial = y[active] - damping[active, None] * step[active]
        values, jacobian = h.value_and_jacobian(context[active], trial)
        evaluations += 1
        difference = values - z[active]
        size = _size(difference)
        better = size < residual[active]
        damping[active] = torch.where(better, 1.0, 0.5 * damping[active])
        kept = active[better]
        y[kept], residual[kept] = trial[better], size[better]
        step[kept] = torch.linalg.solve_ex(jacobian[better], difference[better])[0]
        sign[kept] = torch.linalg.slogdet(jacobian[better])[0]
    converged = residual <= tolerance
    usual = orientation or (1.0 if float(sign[converged].sum()) >= 0.0 else -1.0)
    return PolishResult(y, converged, sign != usual, residual, evaluations)


def _size(difference: Tensor) -> Tensor:
    """The largest component; infinite where there is a NaN."""
    return difference.abs().amax(-1).nan_to_num(nan=torch.inf)
