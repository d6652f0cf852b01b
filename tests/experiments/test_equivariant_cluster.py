"""The experiment on LJ-13: draws as a start of SMC, new metastable states, what is saved, and a short run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from pyro_boltzmann import smc
from pyro_boltzmann.energies.catalogue import catalogue
from pyro_boltzmann.exceptions import EnergyError
from pyro_boltzmann.experiments.drawn_proposal import drawn_proposal
from pyro_boltzmann.experiments.equivariant_cluster import LJ13, ClusterExperiment, ClusterPlan
from pyro_boltzmann.experiments.equivariant_models import CLUSTER_MODELS, base_scale, symmetry_of
from pyro_boltzmann.experiments.equivariant_smc import LogZRuns, ProposalPlan, savings, smc_from_flow
from pyro_boltzmann.experiments.equivariant_states import find_states
from pyro_boltzmann.experiments.equivariant_training import likelihoods
from pyro_boltzmann.transforms.continuous import ContinuousTransform, GraphField


def quadratic(x: torch.Tensor) -> torch.Tensor:
    return 2.0 * x.square().sum(-1)


def exact_draws(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of exp(-quadratic) in two dimensions, whose normaliser is pi / 2."""
    x = 0.5 * torch.randn(number, 2)
    return x, -quadratic(x) - math.log(math.pi / 2)


def test_exact_draws_give_log_z_exactly() -> None:
    """Where the draws are the target's own every weight is Z; rows that are lost count as zero: half of them lost,
    log Z is lower by log 2."""
    torch.manual_seed(0)
    x, log_q = exact_draws(200)
    settings = {"dim": 2, "num_samples": 200, "conditional_ess": 1e-6, "seed": 0, "progress": False}
    whole = smc(quadratic, proposal=drawn_proposal(x, log_q), **settings)
    assert whole.log_normalizer == pytest.approx(math.log(math.pi / 2), abs=1e-5)
    x[::2] = torch.nan
    half = smc(quadratic, proposal=drawn_proposal(x, log_q), **settings)
    assert half.log_normalizer == pytest.approx(math.log(math.pi / 4), abs=1e-5)
    assert bool(half.samples["x"].isfinite().all())


def test_other_temperatures_are_refused() -> None:
    torch.manual_seed(0)
    x, log_q = exact_draws(100)
    with pytest.raises(EnergyError, match="where they were drawn only"):
        smc(lambda x: 50.0 * quadratic(x), dim=2, num_samples=100, proposal=drawn_proposal(x, log_q), progress=False)


def test_runs_from_exact_draws_have_no_error() -> None:
    """Eight runs of draws of DW-2 itself: log Z in each, and every move's evaluations counted."""
    target = catalogue["dw2"]
    x = target.sample(400, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    log_q = -target.energy(x) - target.log_z
    runs = smc_from_flow(target, ProposalPlan(drawn=50), x, log_q, seed=0)
    assert len(runs.log_z) == 8
    assert runs.rms(target.log_z) < 1e-4
    assert runs.evaluations >= 50 * (1 + 2)
    assert runs.rows(target)["runs"]["value"] == 8.0


def test_savings_count_the_training() -> None:
    """Errors of one and a half: constants 100 and 25 evaluations, so at an error of 0.05 40,000 against 10,000, and
    against 20,000 with a training of 10,000."""
    gaussian, flow = LogZRuns([1.0, -1.0], 100.0), LogZRuns([0.5, -0.5, 0.5], 100.0)
    assert gaussian.constant(0.0) == pytest.approx(100.0) and flow.constant(0.0) == pytest.approx(25.0)
    found = savings(gaussian, flow, 0.0, {"training included": 10_000.0})
    assert found["error 0.05, training excluded"]["saving"]["value"] == pytest.approx(4.0)
    assert found["error 0.05, training included"]["from_flow"]["value"] == pytest.approx(20_000.0)
    assert found["error 0.05, training included"]["saving"]["value"] == pytest.approx(2.0)


def test_states_below_draws_and_not_below_data() -> None:
    """Two particles of a double well have two distances at rest; data of one and draws of both share one. A row that is
    lost is left out."""
    target = catalogue["dw2"]
    at = torch.linspace(1.0, 7.0, 13).unsqueeze(-1) * torch.tensor([[1.0, 0.0]])
    ends = find_states(target, at, {"all": (13, at)})
    assert ends.rows["all"]["states_drawn"]["value"] == 2.0 and ends.rows["all"]["states_new"]["value"] == 0.0
    lost = torch.full((1, 2), torch.nan)
    found = find_states(target, at[:1], {"far": (1, torch.cat([at, lost]))})
    rows = {name: row["value"] for name, row in found.rows["far"].items()}
    assert rows["states_data"] == 1.0 and rows["states_new"] == 1.0 and rows["draws"] == 13.0
    assert 0.0 < rows["draws_new"] < 13.0
    assert len(found.new) == 1
    assert found.lowest_energy == pytest.approx(float(ends.lowest_energy))
    energies = target.energy(at)
    low = find_states(target, at[:1], {"far": (1, at)}, highest=float(energies.median())).rows["far"]
    assert low["draws"]["value"] == 7.0
    none = find_states(target, at[:1], {"far": (1, at)}, highest=-1e9).rows["far"]
    assert none["draws"]["value"] == none["states_new"]["value"] == 0.0


@pytest.mark.parametrize("name", list(CLUSTER_MODELS))
def test_models_know_what_they_say(name: str) -> None:
    """Densities of models that know the symmetry are invariant; of the others, with their weights moved, they are
    not."""
    target = catalogue["lj13"]
    torch.manual_seed(1)
    guide = CLUSTER_MODELS[name].guide(target)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    guide.path.blocks[0].configure(num_steps=2)
    rows = base_scale(target) * torch.randn(3, 36)
    moved = symmetry_of(target).augment(rows)
    difference = (likelihoods(guide, rows) - likelihoods(guide, moved)).abs().max()
    assert bool(difference < 1e-3) == CLUSTER_MODELS[name].knows_symmetry


def test_blocks_do_not_mix_rows() -> None:
    """More rows than are integrated at a time where Jacobians are taken: as one by one."""
    torch.manual_seed(0)
    flow = ContinuousTransform(GraphField(13, 3, width=4, depth=1), 36, 1, divergence="jacobian")
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        x = torch.randn(9, 36)
        _, together = flow.call_and_ladj(x)
        apart = torch.cat([flow.call_and_ladj(row)[1] for row in x.split(1)])
    assert torch.allclose(together, apart, atol=1e-4)
    assert bool((together.abs() > 1e-3).all())


def test_a_short_run(tmp_path: Path) -> None:
    """On two particles, whose Jacobians cost little; the run on LJ-13 differs in its target alone."""
    plan = ClusterPlan(1.0, 0.3, ProposalPlan((60, 90), 3.0, repeats=2, drawn=10))
    experiment = ClusterExperiment("dw2", plan)
    experiment.run(seed=0, out=tmp_path, minutes=0.005, progress=False)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["sampler"] == "graph, seed 0"
    assert {"nll", "ess", "log_z", "khat", "e_w2"} <= set(report["metrics"])
    assert {f"{name} {size}" for name in CLUSTER_MODELS for size in (10, 100)} <= set(report["models"])
    assert report["models"]["draws of graph 10"]["train_size"]["value"] == 10.0
    assert report["models"]["error 0.2, training excluded"]["saving"]["value"] > 0.0
    for name in ("equivariant-dw2.md", "nll.png", "energies_headline.png", "states.png", "samples.nc"):
        assert (tmp_path / name).exists()
    again = experiment.run(seed=0, out=tmp_path, minutes=0.005, progress=False)
    assert again["metrics"] == report["metrics"]


def test_the_plan_fits_into_an_hour() -> None:
    assert LJ13.plan.minutes <= 60.0
    assert LJ13.plan.headline <= 15.0 * 60.0
