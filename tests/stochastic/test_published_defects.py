"""What the published code of stochastic normalizing flows gets wrong, each as a test of ours.

Numbers are those of section 8 in the project's notes on arXiv 2002.06707.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyro_boltzmann import AnnealedEnergy, NormalEnergy, catalogue
from pyro_boltzmann.energies.memo import EnergyMemo
from pyro_boltzmann.stochastic import (
    LangevinTransform,
    LeapfrogTransform,
    MetropolisAdjusted,
    PathTransform,
    RandomWalkTransform,
    UnderdampedLangevinTransform,
)

double_well = catalogue["double_well"]


@pytest.mark.parametrize("grad", [False, True])
def test_defect_1_rejected_infinite_energies_do_not_become_nan(grad: bool) -> None:
    """Mixing energies by acc * E + (1 - acc) * E' gave 64 % NaN weights after 20 steps beside a hard wall."""

    def wall(x: Tensor) -> Tensor:
        return torch.where(x[..., 0] > 0, 0.5 * x.square().sum(-1), math.inf)

    x = torch.randn(2000, 2).abs()
    path = PathTransform([MetropolisAdjusted(RandomWalkTransform(2, 0.5, num_steps=20), wall)], 2)
    with torch.set_grad_enabled(grad):
        result = path.stream(x)
    log_weight = result.log_ratio - wall(result.x)
    assert bool(log_weight.isfinite().all())
    rejected = result.infos[0]
    assert int(rejected.nonfinite) > 100  # proposals beyond the wall were made
    torch.testing.assert_close(result.log_ratio, (wall(result.x) - wall(x)).double(), rtol=0, atol=1e-4)


def test_defect_2_the_force_inside_a_langevin_step_is_differentiable() -> None:
    """With a force without a graph, S had gradient exactly 0 where the finite difference was not."""
    shift = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    block = LangevinTransform(double_well, 2, 0.01)
    z = torch.randn(100, 2, dtype=torch.float64)

    def s(by: Tensor) -> Tensor:
        return block.stream(z + by, generator=torch.Generator().manual_seed(0)).log_ratio.mean()

    (gradient,) = torch.autograd.grad(s(shift), shift)
    finite = (s(shift.detach() + 1e-5) - s(shift.detach() - 1e-5)) / 2e-5
    assert abs(float(gradient)) > 0.1
    assert float(gradient) == pytest.approx(float(finite.detach()), rel=1e-6)


@pytest.mark.parametrize("scheme", ["BAOAB", "OBABO"])
@pytest.mark.parametrize("adjusted", [False, True])
def test_defect_3_underdamped_dynamics_reverse_their_velocities(scheme: str, adjusted: bool) -> None:
    """Forward sampling and backward reweighting agree on E[q] for an energy that is not even, within 4.5 s.e.

    Without velocity flips the published block gave -0.801 backwards and 0.796 forwards.
    """

    def slope(x: Tensor) -> Tensor:
        return 0.25 * x.pow(4).sum(-1) - 1.5 * x.sum(-1)

    block = UnderdampedLangevinTransform(slope, 1, 0.25, 0.5, num_steps=6, scheme=scheme)
    if adjusted:
        block = MetropolisAdjusted(block, slope)
    block = block.double()
    n, proposal_scale = 40_000, 1.8
    base = NormalEnergy()
    with torch.no_grad():
        forward = block.stream(torch.randn(n, 1, dtype=torch.float64)).x[:, 0]
        y = proposal_scale * torch.randn(n, 1, dtype=torch.float64)
        back = block.stream(y, inverse=True)
        # q(y) = E[q0(x_0) exp(-S)] over fresh outgoing noise, here in units of the proposal's density.
        weight = (-base(back.x) - back.log_ratio + NormalEnergy(0.0, proposal_scale)(y)).exp()
    assert abs(float(weight.mean()) - 1) < 4.5 * float(weight.std()) / math.sqrt(n)
    mean = float((weight * y[:, 0]).mean() / weight.mean())
    error = math.sqrt(float(forward.var() + (weight * (y[:, 0] - mean)).var()) / n)
    assert float(forward.mean()) > 0.5
    assert abs(mean - float(forward.mean())) < 4.5 * error


def test_defect_6_an_energy_is_never_served_for_another_state_that_prints_the_same() -> None:
    """A cache keyed on the printed tensor missed a change of row 50 of 100."""
    x = torch.randn(100, 2)
    y = x.clone()
    y[50] += 10.0
    path = PathTransform([MetropolisAdjusted(RandomWalkTransform(2, 0.0), double_well)], 2)
    langevin = LangevinTransform(double_well, 2, 0.01)
    torch.set_printoptions(threshold=10)
    try:
        assert str(x) == str(y)
        streams = [langevin.stream(v, generator=torch.Generator().manual_seed(0)) for v in (x, y)]
    finally:
        torch.set_printoptions(profile="default")
    assert float((streams[0].log_ratio - streams[1].log_ratio)[50].detach().abs()) > 100
    assert int((streams[0].log_ratio != streams[1].log_ratio).sum()) == 1
    joint = torch.cat([x, path.sample_noise((100,), x)], -1)
    first = path(joint)
    joint[50, :2] += 10.0  # the same object, changed in place
    assert not torch.equal(path(joint)[50], first[50])


@pytest.mark.parametrize(
    "block",
    [
        RandomWalkTransform(2, 0.1),
        LangevinTransform(double_well, 2, 0.01, num_steps=2),
        LeapfrogTransform(double_well, 2, 0.1, mass=torch.tensor([1.0, 2.0])),
        UnderdampedLangevinTransform(double_well, 2, 0.1),
        MetropolisAdjusted(LangevinTransform(double_well, 2, 0.01), AnnealedEnergy(NormalEnergy(), double_well, 0.5)),
    ],
    ids=lambda block: type(block).__name__,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_defect_11_dtype_batch_shape_and_reentrancy(block: LangevinTransform, dtype: torch.dtype) -> None:
    """float64 in, float64 out, whatever the precision of the block; any batch shape; no state on the module."""
    for batch in ((), (3,), (2, 3)):
        x = torch.randn(*batch, 2, dtype=dtype)
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                result = block.stream(x)
                moved = block.run(x, block.sample_noise(torch.Size(batch), x))
            assert result.x.dtype == moved.x.dtype == result.log_ratio.dtype == moved.ladj.dtype == dtype
            assert result.x.shape == moved.x.shape == x.shape
            assert result.log_ratio.shape == moved.ladj.shape == batch
    # Another run in the middle of this one, as an energy that itself samples would make it, changes nothing.
    x = torch.randn(5, 2, dtype=dtype)
    alone = block.stream(x, generator=torch.Generator().manual_seed(1))
    first, second = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    block.stream(x + 1, generator=second)
    again = block.stream(x, generator=first)
    assert torch.equal(alone.x, again.x) and torch.equal(alone.log_ratio, again.log_ratio)


def test_defect_17_the_work_of_a_metropolis_block_is_the_energy_difference() -> None:
    """Not 0, as the published docstring says: S = u_l(x_T) - u_l(x_0), over all steps."""
    energy = AnnealedEnergy(NormalEnergy(), double_well, 0.3)
    block = MetropolisAdjusted(RandomWalkTransform(2, 0.5, num_steps=10), energy)
    x = torch.randn(500, 2, dtype=torch.float64)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            result = block.stream(x)
        torch.testing.assert_close(result.log_ratio, energy(result.x) - energy(x), rtol=0, atol=1e-10)
        assert float(result.log_ratio.detach().abs().mean()) > 0.5
        joint = torch.cat([x, block.sample_noise(torch.Size((500,)), x)], -1)
        after = block.run(x, joint[:, 2:])
        s = block.noise_log_prob(after.noise) - block.noise_log_prob(joint[:, 2:]) + after.ladj
        torch.testing.assert_close(s, energy(after.x) - energy(x), rtol=0, atol=1e-10)


def test_memo_is_only_valid_where_it_was_made() -> None:
    """Whoever moves x starts a new memo: values along a long mixed path equal fresh evaluations."""
    seen: list[tuple[Tensor, Tensor]] = []

    def observe(position: int, block: object, x: Tensor, log_ratio: Tensor, memo: EnergyMemo) -> None:
        value = memo.known_value(double_well)
        if value is not None:
            seen.append((value, double_well(x)))

    energy = AnnealedEnergy(NormalEnergy(), double_well, 0.6)
    blocks = [
        LangevinTransform(double_well, 2, 0.01, num_steps=2),
        MetropolisAdjusted(RandomWalkTransform(2, 0.5, num_steps=3), energy),
        MetropolisAdjusted(LangevinTransform(energy, 2, 0.05, num_steps=3), double_well),
        LeapfrogTransform(energy, 2, 0.1),
        RandomWalkTransform(2, 0.1),
        UnderdampedLangevinTransform(double_well, 2, 0.1, num_steps=2, scheme="OBABO"),
    ]
    path = PathTransform(blocks, 2)
    x = torch.randn(50, 2, dtype=torch.float64)
    with torch.no_grad():
        for inverse in (False, True):
            path.stream(x, inverse=inverse, observe=observe)
    assert len(seen) >= 9
    for value, fresh in seen:
        torch.testing.assert_close(value, fresh, rtol=1e-12, atol=1e-12)
