"""One contract for every block and for mixed paths: bijection, log-determinant, gradients, shapes, honest weights."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pyro.distributions.transforms as T
import pytest
import torch
from torch import Tensor, nn

from pyro_boltzmann import AnnealedEnergy, AnnealingLadder, NormalEnergy, testing
from pyro_boltzmann.energies.catalogue import catalogue
from pyro_boltzmann.energies.evaluation import Energy
from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.stochastic import (
    EulerMaruyamaTransform,
    LangevinTransform,
    LeapfrogTransform,
    MetropolisAdjusted,
    PathTransform,
    RandomWalkTransform,
    UnderdampedLangevinTransform,
)
from pyro_boltzmann.transforms import InverseTransform

double_well = catalogue["double_well"]


class Wall:
    """A half space of infinite energy beside half of a standard normal."""

    log_z = math.log(math.pi)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(x[..., 0] > 0, 0.5 * x.square().sum(-1), math.inf)


class Kernel(nn.Module):
    """A learned Gaussian kernel with a state-dependent scale."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = self.net(x).chunk(2, -1)
        return x + 0.1 * mean, 0.4 * (0.1 * log_scale).tanh().exp()


def gentle(flow: nn.Module) -> nn.Module:
    """Near the identity: a random flow that moves states off the target gives weights too wild for statistics."""
    with torch.no_grad():
        for p in flow.parameters():
            p.mul_(0.2)
    return flow


def annealed(energy: Energy, position: float = 0.4) -> AnnealedEnergy:
    return AnnealedEnergy(NormalEnergy(scale=1.5), energy, position, learnable=True)


def mixed(energy: Energy) -> PathTransform:
    ladder = AnnealingLadder(NormalEnergy(scale=1.5), energy, 3, learnable=True)
    return PathTransform(
        [
            gentle(T.affine_coupling(2, hidden_dims=[8])),
            MetropolisAdjusted(RandomWalkTransform(2, 0.3, num_steps=2, learnable=True), ladder[0]),
            T.Permute(torch.tensor([1, 0])),
            LangevinTransform(ladder[1], 2, 0.02, learnable=True),
            T.Permute(torch.tensor([1, 0])),
            InverseTransform(EulerMaruyamaTransform(2, Kernel(), Kernel())),
            MetropolisAdjusted(LeapfrogTransform(energy, 2, 0.1, num_steps=2), energy),
            gentle(T.spline(2, count_bins=4)),
        ],
        2,
    )


BLOCKS: dict[str, Callable[[Energy], Any]] = {
    "random_walk": lambda u: RandomWalkTransform(2, [0.3, 0.2], num_steps=2, learnable=True),
    "langevin": lambda u: LangevinTransform(u, 2, 0.02, num_steps=3, learnable=True),
    "langevin_clipped": lambda u: LangevinTransform(u, 2, [0.02, 0.05], num_steps=2, learnable=True, max_force=4.0),
    "langevin_annealed": lambda u: LangevinTransform(annealed(u), 2, 0.02, num_steps=2, learnable=True),
    "leapfrog": lambda u: LeapfrogTransform(
        u, 2, 0.1, num_steps=3, num_trajectories=2, mass=torch.tensor([1.0, 4.0]), learnable=True
    ),
    "baoab": lambda u: UnderdampedLangevinTransform(u, 2, 0.1, 0.7, num_steps=3, num_trajectories=2, learnable=True),
    "obabo": lambda u: UnderdampedLangevinTransform(
        u, 2, 0.1, 0.7, num_steps=3, mass=torch.tensor([1.0, 4.0]), scheme="OBABO", learnable=True
    ),
    "euler_maruyama": lambda u: EulerMaruyamaTransform(2, Kernel(), Kernel()),
    "metropolis_random_walk": lambda u: MetropolisAdjusted(
        RandomWalkTransform(2, 0.4, num_steps=3, learnable=True), annealed(u)
    ),
    "metropolis_langevin": lambda u: MetropolisAdjusted(LangevinTransform(u, 2, 0.05, num_steps=3, learnable=True), u),
    "metropolis_other_force": lambda u: MetropolisAdjusted(LangevinTransform(annealed(u), 2, 0.05, num_steps=2), u),
    "metropolis_leapfrog": lambda u: MetropolisAdjusted(
        LeapfrogTransform(annealed(u), 2, 0.2, num_steps=3, num_trajectories=2, learnable=True), annealed(u)
    ),
    "metropolis_baoab": lambda u: MetropolisAdjusted(
        UnderdampedLangevinTransform(u, 2, 0.2, num_steps=2, num_trajectories=2, learnable=True), u
    ),
    "metropolis_score": lambda u: MetropolisAdjusted(
        RandomWalkTransform(2, 0.4, num_steps=3, learnable=True), annealed(u), gradient="score"
    ),
    "inverse_langevin": lambda u: PathTransform([InverseTransform(LangevinTransform(u, 2, 0.02, learnable=True))], 2),
    "inverse_euler_maruyama": lambda u: PathTransform(
        [InverseTransform(EulerMaruyamaTransform(2, Kernel(), Kernel()))], 2
    ),
    "mixed": mixed,
    "nested": lambda u: PathTransform(
        [
            PathTransform(
                [gentle(T.affine_coupling(2, hidden_dims=[8])), LangevinTransform(u, 2, 0.02, learnable=True)], 2
            ),
            InverseTransform(
                PathTransform([MetropolisAdjusted(RandomWalkTransform(2, 0.3), annealed(u)), gentle(T.spline(2))], 2)
            ),
        ],
        2,
    ),
}


@pytest.fixture(params=BLOCKS)
def make(request: pytest.FixtureRequest) -> Callable[[Energy], Any]:
    torch.manual_seed(1)
    return BLOCKS[request.param]


def test_bijection_log_det_gradients_shapes_and_streams(make: Callable[[Energy], Any]) -> None:
    """Inverse <= 1e-10, log-det against slogdet <= 1e-8, a gradient for every parameter, streams equal bijections."""
    measured = testing.check_block(make(double_well), dim=2)
    assert {"round_trip", "ladj", "gradients", "path_weight"} <= measured.keys()


def test_bijection_beside_a_wall(make: Callable[[Energy], Any]) -> None:
    """Also where proposals, or the states themselves, have infinite energy."""
    x = torch.randn(40, 2, dtype=torch.float64)
    block = make(Wall())
    testing.check_round_trip(block, x)
    testing.check_path_weight(block, x)
    testing.check_ladj(block, x[:6])
    testing.check_shapes(block)


@pytest.mark.parametrize("energy", [double_well, Wall()], ids=["double_well", "hard_wall"])
def test_weights_are_unbiased(make: Callable[[Energy], Any], energy: Any) -> None:
    """E[w] = Z within 4.5 standard errors, no NaN weight, whatever the parameters of the block are."""
    testing.check_unbiased(make(energy), energy, base_scale=1.8, num_samples=20_000, seed=5)


def test_weights_are_unbiased_in_single_precision(make: Callable[[Energy], Any]) -> None:
    """States in float32, weights in float64: E[w] = Z within 4.5 standard errors."""
    block = make(double_well)
    path = block if isinstance(block, PathTransform) else PathTransform([block], 2)
    x = 1.8 * torch.randn(20_000, 2)
    with torch.no_grad():
        result = path.stream(x)
    assert result.x.dtype == torch.float32 and result.log_ratio.dtype == torch.float64
    log_weight = result.log_ratio - double_well(result.x).double() + NormalEnergy(0.0, 1.8)(x.double())
    ratio = (log_weight - double_well.log_z).exp()
    assert abs(float(ratio.mean()) - 1) < 4.5 * float(ratio.std()) / math.sqrt(20_000)


def test_equilibrium_start(make: Callable[[Energy], Any]) -> None:
    r"""E[exp(S + u(x) - u(y))] = 1 from exact samples, within 4.5 standard errors."""
    samples = double_well.sample(20_000, generator=torch.Generator().manual_seed(2))
    testing.check_equilibrium(make(double_well), double_well, samples)


def test_gradients_beside_a_wall_are_finite(make: Callable[[Energy], Any]) -> None:
    def wall(x: Tensor) -> Tensor:
        # The square root is NaN beyond the wall, and so is every derivative of it there.
        return torch.where(x[..., 0] > 0, x.square().sum(-1) - x[..., 0].sqrt(), math.inf)

    block = make(wall).double()
    path = block if isinstance(block, PathTransform) else PathTransform([block], 2)
    x = torch.randn(200, 2, dtype=torch.float64, requires_grad=True)
    result = path.stream(x)
    energy = result.memo.value(wall, result.x)
    inside = energy.isfinite() & result.log_ratio.isfinite()
    (energy[inside] - result.log_ratio[inside]).sum().backward()
    assert 0 < int(inside.sum()) < 200
    for p in [x, *path.parameters()]:
        assert p.grad is not None and bool(p.grad.isfinite().all())


def test_copies_are_equal_and_independent(make: Callable[[Energy], Any]) -> None:
    block = make(double_well)
    joint = torch.cat([torch.randn(5, 2), block.sample_noise(torch.Size((5,)), torch.zeros(1))], -1)
    y, _ = block.call_and_ladj(joint)
    block(joint)
    for clone in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert torch.equal(clone.call_and_ladj(joint)[0], y)
        with torch.no_grad():
            for p in clone.parameters():
                p.add_(0.1)
        assert torch.equal(block.call_and_ladj(joint)[0], y)
        assert not torch.equal(clone.call_and_ladj(joint)[0], y)


def test_seeds_reproduce_and_leave_the_global_state_alone(make: Callable[[Energy], Any]) -> None:
    block = make(double_well)
    state = torch.get_rng_state()
    x = torch.zeros(4, 2)
    first, second = (block.stream(x, generator=torch.Generator().manual_seed(7)).x for _ in range(2))
    other = block.stream(x, generator=torch.Generator().manual_seed(8)).x
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


STILL: dict[str, Callable[[], Any]] = {
    "random_walk": lambda: RandomWalkTransform(2, 0.0, num_steps=2),
    "langevin": lambda: LangevinTransform(double_well, 2, 0.0, num_steps=2),
    "leapfrog": lambda: LeapfrogTransform(double_well, 2, 0.0, num_steps=2),
    "baoab": lambda: UnderdampedLangevinTransform(double_well, 2, 0.0, num_steps=2),
    "obabo": lambda: UnderdampedLangevinTransform(double_well, 2, 0.0, num_steps=2, scheme="OBABO"),
    "metropolis": lambda: MetropolisAdjusted(LangevinTransform(double_well, 2, 0.0, num_steps=2), double_well),
}


@pytest.mark.parametrize("name", STILL)
@pytest.mark.parametrize("grad", [False, True])
def test_a_step_of_size_zero_changes_neither_state_nor_weight(name: str, grad: bool) -> None:
    block = STILL[name]().double()
    x = torch.randn(10, 2, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        for inverse in (False, True):
            result = block.stream(x, inverse=inverse)
            assert torch.equal(result.x, x)
            assert float(result.log_ratio.detach().abs().max()) < 1e-14
        noise = block.sample_noise(x.shape[:-1], x)
        moved = block.run(x, noise)
    assert torch.equal(moved.x, x)
    assert float((block.noise_log_prob(moved.noise) - block.noise_log_prob(noise)).detach().abs().max()) < 1e-14


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RandomWalkTransform(0), "dimension of a block must be positive"),
        (lambda: LangevinTransform(double_well, 2, num_steps=0), "at least one step"),
        (lambda: LangevinTransform(double_well, 2, -0.1), "step_size must be non-negative"),
        (lambda: LangevinTransform(double_well, 2, 0.0, learnable=True), "step_size must be positive"),
        (lambda: LangevinTransform(double_well, 2, [0.1, 0.2], num_steps=3), r"one number a step \(3\), got \(2,\)"),
        (lambda: LeapfrogTransform(double_well, 2, mass=torch.tensor([1.0, -1.0])), "mass must be positive"),
        (lambda: LeapfrogTransform(double_well, 2, num_steps=0), "at least one leapfrog step"),
        (lambda: UnderdampedLangevinTransform(double_well, 2, scheme="ABOBA"), "BAOAB"),
        (lambda: MetropolisAdjusted(EulerMaruyamaTransform(2, Kernel(), Kernel()), double_well), "its own inverse"),
        (lambda: MetropolisAdjusted(RandomWalkTransform(2), double_well, gradient="reinforce"), "score"),
        (
            lambda: MetropolisAdjusted(RandomWalkTransform(2, learnable=True), double_well, adapt=True),
            "learnable=False",
        ),
    ],
)
def test_bad_settings_are_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_a_path_refuses_a_block_of_another_dimension() -> None:
    with pytest.raises(ShapeError, match="block 1 works in dimension 3, the path in 2"):
        PathTransform([RandomWalkTransform(2), RandomWalkTransform(3)], 2)
