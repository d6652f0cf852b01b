"""Value and log-determinant of a tanh network, with a backward pass written by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["TanhLogDet", "hidden_values", "transposed_jacobian"]

CHUNK = 2048
"""Tangents (rows times dimension) that are pushed through together: few enough to stay in a core's cache."""


class TanhLogDet(torch.autograd.Function):
    r"""The value z of a tanh network, :math:`\log|\det J|` and the sign of :math:`\det J`, where
    :math:`J = \partial z/\partial y`, for each row.

    With hidden values :math:`t_k = \tanh(W_k t_{k-1} + b_k)` and :math:`D_k = \mathrm{diag}(1 - t_k^2)`, the tangents
    are :math:`T_k = D_k W_k T_{k-1}` and :math:`J = W_L T_{L-1}`. Since
    :math:`d\log|\det J| = \operatorname{tr}(J^{-1} dJ)`, its gradient runs back through them from
    :math:`U_{L-1} = W_L^\top J^{-\top}` by :math:`U_{k-1} = W_k^\top D_k U_k`:

    .. math:: \nabla_{W_k} = D_k U_k T_{k-1}^\top, \qquad
        \nabla_{W_k t_{k-1} + b_k} = -2\, t_k \odot \textstyle\sum_b (U_k \odot T_k)_{\cdot b} .

    These are two matrix products for each one of the forward pass, and there is no graph of the Jacobian. Tangents are
    kept transposed, ``(rows, dim, width)``, so that each product is a single one over ``rows * dim`` rows.

    With ``probes`` the gradient of the log-determinant, not its value, is estimated without bias from that many
    vectors :math:`q` of random signs a row: :math:`\operatorname{tr}(J^{-1} dJ) = \mathbb E[q^\top J^{-1} dJ\, q]`
    (Hutchinson 1990). The backward pass then costs ``probes / dim`` of its price.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, dim: int, skip: bool, probes: int | None, *parameters: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs ``(rows, context_dim + dim)``; ``parameters`` are weights and biases in turn."""
        weights = parameters[::2]
        hidden, values = hidden_values(inputs, parameters)
        if skip:
            values = values + inputs[:, -dim:]
        pieces, kept = [], []
        for rows in _chunks(len(inputs), dim):
            piece, tangents = transposed_jacobian([t[rows] for t in hidden], weights, dim, skip)
            pieces.append(piece.expand(rows.stop - rows.start, -1, -1))
            kept += tangents
        transposed = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        sign, log_abs_det = torch.linalg.slogdet(transposed.mT)
        ctx.save_for_backward(inputs, transposed, *parameters, *hidden, *kept)
        ctx.dim, ctx.skip, ctx.probes, ctx.num_parameters = dim, skip, probes, len(parameters)
        ctx.mark_non_differentiable(sign)
        return values, log_abs_det, sign

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_values: Tensor, grad_log_det: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        inputs, transposed, *saved = ctx.saved_tensors
        dim, parameters = ctx.dim, saved[: ctx.num_parameters]
        weights = parameters[::2]
        depth = len(weights) - 1
        hidden, kept = saved[len(parameters) :][:depth], saved[len(parameters) + depth :]
        cotangents = torch.linalg.inv_ex(transposed.mT)[0] * grad_log_det[:, None, None]
        of_weights = [torch.zeros_like(weight) for weight in weights]
        bends = [torch.empty_like(t) for t in hidden]
        for number, rows in enumerate(_chunks(len(inputs), dim)):
            tangents, cotangent = kept[depth * number : depth * (number + 1)], cotangents[rows]
            signs = None
            if ctx.probes is not None:
                signs = torch.randint(2, (len(cotangent), ctx.probes, dim), device=inputs.device)
                signs = signs.to(inputs.dtype).mul_(2.0).sub_(1.0)
                cotangent = signs @ cotangent / ctx.probes
                tangents = [signs @ tangent for tangent in tangents]
            for layer in range(depth, 0, -1):
                tangent, t = tangents[layer - 1], hidden[layer - 1][rows]
                of_weights[layer].addmm_(cotangent.flatten(0, 1).mT, tangent.flatten(0, 1))
                cotangent = cotangent @ weights[layer]
                bends[layer - 1][rows] = (cotangent * tangent).sum(1).mul_(t).mul_(-2.0)
                cotangent.mul_((1.0 - t.square()).unsqueeze(1))
            of_y = of_weights[0][:, -dim:]
            if signs is None:
                of_y += cotangent.sum(0).mT
            else:
                of_y += cotangent.flatten(0, 1).mT @ signs.flatten(0, 1)
        gradients: list[Tensor] = []
        through = grad_values
        for layer in range(depth, -1, -1):
            before = hidden[layer - 1] if layer else inputs
            gradients[:0] = [of_weights[layer].addmm_(through.mT, before), through.sum(0)]
            if layer or ctx.needs_input_grad[0]:
                through = through @ weights[layer]
            if layer:
                through.mul_(1.0 - before.square()).add_(bends[layer - 1])
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, *gradients
        if ctx.skip:
            through[:, -dim:] += grad_values
        return through, None, None, None, *gradients


def hidden_values(inputs: Tensor, parameters: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The values ``(rows, width)`` of the hidden layers, and those of the last."""
    values, hidden = inputs, []
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        values = torch.addmm(bias, values, weight.mT).tanh()
        hidden.append(values)
    return hidden, torch.addmm(parameters[-1], values, parameters[-2].mT)


def transposed_jacobian(
    hidden: Sequence[Tensor], weights: Sequence[Tensor], dim: int, skip: bool
) -> tuple[Tensor, list[Tensor]]:
    r""":math:`J^\top`, ``(rows, dim, dim)`` with the inputs first, and the tangents behind each hidden layer, each
    ``(rows, dim, width)``."""
    tangent, tangents = weights[0][:, -dim:].mT.contiguous().unsqueeze(0), []
    for values, weight in zip(hidden, weights[1:], strict=True):
        tangent = tangent * (1.0 - values.square()).unsqueeze(1)
        tangents.append(tangent)
        tangent = tangent @ weight.mT
    if skip:
        tangent = tangent + torch.eye(dim, dtype=tangent.dtype, device=tangent.device)
    return tangent, tangents


def _chunks(rows: int, dim: int) -> Iterator[slice]:
    size = max(1, CHUNK // dim)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))
