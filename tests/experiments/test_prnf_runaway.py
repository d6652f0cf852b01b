"""Histories of ensembles with exits, and their scores, where the truth is known."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from pyro_boltzmann.diagnostics import Metric
from pyro_boltzmann.experiments.absorbed_companion import draw_absorbed, exact_survivors
from pyro_boltzmann.experiments.exit_histories import (
    ExitHistory,
    composed_history,
    direct_history,
    from_the_start,
    history_of,
    neighbours,
    visited_states,
)
from pyro_boltzmann.experiments.exit_scores import compare_histories, fraction_deviations
from pyro_boltzmann.experiments.prnf_runaway import PLAN
from pyro_boltzmann.experiments.prnf_runaway_page import asked_of, largest_ratio
from pyro_boltzmann.sde import AbsorbedBrownianTransition, FlowMap, TransitionData
from pyro_boltzmann.sde.systems import absorbed_brownian_motion

SIGMAS = 4.5  # two-sided false-alarm rate 7e-6


def brownian_states(n: int = 4000, strides: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    x0 = torch.full((n, 1), 1.0)
    return visited_states(absorbed_brownian_motion().sde, x0, 0.2, strides, step_size=0.05, seed=0)


def test_visited_states_have_the_exits_of_the_exact_law() -> None:
    states, exited = brownian_states()
    history = history_of(states, exited, 0.2, 1.0)
    assert history.times == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    law = AbsorbedBrownianTransition(0.0, 6.0)
    for time, found, number in zip(history.times, history.exits, exited[1:].sum(1), strict=True):
        p = 1.0 - float(law.survival(torch.tensor([[1.0]]), time))
        assert abs(found - p) < SIGMAS * math.sqrt(p * (1.0 - p) / 4000)
        assert found == pytest.approx(float(number) / 4000)


def test_exits_are_final_and_their_states_stay() -> None:
    states, exited = brownian_states(500)
    assert bool((exited[1:] >= exited[:-1]).all())
    gone = exited[2]
    assert bool((states[2:, gone] == states[2, gone]).all())


def test_transitions_of_trajectories() -> None:
    """Neighbours start from those that were still on their way; strides of all lengths start from the start."""
    states, exited = brownian_states(300)
    short = neighbours(states, exited, 0.2)
    assert len(short) == int((~exited[:-1]).sum()) and int(short.exited.sum()) == int(exited[-1].sum())
    long = from_the_start(states, exited, 0.2, 7, seed=1)
    assert len(long) == 2100 and bool((long.x0 == 1.0).all())
    strides = (long.time / 0.2).round().long()
    assert sorted(strides.unique().tolist()) == [1, 2, 3, 4, 5]
    rows = torch.arange(300).repeat(7)
    assert torch.equal(long.state, states[strides, rows]) and torch.equal(long.exited, exited[strides, rows])


def standardised(time: float | tuple[float, float]) -> FlowMap:
    """A map that is the affine fit to absorbed Brownian motion: its exits over short times are exact."""
    law = AbsorbedBrownianTransition(0.0, 6.0)
    torch.manual_seed(0)
    flow_map = FlowMap.for_sde(absorbed_brownian_motion().sde, time, drift=None, width=16, coupling_width=16)
    flow_map.standardise(draw_absorbed(law, time, 4000, 1))
    return flow_map.eval()


def test_a_step_of_a_map_has_its_exits_both_ways() -> None:
    x0 = torch.full((20_000, 1), 0.4)
    p = 1.0 - float(AbsorbedBrownianTransition(0.0, 6.0).survival(torch.tensor([[0.4]]), 0.1))
    once = composed_history(standardised(0.1), x0, 0.1, 1, every=1, seed=2)
    direct = direct_history(standardised((0.1, 0.3)), x0, [0.1], seed=3)
    for history in (once, direct):
        assert abs(history.exits[0] - p) < SIGMAS * math.sqrt(p * (1.0 - p) / 20_000)
        assert float(history.survivors[0].min()) > 0.0
    twice = composed_history(standardised(0.1), x0[:200], 0.1, 4, every=2, seed=2)
    assert twice.times == pytest.approx([0.2, 0.4]) and twice.exits[1] >= twice.exits[0]


def test_states_outside_of_what_a_map_knows_go_on_from_the_nearest_inside() -> None:
    """All are counted: here those that the first step has brought above the range, one in two of N(3, 0.1)."""
    flow_map = standardised(0.1)
    x0 = torch.full((2000, 1), 3.0)
    assert composed_history(flow_map, x0, 0.1, 3, every=1, seed=4).outside == 0
    flow_map.domain.high[0] = 3.0
    once, twice = (composed_history(flow_map, x0, 0.1, number, every=1, seed=4) for number in (1, 2))
    assert once.outside == 0 and twice.outside == int((once.survivors[0] > 3.0).sum())
    assert abs(twice.outside - 1000) < SIGMAS * math.sqrt(500.0)


def test_the_exact_law_of_survivors() -> None:
    """Far from the ends it is the normal law."""
    law = AbsorbedBrownianTransition(0.0, 60.0)
    cdf = exact_survivors(law, 30.0, 1.0)
    assert cdf(31.0) == pytest.approx(0.5 * (1.0 + math.erf(1.0 / math.sqrt(2.0))), abs=1e-4)
    data = draw_absorbed(AbsorbedBrownianTransition(0.0, 6.0), (0.1, 0.3), 500, 0)
    assert isinstance(data, TransitionData) and bool((data.state[data.exited] == 0.0).all())


def test_scores_of_histories() -> None:
    """A history against itself has no deviations; one that has lost twice as many has those of two binomials."""
    generator = torch.Generator().manual_seed(0)
    states = [0.5 + 3.0 * torch.rand(n, 3, generator=generator) for n in (900, 800)]
    truth = ExitHistory([1.0, 2.0], 1000, states, 1.0)
    other = ExitHistory([1.0, 2.0], 1000, [states[0][:800], states[1][:600]], 1.0)
    scores = compare_histories(truth, {"same": truth, "other": other}, 2.0)
    assert scores["same"]["exits_deviations"] == [0.0, 0.0]
    assert scores["same"]["ks"] == [[0.0] * 3] * 2
    expected = 0.1 / math.sqrt(0.15 * 0.85 * 2.0 / 1000)
    assert scores["other"]["exits_deviations"][0] == pytest.approx(expected)
    assert fraction_deviations([0.0], [0.0], 10, 10) == [0.0]
    assert sum(scores["same"]["histograms"][0]) == 800


def test_the_bound_of_the_largest_distance_is_that_of_kolmogorovs_law() -> None:
    law = stats.kstwobign()
    for number in (1, 120):
        assert largest_ratio(number) == pytest.approx(law.isf(1e-5 / number) / law.mean(), rel=1e-4)


def test_marginals_beyond_their_floor_are_told() -> None:
    def rows(deviation: float, ratio: float) -> dict[str, Metric]:
        return {
            "exit_deviation": Metric(deviation),
            "runaway_deviation": Metric(1.0),
            "ks_ratio": Metric(ratio),
        }

    asked = asked_of({"good": rows(4.4, 3.3), "bad": rows(4.6, 3.4)}, 120)
    assert [row.is_met for row in asked] == [True, True, True, False, True, False]


def test_a_shortened_plan_keeps_enough_of_everything() -> None:
    assert PLAN.shortened(1.0) == PLAN
    least = PLAN.shortened(1e-9)
    assert least.updates >= 10 and least.trajectories >= 100 and least.electrons >= 100
