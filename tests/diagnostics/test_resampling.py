import math

import pytest
import torch

from pyro_boltzmann.diagnostics import RESAMPLERS, systematic
from pyro_boltzmann.exceptions import NonFiniteEnergyError, ShapeError


def counts(method, log_weights, size, repeats, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(
        [
            torch.bincount(RESAMPLERS[method](log_weights, size, generator), minlength=len(log_weights))
            for _ in range(repeats)
        ]
    ).double()


@pytest.mark.parametrize("method", RESAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unbiased(method, dtype):
    """Mean counts equal ``M * w`` within 4.5 standard errors of a multinomial count, which bounds both schemes."""
    weights = torch.tensor([0.5, 0.0, 0.23, 0.2, 0.07], dtype=torch.float64)
    size, repeats = 7, 4000
    found = counts(method, weights.log().to(dtype) - 500.0, size, repeats)
    error = (size * weights * (1 - weights) / repeats).sqrt()
    assert ((found.mean(0) - size * weights).abs() <= 4.5 * error + 1e-3 * (dtype == torch.float32)).all()
    assert found.sum(1).eq(size).all()


def test_systematic_counts_are_floor_or_ceiling():
    log_weights = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = 200 * log_weights.softmax(0)
    found = counts("systematic", log_weights, 200, 300)
    assert (found >= expected.floor()).all()
    assert (found <= expected.ceil()).all()
    assert found.std(0).max() > 0


def test_multinomial_counts_have_multinomial_variance():
    log_weights = torch.tensor([0.3, 0.7], dtype=torch.float64).log()
    variance = counts("multinomial", log_weights, 50, 4000).var(0)
    # Var of a sample variance of a near-normal count: 2 s^4 / (n - 1); 4.5 of those.
    assert variance[0] == pytest.approx(50 * 0.21, rel=4.5 * math.sqrt(2 / 3999))


@pytest.mark.parametrize("method", RESAMPLERS)
def test_zero_weights_are_never_drawn(method):
    log_weights = torch.full((9,), -math.inf)
    log_weights[4] = -3.0
    assert RESAMPLERS[method](log_weights, 1000).eq(4).all()
    with pytest.raises(NonFiniteEnergyError):
        RESAMPLERS[method](torch.full((3,), -math.inf), 3)


@pytest.mark.parametrize("method", RESAMPLERS)
def test_reproducible_and_checked(method):
    log_weights = torch.arange(5.0)
    first, second = (RESAMPLERS[method](log_weights, 20, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.equal(second)
    with pytest.raises(ShapeError, match="num_samples"):
        RESAMPLERS[method](log_weights, 0)


def test_last_position_that_rounds_to_one_stays_in_range(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: torch.tensor([1.0 - 2.0**-53], dtype=torch.float64))
    indices = systematic(torch.tensor([0.0, 0.0, -math.inf]), 10_001)
    assert indices.max() == 1


@pytest.mark.parametrize("name", sorted(RESAMPLERS))
def test_resamplers_ignore_the_default_device(name):
    # As on a machine whose default device is its accelerator; "meta" refuses to mix with others in the same way.
    with torch.device("meta"):
        index = RESAMPLERS[name](torch.zeros(4, device="cpu"), 4, None)
    assert index.device.type == "cpu"
    assert index.shape == (4,)
