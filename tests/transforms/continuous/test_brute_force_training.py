"""Training through the autograd divergence of fields that have one in closed form: the same gradients."""

from __future__ import annotations

import pytest
import torch

from pyro_boltzmann.transforms.continuous import ContinuousTransform, EmbeddedAtomField, KernelField


@pytest.mark.parametrize("make", [KernelField, EmbeddedAtomField])
def test_gradients_of_both_divergences_agree(make):
    torch.manual_seed(0)
    flow = ContinuousTransform(make(4, 2), 6, num_steps=2).double()
    x = torch.randn(7, 6, dtype=torch.float64)
    found = []
    for divergence in ("exact", "autograd"):
        flow.zero_grad()
        y, ladj = flow.configure(divergence=divergence).inverse_and_ladj(x)
        (y.square().sum() - ladj.sum()).backward()
        found.append(torch.cat([p.grad.flatten() for p in flow.parameters()]))
    assert bool(found[0].abs().max() > 1.0)
    assert torch.allclose(*found, rtol=1e-8, atol=1e-8)
