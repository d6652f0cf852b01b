"""Ranks of simulation-based calibration and the test of their uniformity."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from pyro_boltzmann.diagnostics import calibration_ranks, rank_test
from pyro_boltzmann.exceptions import ShapeError


def conjugate_ranks(num_sets: int, scale: float) -> torch.Tensor:
    """theta ~ N(0, 1), y ~ N(theta, 1), so theta given y is N(y / 2, 1 / 2); its standard deviation times ``scale``."""
    generator = torch.Generator().manual_seed(1)
    theta = torch.randn(num_sets, generator=generator)
    y = theta + torch.randn(num_sets, generator=generator)
    noise = torch.randn(num_sets, 63, generator=generator)
    return calibration_ranks(theta, 0.5 * y.unsqueeze(-1) + scale * 0.5**0.5 * noise, generator)


def test_exact_posteriors_have_uniform_ranks_and_wrong_ones_have_not() -> None:
    """False-alarm rate 1e-5; a posterior that is narrower or wider by 40 % is found in 500 data sets."""
    assert rank_test(conjugate_ranks(500, 1.0), 64).p_value > 1e-5
    narrow, wide = rank_test(conjugate_ranks(500, 0.6), 64), rank_test(conjugate_ranks(500, 1.4), 64)
    assert narrow.p_value < 1e-5 and wide.p_value < 1e-5
    # Too narrow: the truth falls outside of the draws; too wide: amid them.
    assert min(narrow.counts[0], narrow.counts[-1]) > 500 / 16 > max(wide.counts[0], wide.counts[-1])


def test_ranks_count_the_draws_below() -> None:
    truth, draws = torch.randn(5, 3), torch.randn(5, 20, 3)
    expected = torch.tensor([[sum(draws[r, :, j] < truth[r, j]) for j in range(3)] for r in range(5)])
    assert torch.equal(calibration_ranks(truth, draws), expected)


def test_ties_are_broken_fairly() -> None:
    """All draws equal to the truth: the rank is uniform on 0..L."""
    ranks = calibration_ranks(torch.zeros(8000), torch.zeros(8000, 7), torch.Generator().manual_seed(0))
    assert rank_test(ranks, 8, 8).p_value > 1e-5 and set(ranks.tolist()) == set(range(8))


def test_statistic_is_the_textbook_one() -> None:
    test = rank_test([0, 1, 2, 7], 8, 4)
    assert test.counts == (2, 1, 0, 1) and test.statistic == pytest.approx(2.0)
    assert test.p_value == pytest.approx(float(stats.chi2.sf(2.0, 3)))


def test_bad_input_is_explained() -> None:
    with pytest.raises(ShapeError, match=r"\(R, L, \*event\)"):
        calibration_ranks(torch.zeros(3), torch.zeros(4, 5))
    with pytest.raises(ValueError, match="divide num_ranks=64"):
        rank_test([0], 64, 15)
    with pytest.raises(ValueError, match="from 0 to 63"):
        rank_test([64], 64)
    with pytest.raises(ValueError, match="from 0 to 63"):
        rank_test([], 64)
