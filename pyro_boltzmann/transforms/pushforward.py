"""The energy of what a flow makes of its base: a reference that already looks like the target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from pyro_boltzmann.transforms.ladj import inverse_and_ladj

__all__ = ["PushforwardEnergy"]


class PushforwardEnergy:
    r"""The energy of the density that flow layers :math:`F` make of a base with energy :math:`u_0`,

    .. math:: u_q(x) = u_0(F^{-1}(x)) - \log |\det \partial F^{-1} / \partial x| .

    As the reference of an :class:`~pyro_boltzmann.AnnealedEnergy` it lets the stochastic blocks behind a flow anneal
    from the *flow's own density* to the target. Those blocks only have to mend what the flow got wrong, which takes
    few steps: annealing from the base instead would undo the flow first.

    :param base: :math:`u_0`, ``(*batch, dim) -> (*batch)``, the normalised energy of the path's base.
    :param transforms: the layers, in the order in which x meets them; deterministic ones only.

    Source: Arbel, Matthews and Doucet, Annealed flow transport Monte Carlo, arXiv 2102.07501 (annealing behind learned
    transports); the reference density used here is Midgley et al., arXiv 2208.01893, section 3.

    >>> import torch, pyro.distributions.transforms as T
    >>> from pyro_boltzmann import NormalEnergy
    >>> energy = PushforwardEnergy(NormalEnergy(), [T.AffineTransform(1.0, 2.0)])
    >>> float(energy(torch.ones(1)))  # log 2 + log(2 pi) / 2 at the mean
    1.612085...
    """

    is_reference = True

    copies_with_path = True
    """``deepcopy`` of a path copies this energy with it, so that it follows the copied layers."""

    def __init__(self, base: Callable[[Tensor], Tensor], transforms: Sequence[Any]) -> None:
        self.base = base
        self.transforms = list(transforms)

    def __call__(self, x: Tensor) -> Tensor:
        ladj = x.new_zeros(x.shape[:-1])
        for transform in reversed(self.transforms):
            x, step = inverse_and_ladj(transform, x)
            ladj = ladj + step
        return self.base(x) - ladj
