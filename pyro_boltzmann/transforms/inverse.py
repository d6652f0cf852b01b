"""A trainable inverse."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pyro_boltzmann.transforms.fused import FusedTransform
from pyro_boltzmann.transforms.ladj import call_and_ladj, inverse_and_ladj

__all__ = ["InverseTransform"]


class InverseTransform(FusedTransform):
    r"""The inverse of a transform, with its parameters registered.

    Pyro's ``transform.inv`` is a plain object: placed in a flow its parameters are invisible to optimisers and to
    ``state_dict``. This one is a module. Inside a :class:`~pyro_boltzmann.stochastic.PathTransform` it also inverts
    stochastic blocks, running their backward kernels forwards.

    :param base: the transform or block to invert.
    :param width: size of the last dimension; read from ``base`` when it knows it.

    >>> import torch, pyro.distributions.transforms as T
    >>> inverse = InverseTransform(T.Planar(2), width=2)
    >>> len(list(inverse.parameters()))
    3
    """

    def __init__(self, base: Any, *, width: int | None = None, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)
        known = getattr(base, "width", getattr(base, "input_dim", None))
        chosen = known if width is None else width
        self.width = -1 if chosen is None else int(chosen)
        if isinstance(base, nn.Module):
            self.base = base
        else:
            self._plain = [base]

    @property
    def inverted(self) -> Any:
        """The transform whose inverse this is."""
        return self.base if "base" in self._modules else self._plain[0]

    def check_width(self, x: Tensor) -> None:
        if self.width >= 0:
            super().check_width(x)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return inverse_and_ladj(self.inverted, x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return call_and_ladj(self.inverted, y)
