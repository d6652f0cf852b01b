"""The trainable inverse, of flows and of stochastic blocks, alone and nested."""

from __future__ import annotations

import copy
from typing import Any

import pyro.distributions.transforms as T
import pytest
import torch
from torch import Tensor, nn

from pyro_boltzmann import stochastic as st
from pyro_boltzmann import testing
from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.stochastic import PathTransform
from pyro_boltzmann.transforms import InverseTransform


def quartic(x: Tensor) -> Tensor:
    return 0.25 * x.pow(4).sum(-1) + x[..., 0]


def coupling() -> Any:
    return T.affine_coupling(2, hidden_dims=[8])


def pair() -> st.EulerMaruyamaTransform:
    """A block that is no involution: its inverse is another map."""

    class Kernel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            mean, scale = self.net(x).chunk(2, -1)
            return x + 0.1 * mean, (0.1 * scale).exp()

    return st.EulerMaruyamaTransform(2, Kernel(), Kernel())


def test_inverse_of_a_flow_is_its_inverse_and_is_trained() -> None:
    flow = coupling()
    inverse = InverseTransform(flow, width=2)
    x = torch.randn(6, 2)
    torch.testing.assert_close(inverse(flow(x)), x, rtol=1e-5, atol=1e-5)
    y, ladj = inverse.call_and_ladj(x)
    torch.testing.assert_close(ladj, -flow.log_abs_det_jacobian(y, x), rtol=1e-5, atol=1e-5)
    assert {id(p) for p in inverse.parameters()} == {id(p) for p in flow.parameters()}
    assert inverse.state_dict().keys() == {f"base.{name}" for name in flow.state_dict()}
    testing.check_block(inverse, dim=2)


def test_a_maximum_likelihood_fit_through_the_inverse_moves_the_parameters() -> None:
    """A flow written as data -> base and used inverted learns the mean of the data; Pyro's own ``.inv`` hides it."""
    data = torch.tensor([3.0, -2.0]) + 0.1 * torch.randn(200, 2)
    inverse = InverseTransform(T.affine_autoregressive(2, hidden_dims=[16]), width=2)
    base = torch.distributions.Normal(torch.zeros(2), 1.0)
    optimiser = torch.optim.Adam(inverse.parameters(), lr=0.05)

    def loss() -> Tensor:
        x0, ladj = inverse.inverse_and_ladj(data)
        return -(base.log_prob(x0).sum(-1) + ladj).mean()

    before = float(loss().detach())
    for _ in range(150):
        optimiser.zero_grad()
        value = loss()
        value.backward()
        optimiser.step()
    entropy = 2 * (0.5 * torch.log(torch.tensor(2 * torch.pi)) + 0.5 + torch.log(torch.tensor(0.1)))
    assert before > 5.0
    assert float(loss().detach()) < float(entropy) + 3.0


@pytest.mark.parametrize("maker", [coupling, pair, lambda: st.LangevinTransform(quartic, 2, 0.02, learnable=True)])
def test_inverse_inside_a_path_runs_the_block_backwards(maker: Any) -> None:
    block = maker()
    path = PathTransform([block, InverseTransform(block)], 2).double()
    testing.check_round_trip(path)
    testing.check_ladj(path)
    x = torch.randn(7, 2, dtype=torch.float64)
    if not isinstance(block, st.StochasticBlock):
        y, ladj = path.call_and_ladj(x)
        torch.testing.assert_close(y, x, rtol=0, atol=1e-12)
        torch.testing.assert_close(ladj, torch.zeros_like(ladj), rtol=0, atol=1e-12)
        return
    # With the noise that the first copy gives back handed to the second, everything returns to its place.
    noise = block.sample_noise(torch.Size((7,)), x)
    handed_on = block.run(x, noise).noise
    back = path.call_and_ladj(torch.cat([x, noise, handed_on], -1))[0]
    torch.testing.assert_close(back[:, :2], x, rtol=0, atol=1e-12)
    torch.testing.assert_close(back[:, 4:], noise, rtol=0, atol=1e-12)


def test_the_inverted_pair_swaps_its_kernels() -> None:
    """Inverting Euler-Maruyama with kernels (f, b) is Euler-Maruyama with kernels (b, f)."""
    block = pair().double()
    swapped = st.EulerMaruyamaTransform(2, block.backward_kernel, block.forward_kernel)
    joint = torch.randn(9, 4, dtype=torch.float64)
    for ours, truth in zip(InverseTransform(block).call_and_ladj(joint), swapped.call_and_ladj(joint), strict=True):
        torch.testing.assert_close(ours, truth, rtol=0, atol=1e-12)
    inverse, other = PathTransform([InverseTransform(block)], 2), PathTransform([swapped], 2)
    for run in (False, True):
        streams = [
            p.stream(joint[:, :2], generator=torch.Generator().manual_seed(1), inverse=run) for p in (inverse, other)
        ]
        torch.testing.assert_close(streams[0].x, streams[1].x, rtol=0, atol=1e-12)
        torch.testing.assert_close(streams[0].log_ratio, streams[1].log_ratio, rtol=0, atol=1e-12)


def test_inverse_of_an_inverse_and_of_a_whole_path() -> None:
    blocks = [coupling(), pair(), st.LeapfrogTransform(quartic, 2, 0.1, num_steps=2), T.Permute(torch.tensor([1, 0]))]
    path = PathTransform(blocks, 2)
    backwards = PathTransform([InverseTransform(path)], 2)
    twice = PathTransform([InverseTransform(InverseTransform(path))], 2)
    assert backwards.noise_dim == twice.noise_dim == path.noise_dim
    assert {id(p) for p in backwards.parameters()} == {id(p) for p in path.parameters()}
    joint = torch.randn(5, path.width)
    for ours, truth in zip(twice.call_and_ladj(joint), path.call_and_ladj(joint), strict=True):
        torch.testing.assert_close(ours, truth, rtol=0, atol=0)
    testing.check_block(backwards)
    testing.check_block(PathTransform([T.AffineTransform(0.1, 2.0), InverseTransform(path), path], 2))


def test_width() -> None:
    assert InverseTransform(T.Planar(2)).width == 2
    with pytest.raises(ShapeError, match=r"expects a tensor of shape \(\*batch, 2\), got \(4, 3\)"):
        InverseTransform(coupling(), width=2)(torch.zeros(4, 3))


def test_deepcopy_is_independent() -> None:
    inverse = InverseTransform(coupling(), width=2)
    x = torch.randn(3, 2)
    y = inverse(x)
    clone = copy.deepcopy(inverse)
    with torch.no_grad():
        for p in clone.parameters():
            p.add_(0.3)
    assert torch.equal(inverse(x), y)
    assert not torch.equal(clone(x), y)
