"""Monotone rational-quadratic splines whose coefficients come from a network, value and derivative in one pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["num_spline_parameters", "rational_quadratic_spline"]

_FLOOR = 0.05
"""Share of the bins' widths and heights that is spread evenly; the steepest bin has the slope K (1 - floor) / floor."""
_LARGEST = 4.0
_LEAST_SLOPE = 0.01
_UNIT_SLOPE = math.log(math.expm1(1.0 - _LEAST_SLOPE))


def num_spline_parameters(num_bins: int) -> int:
    """Numbers that describe one spline: widths and heights of its bins, and the slopes at its inner knots."""
    return 3 * num_bins - 1


def rational_quadratic_spline(
    x: Tensor, parameters: Tensor, bound: float, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    r"""A monotone spline of each number: rational-quadratic on :math:`[-B, B]`, the identity outside.

    In the bin :math:`[x_k, x_{k+1}]` of height :math:`h`, mean slope :math:`s` and slopes :math:`d_0, d_1` at its ends,
    with :math:`\theta = (x - x_k) / (x_{k+1} - x_k)`,

    .. math::
        y = y_k + h\, \frac{s\theta^2 + d_0\theta(1-\theta)}{s + (d_0 + d_1 - 2s)\,\theta(1-\theta)}, \qquad
        \frac{dy}{dx} = s^2\, \frac{d_1\theta^2 + 2s\theta(1-\theta) + d_0(1-\theta)^2}
                              {(s + (d_0 + d_1 - 2s)\,\theta(1-\theta))^2} .

    The inverse solves a quadratic equation. The slope at :math:`\pm B` is one. All parameters zero is the identity.

    :param x: numbers ``(*shape)``; with ``inverse``, values of the spline.
    :param parameters: unconstrained ``(*shape, 3 K - 1)``: K widths, K heights, K - 1 slopes.
    :param bound: :math:`B > 0`.
    :returns: y (with ``inverse``, x) and the logarithm of the derivative of what was computed, both ``(*shape)``.

    Source: Durkan et al., arXiv 1906.04032, equations 4 to 8; Gregory and Delbourgo (1982).

    >>> x, parameters = torch.randn(5), torch.randn(5, num_spline_parameters(8))
    >>> y, ladj = rational_quadratic_spline(x, parameters, 3.0)
    >>> back, inverse_ladj = rational_quadratic_spline(y, parameters, 3.0, inverse=True)
    >>> torch.allclose(back, x, atol=1e-5), torch.allclose(ladj, -inverse_ladj, atol=1e-4)
    (True, True)
    """
    num_bins = (parameters.shape[-1] + 1) // 3
    # Horizontal and vertical knots side by side: (*shape, 2, K + 1), then those at both ends of the bin.
    # A softmax over so few numbers is slow; sizes between e^-4 and e^4 need no shift either.
    sizes = (_LARGEST * (parameters[..., : 2 * num_bins] / _LARGEST).tanh()).exp().unflatten(-1, (2, num_bins))
    ends = sizes.cumsum(-1)
    inner = ends[..., :-1] * (2.0 * bound * (1.0 - _FLOOR) / ends[..., -1:]) + _even_knots(num_bins, bound, x)
    knots = functional.pad(functional.pad(inner, (1, 0), value=-bound), (0, 1), value=bound)
    slopes = _LEAST_SLOPE + functional.softplus(parameters[..., 2 * num_bins :] + _UNIT_SLOPE)
    slopes = functional.pad(slopes, (1, 1), value=1.0)

    inside = x.clamp(-bound, bound)
    side = 1 if inverse else 0
    bin_index = (inside.unsqueeze(-1) >= inner[..., side, :]).sum(-1, keepdim=True)
    both = bin_index.unsqueeze(-2).expand(*bin_index.shape[:-1], 2, 1)
    low_x, low_y = knots.gather(-1, both).squeeze(-1).unbind(-1)
    high_x, high_y = knots.gather(-1, both + 1).squeeze(-1).unbind(-1)
    slope_0 = slopes.gather(-1, bin_index).squeeze(-1)
    slope_1 = slopes.gather(-1, bin_index + 1).squeeze(-1)

    width, height = high_x - low_x, high_y - low_y
    mean_slope = height / width
    curvature = slope_0 + slope_1 - 2.0 * mean_slope
    if inverse:
        rise = inside - low_y
        bend = rise * curvature
        b = height * slope_0 - bend
        discriminant = b.square() + 4.0 * (height * (mean_slope - slope_0) + bend) * mean_slope * rise
        theta = 2.0 * mean_slope * rise / (b + discriminant.clamp_min(0.0).sqrt())
    else:
        theta = (inside - low_x) / width
    mixed = theta * (1.0 - theta)
    denominator = mean_slope + curvature * mixed
    slope = slope_1 * theta.square() + 2.0 * mean_slope * mixed + slope_0 * (1.0 - theta).square()
    ladj = 2.0 * (mean_slope / denominator).log() + slope.log()
    if inverse:
        value, ladj = low_x + theta * width, -ladj
    else:
        value = low_y + height * (mean_slope * theta.square() + slope_0 * mixed) / denominator
    outside = x.abs() > bound
    return torch.where(outside, x, value), ladj.masked_fill(outside, 0.0)


def _even_knots(num_bins: int, bound: float, like: Tensor) -> Tensor:
    """The inner knots of the evenly spread share, lower end included."""
    return torch.linspace(-bound, bound * (2.0 * _FLOOR - 1.0), num_bins + 1, dtype=like.dtype, device=like.device)[
        1:-1
    ]
