"""The experiments on equivariant flows: pairs, likelihoods and solvers, and a short run through the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from pyro_boltzmann import cli
from pyro_boltzmann.diagnostics import Metric
from pyro_boltzmann.energies.catalogue import catalogue
from pyro_boltzmann.experiments.bendem_rows import to_plain
from pyro_boltzmann.experiments.equivariant import DW2, DW4, EquivariantExperiment
from pyro_boltzmann.experiments.equivariant_models import BASE_SCALE, MODELS, symmetry_of
from pyro_boltzmann.experiments.equivariant_page import EquivariantResults, _introduction
from pyro_boltzmann.experiments.equivariant_scores import excess_metric, nll_metric, score, scored_rows
from pyro_boltzmann.experiments.equivariant_solvers import divergence_costs
from pyro_boltzmann.experiments.equivariant_training import BestState, learn_own_draws, likelihoods
from pyro_boltzmann.experiments.paired_flow_matching import PairedFlowMatching, draw_pairs
from pyro_boltzmann.infer import FitResult

SIGMAS = 4.5  # two-sided false-alarm rate 7e-6


def test_pairs_keep_both_laws_and_are_short() -> None:
    """Base draws keep their law up to symmetries: |x0|^2 / s^2 is chi-squared (4.5 s.e.); pairs are shorter than at
    random, by alignment and by transport."""
    target = catalogue["dw4"]
    torch.manual_seed(0)
    data = 2.0 * torch.randn(500, 6)
    x0, x1 = draw_pairs(data, 1.5, 4000, basis=target.basis, seed=1)
    squares = x0.square().sum(-1) / 2.25
    assert abs(float(squares.mean()) - 6.0) < SIGMAS * math.sqrt(12.0 / 4000)
    rows, counts = torch.unique(x1, dim=0, return_counts=True)
    assert len(rows) == 500 and bool((counts == 8).all())
    plain, _ = draw_pairs(data, 1.5, 4000, seed=1)
    apart = [float((a - x1).square().sum(-1).mean()) for a in (x0, plain, x0.flip(0))]
    assert apart[0] < apart[1] < apart[2]


def test_augmented_pairs_have_turned_data() -> None:
    target = catalogue["dw4"]
    data = torch.randn(1, 6)
    _, x1 = draw_pairs(data, 1.0, 64, symmetry=symmetry_of(target))
    assert torch.allclose(x1.norm(dim=-1), data.norm().expand(64), atol=1e-4)
    assert len(torch.unique(x1, dim=0)) == 64


def test_minibatches_are_rows_of_the_pool() -> None:
    objective = PairedFlowMatching(torch.randn(20, 2), BASE_SCALE, num_pairs=40, num_particles=16, seed=3)
    guide = MODELS["plain"].guide(catalogue["dw2"])
    x0, x1 = objective.pairs(guide)
    both = torch.cat(objective.pool, -1)
    assert all(bool((row == both).all(-1).any()) for row in torch.cat([x0, x1], -1))
    assert objective.settings()["num_pairs"] == 40


def test_likelihood_of_an_untrained_flow() -> None:
    """The graph field starts at zero, so the flow is its base: -log N(x; 0, s^2) in closed form. The floor is that of
    the exact density."""
    target = catalogue["dw2"]
    rows = target.sample(50, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    guide = MODELS["graph"].guide(target)
    log_q = likelihoods(guide, rows)
    exact = -0.5 * (rows / BASE_SCALE).square().sum(-1) - math.log(2.0 * math.pi * BASE_SCALE**2)
    assert torch.allclose(log_q.float(), exact, atol=1e-4)
    row, excess = nll_metric(log_q, target, rows), excess_metric(log_q, target, rows)
    assert excess.value == pytest.approx(row.value - row.floor, abs=1e-5)
    assert row.value == pytest.approx(-float(exact.mean()), abs=1e-4)
    assert row.floor == pytest.approx(target.log_z + float(target.energy(rows).mean()), abs=1e-5)
    assert row.truth.value == pytest.approx(target.log_z + target.mean_energy)


def test_the_best_state_is_kept() -> None:
    """A shift that moves away from the data and back: the looks remember where it was best."""
    target = catalogue["dw2"]
    guide = MODELS["coupling_augmented"].guide(target)
    best = BestState(guide, torch.zeros(4, 2), every=1)
    shift = guide.path.blocks[0].shift
    for step, value in enumerate((3.0, 0.0, 5.0), 1):
        with torch.no_grad():
            shift.fill_(value)
        best.look(FitResult(steps=step))
    best.restore()
    assert best.step == 2 and bool((shift == 0.0).all())


@pytest.mark.parametrize("name", list(MODELS))
def test_models_know_what_they_say(name: str) -> None:
    """Densities of models that know the symmetry are invariant to 1e-5; of the others they are not, once trained a
    little, here by moving all weights."""
    target = catalogue["dw4"]
    torch.manual_seed(1)
    model = MODELS[name]
    guide = model.guide(target)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    rows = 2.0 * torch.randn(20, 6)
    moved = symmetry_of(target).augment(rows)
    difference = (likelihoods(guide, rows) - likelihoods(guide, moved)).abs().max()
    assert bool(difference < 1e-4) == model.knows_symmetry


def test_divergences() -> None:
    """In closed form they are right to rounding; the estimate is noisy."""
    torch.manual_seed(0)
    found = divergence_costs(catalogue["dw4"], 2.0 * torch.randn(50, 6), seed=0)
    assert found["kernel, closed form"]["divergence_error"] < 1e-4
    assert found["embedded_atom, closed form"]["divergence_error"] < 1e-4
    assert all(row["divergence_sd"] > 0.01 for name, row in found.items() if "Hutchinson" in name)
    assert all(row["milliseconds"] > 0.0 for row in found.values())


def test_the_energy_is_a_control_variate() -> None:
    """The two likelihoods of the same rows differ by how far the rows' own floor is from the entropy."""
    target = catalogue["dw2"]
    rows = target.sample(400, generator=torch.Generator().manual_seed(2), dtype=torch.float32)
    log_q = likelihoods(MODELS["graph"].guide(target), rows)
    plain = {"nll": nll_metric(log_q, target, rows), "nll_excess": excess_metric(log_q, target, rows)}
    found = scored_rows({name: to_plain(row) for name, row in plain.items()})
    assert list(found) == ["nll", "nll_controlled", "nll_excess"]
    entropy = target.log_z + target.mean_energy
    shift = plain["nll"].floor - entropy
    assert found["nll_controlled"].value == pytest.approx(plain["nll"].value - shift, abs=1e-5)
    assert found["nll_controlled"].std_error >= plain["nll_excess"].std_error


def test_data_of_its_own() -> None:
    """From the energy alone: draws of tempered Monte Carlo teach the flow, and their gradients are counted."""
    target = catalogue["dw2"]
    guide, cost = learn_own_draws(MODELS["graph"], target, seconds=2.0, seed=0, num_draws=500)
    rows = target.sample(200, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
    untrained = likelihoods(MODELS["graph"].guide(target), rows)
    gain = likelihoods(guide, rows) - untrained
    assert float(gain.mean()) > SIGMAS * float(gain.std()) / math.sqrt(len(rows))
    assert cost.gradients > 500 and cost.updates == 40


def test_scores_of_an_untrained_flow() -> None:
    """log Z of the base's draws agrees with the exact value (4.5 s.e.)."""
    target = catalogue["dw2"]
    guide = MODELS["graph"].guide(target)
    rows = score(guide, target, target.sample(50, dtype=torch.float32), num_samples=500, seed=0)["rows"]
    assert abs(rows["log_z"]["value"] - target.log_z) < SIGMAS * rows["log_z"]["std_error"]


def test_a_short_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["reproduce", "equivariant-dw2", "--seed", "0", "--minutes", "0.02", "--num-samples", "100"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) in (0, None)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["sampler"] == "graph, seed 0"
    assert {"nll", "ess", "log_z", "khat"} <= set(report["metrics"])
    assert set(MODELS) <= {name.split()[0] for name in report["models"]}
    for name in ("equivariant-dw2.md", "nll.png", "energies_headline.png", "configurations_kernel.png", "samples.nc"):
        assert (tmp_path / name).exists()


@pytest.mark.parametrize(("name", "plan", "data"), [("dw2", DW2, "independent exact draws"), ("dw4", DW4, "tempering")])
def test_the_page_says_how_many_draws_and_whose_data(name: str, plan: EquivariantExperiment, data: str) -> None:
    results = EquivariantResults(catalogue[name], 0, 1.0, 2000, (100, 1000), 10_000, plan.plan)
    text = " ".join(_introduction(results, Metric(7.0), []).split())
    assert "N = 2,000 of them, and N = 10,000 of the flows of `energy alone`" in text
    assert data in text


def test_plans_fit_into_an_hour() -> None:
    assert DW4.plan.minutes <= 55.0 and DW2.plan.minutes <= 20.0
    assert DW4.plan.headline <= 15.0 * 60.0
