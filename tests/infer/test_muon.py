"""The optimiser that makes steps of matrices orthogonal."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pyro_boltzmann as pb
from pyro_boltzmann.infer import MuonAdam
from pyro_boltzmann.transforms.continuous import ContinuousTransform, MLPField


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1))


def _train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> float:
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    loss = torch.zeros(())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (network(x).squeeze(-1) - (x[:, 0] * x[:, 1]).sin()).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return float(loss.detach())


def test_vectors_and_slim_matrices_are_adams() -> None:
    ours, reference = _network(), _network()
    optimizer = MuonAdam(ours.parameters(), lr=1e-3, matrix_lr=1e-9)
    slim = [p for p in reference.parameters() if p.dim() == 1 or min(p.shape) < 4]
    _train(ours, optimizer, 5)
    _train(reference, torch.optim.Adam(slim, lr=1e-3), 5)
    for mine, theirs in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.0, atol=1e-6)


def test_a_step_of_a_matrix_is_nearly_orthogonal() -> None:
    r"""Singular values of the step lie about :math:`0.2\,\eta\sqrt{\max(m, n)}`: five iterations in bfloat16 of the
    quintic leave them within [0.6, 1.3] of it."""
    weight = nn.Parameter(torch.zeros(16, 8))
    optimizer = MuonAdam([weight], lr=0.5)
    weight.grad = torch.randn(16, 8, generator=torch.Generator().manual_seed(2))
    optimizer.step()
    values = torch.linalg.svdvals(weight.detach()) / (0.2 * 0.5 * math.sqrt(16))
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3
    assert float(torch.linalg.svdvals(weight.grad).max() / torch.linalg.svdvals(weight.grad).min()) > 2.5


def test_a_saved_state_continues() -> None:
    network = _network()
    optimizer = MuonAdam(network.parameters(), lr=1e-2)
    _train(network, optimizer, 10)
    copied, state = copy.deepcopy(network), copy.deepcopy(optimizer.state_dict())
    resumed = MuonAdam(copied.parameters(), lr=0.3)
    resumed.load_state_dict(state)
    assert _train(network, optimizer, 5) == _train(copied, resumed, 5)
    assert [group["lr"] for group in resumed.param_groups] == [1e-2, 1e-2]


def test_fit_resumes_bit_for_bit(tmp_path: Path) -> None:
    model = pb.BoltzmannModel(lambda x: 0.5 * (x - 1).square().sum(-1), 4)
    data = torch.randn(100, 4, generator=torch.Generator().manual_seed(3)) + 1

    def trained(file: Path, *stops: int) -> list[Tensor]:
        torch.manual_seed(4)
        field = MLPField(4, width=8, depth=2)
        guide = pb.AutoStochasticFlow(model, lambda energy, dim: [ContinuousTransform(field, dim)])
        for num_steps in stops:
            pb.fit(
                model,
                guide,
                objective="flow_matching",
                data=data,
                num_steps=num_steps,
                optimizer=lambda p: MuonAdam(p, lr=1e-2),
                checkpoint=file,
                seed=0,
                progress=False,
            )
        return [p.detach().clone() for p in guide.parameters()]

    whole, parts = trained(tmp_path / "a.safetensors", 20), trained(tmp_path / "b.safetensors", 7, 20)
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


@pytest.mark.parametrize(("parameters", "rates"), [(0, (1e-2, 1e-2)), (1, (0.0, 1e-2)), (1, (1e-2, -1.0))])
def test_bad_settings(parameters: int, rates: tuple[float, float]) -> None:
    params = [nn.Parameter(torch.zeros(4, 4)) for _ in range(parameters)]
    with pytest.raises(ValueError, match="MuonAdam needs parameters and positive rates"):
        MuonAdam(params, lr=rates[0], matrix_lr=rates[1])
