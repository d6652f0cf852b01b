"""Folds against the triangle wave and the wrapped circle, and what they refuse."""

import math

import pytest
import torch

from pyro_boltzmann.sde import SDE, Absorbing, Clamped, Periodic, Reflecting, simulate

X = torch.linspace(-20.0, 20.0, 4001, dtype=torch.float64)


def test_reflection_between_two_mirrors_is_a_triangle_wave():
    low, high = -1.0, 0.5
    wave = low + (high - low) / math.pi * torch.acos(torch.cos(math.pi * (X - low) / (high - low)))
    torch.testing.assert_close(Reflecting(0, low, high).fold(X), wave, rtol=0, atol=1e-7)


@pytest.mark.parametrize("low, high", [(-1.0, None), (None, 0.5)])
def test_one_mirror(low, high):
    wall = low if high is None else high
    expected = wall + (X - wall).abs() * (1.0 if high is None else -1.0)
    torch.testing.assert_close(Reflecting(0, low, high).fold(X), expected, rtol=0, atol=1e-13)


def test_periodic_keeps_the_circle():
    y = Periodic(0, 1.0, 3.0).fold(X)
    assert (y >= 1.0).all() and (y <= 3.0).all()
    for f in (torch.sin, torch.cos):
        torch.testing.assert_close(f(math.pi * y), f(math.pi * X), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "boundary", [Periodic(0, -2.0, 3.0), Reflecting(0, -2.0, 3.0), Reflecting(0, -2.0), Clamped(0, -2.0, 3.0)]
)
def test_nothing_inside_is_rounded(boundary):
    inside = X.float()[(X.float() >= -2.0) & (X.float() < 3.0)]
    assert torch.equal(boundary.fold(inside), inside)


@pytest.mark.parametrize(
    "boundary", [Periodic(0, -2.0, 3.0), Reflecting(0, -2.0, 3.0), Clamped(0, -2.0, 3.0), Clamped(0, low=0.0)]
)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_overflowed_is_not_hidden(boundary, value):
    folded = boundary.fold(torch.tensor([0.5, value]))
    assert not folded[1].isfinite() and folded[0] == 0.5


def test_clamped_keeps_the_ends_as_atoms():
    sde = SDE(lambda x: -torch.ones_like(x), 0.0, 1, boundaries=[Clamped(0, low=0.25)])
    assert simulate(sde, torch.ones(3, 1), 2.0, step_size=0.1).state.flatten().tolist() == [0.25] * 3


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Reflecting(0), "needs low=, high= or both"),
        (lambda: Reflecting(-1, 0.0), "counts from 0"),
        (lambda: Reflecting(0, 1.0, 0.0), "low < high"),
        (lambda: Absorbing(0, high=math.inf), "must be finite"),
        (lambda: Periodic(0, low=0.0), "two ends"),
        (lambda: SDE(torch.sin, 1.0, 1, boundaries=[Reflecting(1, 0.0)]), "does not have"),
        (lambda: SDE(torch.sin, 1.0, 1, boundaries=[Reflecting(0, 0.0), Absorbing(0, 0.5)]), "has two rules"),
        (lambda: SDE(torch.sin, 1.0, 1, boundaries=[Reflecting(0, 0.0), Absorbing(0, high=-1.0)]), "no room"),
        (lambda: SDE(torch.sin, 1.0, 1, boundaries=["periodic"]), "expected Periodic"),
    ],
)
def test_contradictions_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_the_two_sides_of_a_coordinate_may_differ():
    sde = SDE(torch.zeros_like, 1.0, 1, boundaries=[Reflecting(0, low=0.0), Absorbing(0, high=1.0)])
    end = simulate(sde, torch.full((500, 1), 0.5), 5.0, step_size=0.01, seed=0)
    assert end.exited.any() and (end.state[end.exited] == 1.0).all()
    assert (end.state >= 0.0).all() and (end.state[~end.exited] < 1.0).all()


@pytest.mark.parametrize("kind", [Reflecting, Periodic])
def test_the_uniform_law_stays_uniform(kind):
    # Any law of steps that does not depend on the place keeps it; here steps are as long as the domain.
    n = 40_000
    sde = SDE(
        lambda x: torch.ones_like(x) * (0.7 if kind is Periodic else 0.0), 0.8, 1, boundaries=[kind(0, -1.0, 2.0)]
    )
    start = -1.0 + 3.0 * torch.rand(n, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = (simulate(sde, start, 2.0, step_size=0.5, seed=2).state[:, 0] + 1.0) / 3.0
    # Legendre moments of a uniform variable have mean 0 and variance 1 / (2k + 1).
    u = 2.0 * y - 1.0
    for k, value in enumerate([u, 1.5 * u**2 - 0.5, 2.5 * u**3 - 1.5 * u, (35 * u**4 - 30 * u**2 + 3) / 8], 1):
        assert abs(value.mean()) < 4.5 / math.sqrt(n * (2 * k + 1))
