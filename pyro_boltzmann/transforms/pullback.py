"""The energy as the base of a flow sees it: a target that a trained flow has made simple."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from pyro_boltzmann.energies.held import HeldEnergy
from pyro_boltzmann.transforms.ladj import call_and_ladj

__all__ = ["PullbackEnergy"]


class PullbackEnergy:
    r"""The energy of the law whose image under flow layers :math:`F` is the target,

    .. math:: u_F(z) = u(F(z)) - \log |\det \partial F / \partial z| .

    Where the flow is a good approximation, :math:`u_F` is close to the energy of its base: steps *before* the flow,
    annealed from the base to :math:`u_F`, meet none of the scales and correlations of the target. They only need the
    layers in the direction of sampling, which for inverse autoregressive flows is the fast one. It has the normalising
    constant of the target.

    :param energy: the target's :math:`u`, ``(*batch, dim) -> (*batch)``.
    :param transforms: the layers, in the order in which z meets them; deterministic ones only.

    Source: Hoffman et al., NeuTra-lizing bad geometry in Hamiltonian Monte Carlo, arXiv 1903.03704, section 3.

    >>> import torch, pyro.distributions.transforms as T
    >>> energy = PullbackEnergy(lambda x: 0.125 * x.square().sum(-1), [T.AffineTransform(0.0, 2.0)])
    >>> float(energy(torch.ones(1)))  # 1/2 - log 2
    -0.193147...
    """

    copies_with_path = True
    """``deepcopy`` of a path copies this energy with it, so that it follows the copied layers."""

    def __init__(self, energy: Callable[[Tensor], Tensor], transforms: Sequence[Any]) -> None:
        self.energy = HeldEnergy(energy)  # shared between copies, unless it belongs to the path itself
        self.transforms = list(transforms)

    @property
    def is_local(self) -> bool:
        """Whether rows of a batch belong to data of their own."""
        return self.energy.is_local

    def __call__(self, z: Tensor) -> Tensor:
        ladj = z.new_zeros(z.shape[:-1])
        for transform in self.transforms:
            z, step = call_and_ladj(transform, z)
            ladj = ladj + step
        return self.energy(z) - ladj
