"""Energies between a reference and a target: one position, or a learnable monotone ladder of them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from pyro_boltzmann.energies.evaluation import Energy, energy_value

__all__ = ["AnnealedEnergy", "AnnealingLadder"]


class AnnealedEnergy(nn.Module):
    r"""Linear interpolation of a reference and a target energy,

    .. math:: u_\lambda(x) = (1 - \lambda)\, u_0(x) + \lambda\, u(x), \qquad 0 \le \lambda \le 1.

    At :math:`\lambda = 0` it is the reference alone and at :math:`\lambda = 1` the target alone: the other energy is
    not evaluated, so :math:`0 \cdot \infty` never appears.

    :param reference: the energy :math:`u_0`, ``(*batch, dim) -> (*batch)``.
    :param target: the energy :math:`u`; neither is registered as a submodule.
    :param position: the fixed :math:`\lambda`, or the initial one when ``learnable``.
    :param learnable: learn :math:`\lambda` through its logit.
    :raises ValueError: if ``position`` lies outside [0, 1], or on its border when learnable.

    Source: Wu, Koehler and Noe, arXiv 2002.06707, section 4 (annealed intermediate potentials).

    >>> reference = lambda x: 0.5 * x.square().sum(-1)
    >>> wall = lambda x: torch.full(x.shape[:-1], float("inf"))
    >>> AnnealedEnergy(reference, wall, 0.0)(torch.ones(2, 3))
    tensor([1.5000, 1.5000])
    """

    def __init__(self, reference: Energy, target: Energy, position: float, *, learnable: bool = False) -> None:
        super().__init__()
        low_is_legal = 0.0 < position < 1.0 if learnable else 0.0 <= position <= 1.0
        if not low_is_legal:
            interval = "(0, 1)" if learnable else "[0, 1]"
            raise ValueError(f"the annealing position must lie in {interval}, got {position}")
        # Lists hide nn.Module energies from the module tree.
        self._ends = [reference, target]
        self._fixed: float | None = None if learnable else float(position)
        self._ladder: AnnealingLadder | None = None
        self._rung = 0
        if learnable:
            self.logit = nn.Parameter(torch.logit(torch.tensor(float(position))))

    @property
    def position(self) -> float | Tensor:
        r"""The current :math:`\lambda`: a float when fixed, a differentiable scalar when learned."""
        if self._fixed is not None:
            return self._fixed
        if self._ladder is not None:
            return self._ladder.positions[self._rung]
        return self.logit.sigmoid()

    @property
    def is_local(self) -> bool:
        """Whether rows of a batch belong to data of their own."""
        return any(getattr(end, "is_local", False) for end in self._ends)

    def components(self) -> list[tuple[float | Tensor, Energy]]:
        """The coefficients and energies whose sum this is, without those whose coefficient is exactly zero."""
        position = self.position
        pairs = [(1.0 - position, self._ends[0]), (position, self._ends[1])]
        return [(c, e) for c, e in pairs if isinstance(c, Tensor) or c != 0.0]

    def forward(self, x: Tensor) -> Tensor:
        return combine([(c, energy_value(e, x)) for c, e in self.components()])

    def extra_repr(self) -> str:
        position = self.position
        return f"position={float(position):.4g}, learnable={isinstance(position, Tensor)}"

    def __deepcopy__(self, memo: dict[int, Any]) -> AnnealedEnergy:
        clone = type(self).__new__(type(self))
        nn.Module.__init__(clone)
        memo[id(self)] = clone
        clone._ends, clone._fixed, clone._rung = _copy_ends(self._ends, memo), self._fixed, self._rung
        clone._ladder = deepcopy(self._ladder, memo)
        if "logit" in self._parameters:
            clone.logit = deepcopy(self.logit, memo)
        return clone


class AnnealingLadder(nn.Module):
    r"""A monotone ladder :math:`0 < \lambda_1 < \dots < \lambda_K = 1` (or fixed values) from reference to target.

    Learned positions are cumulative sums of a softmax, so they stay ordered; the last rung is the target itself.

    :param reference: :math:`u_0`.
    :param target: :math:`u`.
    :param num_rungs: the number K of energies.
    :param learnable: learn the gaps.

    >>> u = lambda x: x.square().sum(-1)
    >>> ladder = AnnealingLadder(u, u, 4)
    >>> [round(float(energy.position), 2) for energy in ladder]
    [0.25, 0.5, 0.75, 1.0]
    """

    def __init__(self, reference: Energy, target: Energy, num_rungs: int, *, learnable: bool = False) -> None:
        super().__init__()
        if num_rungs < 1:
            raise ValueError(f"a ladder needs at least one rung, got num_rungs={num_rungs}")
        self._ends = [reference, target]
        self.num_rungs = num_rungs
        self.gaps = nn.Parameter(torch.zeros(num_rungs), requires_grad=learnable)

    @property
    def positions(self) -> Tensor:
        """The ladder, shape ``(num_rungs,)``."""
        return self.gaps.softmax(0).cumsum(0)

    def __len__(self) -> int:
        return self.num_rungs

    def __getitem__(self, rung: int) -> AnnealedEnergy:
        if not -self.num_rungs <= rung < self.num_rungs:
            raise IndexError(f"rung {rung} of a ladder with {self.num_rungs} rungs")
        rung %= self.num_rungs
        # The last rung is exactly one by construction, whatever rounding does to the cumulative sum.
        is_last = rung == self.num_rungs - 1
        fixed = 1.0 if is_last else (rung + 1) / self.num_rungs
        energy = AnnealedEnergy(self._ends[0], self._ends[1], fixed)
        if self.gaps.requires_grad and not is_last:
            energy._fixed, energy._rung = None, rung
            energy._ladder = self
        return energy

    def __deepcopy__(self, memo: dict[int, Any]) -> AnnealingLadder:
        ends = _copy_ends(self._ends, memo)
        clone = AnnealingLadder(ends[0], ends[1], self.num_rungs, learnable=self.gaps.requires_grad)
        memo[id(self)] = clone
        with torch.no_grad():
            clone.gaps = nn.Parameter(self.gaps.detach().clone(), requires_grad=self.gaps.requires_grad)
        return clone


def _copy_ends(ends: list[Energy], memo: dict[int, Any]) -> list[Energy]:
    """Energies are shared between copies, except those made of the path's own layers."""
    return [deepcopy(end, memo) if getattr(end, "copies_with_path", False) else end for end in ends]


def combine(terms: list[tuple[float | Tensor, Tensor]]) -> Tensor:
    """Sum of coefficient times tensor; a coefficient that underflowed to zero drops its term even where it is inf."""
    total: Tensor | None = None
    for coefficient, tensor in terms:
        if isinstance(coefficient, Tensor):
            is_zero = coefficient == 0
            term = torch.where(is_zero, torch.zeros_like(tensor), tensor) * coefficient
        elif coefficient == 1.0:
            term = tensor
        else:
            term = tensor * coefficient
        total = term if total is None else total + term
    if total is None:
        raise ValueError("an energy needs at least one component")
    return total
