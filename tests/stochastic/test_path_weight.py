"""Path weights against a second, independent derivation: products of kernel densities, written out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions.transforms as T
import pytest
import torch
from pyro.infer.importance import vectorized_importance_weights
from torch import Tensor
from torch.distributions import Normal

import pyro_boltzmann as pb
from pyro_boltzmann import AnnealedEnergy, NormalEnergy, catalogue
from pyro_boltzmann.stochastic import (
    EulerMaruyamaTransform,
    LangevinTransform,
    LeapfrogTransform,
    MetropolisAdjusted,
    PathTransform,
    RandomWalkTransform,
    UnderdampedLangevinTransform,
)

double_well = catalogue["double_well"]
BASE_SCALE = 1.3
LAMBDA = 0.4
STEP, FRICTION = 0.1, 0.7


def log_normal(x: Tensor, mean: Tensor | float, std: float) -> Tensor:
    return Normal(torch.as_tensor(mean).to(x), torch.tensor(std, dtype=x.dtype)).log_prob(x).sum(-1)


def u(x: Tensor) -> Tensor:
    return -0.5 * x[..., 0] - 6 * x[..., 0] ** 2 + x[..., 0] ** 4 + 0.5 * x[..., 1] ** 2


def grad_u(x: Tensor) -> Tensor:
    return torch.stack([-0.5 - 12 * x[..., 0] + 4 * x[..., 0] ** 3, x[..., 1]], -1)


def u_annealed(x: Tensor) -> Tensor:
    reference = 0.5 * (x / BASE_SCALE).square().sum(-1) + 2 * math.log(BASE_SCALE) + math.log(2 * math.pi)
    return (1 - LAMBDA) * reference + LAMBDA * u(x)


# Each function takes x and the block's slice of the joint noise, and returns the new x and log l(x | y) - log k(y | x)
# (for Metropolis steps: the work rule u(y) - u(x)), from textbook kernels only.


def affine(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    return 0.3 + 1.1 * x, torch.full(x.shape[:-1], 2 * math.log(1.1), dtype=x.dtype)


def random_walk(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    y = x + 0.2 * noise
    return y, log_normal(x, y, 0.2) - log_normal(y, x, 0.2)


def langevin(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    total = 0.0
    for xi in noise.split(2, -1):
        std = math.sqrt(2 * 0.01)
        y = x - 0.01 * grad_u(x) + std * xi
        total = total + log_normal(x, y - 0.01 * grad_u(y), std) - log_normal(y, x - 0.01 * grad_u(x), std)
        x = y
    return x, total


def euler_maruyama(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    y = 0.9 * x + 0.3 * noise
    return y, log_normal(x, 1.05 * y, 0.35) - log_normal(y, 0.9 * x, 0.3)


def leapfrog(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    p = noise
    y = x
    for _ in range(3):
        p = p - 0.5 * STEP * grad_u(y)
        y = y + STEP * p
        p = p - 0.5 * STEP * grad_u(y)
    return y, log_normal(p, 0.0, 1.0) - log_normal(noise, 0.0, 1.0)


def baoab(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The O step is the kernel N(v' | c v, 1 - c^2); the backward path sees -v' and must find -v."""
    v, *kicks = noise.split(2, -1)
    c = math.exp(-FRICTION * STEP)
    s = math.sqrt(1 - c * c)
    total = -log_normal(v, 0.0, 1.0)
    for xi in kicks:
        v = v - 0.5 * STEP * grad_u(x)
        x = x + 0.5 * STEP * v
        new = c * v + s * xi
        total = total + log_normal(-v, -c * new, s) - log_normal(new, c * v, s)
        v = new
        x = x + 0.5 * STEP * v
        v = v - 0.5 * STEP * grad_u(x)
    return x, total + log_normal(-v, 0.0, 1.0)


def metropolis_random_walk(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    total = 0.0
    for one in noise.split(3, -1):
        y = x + 0.5 * one[..., :2]
        accept = torch.exp(-one[..., 2]) < torch.exp(-(u_annealed(y) - u_annealed(x)))
        y = torch.where(accept.unsqueeze(-1), y, x)
        total = total + u_annealed(y) - u_annealed(x)
        x = y
    return x, total


def mala(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    std = math.sqrt(2 * 0.03)
    y = x - 0.03 * grad_u(x) + std * noise[..., :2]
    proposals = log_normal(x, y - 0.03 * grad_u(y), std) - log_normal(y, x - 0.03 * grad_u(x), std)
    accept = torch.exp(-noise[..., 2]) < torch.exp(u(x) - u(y) + proposals)
    y = torch.where(accept.unsqueeze(-1), y, x)
    return y, u(y) - u(x)


Hand = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
PAIRS: dict[str, tuple[Callable[[Any], Any], Hand]] = {
    "affine": (lambda energy: T.AffineTransform(0.3, 1.1), affine),
    "random_walk": (lambda energy: RandomWalkTransform(2, 0.2), random_walk),
    "langevin": (lambda energy: LangevinTransform(energy, 2, 0.01, num_steps=3), langevin),
    "euler_maruyama": (
        lambda energy: EulerMaruyamaTransform(2, lambda x: (0.9 * x, 0.3), lambda y: (1.05 * y, 0.35)),
        euler_maruyama,
    ),
    "leapfrog": (lambda energy: LeapfrogTransform(energy, 2, STEP, num_steps=3), leapfrog),
    "baoab": (lambda energy: UnderdampedLangevinTransform(energy, 2, STEP, FRICTION, num_steps=2), baoab),
    "metropolis_random_walk": (
        lambda energy: MetropolisAdjusted(
            RandomWalkTransform(2, 0.5, num_steps=4), AnnealedEnergy(NormalEnergy(0.0, BASE_SCALE), energy, LAMBDA)
        ),
        metropolis_random_walk,
    ),
    "mala": (lambda energy: MetropolisAdjusted(LangevinTransform(energy, 2, 0.03), energy), mala),
}
CASES = [[name] for name in PAIRS] + [list(PAIRS), list(reversed(PAIRS))]


def guide_of(names: list[str]) -> pb.AutoStochasticFlow:
    model = pb.BoltzmannModel(double_well, 2, dtype=torch.float64)
    return pb.AutoStochasticFlow(
        model,
        lambda energy, dim: [PAIRS[name][0](energy) for name in names],
        base_scale=BASE_SCALE,
        dtype=torch.float64,
    )


def by_hand(names: list[str], path: PathTransform, joint: Tensor) -> tuple[Tensor, Tensor]:
    """End state and log weight of paths from the joint vectors (x_0, noise) they start from."""
    x, noise = joint[..., :2], joint[..., 2:]
    log_weight = -log_normal(x, 0.0, BASE_SCALE)
    for name, one in zip(names, noise.split(path._slots, -1), strict=True):
        x, term = PAIRS[name][1](x, one)
        log_weight = log_weight + term
    return x, log_weight - u(x)


@pytest.mark.parametrize("names", CASES, ids="-".join)
def test_trace_weight_is_the_path_weight(names: list[str]) -> None:
    """log p(model trace) - log p(guide trace) = log prod(l_t / k_t) - u(x_T) - log q0(x_0), to 1e-8."""
    guide = guide_of(names)
    log_weights, model_trace, guide_trace = vectorized_importance_weights(
        guide.model, guide, num_samples=200, max_plate_nesting=0, normalized=False
    )
    (site,) = [name for name in guide_trace.nodes if name.endswith("_latent")]
    with torch.no_grad():
        start, _ = guide.path.inverse_and_ladj(guide_trace.nodes[site]["value"].detach())
        x, truth = by_hand(names, guide.path, start)
    torch.testing.assert_close(model_trace.nodes["x"]["value"].detach(), x, rtol=0, atol=1e-8)
    torch.testing.assert_close(log_weights.detach(), truth, rtol=0, atol=1e-8)


@pytest.mark.parametrize("names", CASES, ids="-".join)
@pytest.mark.parametrize("grad", [False, True])
def test_streamed_weight_is_the_path_weight(names: list[str], grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of ``sample_paths``, from the same random numbers; the noise is recorded as it is drawn."""
    from pyro_boltzmann.stochastic import block, metropolis, noise

    recorded: list[Tensor] = []

    def record(*args: Any, **kwargs: Any) -> Tensor:
        drawn = noise.sample_part(*args, **kwargs)
        recorded.append(drawn.clone())  # a stream may use the memory again
        return drawn

    def record_threshold(*args: Any, **kwargs: Any) -> Tensor:
        drawn = noise.log_uniform(*args, **kwargs)
        recorded.append(-drawn.unsqueeze(-1))
        return drawn

    starts: list[Tensor] = []
    guide = guide_of(names)
    stream = guide.path.stream
    monkeypatch.setattr(block, "sample_part", record)
    monkeypatch.setattr(metropolis, "log_uniform", record_threshold)
    guide.path.stream = lambda x, *args, **kwargs: (starts.append(x), stream(x, *args, **kwargs))[1]
    with torch.set_grad_enabled(grad):
        paths = guide.sample_paths(200)
    x, truth = by_hand(names, guide.path, torch.cat([starts[0], *recorded], -1))
    torch.testing.assert_close(paths.z.detach(), x, rtol=0, atol=1e-8)
    torch.testing.assert_close(paths.log_weight.detach(), truth, rtol=0, atol=1e-8)
    torch.testing.assert_close(paths.log_weight, -paths.energy - paths.log_q, rtol=0, atol=1e-12)


@pytest.mark.parametrize("names", [["langevin"], ["baoab"], ["affine", "metropolis_random_walk", "langevin"]])
def test_forward_and_backward_weights_have_one_sign(names: list[str]) -> None:
    """E_forward[w f] = E_target[f] Z, and backward from exact samples E[1 / w] = 1 / Z: both within 4.5 s.e."""
    guide = guide_of(names)
    with torch.no_grad():
        forward = (guide.sample_paths(40_000).log_weight - double_well.log_z).exp()
        samples = double_well.sample(40_000, generator=torch.Generator().manual_seed(3))
        # Kernels with lighter tails than the target would give E[1 / w] no variance; bounded f cures that.
        backward = guide.reverse_paths(samples)
    for values in (forward, 1 / (1 + (backward.log_weight - double_well.log_z).exp())):
        assert bool(values.isfinite().all())
    assert abs(float(forward.mean()) - 1) < 4.5 * float(forward.std()) / 200
    # E_q[w / (1 + w)] = E_pi[1 / (1 + w)] with w in units of Z: ties both laws together, with bounded integrands.
    ours = forward / (1 + forward)
    theirs = 1 / (1 + (backward.log_weight - double_well.log_z).exp())
    error = math.sqrt(float(ours.var() + theirs.var()) / 40_000)
    assert abs(float(ours.mean() - theirs.mean())) < 4.5 * error


@pytest.mark.parametrize("proposal", ["random_walk", "langevin", "leapfrog", "baoab"])
def test_a_last_block_reversible_for_the_target_leaves_weights_alone(proposal: str) -> None:
    """It moves samples and changes no weight, no ESS and no gradient: to 1e-12."""
    proposals = {
        "random_walk": lambda energy: RandomWalkTransform(2, 0.3, num_steps=5),
        "langevin": lambda energy: LangevinTransform(energy, 2, 0.02, num_steps=5),
        "leapfrog": lambda energy: LeapfrogTransform(energy, 2, 0.1, num_steps=3, num_trajectories=2),
        "baoab": lambda energy: UnderdampedLangevinTransform(energy, 2, 0.1, num_steps=3),
    }
    torch.manual_seed(0)
    flow = T.affine_coupling(2, hidden_dims=[8]).double()
    first = [flow, LangevinTransform(double_well, 2, 0.01)]
    last = MetropolisAdjusted(proposals[proposal](double_well), double_well)
    x = BASE_SCALE * torch.randn(500, 2, dtype=torch.float64)
    weights, gradients, ends = [], [], []
    for blocks in (first, [*first, last]):
        path = PathTransform(blocks, 2).double()
        result = path.stream(x, generator=torch.Generator().manual_seed(5))
        log_weight = result.log_ratio - double_well(result.x)
        gradients.append(torch.autograd.grad(log_weight.sum(), list(flow.parameters())))
        weights.append(log_weight.detach())
        ends.append(result.x.detach())
    assert float((ends[0] - ends[1]).abs().max()) > 0.1
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-12 * float(weights[0].abs().max()))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_first_block_reversible_for_the_base_leaves_the_law_of_the_weight_alone() -> None:
    """Its S is exactly u0(x') - u0(x), so q0 is moved along."""
    base = NormalEnergy(0.0, BASE_SCALE)
    block = MetropolisAdjusted(RandomWalkTransform(2, 0.8, num_steps=6), base)
    x = BASE_SCALE * torch.randn(300, 2, dtype=torch.float64)
    with torch.no_grad():
        result = block.double().stream(x)
    torch.testing.assert_close(base(x) + result.log_ratio, base(result.x), rtol=0, atol=1e-12)
