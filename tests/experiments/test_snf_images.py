"""The image experiment: its cells and floor, its models and curves, the comparison at equal cost, a run and its
continuation."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_boltzmann import AutoStochasticFlow, catalogue, importance_sample
from pyro_boltzmann.energies.catalogue.image import ImageDensity
from pyro_boltzmann.exceptions import CheckpointError
from pyro_boltzmann.experiments import snf_images
from pyro_boltzmann.experiments.image_chains import chain_curve, flow_curve
from pyro_boltzmann.experiments.image_models import (
    FAMILIES,
    followed_by_steps,
    ours,
    published,
    with_steps,
)
from pyro_boltzmann.experiments.image_page import equal_cost
from pyro_boltzmann.experiments.image_scores import Cells

TARGET = cast(ImageDensity, catalogue["image"])


def _exact(count: int, seed: int) -> Tensor:
    return TARGET.sample(count, generator=torch.Generator().manual_seed(seed)).float()


def test_exact_draws_score_the_floor() -> None:
    """Within 4.5 standard deviations of the floor, weighted or not; the mass outside the square has its own cell."""
    cells = Cells(TARGET)
    assert cells.masses.sum() == pytest.approx(1.0, abs=1e-12)
    inside = TARGET.bin_probabilities(50).numpy()
    np.testing.assert_allclose(cells.masses[:-1].reshape(50, 50), inside)
    mean, spread = cells.floor(100_000)
    x = _exact(100_000, 1)
    assert abs(cells.kl(x) - mean) < 4.5 * spread
    assert cells.kl(x, torch.zeros(len(x))) == pytest.approx(cells.kl(x), rel=1e-9)
    assert cells.number(torch.tensor([[-3.5, -3.5], [3.49, 3.49], [3.6, 0.0], [-3.5, -3.36]])).tolist() == [
        0.0, 2499.0, 2500.0, 1.0,
    ]  # fmt: skip


def test_draws_folded_onto_one_half_score_their_known_kl() -> None:
    """The law of the folded draws is known, so is its KL; what the sample adds is between nothing and twice its floor
    (half of the cells have nothing but their pseudo-counts, and hence no noise)."""
    cells, count = Cells(TARGET), 50_000
    x = _exact(count, 2)
    halves = cells.masses[:2500].reshape(2, 25, 50)
    folded = np.stack([np.zeros((25, 50)), halves[1] + halves[0, ::-1]]).reshape(-1, 1)
    law = np.concatenate([folded, cells.masses[2500:]])
    shares = (count * law + 0.5) / (count + 0.5 * len(law))
    expected = float((cells.masses * np.log(cells.masses / shares)).sum())
    kl = cells.kl(torch.stack([x[:, 0].abs(), x[:, 1]], -1))
    assert expected > 1.0 and 0.0 < kl - expected < 2.0 * cells.floor(count)[0]


@pytest.mark.parametrize("family", [*FAMILIES, "ours"])
def test_untrained_models_weigh_to_the_normaliser(family: str) -> None:
    """log Z within 4.5 standard errors: published order and ours, with and without steps."""
    torch.manual_seed(0)
    model = ours("ours", 10) if family == "ours" else published(family, 4)
    program = TARGET.model()
    guide = AutoStochasticFlow(program, model.blocks)
    if family == "ours":
        guide = followed_by_steps(program, guide, 7)
    draws = importance_sample(program, guide, num_samples=20_000, seed=0)
    error = draws.log_normalizer_error
    assert abs(draws.log_normalizer - TARGET.log_z) < 4.5 * error < 0.6
    blocks = 2 if family.endswith("_snf") else 0
    assert draws.evaluations["sample"]["values"] <= 20_000 * (1 + (7 if family == "ours" else 11 * blocks))


def test_more_layers_get_fewer_updates() -> None:
    for family in FAMILIES:
        updates = [published(family, depth).num_updates for depth in snf_images.DEPTHS]
        assert updates == sorted(updates, reverse=True) and updates[0] > updates[-1] >= 200
    assert published("nsf_snf", 4).num_updates < published("nsf", 4).num_updates


def test_steps_on_the_target_leave_the_weights_alone() -> None:
    """The law of the weights is the flow's: same seed, same start, equal log Z and ESS to rounding."""
    torch.manual_seed(1)
    program = TARGET.model()
    flow = AutoStochasticFlow(program, ours("ours", 10).blocks)
    draws = [
        importance_sample(program, guide, num_samples=5_000, seed=3)
        for guide in (flow, followed_by_steps(program, flow, 5))
    ]
    torch.testing.assert_close(draws[0].log_weights, draws[1].log_weights, atol=2e-4, rtol=0)
    assert not torch.equal(draws[0].samples["x"], draws[1].samples["x"])


def test_curves_count_what_they_spend() -> None:
    cells = Cells(TARGET)
    stops = [2, 5]
    curve = chain_curve(TARGET, cells.kl, stops, scale=0.5, num_samples=4000, seed=0)
    assert [spent for spent, _ in curve] == [3.0, 6.0] and curve[1][1] < curve[0][1]
    program = TARGET.model()
    torch.manual_seed(0)
    guide = AutoStochasticFlow(program, published("rnvp_snf", 4).blocks)
    flows = flow_curve(program, (with_steps(program, guide, n) for n in (1, 10)), cells.kl, num_samples=4000, seed=0)
    assert flows[0][0] < flows[1][0] <= 22.0 and flows[1][1] < flows[0][1]


def _costing(name: str, cost: float, raw: float, weighted: float) -> Any:
    values = {"image_kl_raw": raw, "image_kl": weighted}
    return SimpleNamespace(model=SimpleNamespace(name=name), cost=cost, value=values.__getitem__)


def test_the_comparison_takes_the_best_affordable_flow() -> None:
    scored = {
        "snf": _costing("snf", 10.0, 0.2, 0.2),
        "cheap": _costing("cheap", 5.0, 0.4, 0.3),
        "good": _costing("good", 10.9, 0.3, 0.1),
        "dear": _costing("dear", 11.1, 0.0, 0.0),
    }
    lines = equal_cost(scored, {"snf": ["cheap", "good", "dear"]})
    assert "| good |" in lines[2] and lines[2].endswith("| 0.1000 | raw only |")
    assert lines[-1].startswith("Raw, the stochastic flow is better in 1 of 1")
    assert "none at that cost" in equal_cost(scored, {"cheap": ["dear"]})[2]


def test_a_run_and_its_continuation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained models are kept: a second run finds them and scores the same; another seed is refused."""
    for constant, value in {"DATA": 2000, "OURS_BATCH": 100, "BATCH": 50}.items():
        monkeypatch.setattr(snf_images, constant, value)
    monkeypatch.setattr(snf_images, "_depths", lambda share: (4,))
    reports = [snf_images.run(seed=0, out=tmp_path, minutes=0.01, num_samples=2000, progress=False)]
    monkeypatch.setattr(snf_images, "_save_figures", lambda *args: None)  # those of the first run stay
    reports.append(snf_images.run(seed=0, out=tmp_path, minutes=0.01, num_samples=2000, progress=False))
    names = {"ours", "ours_flow", "ours_energy", *(f"{family}_4" for family in FAMILIES)}
    assert set(reports[0]["models"]) == names
    for name in names:
        first, again = (report["models"][name] for report in reports)
        assert all(first[row] == again[row] for row in ("image_kl", "image_kl_raw", "log_z", "updates", "eubo"))
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["sampler"] == snf_images.HEADLINE and stored["metrics"]["image_kl"]["floor"] > 0
    page = (tmp_path / "snf-images.md").read_text()
    assert "## At equal cost" in page and "a shortened run" in page and "too short for 2, 6, 8, 12, 16 layers" in page
    for picture in ("density", "samples", "kl_layers", "kl_evaluations"):
        assert (tmp_path / f"{picture}.png").stat().st_size
    with pytest.raises(CheckpointError, match="another run"):
        snf_images.run(seed=1, out=tmp_path, minutes=0.01, num_samples=2000)
