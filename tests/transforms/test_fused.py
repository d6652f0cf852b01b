"""The cache of a fused transform: one pass where it helps, never an old value."""

from __future__ import annotations

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.stochastic import LangevinTransform, MetropolisAdjusted, PathTransform, RandomWalkTransform
from pyro_boltzmann.transforms import FusedTransform


class Scale(FusedTransform):
    """y = s x with a parameter s and a buffer offset; counts its passes."""

    width = 2

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))
        self.register_buffer("offset", torch.tensor(0.0))
        self.passes = 0

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.passes += 1
        return x * self.scale + self.offset, (2 * self.scale.abs().log()).expand(x.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        self.passes += 1
        return (y - self.offset) / self.scale, (-2 * self.scale.abs().log()).expand(y.shape[:-1])


def base() -> dist.Distribution:
    return dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)


def test_sampling_and_its_density_cost_one_pass() -> None:
    scale = Scale()
    law = dist.TransformedDistribution(base(), [scale])
    x = law.rsample((5,))
    log_prob = law.log_prob(x)
    assert scale.passes == 1
    torch.testing.assert_close(log_prob, dist.Normal(torch.zeros(2), 2.0).to_event(1).log_prob(x))
    # And the density of data costs one pass too.
    law.log_prob(torch.ones(5, 2))
    assert scale.passes == 2


def move(scale: Scale, how: str, loss: Tensor) -> None:
    """Change the transform as an optimiser, an adaptation or a checkpoint would."""
    if how == "buffer":
        scale.offset.add_(1.0)
    elif how == "load_state_dict":
        scale.load_state_dict({"scale": torch.tensor(5.0), "offset": torch.tensor(0.0)})
    else:
        loss.backward()
        kind = torch.optim.SGD if how == "sgd" else pyro.optim.clipped_adam.ClippedAdam
        kind(scale.parameters(), lr=0.1).step()


@pytest.mark.parametrize("how", ["sgd", "clipped_adam", "buffer", "load_state_dict"])
def test_the_same_data_after_a_step_have_the_new_density(how: str) -> None:
    """Pyro's ClippedAdam writes to ``parameter.data``, which no version counter sees."""
    scale = Scale()
    law = dist.TransformedDistribution(base(), [scale])
    data = torch.ones(5, 2)
    before = law.log_prob(data).sum()
    move(scale, how, -before)
    after = law.log_prob(data).sum().detach()
    truth = dist.Normal(scale.offset, scale.scale.detach().abs()).expand([2]).to_event(1).log_prob(data).sum()
    torch.testing.assert_close(after, truth)
    assert not torch.isclose(before, truth)


@pytest.mark.parametrize("how", ["sgd", "clipped_adam", "buffer", "load_state_dict"])
def test_the_same_input_after_a_step_has_the_new_image(how: str) -> None:
    scale = Scale()
    x = torch.ones(5, 2)
    old = scale(x)
    move(scale, how, scale(x).sum())
    torch.testing.assert_close(scale(x), x * scale.scale + scale.offset)
    assert not torch.equal(scale(x), old)


@pytest.mark.parametrize("how", ["sgd", "buffer", "load_state_dict"])
def test_an_image_from_before_a_step_is_inverted_anew(how: str) -> None:
    scale = Scale()
    y = scale(torch.ones(5, 2))
    move(scale, how, y.sum())
    torch.testing.assert_close(scale.inv(y), (y - scale.offset) / scale.scale)
    y = scale(torch.ones(5, 2)).detach()
    x = scale.inv(y)
    move(scale, how, x.sum())
    torch.testing.assert_close(scale(x), x * scale.scale + scale.offset)


def test_the_cache_respects_grad_mode() -> None:
    scale = Scale()
    x = torch.ones(3, 2)
    with torch.no_grad():
        y = scale(x)
    # Under no_grad nothing was recorded; asking again with gradients must give a differentiable answer.
    assert scale.inv(y).requires_grad
    assert scale.log_abs_det_jacobian(x, y).requires_grad
    y = scale(x)
    with torch.no_grad():
        assert not scale.inv(y).requires_grad
        assert not scale.log_abs_det_jacobian(x, y).requires_grad


def test_copies_drop_the_cache_and_share_nothing() -> None:
    scale = Scale()
    y = scale(torch.ones(3, 2))
    for clone in (copy.deepcopy(scale), pickle.loads(pickle.dumps(scale))):
        assert clone._cached is None
        assert clone.inv is not scale.inv
        with torch.no_grad():
            clone.scale.fill_(7.0)
        torch.testing.assert_close(scale.inv(y), torch.ones(3, 2))
        torch.testing.assert_close(clone.inv(y), y / 7.0)


def test_with_cache_shares_parameters() -> None:
    scale = Scale()
    bare = scale.with_cache(0)
    assert scale.with_cache(1) is scale
    assert bare.scale is scale.scale
    y = bare(torch.ones(1, 2))
    assert bare._cached is None
    torch.testing.assert_close(bare.inv(y), torch.ones(1, 2))
    assert bare.with_cache(1).inv.inv is not scale
    with pytest.raises(ValueError, match="cache_size must be 0 or 1"):
        scale.with_cache(2)


def test_adapted_scales_are_not_served_from_the_cache() -> None:
    """Adaptation moves a buffer, not a parameter."""
    energy = lambda x: 0.5 * x.square().sum(-1)  # noqa: E731
    path = PathTransform([MetropolisAdjusted(RandomWalkTransform(1, 1.0), energy, adapt=True)], 1)
    joint = torch.tensor([[0.0, 0.5, 9.0]])
    y = path(joint)
    path.blocks[0].adapt_scale(path.infos[0], rate=1.0)
    assert float(y[0, 0]) == 0.5
    assert float(path(joint)[0, 0]) == pytest.approx(0.5 * float(torch.tensor(1.0 - 0.44).exp()))
    assert float(path.inv(y)[0, 0]) != 0.0


def test_a_wrong_width_is_named() -> None:
    block = LangevinTransform(lambda x: x.square().sum(-1), 2, 0.1)
    for call in (block, block.inv, block.call_and_ladj, block.inverse_and_ladj):
        with pytest.raises(
            ShapeError, match=r"LangevinTransform expects a tensor of shape \(\*batch, 4\), got \(3, 5\)"
        ):
            call(torch.zeros(3, 5))
