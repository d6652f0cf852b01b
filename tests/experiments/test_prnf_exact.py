"""The experiments on laws that are known: slopes, asked figures, and short runs of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from pyro_boltzmann import cli
from pyro_boltzmann.diagnostics import Metric
from pyro_boltzmann.experiments import prnf_abc, prnf_brownian, prnf_ou
from pyro_boltzmann.experiments.asked import Asked, asked_table
from pyro_boltzmann.experiments.power_law import fit_power_law
from pyro_boltzmann.experiments.prnf_page import FlowMapResults, write_flow_map_results

SIGMAS = 4.5


def test_slopes_and_their_errors() -> None:
    """Noise of sd 0.2 in the logarithm on n^(-0.7): the slope within 4.5 of its own errors, whose size is that of least
    squares, 0.2 / sqrt(sum of squares of log n about their mean)."""
    generator = np.random.default_rng(0)
    sizes = (100, 1000, 10_000, 100_000)
    points = {n: list(5.0 * n**-0.7 * np.exp(0.2 * generator.standard_normal(25))) for n in sizes}
    law = fit_power_law(points)
    assert abs(law.slope + 0.7) < SIGMAS * law.std_error
    logs = np.repeat(np.log(sizes), 25)
    assert law.std_error == pytest.approx(0.2 / math.sqrt(((logs - logs.mean()) ** 2).sum()), rel=0.35)
    with pytest.raises(ValueError, match="three or more positive errors"):
        fit_power_law({10: [1.0], 100: [0.1]})
    with pytest.raises(ValueError, match="positive"):
        fit_power_law({10: [1.0, 2.0], 100: [-0.1]})


def test_what_was_not_measured_is_not_met() -> None:
    assert not Asked("a", math.nan, 1.0).is_met and not Asked("a", math.nan, 1.0, at_least=True).is_met
    assert "| a | >= 1 | 2 | met |" in asked_table([Asked("a", 2.0, 1.0, at_least=True)])


def test_the_page_says_what_is_short(tmp_path: Path) -> None:
    rows = {"first": {"kl_normal": Metric(0.5)}, "second": {"kl_normal": Metric(0.1), "mass": Metric(1.0, 0.1)}}
    results = FlowMapResults(
        experiment="demo",
        target="brownian",
        title="A title",
        introduction="Words.",
        seed=0,
        num_samples=100,
        headline="second",
        tables={"One": rows, "Two": {"second": rows["second"]}},
        columns={"One": ["kl_normal"], "Two": ["mass"]},
        asked=[Asked("KL", 0.1, 0.01), Asked("mass", 0.0, 4.5)],
        pictures={"picture": "A caption"},
        seconds={"train": 1.0},
    )
    report = write_flow_map_results(results, tmp_path)
    page = (tmp_path / "demo.md").read_text()
    assert "| KL | <= 0.01 | 0.1 | short |" in page and "## Two" in page and "A caption" in page
    assert "short of what was asked: KL is 0.1" in report["reasons"]
    assert report["verdict"] == "reliable" and report["metrics"]["mass"]["std_error"] == 0.1


def test_plans_fit_into_twenty_minutes() -> None:
    assert max(plan.minutes for plan in (prnf_brownian.PLAN, prnf_ou.PLAN, prnf_abc.PLAN)) <= 20.0


@pytest.mark.slow
def test_a_short_run_of_brownian_motion(tmp_path: Path) -> None:
    arguments = ["reproduce", "prnf-brownian", "--seed", "0", "--minutes", "0.05", "--num-samples", "1000"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) in (0, None)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["sampler"] == prnf_brownian.HEADLINE
    # The affine path alone: about three numbers estimated from 72,000 pairs.
    assert all(report["metrics"][f"kl_{law}"]["value"] < 1e-3 for law in ("normal", "uniform", "mixture", "gamma"))
    assert {"penalty 1", "penalty 10", "penalty 100", "penalty 1000"} <= set(report["models"])
    for name in ("prnf-brownian.md", "marginals.png", "penalty.png", "convergence.png"):
        assert (tmp_path / name).exists()


@pytest.mark.slow
def test_a_short_run_of_ornstein_uhlenbeck(tmp_path: Path) -> None:
    arguments = ["reproduce", "prnf-ou", "--seed", "0", "--minutes", "0.05", "--num-samples", "1000"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) in (0, None)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["sampler"] == prnf_ou.HEADLINE
    assert {f"flow map, d = {dim}" for dim in (1, 2, 10, 30)} <= set(report["models"])
    for name in ("prnf-ou.md", "kl.png"):
        assert (tmp_path / name).exists()


def test_small_errors_have_digits(tmp_path: Path) -> None:
    rows = {"only": {"kl_normal": Metric(0.000213, 0.0000042), "nll": Metric(1.5, 0.01)}}
    results = FlowMapResults(
        experiment="demo",
        target="brownian",
        title="A title",
        introduction="Words.",
        seed=0,
        num_samples=100,
        headline="only",
        tables={"One": rows},
        columns={"One": ["kl_normal", "nll"]},
        asked=[],
        pictures={},
        seconds={},
    )
    write_flow_map_results(results, tmp_path)
    assert "| 0.0002130 +- 0.0000042 | 1.5000 +- 0.0100 |" in (tmp_path / "demo.md").read_text()
