"""Energies that know their gradients by a formula."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ClosedForm"]


class ClosedForm:
    r"""Gives an energy the method ``energy_and_gradient(x)``: a formula where none of it is to be differentiated again,
    autograd where ``x`` is part of a graph.

    A subclass implements ``__call__`` with differentiable operations and :meth:`closed_form`.

    >>> class Bowl(ClosedForm):
    ...     def __call__(self, x):
    ...         return 0.5 * x.square().sum(-1)
    ...     def closed_form(self, x):
    ...         return self(x), x.clone()
    >>> Bowl().energy_and_gradient(torch.ones(1, 2))
    (tensor([1.]), tensor([[1., 1.]]))
    """

    def __call__(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must implement __call__(x), the energy of (*batch, dim)")

    def closed_form(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`u(x)` and :math:`\nabla u(x)` without a graph; gradient mode is off when this is called."""
        raise NotImplementedError(f"{type(self).__name__} must implement closed_form(x), the energy and its gradient")

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`u(x)` and :math:`\nabla u(x)`, of shapes ``(*batch)`` and ``(*batch, dim)``."""
        if keeps_graph(x):
            u = self(x)
            return u, torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        with torch.no_grad():
            return self.closed_form(x)


def keeps_graph(x: Tensor) -> bool:
    """Whether what is computed from ``x`` may be differentiated."""
    return torch.is_grad_enabled() and x.requires_grad
