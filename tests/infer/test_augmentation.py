"""Maximum likelihood on data that are moved by random symmetries of the target."""

from __future__ import annotations

import math

import pytest
import torch

import pyro_boltzmann as pb
from pyro_boltzmann.exceptions import CheckpointError, ShapeError
from pyro_boltzmann.transforms import ElementwiseAffine, ParticleSymmetry

SIGMAS = 4.5  # two-sided false-alarm rate 7e-6


def affine_guide(shift=(0.0, 0.0), log_scale=(0.0, 0.0)):
    model = pb.BoltzmannModel(lambda x: 0.5 * x.square().sum(-1), 2)
    guide = pb.AutoStochasticFlow(model, lambda energy, dim: [ElementwiseAffine(dim)])
    with torch.no_grad():
        guide.path.blocks[0].shift.copy_(torch.tensor(shift))
        guide.path.blocks[0].log_scale.copy_(torch.tensor(log_scale))
    return model, guide


def test_likelihood_of_turned_data():
    r"""One datum (r, 0), turned by Haar rotations, has E[x_k^2] = r^2 / 2 and E[x_k] = 0, so that a Gaussian's
    -E log q is sum_k [(r^2 / 2 + m_k^2) / (2 s_k^2) + log s_k] + log 2 pi (4.5 s.e.)."""
    model, guide = affine_guide((0.5, -1.0), (0.3, -0.2))
    objective = pb.ForwardKL(torch.tensor([[2.0, 0.0]]), num_particles=1000, augment=ParticleSymmetry(2, 2).augment)
    torch.manual_seed(0)
    values = torch.tensor([objective.loss(model, guide) for _ in range(100)], dtype=torch.float64)
    truth = sum(
        (2.0 + m * m) / (2.0 * math.exp(2.0 * s)) + s for m, s in ((0.5, 0.3), (-1.0, -0.2))
    ) + math.log(2.0 * math.pi)  # fmt: skip
    assert abs(float(values.mean()) - truth) < SIGMAS * float(values.std()) / 10.0
    assert float(values.std()) > 0.0


def test_fit_moves_the_data():
    """Data on one side and a flip: the best Gaussian has mean zero, and without the flip it does not."""

    def flip(rows):
        return rows * (2.0 * torch.randint(2, (len(rows), 1)) - 1.0)

    data = torch.tensor([[2.0, 2.0], [2.0, 2.5]])
    found = []
    for augment in (None, flip):
        model, guide = affine_guide()
        settings = {"num_steps": 150, "learning_rate": 0.05, "num_particles": 256, "seed": 0, "progress": False}
        pb.fit(model, guide, data=data, objective="forward_kl", augment=augment, **settings)
        found.append(guide.path.blocks[0].shift.detach().norm())
    assert found[0] > 2.5
    assert found[1] < 0.5  # 4.5 times the spread 2.8 / sqrt(256) of a minibatch's mean, and what Adam's steps add


def test_augmentation_belongs_to_the_run(tmp_path):
    data = torch.randn(10, 2)
    augment = ParticleSymmetry(2, 2).augment
    assert pb.ForwardKL(data).settings() == {}
    assert pb.ForwardKL(data, augment=augment).settings() == {"augment": "ParticleSymmetry.augment"}
    model, guide = affine_guide()
    settings = {"num_steps": 2, "checkpoint": tmp_path / "run", "progress": False, "data": data}
    pb.fit(model, guide, objective="forward_kl", augment=augment, **settings)
    for other in (None, lambda rows: rows):
        with pytest.raises(CheckpointError, match="augment"):
            pb.fit(model, guide, objective="forward_kl", augment=other, **settings)


def test_bad_input():
    model, guide = affine_guide()
    with pytest.raises(ShapeError, match=r"augment must return the shape of its rows, \(256, 2\), got \(256, 1\)"):
        pb.ForwardKL(torch.zeros(3, 2), augment=lambda rows: rows[:, :1]).loss(model, guide)
    with pytest.raises(ValueError, match="augment moves the data of maximum likelihood"):
        pb.fit(model, guide, num_steps=1, augment=lambda rows: rows, progress=False)
