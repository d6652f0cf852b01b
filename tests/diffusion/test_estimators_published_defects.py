"""What published denoising estimators get wrong, shown beside what is right."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_boltzmann.diffusion import bootstrapped_energy, noised_energy
from pyro_boltzmann.energies.catalogue import DW2, DW4


def test_the_total_energy_stands_in_the_exponential() -> None:
    """Defect: the logarithm of the mean was taken for each particle's share of the energy, and then summed."""
    target, x, h = DW2(), torch.tensor([1.6, 0.4], dtype=torch.float64), 0.3**2
    grid = torch.linspace(-8.0, 8.0, 1601, dtype=torch.float64) * h**0.5
    offsets = torch.cartesian_prod(grid, grid)
    log_noise = -0.5 * offsets.square().sum(-1) / h - math.log(2 * math.pi * h)
    cell = 2.0 * math.log(float(grid[1] - grid[0]))
    truth = -float((log_noise - target(x + offsets)).logsumexp(0) + cell)

    repeats, k = 400, 4000
    estimate = noised_energy(target, x.expand(repeats, 2), h, k, correction="jackknife")
    assert abs(float(estimate.mean()) - truth) < 4.5 * float(estimate.std()) / repeats**0.5

    # Each particle has half of the pair's energy.
    share = noised_energy(lambda y: 0.5 * target(y), x.expand(repeats, 2), h, k)
    assert abs(2.0 * float(share.mean()) - truth) > 9.0 * float(share.std()) / repeats**0.5


def test_shares_of_particles_do_not_add_up_on_dw4() -> None:
    target = DW4()
    square = 3.0 * torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    x = target.from_particles(square.expand(100, 4, 2))

    def share(y: Tensor) -> Tensor:
        """The first particle's: half of each of its pairs."""
        particles = target.to_particles(y)
        t = ((particles[..., 1:, :] - particles[..., :1, :]).norm(dim=-1) - 4.0).square()
        return 0.5 * (t * (0.9 * t - 4.0)).sum(-1)

    one, few = (noised_energy(target, x, 0.3**2, k, correction="jackknife") for k in (20_000, 2000))
    assert abs(float(one.mean() - few.mean())) < 4.5 * math.hypot(float(one.std()), float(few.std())) / 10.0
    # By symmetry the four shares have equal means.
    shares = 4.0 * noised_energy(share, x, 0.3**2, 2000)
    assert abs(float(shares.mean() - one.mean())) > 4.5 * math.hypot(float(shares.std()), float(one.std())) / 10.0


def test_the_teacher_sees_each_state_with_its_own_variance() -> None:
    """Defect: times were tiled over points that had been repeated one by one."""
    x = 100.0 * torch.arange(6.0).reshape(2, 3, 1).expand(2, 3, 2)
    own = torch.linspace(0.1, 0.6, 6).reshape(2, 3)
    seen = []

    def teacher(y: Tensor, variance: Tensor) -> Tensor:
        assert y.shape == (len(variance), 2)
        state = (y[:, 0] / 100.0).round().long()
        seen.append(torch.equal(variance, own.flatten()[state]))
        return variance

    for k in (1, 2, 7):
        estimate = bootstrapped_energy(teacher, x, 1.0, own, k)
        assert torch.allclose(estimate, own)
    assert all(seen) and len(seen) == 3


def test_the_teacher_keeps_its_order_across_blocks() -> None:
    number = 3000
    own = torch.rand(number)
    estimate = bootstrapped_energy(lambda y, variance: variance, torch.zeros(number, 2), 1.0, own, 200)
    assert torch.allclose(estimate, own, atol=1e-6)
