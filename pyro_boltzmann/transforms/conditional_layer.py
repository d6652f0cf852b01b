"""A conditional transform as a layer of a path."""

from __future__ import annotations

from typing import Any

from pyro.distributions.conditional import ConditionalTransform
from torch import Tensor, nn

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.transforms.fused import FusedTransform
from pyro_boltzmann.transforms.ladj import call_and_ladj, inverse_and_ladj

__all__ = ["ConditionalLayer", "set_context"]


class ConditionalLayer(FusedTransform):
    r"""A conditional transform of Pyro, :math:`y = F(x; h)`, at the context :math:`h` that it was given last.

    Each datum has a context of its own, and states broadcast against it: ``h`` is ``(*data, context_dim)``, ``x`` is
    ``(*particles, *data, dim)``. A :class:`~pyro_boltzmann.stochastic.PathTransform` wraps conditional transforms in
    layers by itself; wrap them by hand to use the same one in an energy, such as
    :class:`~pyro_boltzmann.transforms.PullbackEnergy`.

    :param conditional: for example ``T.conditional_affine_autoregressive(dim, context_dim)``.
    :raises TypeError: if it is not a conditional transform.

    >>> import torch, pyro.distributions.transforms as T
    >>> layer = ConditionalLayer(T.conditional_affine_coupling(4, 3, hidden_dims=[8]))
    >>> layer.set_context(torch.randn(5, 3))
    >>> y, ladj = layer.call_and_ladj(torch.randn(7, 5, 4))
    >>> y.shape, ladj.shape
    (torch.Size([7, 5, 4]), torch.Size([7, 5]))
    """

    def __init__(self, conditional: Any, *, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)
        if not isinstance(conditional, ConditionalTransform):
            raise TypeError(
                "ConditionalLayer needs a conditional transform, such as T.conditional_affine_autoregressive(dim, "
                f"context_dim); got {type(conditional).__name__}"
            )
        if isinstance(conditional, nn.Module):
            self.conditional = conditional
        else:
            self._plain = [conditional]
        # A list keeps the conditioned transform, which shares the parameters, out of the module tree.
        self._conditioned: list[Any] = []

    def set_context(self, context: Tensor | None) -> None:
        """Condition on ``context`` ``(*data, context_dim)`` from now on; ``None`` forgets the old one."""
        self.clear_cache()
        conditional = self.conditional if "conditional" in self._modules else self._plain[0]
        self._conditioned = [] if context is None else [conditional.condition(context)]

    def check_width(self, x: Tensor) -> None:
        """Conditional transforms do not tell their dimension; they check it themselves."""

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return call_and_ladj(self._current(), x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return inverse_and_ladj(self._current(), y)

    def _current(self) -> Any:
        if not self._conditioned:
            raise ShapeError(
                "a conditional layer was used without a context; call path.set_context(context) first, or let the "
                "encoder of an amortised guide return (loc, scale, context)"
            )
        return self._conditioned[0]

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["_conditioned"] = []
        return state


def set_context(module: nn.Module, context: Tensor | None) -> None:
    """Give every conditional layer in a module its context."""
    for part in module.modules():
        if isinstance(part, ConditionalLayer):
            part.set_context(context)
