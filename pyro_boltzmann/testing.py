"""Checks for people who write their own blocks: a bijection? with the right log-determinant? and honest weights?

Each check raises :class:`AssertionError` with the numbers it measured, and returns the number it compared. They run in
float64 on a copy of the block, so that rounding cannot hide a wrong formula.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from pyro_boltzmann.energies.evaluation import Energy, energy_value
from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.stochastic.block import StochasticBlock
from pyro_boltzmann.stochastic.metropolis import MetropolisAdjusted
from pyro_boltzmann.stochastic.noise import sample_part
from pyro_boltzmann.stochastic.path import PathTransform
from pyro_boltzmann.testing_symmetry import check_equivariance, check_invariance, is_equivariant, is_invariant
from pyro_boltzmann.transforms.ladj import call_and_ladj, inverse_and_ladj

__all__ = [
    "STANDARD_ERRORS",
    "check_block",
    "check_equilibrium",
    "check_equivariance",
    "check_gradients",
    "check_invariance",
    "check_ladj",
    "check_path_weight",
    "check_round_trip",
    "check_shapes",
    "check_unbiased",
    "is_equivariant",
    "is_invariant",
]

STANDARD_ERRORS = 4.5
"""How far a statistical check may be off: a right block fails one time in 150,000."""


def check_round_trip(
    block: Any, x: Tensor | None = None, *, dim: int | None = None, tolerance: float = 1e-10, seed: int = 0
) -> float:
    r"""Check :math:`f^{-1}(f(z)) = z`, :math:`f(f^{-1}(z)) = z`, and that both log-determinants cancel.

    :param block: a stochastic block, a path, or any transform of vectors. ``z`` is x, for the first two with noise.
    :param x: states ``(*batch, dim)`` to try; the default is 50 draws of a normal with standard deviation 1.5.
    :param dim: dimension of x, where the block does not know it.
    :param tolerance: of every coordinate.
    :return: the largest error.
    :raises AssertionError: with the errors found.

    >>> from pyro_boltzmann.stochastic import RandomWalkTransform
    >>> check_round_trip(RandomWalkTransform(2, scale=0.3)) < 1e-10
    True
    """
    block, z = _prepare(block, x, dim, seed)
    with torch.no_grad():
        y, ladj = call_and_ladj(block, z)
        back, ladj_back = inverse_and_ladj(block, y)
        before, ladj_before = inverse_and_ladj(block, z)
        again, ladj_again = call_and_ladj(block, before)
    errors = {
        "inverse(call(z)) - z": _largest(back - z),
        "call(inverse(z)) - z": _largest(again - z),
        "ladj + ladj of the inverse at call(z)": _largest(ladj + ladj_back),
        "ladj of the inverse + ladj at inverse(z)": _largest(ladj_before + ladj_again),
    }
    return _below(errors, tolerance, f"{_name(block)} is not inverted by its inverse")


def check_ladj(
    block: Any, x: Tensor | None = None, *, dim: int | None = None, tolerance: float = 1e-8, seed: int = 0
) -> float:
    r"""Check the log-determinants of both directions against ``slogdet`` of the Jacobian that autograd finds.

    The arguments are those of :func:`check_round_trip`; the default is four states, because the Jacobian of a path with
    much noise is large.

    >>> import torch, pyro.distributions.transforms as T
    >>> check_ladj(T.affine_autoregressive(3), dim=3) < 1e-8
    True
    """
    block, z = _prepare(block, x, dim, seed, count=4)
    errors = {}
    for name, function in (("call", call_and_ladj), ("inverse", inverse_and_ladj)):
        ladj = function(block, z)[1].detach()
        truth = torch.stack([_slogdet(function, block, one) for one in z.reshape(-1, z.shape[-1])])
        errors[f"{name}: ladj - slogdet"] = _largest(ladj.reshape(-1) - truth)
    return _below(errors, tolerance, f"the log-determinant of {_name(block)} is wrong")


def check_path_weight(
    block: StochasticBlock | PathTransform, x: Tensor | None = None, *, tolerance: float = 1e-9, seed: int = 0
) -> float:
    r"""Check that ``stream``, given the same random numbers, is the bijection: the same state, and

    .. math:: S = \log p(n') - \log p(n) + \log|\det|

    in both directions and in both grad modes. A backward stream reports S with the sign of the forward path.

    >>> from pyro_boltzmann.stochastic import LangevinTransform
    >>> check_path_weight(LangevinTransform(lambda x: x.pow(4).sum(-1), 2, 0.01)) < 1e-9
    True
    """
    block, z = _prepare(block, x, None, seed)
    start = z[..., : block.dim]
    errors = {}
    for inverse, grad in ((False, False), (False, True), (True, False), (True, True)):
        noise = _noise_as_streamed(block, start, inverse, grad, Generator().manual_seed(seed + 1))
        after, ladj = (inverse_and_ladj if inverse else call_and_ladj)(block, torch.cat([start, noise], -1))
        s = block.noise_log_prob(after[..., block.dim :]) - block.noise_log_prob(noise) + ladj
        with torch.set_grad_enabled(grad):
            streamed = block.stream(start, generator=Generator().manual_seed(seed + 1), inverse=inverse)
        label = f"{'backward' if inverse else 'forward'} stream, {'with' if grad else 'without'} gradients: "
        errors[label + "state"] = _largest(streamed.x - after[..., : block.dim])
        errors[label + "S"] = _largest((streamed.log_ratio - (-s if inverse else s)) / (1 + s.abs()))
    return _below(errors, tolerance, f"streaming {_name(block)} is not the bijection")


def check_shapes(block: Any, *, dim: int | None = None) -> None:
    """Check batch shapes ``()``, ``(3,)``, ``(2, 3)``, that float32 stays float32, and that a wrong width is refused.

    >>> import pyro.distributions.transforms as T
    >>> check_shapes(T.Planar(2), dim=2)
    """
    is_own = isinstance(block, StochasticBlock | PathTransform)
    for dtype in (torch.float32, torch.float64):
        for batch in ((), (3,), (2, 3)):
            one, z = _prepare(block, torch.zeros(*batch, _dim(block, dim), dtype=dtype), dim, 0, dtype=dtype)
            y, ladj = call_and_ladj(one, z)
            got = (tuple(y.shape), tuple(ladj.shape), y.dtype, ladj.dtype)
            expected = (tuple(z.shape), batch, dtype, dtype)
            assert got == expected, f"{_name(block)} on shape {tuple(z.shape)} gives {got}, expected {expected}"
    if is_own:
        try:
            block(torch.zeros(3, block.width + 1))
        except ShapeError:
            return
        raise AssertionError(f"{_name(block)} accepts vectors of width {block.width + 1}, its own is {block.width}")


def check_gradients(block: nn.Module, x: Tensor | None = None, *, dim: int | None = None, seed: int = 0) -> float:
    """Check that every learnable parameter receives a finite gradient that is not zero, from state and weight.

    :return: the smallest largest entry of a parameter's gradient (``inf`` for a block without parameters).

    >>> from pyro_boltzmann.stochastic import LangevinTransform
    >>> check_gradients(LangevinTransform(lambda x: x.pow(4).sum(-1), 2, 0.01, learnable=True)) > 0
    True
    """
    block, z = _prepare(block, x, dim, seed)
    y, ladj = call_and_ladj(block, z)
    # Random coefficients: a plain sum could cancel, and would miss what keeps it constant.
    coefficients = torch.randn(y.shape, dtype=y.dtype, generator=Generator().manual_seed(seed + 2))
    named = [(name, p) for name, p in block.named_parameters() if p.requires_grad]
    if not named:
        return math.inf
    loss = (coefficients * y).sum() + ladj.sum() + (coefficients * y).square().sum()
    gradients = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    sizes = {}
    for (name, _), gradient in zip(named, gradients, strict=True):
        assert gradient is not None, f"parameter {name!r} of {_name(block)} receives no gradient"
        assert bool(gradient.isfinite().all()), f"the gradient of {name!r} of {_name(block)} is not finite: {gradient}"
        sizes[name] = _largest(gradient)
        assert sizes[name] > 0, f"the gradient of {name!r} of {_name(block)} is zero"
    return min(sizes.values())


@torch.no_grad()
def check_unbiased(
    block: Any,
    energy: Energy,
    log_z: float | None = None,
    *,
    dim: int | None = None,
    base_loc: float | Tensor = 0.0,
    base_scale: float = 1.5,
    num_samples: int = 50_000,
    seed: int = 0,
) -> float:
    r"""Check :math:`E[w] = Z` within 4.5 standard errors for paths from a Gaussian, and that no weight is NaN.

    The error is estimated from the same weights, so choose a base that makes them well behaved: wide enough for the
    target, and over all of its modes.

    :param energy: the target :math:`u`; :math:`+\infty` is allowed and means weight zero.
    :param log_z: its :math:`\log Z`; read from ``energy.log_z`` if not given.
    :param base_loc: mean of the base.
    :param base_scale: its standard deviation.
    :return: the deviation in standard errors.

    >>> from pyro_boltzmann.stochastic import RandomWalkTransform
    >>> harmonic = lambda x: 0.5 * x.square().sum(-1)
    >>> abs(check_unbiased(RandomWalkTransform(1, 0.5), harmonic, 0.5 * math.log(2 * math.pi))) < 4.5
    True
    """
    log_z = float(energy.log_z if log_z is None else log_z)  # type: ignore[attr-defined]
    d = _dim(block, dim)
    block = _in_dtype(block, torch.float64)
    generator = Generator().manual_seed(seed)
    z = torch.randn(num_samples, d, dtype=torch.float64, generator=generator)
    log_base = -0.5 * z.square().sum(-1) - d * (math.log(base_scale) + 0.5 * math.log(2 * math.pi))
    y, s = _stream(block, base_loc + base_scale * z, generator)
    log_weight = s - energy_value(energy, y) - log_base
    bad = int((log_weight.isnan() | log_weight.isposinf()).sum())
    assert bad == 0, f"{bad} of {num_samples} weights of {_name(block)} are NaN or infinite"
    return _within((log_weight - log_z).exp(), f"E[w] / Z of {_name(block)}")


@torch.no_grad()
def check_equilibrium(block: Any, energy: Energy, samples: Tensor, *, dim: int | None = None, seed: int = 0) -> float:
    r"""Check :math:`E[\exp(S + u(x) - u(y))] = 1` within 4.5 standard errors for :math:`x \sim e^{-u}`.

    This holds for any block and any energy, and needs no :math:`\log Z`.

    :param samples: independent exact samples of ``exp(-energy)``, ``(n, dim)``.
    :return: the deviation in standard errors.

    >>> import torch
    >>> from pyro_boltzmann.stochastic import LangevinTransform
    >>> harmonic = lambda x: 0.5 * x.square().sum(-1)
    >>> samples = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(1))
    >>> abs(check_equilibrium(LangevinTransform(harmonic, 2, 0.1), harmonic, samples)) < 4.5
    True
    """
    block, samples = _in_dtype(block, torch.float64), samples.double()
    y, s = _stream(block, samples, Generator().manual_seed(seed))
    ratio = (s + energy_value(energy, samples) - energy_value(energy, y)).exp()
    return _within(ratio, f"E[exp(S + u(x) - u(y))] of {_name(block)}")


def check_block(
    block: Any,
    energy: Energy | None = None,
    *,
    x: Tensor | None = None,
    dim: int | None = None,
    log_z: float | None = None,
    samples: Tensor | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Run every check that applies.

    :param block: a stochastic block, a path, or any transform of vectors.
    :param energy: a target with known ``log_z`` (given, or as its attribute) for :func:`check_unbiased`, or with exact
        ``samples`` for :func:`check_equilibrium`.
    :param x: states to try.
    :param dim: dimension of x, where the block does not know it.
    :return: what each check measured.
    :raises AssertionError: by the first check that fails.

    >>> from pyro_boltzmann.stochastic import LeapfrogTransform
    >>> harmonic = lambda x: 0.5 * x.square().sum(-1)
    >>> measured = check_block(LeapfrogTransform(harmonic, 2, 0.3), harmonic, log_z=math.log(2 * math.pi))
    >>> sorted(measured)
    ['gradients', 'ladj', 'path_weight', 'round_trip', 'unbiased']
    """
    check_shapes(block, dim=dim)
    measured = {
        "round_trip": check_round_trip(block, x, dim=dim, seed=seed),
        "ladj": check_ladj(block, None if x is None else x.reshape(-1, x.shape[-1])[:4], dim=dim, seed=seed),
    }
    if isinstance(block, nn.Module):
        measured["gradients"] = check_gradients(block, x, dim=dim, seed=seed)
    if isinstance(block, StochasticBlock | PathTransform):
        measured["path_weight"] = check_path_weight(block, x, seed=seed)
    if energy is not None and (log_z is not None or getattr(energy, "log_z", None) is not None):
        measured["unbiased"] = check_unbiased(block, energy, log_z, dim=dim, seed=seed)
    if energy is not None and samples is not None:
        measured["equilibrium"] = check_equilibrium(block, energy, samples, dim=dim, seed=seed)
    return measured


# What the checks share -------------------------------------------------------------------------------------------


def _name(block: Any) -> str:
    return type(block).__name__


def _dim(block: Any, dim: int | None) -> int:
    for known in (dim, *(getattr(block, name, None) for name in ("dim", "width", "input_dim"))):
        if isinstance(known, int) and known > 0:  # Pyro's couplings have dim = -1, the axis they act along
            return known
    raise ShapeError(f"{_name(block)} does not tell its dimension; pass dim=...")


def _in_dtype(block: Any, dtype: torch.dtype) -> Any:
    return copy.deepcopy(block).to(dtype) if isinstance(block, nn.Module) else block


def _prepare(
    block: Any, x: Tensor | None, dim: int | None, seed: int, *, count: int = 50, dtype: torch.dtype = torch.float64
) -> tuple[Any, Tensor]:
    """A copy of the block, and the vectors it acts on: states, joined with noise if it takes noise."""
    generator = Generator().manual_seed(seed)
    if x is None:
        x = 1.5 * torch.randn(count, _dim(block, dim), dtype=dtype, generator=generator)
    block, x = _in_dtype(block, dtype), x.detach().to(dtype)
    if isinstance(block, StochasticBlock | PathTransform):
        x = torch.cat([x, block.sample_noise(x.shape[:-1], x, generator)], -1)
    return block, x


def _noise_as_streamed(
    block: StochasticBlock | PathTransform, x: Tensor, inverse: bool, grad: bool, generator: Generator
) -> Tensor:
    """Flat noise with the numbers that ``block.stream`` would draw from this generator, in the order it does."""

    def draw(one: StochasticBlock) -> list[Tensor]:
        if grad or not isinstance(one, MetropolisAdjusted):
            return [sample_part(part, x.shape[:-1], x, generator) for part in one.step_noise]
        parts = [sample_part(part, x.shape[:-1], x, generator) for part in one.step_noise[:-1]]
        # Without gradients a Metropolis test compares with log U, and never makes an exponential variable of it.
        return [*parts, -torch.rand((*x.shape[:-1], 1), dtype=x.dtype, generator=generator).log()]

    pairs = block._directed() if isinstance(block, PathTransform) else [(block, False)]
    drawn: list[Tensor] = []
    for one, backwards in reversed(pairs) if inverse else pairs:
        if isinstance(one, StochasticBlock):
            steps = [draw(one) for _ in range(one.num_repeats)]
            in_order = reversed(steps) if backwards != inverse else steps
            drawn.append(torch.cat([x[..., :0], *(part for step in in_order for part in step)], -1))
    return torch.cat([x[..., :0], *(reversed(drawn) if inverse else drawn)], -1)


def _stream(block: Any, x: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    if isinstance(block, StochasticBlock | PathTransform):
        result = block.stream(x, generator=generator)
        return result.x, result.log_ratio.double()
    return call_and_ladj(block, x)


def _slogdet(function: Callable[[Any, Tensor], tuple[Tensor, Tensor]], block: Any, z: Tensor) -> Tensor:
    jacobian = torch.autograd.functional.jacobian(lambda one: function(block, one)[0], z)
    return torch.linalg.slogdet(jacobian).logabsdet  # type: ignore[no-any-return]


def _largest(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max()) if tensor.numel() else 0.0


def _below(errors: dict[str, float], tolerance: float, message: str) -> float:
    # Negated, so that NaN is a failure.
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    listed = "; ".join(f"{name}: {error:.3g}" for name, error in wrong.items())
    assert not wrong, f"{message} (tolerance {tolerance:g}): {listed}"
    return max(errors.values())


def _within(ratio: Tensor, name: str) -> float:
    mean, error = float(ratio.mean()), float(ratio.std()) / math.sqrt(ratio.numel())
    # The floor is rounding: exact weights have no spread at all.
    deviation = (mean - 1.0) / max(error, 1e-12)
    assert abs(deviation) <= STANDARD_ERRORS, (
        f"{name} is {mean:.6g} +- {error:.2g}, expected 1: {deviation:.1f} standard errors off"
    )
    return deviation
