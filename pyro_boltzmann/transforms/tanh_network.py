"""A tanh network of a context and a vector, with its Jacobian in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.transforms.tanh_log_det import CHUNK, TanhLogDet, hidden_values, transposed_jacobian

__all__ = ["ConditionalMap", "TanhNetwork"]


class ConditionalMap(nn.Module):
    """A map of vectors that depends on a context, :math:`z = f(c, y)`, and knows its Jacobian in y.

    Subclasses implement :meth:`forward` and :meth:`value_and_jacobian`; :meth:`value_and_log_det` follows. Contexts are
    ``(rows, context_dim)``, vectors ``(rows, dim)``.
    """

    def forward(self, context: Tensor, y: Tensor) -> Tensor:
        """Values ``(rows, dim)``."""
        raise NotImplementedError

    def value_and_jacobian(self, context: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        r"""Values and :math:`J_{ij} = \partial z_i/\partial y_j`, ``(rows, dim, dim)``."""
        raise NotImplementedError

    def value_and_log_det(self, context: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Values, :math:`\log|\det J|` and the sign of the determinant, both ``(rows,)``."""
        values, jacobian = self.value_and_jacobian(context, y)
        sign, log_abs_det = torch.linalg.slogdet(jacobian)
        return values, log_abs_det, sign


class TanhNetwork(ConditionalMap):
    r"""Linear layers with tanh between them, of a context c and a vector y of the dimension of the values:

    .. math:: z = W_L \tanh(\dots \tanh(W_1 (c, y) + b_1) \dots) + b_L, \qquad
        J = \frac{\partial z}{\partial y} = W_L D_{L-1} W_{L-1} \cdots D_1 W_{1,y}, \quad
        D_k = \mathrm{diag}(1 - \tanh^2) .

    The product runs from the right, over all rows at once: ``dim`` further rows a row in each matrix product.
    :meth:`value_and_log_det` has a backward pass by hand, which does not build the graph of the Jacobian (and cannot be
    differentiated twice; :meth:`value_and_jacobian` can).

    :param context_dim: dimension of c; 0 for none.
    :param dim: dimension of y and z.
    :param hidden_dims: widths of the hidden layers; none makes the map affine.
    :param skip: add y to the values, and the identity to the Jacobian.
    :param probes: estimate the gradient of the log-determinant from this many random vectors a row; ``None`` for the
        exact gradient. Values are exact either way.
    :raises ValueError: for a dimension, width or number of probes that is not positive.

    >>> network = TanhNetwork(2, 3, hidden_dims=[16, 16])
    >>> z, log_abs_det, sign = network.value_and_log_det(torch.randn(5, 2), torch.randn(5, 3))
    >>> z.shape, log_abs_det.shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        context_dim: int,
        dim: int,
        hidden_dims: Sequence[int] = (512, 512),
        *,
        skip: bool = False,
        probes: int | None = None,
    ) -> None:
        super().__init__()
        if context_dim < 0 or dim < 1 or any(width < 1 for width in hidden_dims):
            raise ValueError(
                "a tanh network needs context_dim >= 0, dim >= 1 and positive widths, got "
                f"context_dim={context_dim}, dim={dim}, hidden_dims={tuple(hidden_dims)}"
            )
        if probes is not None and probes < 1:
            raise ValueError(f"probes must be positive, or None for the exact gradient; got {probes}")
        self.context_dim, self.dim, self.skip, self.probes = int(context_dim), int(dim), bool(skip), probes
        sizes = [self.context_dim + self.dim, *hidden_dims, self.dim]
        self.layers = nn.ModuleList(nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(sizes))

    def forward(self, context: Tensor, y: Tensor) -> Tensor:
        values = hidden_values(self._inputs(context, y), self._weights_and_biases())[1]
        return values + y if self.skip else values

    def value_and_jacobian(self, context: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        parameters = self._weights_and_biases()
        hidden, values = hidden_values(self._inputs(context, y), parameters)
        transposed, _ = transposed_jacobian(hidden, parameters[::2], self.dim, self.skip)
        return values + y if self.skip else values, transposed.expand(len(y), -1, -1).mT

    def value_and_log_det(self, context: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inputs, parameters = self._inputs(context, y), self._weights_and_biases()
        settings = (self.dim, self.skip, self.probes)
        # Without a graph the tangents of a large batch need not be kept.
        rows = len(inputs) if torch.is_grad_enabled() else max(1, 4 * CHUNK // self.dim)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for part in inputs.split(max(rows, 1)):
            parts.append(TanhLogDet.apply(part, *settings, *parameters))  # type: ignore[no-untyped-call]
        if len(parts) == 1:
            return parts[0]
        values, log_abs_dets, signs = zip(*parts, strict=True)
        return torch.cat(values), torch.cat(log_abs_dets), torch.cat(signs)

    def _inputs(self, context: Tensor, y: Tensor) -> Tensor:
        if context.shape != (len(y), self.context_dim) or y.shape[1:] != (self.dim,):
            raise ShapeError(
                f"a tanh network expects contexts (rows, {self.context_dim}) and vectors (rows, {self.dim}), got "
                f"{tuple(context.shape)} and {tuple(y.shape)}"
            )
        return torch.cat([context, y], 1)

    def _weights_and_biases(self) -> list[Tensor]:
        return [parameter for layer in self.layers for parameter in layer.parameters()]

    def extra_repr(self) -> str:
        return f"skip={self.skip}, probes={self.probes}"
