"""Every transform of Pyro, torch and zuko through one fused call: right, trainable, and leaving nothing behind."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pyro.distributions.transforms as T
import pytest
import torch
from torch import nn
from torch.distributions.transforms import _InverseTransform

from pyro_boltzmann import stochastic, testing
from pyro_boltzmann.stochastic import PathTransform
from pyro_boltzmann.transforms import call_and_ladj, inverse_and_ladj
from pyro_boltzmann.transforms.ladj import default_dtype

DIM = 3

INVERTIBLE: dict[str, Callable[[], Any]] = {
    "affine": lambda: T.AffineTransform(torch.tensor([0.5, -1.0, 2.0]), torch.tensor([2.0, 0.5, -1.5])),
    "affine_event_dim_1": lambda: T.AffineTransform(1.0, torch.tensor([2.0, 0.5, -1.5]), event_dim=1),
    "elementwise_power": lambda: T.ComposeTransform([T.AffineTransform(0.0, 0.5), T.TanhTransform()]),
    "independent": lambda: T.IndependentTransform(T.TanhTransform(cache_size=1), 1, cache_size=1),
    "permute": lambda: T.Permute(torch.tensor([2, 0, 1])),
    "lower_cholesky": lambda: T.LowerCholeskyAffine(
        torch.ones(DIM), torch.tensor([[2.0, 0, 0], [1, 0.5, 0], [0, 1, 3]])
    ),
    "affine_autoregressive": lambda: T.affine_autoregressive(DIM, hidden_dims=[8]),
    "affine_coupling": lambda: T.affine_coupling(DIM, hidden_dims=[8]),
    "spline": lambda: T.spline(DIM, count_bins=4),
    "spline_coupling": lambda: T.spline_coupling(DIM, hidden_dims=[8], count_bins=4),
    "spline_autoregressive": lambda: T.spline_autoregressive(DIM, hidden_dims=[8], count_bins=4),
    "matrix_exponential": lambda: T.MatrixExponential(DIM, iterations=20),
    "householder": lambda: T.householder(DIM, count_transforms=2),
    "iterated": lambda: T.iterated(2, T.affine_coupling, DIM, hidden_dims=[8]),
    "compose": lambda: T.ComposeTransform(
        [T.affine_coupling(DIM, hidden_dims=[8]), T.Permute(torch.tensor([1, 2, 0]))]
    ),
    "plain_inverse": lambda: T.affine_coupling(DIM, hidden_dims=[8]).inv,
    "compose_with_inverse": lambda: T.ComposeTransform([T.spline(DIM).inv, T.AffineTransform(0.0, 2.0)]),
}
FORWARD_ONLY: dict[str, Callable[[], Any]] = {
    "planar": lambda: T.planar(DIM),
    "radial": lambda: T.radial(DIM),
    "sylvester": lambda: T.sylvester(DIM, count_transforms=3),
    "polynomial": lambda: T.polynomial(DIM, hidden_dims=[8]),
    "neural_autoregressive": lambda: T.neural_autoregressive(DIM, hidden_dims=[8]),
    "block_autoregressive": lambda: T.block_autoregressive(DIM, hidden_factors=[4]),
}


ZUKO: dict[str, Callable[[Any], Any]] = {
    "nsf": lambda zuko: zuko.flows.NSF(DIM, transforms=2, bins=4, hidden_features=(8,)),
    "realnvp": lambda zuko: zuko.flows.RealNVP(DIM, transforms=2, hidden_features=(8,)),
    "lazy": lambda zuko: zuko.flows.MaskedAutoregressiveTransform(DIM, hidden_features=(8,)),
    "lazy_inverse": lambda zuko: zuko.flows.MaskedAutoregressiveTransform(DIM, hidden_features=(8,)).inv,
    "lazy_composed": lambda zuko: zuko.lazy.LazyComposedTransform(
        zuko.flows.MaskedAutoregressiveTransform(DIM, hidden_features=(8,)),
        zuko.flows.MaskedAutoregressiveTransform(DIM, hidden_features=(8,)).inv,
    ),
    "elementwise": lambda zuko: zuko.lazy.UnconditionalTransform(zuko.transforms.SoftclipTransform, 5.0),
    "elementwise_learned": lambda zuko: zuko.flows.ElementWiseTransform(DIM),
}


def build(maker: Callable[[], Any]) -> Any:
    torch.manual_seed(3)
    block = maker()
    if isinstance(block, nn.Module):
        for p in block.parameters():  # away from identity initialisations
            nn.init.normal_(p, std=0.3)
    return block


@pytest.mark.parametrize("name", INVERTIBLE)
def test_inverse_and_log_det_are_right(name: str) -> None:
    with default_dtype(torch.float64):
        block = build(INVERTIBLE[name])
    x = torch.randn(20, DIM, dtype=torch.float64) * 0.7
    with torch.no_grad():
        y, ladj = call_and_ladj(block, x)
        back, ladj_back = inverse_and_ladj(block, y)  # of images: some transforms reach a part of the space only
    assert float((back - x).abs().max()) < 1e-10
    assert float((ladj + ladj_back).abs().max()) < 1e-10
    for one, value in zip(x[:3], ladj[:3], strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: call_and_ladj(block, v)[0], one)
        torch.testing.assert_close(value, torch.linalg.slogdet(jacobian).logabsdet, rtol=0, atol=1e-8)
    for batch in ((), (2,), (2, 5)):
        one = x[: max(1, math.prod(batch))].reshape(*batch, DIM)
        for function in (call_and_ladj, inverse_and_ladj):
            value, ladj = function(block, 0.1 * one)
            assert (value.shape, ladj.shape, ladj.dtype) == (one.shape, torch.Size(batch), torch.float64)


@pytest.mark.parametrize("name", [name for name in FORWARD_ONLY if name != "sylvester"])  # Pyro's own is inexact
def test_log_det_of_flows_without_inverse(name: str) -> None:
    with default_dtype(torch.float64):
        block = build(FORWARD_ONLY[name])
    x = torch.randn(4, DIM, dtype=torch.float64)
    ladj = call_and_ladj(block, x)[1].detach()
    for one, value in zip(x, ladj, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: call_and_ladj(block, v[None])[0][0], one)
        # Pyro adds guards of 1e-8 inside some of these.
        torch.testing.assert_close(value, torch.linalg.slogdet(jacobian).logabsdet, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [*INVERTIBLE, *FORWARD_ONLY])
def test_nothing_stale_and_nothing_that_breaks_copies_is_left_behind(name: str) -> None:
    """The same tensor after an optimiser step gives the new value; a live graph does not stop deepcopy or pickle."""
    path = PathTransform([build({**INVERTIBLE, **FORWARD_ONLY}[name])], DIM)
    x = torch.randn(5, DIM)
    y, _ = path.call_and_ladj(x)
    parameters = list(path.parameters())
    clone = copy.deepcopy(path)  # the graph of y is alive
    pickle.loads(pickle.dumps(path))
    torch.testing.assert_close(clone.call_and_ladj(x)[0], y, rtol=0, atol=0)
    if not parameters:
        return
    with torch.no_grad():
        for p in parameters:
            p.data.add_(0.1 * torch.randn_like(p))
    moved, moved_ladj = path.call_and_ladj(x)
    again, again_ladj = copy.deepcopy(path).call_and_ladj(x)
    assert not torch.equal(moved, y)
    torch.testing.assert_close(moved, again, rtol=0, atol=0)
    torch.testing.assert_close(moved_ladj, again_ladj, rtol=0, atol=0)


@pytest.mark.parametrize("name", [n for n in [*INVERTIBLE, *FORWARD_ONLY] if n not in ("affine", "affine_event_dim_1")])
def test_parameters_of_every_block_are_registered_and_trained(name: str) -> None:
    """Also those inside a plain composition or a plain ``.inv``, which torch itself does not register."""
    block = build({**INVERTIBLE, **FORWARD_ONLY}[name])
    hidden = [p for t in _leaves(block) if isinstance(t, nn.Module) for p in t.parameters()]
    path = PathTransform([block], DIM)
    registered = {id(p) for p in path.parameters()}
    assert {id(p) for p in hidden} == registered
    if not hidden:
        return
    y, ladj = path.call_and_ladj(torch.randn(50, DIM))
    ((y * torch.randn_like(y)).sum() + y.square().sum() + ladj.sum()).backward()
    for parameter_name, p in path.named_parameters():
        assert p.grad is not None and bool(p.grad.isfinite().all()), parameter_name
        assert float(p.grad.abs().max()) > 0, parameter_name


def _leaves(transform: Any) -> list[Any]:
    if isinstance(transform, T.ComposeTransform):
        return [leaf for part in transform.parts for leaf in _leaves(part)]
    return [transform.inv if isinstance(transform, _InverseTransform) else transform]


@pytest.mark.parametrize("name", ZUKO)
def test_zuko(name: str) -> None:
    zuko = pytest.importorskip("zuko")
    block = build(lambda: ZUKO[name](zuko))
    measured = testing.check_block(block, dim=DIM)
    if list(block.parameters()):
        assert 0 < measured["gradients"] < float("inf")


def test_importing_zuko_changes_nothing_for_other_transforms() -> None:
    """Importing zuko puts a ``call_and_ladj`` on every torch transform, which neither sums nor empties caches."""
    pytest.importorskip("zuko")
    coupling = build(INVERTIBLE["spline_coupling"])
    x = torch.randn(4, DIM)
    assert call_and_ladj(T.TanhTransform(), x)[1].shape == (4,)
    call_and_ladj(coupling, x)
    inverse_and_ladj(coupling, x)
    copy.deepcopy(coupling)


def test_zuko_flow_runs_from_base_to_data() -> None:
    """A path of one zuko flow has the flow's own density."""
    zuko = pytest.importorskip("zuko")
    flow = build(lambda: zuko.flows.NSF(DIM, transforms=2, bins=4, hidden_features=(8,))).double()
    base = torch.distributions.Normal(torch.zeros(DIM, dtype=torch.float64), 1.0)
    x0 = base.sample((20,))
    x, ladj = PathTransform([flow], DIM).call_and_ladj(x0)
    torch.testing.assert_close(base.log_prob(x0).sum(-1) - ladj, flow().log_prob(x), rtol=0, atol=1e-10)


def test_zuko_inside_a_path_with_noise() -> None:
    zuko = pytest.importorskip("zuko")
    torch.manual_seed(0)
    energy = lambda x: 0.5 * x.pow(4).sum(-1)  # noqa: E731
    blocks = [
        zuko.flows.RealNVP(DIM, transforms=2, hidden_features=(8,)),
        stochastic.LangevinTransform(energy, DIM, 0.02, learnable=True),
        zuko.flows.MaskedAutoregressiveTransform(DIM, hidden_features=(8,)),
    ]
    testing.check_block(PathTransform(blocks, DIM))


@pytest.mark.parametrize("block", ["nsf", 3, nn.Linear(2, 2), None])
def test_foreign_objects_are_refused(block: Any) -> None:
    with pytest.raises(
        TypeError, match="a block must be a stochastic block, a Pyro or torch Transform, or a zuko flow"
    ):
        PathTransform([block], 2)


def test_the_default_dtype_is_restored_after_a_failure() -> None:
    planar = T.Planar(2)
    with pytest.raises(KeyError):
        inverse_and_ladj(planar.double(), torch.zeros(1, 2, dtype=torch.float64))
    assert torch.get_default_dtype() == torch.float32
