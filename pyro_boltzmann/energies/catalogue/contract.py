"""The checks that every benchmark target must pass, for the catalogue and for the targets of users."""

from __future__ import annotations

import copy
import math
import pickle
from unittest import SkipTest

import torch
from torch import Tensor

from pyro_boltzmann.energies.catalogue.target import Target
from pyro_boltzmann.energies.evaluation import energy_and_gradient

__all__ = ["TargetContract"]

# A correct target fails a check of one mean with probability 7e-6.
STANDARD_ERRORS = 4.5


class TargetContract:
    r"""Checks of a target's truths, to be mixed into a pytest class that has a fixture ``target``.

    Means over exact samples are compared with exact values within 4.5 standard errors (false alarm about 1e-5 each)
    from a fixed seed:

    - :math:`\log Z`, mean energy and mode masses by quadrature, where :attr:`Target.dim` is 2;
    - :math:`\langle u \rangle`, the mode masses and the virial :math:`\langle x \cdot \nabla u \rangle = d`;
    - :math:`\langle e^{u} g \rangle = 1 / Z` for a normalised density :math:`g`, uniform in an ellipsoid in the bulk;
    - dtypes, batch shapes, two derivatives, the gradient's formula where there is one, hash, pickle and deepcopy.

    A target without an exact sampler passes the sampling checks by overriding :meth:`draw` with draws that may be
    trusted (and :attr:`num_samples` with their number if they are correlated: their standard error must be right).

    >>> import pytest
    >>> from pyro_boltzmann.energies.catalogue.double_well import DoubleWell
    >>> class TestDoubleWell(TargetContract):
    ...     @pytest.fixture
    ...     def target(self):
    ...         return DoubleWell()
    >>> TestDoubleWell().test_exact_samples_have_the_exact_mean_energy(DoubleWell())
    """

    num_samples: int = 40_000
    grid_points: int = 801

    def draw(self, target: Target, num_samples: int) -> Tensor:
        """Independent float64 draws of the target, ``(num_samples, dim)``."""
        if not target.has_exact_sampler:
            raise SkipTest(f"{target.name} has no exact sampler")
        generator = torch.Generator().manual_seed(20_020_67)
        return target.sample(num_samples, generator=generator, dtype=torch.float64)

    def bulk(self, target: Target, x: Tensor) -> Tensor:
        """A mask of the draws around which the ellipsoid of the partition-function identity is laid.

        The law of the masked draws should be roughly Gaussian: one mode, or a slab across a funnel.
        """
        if target.mode_probabilities is None:
            return torch.ones(len(x), dtype=torch.bool)
        return target.mode_assignment(x) == target.mode_probabilities.argmax()

    def points(self, target: Target, num_points: int, seed: int) -> Tensor:
        """Float64 points of moderate energy, ``(num_points, dim)``, at which values and derivatives are compared.

        Standard normal unless overridden; particles that repel each other need a better start.
        """
        return torch.randn(num_points, target.dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def test_truths_by_quadrature(self, target: Target) -> None:
        if target.dim != 2 or target.log_z_origin != "exact":
            raise SkipTest("a product grid is used in two dimensions only")
        axes = []
        for low, high in target.bounds:
            middle, half = (low + high) / 2, high - low
            axes.append(torch.linspace(middle - half, middle + half, self.grid_points, dtype=torch.float64))
        x = torch.cartesian_prod(*axes)
        log_cell = math.log((axes[0][1] - axes[0][0]).item() * (axes[1][1] - axes[1][0]).item())
        # In parts, because the 40 components of a mixture would fill hundreds of megabytes.
        u = torch.cat([target.energy(part) for part in x.chunk(8)])
        log_z = (-u).logsumexp(0).item() + log_cell
        assert target.log_z is not None
        assert abs(log_z - target.log_z) < 1e-7, f"quadrature gives log Z = {log_z!r}, not {target.log_z!r}"
        mass = (-u + log_cell - log_z).exp()
        if target.mean_energy is not None:
            mean = (mass * u).sum().item()
            assert abs(mean - target.mean_energy) < 1e-6, f"quadrature gives a mean energy of {mean!r}"
        if target.mode_probabilities is not None:
            modes = torch.zeros_like(target.mode_probabilities).index_add(0, target.mode_assignment(x), mass)
            # The edges of the regions cut through cells of the grid, which costs accuracy.
            torch.testing.assert_close(modes, target.mode_probabilities, rtol=0, atol=1e-3)

    def test_mode_probabilities_are_a_distribution_and_give_delta_f(self, target: Target) -> None:
        if target.mode_probabilities is None:
            raise SkipTest(f"{target.name} has no enumerated modes")
        p = target.mode_probabilities
        assert abs(p.sum().item() - 1) < 1e-6
        if target.delta_f is not None:
            assert abs(target.delta_f + (p[1] / p[0]).log().item()) < 1e-6

    def test_exact_samples_have_the_exact_mean_energy(self, target: Target) -> None:
        if target.mean_energy is None:
            raise SkipTest(f"the mean energy of {target.name} is not known")
        u = target.energy(self.draw(target, self.num_samples))
        _assert_mean(u, target.mean_energy, target.mean_energy_error, "the mean energy")

    def test_exact_samples_have_the_exact_mode_masses(self, target: Target) -> None:
        if target.mode_probabilities is None:
            raise SkipTest(f"{target.name} has no enumerated modes")
        modes = target.mode_assignment(self.draw(target, self.num_samples))
        for mode, probability in enumerate(target.mode_probabilities.tolist()):
            frequency = (modes == mode).double().mean().item()
            error = math.sqrt(probability * (1 - probability) / self.num_samples)
            assert abs(frequency - probability) < STANDARD_ERRORS * error, f"mode {mode}: {frequency} != {probability}"

    def test_virial(self, target: Target) -> None:
        x = self.draw(target, self.num_samples)
        with torch.no_grad():
            _, gradient = energy_and_gradient(target.energy, x)
        _assert_mean((x * gradient).sum(-1), target.virial_dof, 0.0, "the virial")

    def test_partition_function_identity(self, target: Target) -> None:
        if target.log_z is None:
            raise SkipTest(f"log Z of {target.name} is not known")
        x = self.draw(target, 2 * self.num_samples)
        # The ellipsoid is laid with one half of the draws and filled with the other, so the identity is unbiased.
        pilot, x = x.chunk(2)
        pilot = pilot[self.bulk(target, pilot)]
        factor = torch.linalg.cholesky(pilot.mT.cov())
        whitened = torch.linalg.solve_triangular(factor, (x - pilot.mean(0)).mT, upper=False)
        d = target.dim
        radius_square = float(d)
        log_volume = (
            0.5 * d * math.log(math.pi * radius_square) - math.lgamma(d / 2 + 1) + factor.diagonal().log().sum().item()
        )
        inside = whitened.square().sum(0) < radius_square
        assert inside.sum() > 100, "the ellipsoid holds too few draws; override bulk()"
        ratio = torch.where(inside, (target.energy(x) + target.log_z - log_volume).exp(), 0.0)
        _assert_mean(ratio, 1.0, math.expm1(target.log_z_error), "the mean of exp(u) g Z")

    def test_dtype_and_batch_shapes(self, target: Target) -> None:
        x = self.points(target, 6, seed=1).view(2, 3, target.dim)
        truth = target.energy(x)
        assert truth.dtype == torch.float64
        assert truth.shape == (2, 3)
        torch.testing.assert_close(target.energy(x[0]), truth[0])
        torch.testing.assert_close(target.energy(x[1, 2]), truth[1, 2])
        assert target.energy(x[:0]).shape == (0, 3)
        single = target.energy(x.float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), truth, rtol=2e-5, atol=2e-4)

    def test_gradient_is_that_of_finite_differences_and_differentiable_again(self, target: Target) -> None:
        x = self.points(target, 4, seed=2).requires_grad_()
        # In many dimensions along random directions instead of along every one.
        fast = target.dim > 16
        assert torch.autograd.gradcheck(target.energy, x, fast_mode=fast)
        assert torch.autograd.gradgradcheck(target.energy, x, fast_mode=fast)

    def test_the_formula_of_the_gradient_is_right_and_gives_way_to_a_graph(self, target: Target) -> None:
        formula = getattr(target.energy, "energy_and_gradient", None)
        if formula is None:
            raise SkipTest(f"{target.name} has no formula for its gradient")
        x = self.points(target, 6, seed=6).view(2, 3, target.dim)
        graph = x.clone().requires_grad_()
        truth = target.energy(graph)
        (slope,) = torch.autograd.grad(truth.sum(), graph)
        for states in (x, x.flatten(0, 1).mT.contiguous().mT, x[0, 0], x[:0]):
            with torch.no_grad():
                u, gradient = formula(states)
            assert u.shape == states.shape[:-1]
            assert gradient.shape == states.shape
            torch.testing.assert_close(u.flatten(), truth.detach().flatten()[: u.numel()])
            torch.testing.assert_close(gradient.flatten(), slope.flatten()[: gradient.numel()])
        u, gradient = formula(graph)
        assert u.requires_grad and gradient.requires_grad
        torch.testing.assert_close(gradient, slope)

    def test_finite_at_the_origin_and_far_away_in_float32(self, target: Target) -> None:
        for scale in (0.0, 1.0, 10.0):
            x = scale * torch.randn(100, target.dim, generator=torch.Generator().manual_seed(3))
            with torch.no_grad():
                u, gradient = energy_and_gradient(target.energy, x)
            truth = target.energy(x.double()).abs()
            assert u[truth < 1e37].isfinite().all()
            # Intermediate powers of a gradient may overflow although the energy does not.
            assert gradient[truth < 1e18].isfinite().all()

    def test_samples_have_dtype_shape_and_seed(self, target: Target) -> None:
        if not target.has_exact_sampler:
            raise SkipTest(f"{target.name} has no exact sampler")
        state = torch.get_rng_state()
        first, again = (target.sample(5, generator=torch.Generator().manual_seed(4)) for _ in range(2))
        assert first.shape == (5, target.dim)
        assert first.dtype == torch.float32
        assert torch.equal(first, again)
        assert torch.equal(torch.get_rng_state(), state), "sampling with a generator moved the global random state"
        assert target.sample(0, dtype=torch.float64).dtype == torch.float64

    def test_hash_and_copies(self, target: Target) -> None:
        x = self.points(target, 3, seed=5).float()
        u = target.energy(x)
        assert target.energy is target.energy
        for other in (copy.deepcopy(target), pickle.loads(pickle.dumps(target))):
            assert torch.equal(other.energy(x), u)
            assert other.target_hash == target.target_hash
        other.constants["changed"] = 1.0
        assert other.target_hash != target.target_hash

    def test_constants_made_under_inference_mode_do_not_break_gradients(self, target: Target) -> None:
        fresh = copy.deepcopy(target)
        x = torch.ones(2, target.dim)
        with torch.inference_mode():
            fresh.energy(x)
        _, gradient = energy_and_gradient(fresh.energy, x)
        assert gradient.isfinite().all()


def _assert_mean(values: Tensor, truth: float, truth_error: float, what: str) -> None:
    mean = values.mean().item()
    error = math.hypot(values.std().item() / math.sqrt(len(values)), truth_error)
    assert abs(mean - truth) < STANDARD_ERRORS * error, f"{what} is {mean} +- {error}, not {truth}"
