"""The autoencoder experiment: its data, its guides on one decoder, a run and its continuation."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from pyro_boltzmann import AmortizedStochasticFlow
from pyro_boltzmann.exceptions import CheckpointError, PyroBoltzmannError
from pyro_boltzmann.experiments import digits as data
from pyro_boltzmann.experiments import vae_digits
from pyro_boltzmann.experiments.adaptation import adapt_scales
from pyro_boltzmann.stochastic import MetropolisAdjusted

pytest.importorskip("sklearn")


def test_the_digits_are_binary_and_split_once_for_all() -> None:
    images = data.digits()
    assert images.train.shape == (1400, 64) and images.test.shape == (397, 64)
    assert bool(((images.train == 0) | (images.train == 1)).all())
    torch.manual_seed(5)
    assert data.digits().target_hash == images.target_hash


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(PyroBoltzmannError, match=r"pyro-boltzmann\[sklearn\]"):
        data.digits()


def test_all_guides_weigh_to_the_same_likelihood() -> None:
    """Untrained, on one decoder: 4000 paths an image, in float64, estimates of p(x) within 4.5 standard errors."""
    torch.manual_seed(0)
    model, images = data.Vae().double(), data.digits().test[:5].double()
    encoder = data.Encoder().double()
    estimates = []
    for blocks in vae_digits.GUIDES.values():
        guide = AmortizedStochasticFlow(model, encoder, blocks, latent_dim=data.LATENT_DIM, dtype=torch.float64)
        with torch.no_grad():
            weight = guide.sample_paths(4000, images).log_weight.exp()
        estimates.append((weight.mean(0), weight.std(0) / math.sqrt(4000)))
    for mean, error in estimates[1:]:
        assert bool(((mean - estimates[0][0]).abs() < 4.5 * (error**2 + estimates[0][1] ** 2).sqrt()).all())


def test_scales_adapt_on_images() -> None:
    torch.manual_seed(0)
    images = data.digits().train[:20]
    guide = AmortizedStochasticFlow(data.Vae(), data.Encoder(), vae_digits.GUIDES["hmc"])
    guide.initialize(images)
    before = [b.proposal.step_size.clone() for b in guide.path.blocks if isinstance(b, MetropolisAdjusted)]
    count = adapt_scales(guide, 0, images, rounds=4, num_particles=3)
    after = [b.proposal.step_size for b in guide.path.blocks if isinstance(b, MetropolisAdjusted)]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) and count.gradients > 0


def test_a_run_and_its_continuation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained models are kept: a second run scores them again, to the same numbers; another seed is refused."""
    images = data.digits()
    monkeypatch.setattr(vae_digits, "digits", lambda: data.Digits(images.train[:200], images.test[:20]))
    reports = [
        vae_digits.run(seed=0, out=tmp_path, minutes=0.01, num_samples=30, progress=index > 0) for index in range(2)
    ]
    names = [*vae_digits.GUIDES, *(f"frozen_{kind}" for kind in vae_digits.GUIDES)]
    assert list(reports[0]["models"]) == names
    for name in names:
        rows = [report["models"][name] for report in reports]
        assert rows[0]["elbo"] == rows[1]["elbo"] and rows[0]["svi_steps"] == rows[1]["svi_steps"]
        if not name.startswith("frozen_"):
            difference = rows[0]["log_likelihood"]["value"] - rows[0]["elbo"]["value"]
            assert rows[0]["gap"]["value"] == pytest.approx(difference, abs=1e-5)
    assert json.loads((tmp_path / "report.json").read_text())["sampler"] == vae_digits.HEADLINE
    page = (tmp_path / "vae-digits.md").read_text()
    assert "## One frozen decoder" in page and "a shortened run" in page and (tmp_path / "digits.png").stat().st_size
    with pytest.raises(CheckpointError, match="another run"):
        vae_digits.run(seed=1, out=tmp_path, minutes=0.01, num_samples=30)
