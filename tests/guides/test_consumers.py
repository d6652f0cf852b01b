"""The guide under every Pyro algorithm that takes a guide: right values, not only no errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pyro.infer import (
    SVI,
    Importance,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    Predictive,
    RenyiELBO,
    ReweightedWakeSleep,
    SMCFilter,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTMC_ELBO,
    WeighedPredictive,
)
from pyro.infer.importance import psis_diagnostic, vectorized_importance_weights
from torch import Tensor

import pyro_boltzmann as pb
from pyro_boltzmann.stochastic import (
    EulerMaruyamaTransform,
    LangevinTransform,
    LeapfrogTransform,
    MetropolisAdjusted,
    RandomWalkTransform,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites:UserWarning"),
    pytest.mark.filterwarnings("ignore:Found no sample sites configured for enumeration:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]

LOC, SCALE = torch.tensor([1.0, -0.5], dtype=torch.float64), 0.5
LOG_Z = math.log(2 * math.pi) + 2 * math.log(SCALE)


def energy(x: Tensor) -> Tensor:
    return 0.5 * ((x - LOC.to(x)) / SCALE).square().sum(-1)


def model() -> pb.BoltzmannModel:
    return pb.BoltzmannModel(energy, 2, dtype=torch.float64)


def exact_guide() -> pb.AutoStochasticFlow:
    """The base is the target, the flow the identity (with parameters), and the blocks leave the target invariant."""
    return pb.AutoStochasticFlow(
        model(),
        lambda u, dim: [
            _identity(T.matrix_exponential(dim)),
            MetropolisAdjusted(LeapfrogTransform(u, dim, 0.2, num_steps=2), u),
            MetropolisAdjusted(RandomWalkTransform(dim, 0.3, num_steps=3), u),
        ],
        base_loc=LOC,
        base_scale=SCALE,
        dtype=torch.float64,
    )


def _identity(transform: Any) -> Any:
    with torch.no_grad():
        transform.weights.zero_()
    return transform


def rough_guide() -> pb.AutoStochasticFlow:
    torch.manual_seed(4)
    return pb.AutoStochasticFlow(
        model(),
        lambda u, dim: [
            T.affine_autoregressive(dim, hidden_dims=[4]),
            LangevinTransform(u, dim, 0.03, num_steps=2, learnable=True),
            EulerMaruyamaTransform(dim, lambda x: (0.95 * x, 0.2), lambda y: (y, 0.2)),
            MetropolisAdjusted(RandomWalkTransform(dim, 0.3, num_steps=2), u),
        ],
        base_loc=LOC,
        base_scale=0.7,
        dtype=torch.float64,
    )


def options(kind: str, num_particles: int) -> dict[str, Any]:
    if kind == "sequential":
        return {"num_particles": num_particles}
    return {"num_particles": num_particles, "vectorize_particles": True, "max_plate_nesting": 0}


jit = {"ignore_jit_warnings": True}
ELBOS: dict[str, Callable[[int], Any]] = {
    "trace": lambda n: Trace_ELBO(**options("vectorized", n)),
    "trace_sequential": lambda n: Trace_ELBO(**options("sequential", n)),
    "graph": lambda n: TraceGraph_ELBO(**options("vectorized", n)),
    "mean_field": lambda n: TraceMeanField_ELBO(**options("vectorized", n)),
    "mean_field_sequential": lambda n: TraceMeanField_ELBO(**options("sequential", n)),
    "enum": lambda n: TraceEnum_ELBO(**options("vectorized", n)),
    "jit": lambda n: JitTrace_ELBO(**options("vectorized", n), **jit),
    "jit_graph": lambda n: JitTraceGraph_ELBO(**options("vectorized", n), **jit),
    "jit_mean_field": lambda n: JitTraceMeanField_ELBO(**options("vectorized", n), **jit),
    "jit_enum": lambda n: JitTraceEnum_ELBO(**options("vectorized", n), **jit),
    "streamed": lambda n: pb.ReverseKL(num_particles=n),
}


@pytest.mark.parametrize("name", [*ELBOS, "renyi"])
def test_every_elbo_of_an_exact_guide_is_log_z(name: str) -> None:
    """Every weight is Z, so every bound is log Z, to 1e-10."""
    elbo = RenyiELBO(alpha=0.3, **options("vectorized", 5)) if name == "renyi" else ELBOS[name](5)
    assert -elbo.loss_and_grads(model(), exact_guide()) == pytest.approx(LOG_Z, abs=1e-10)


@pytest.mark.parametrize("name", [n for n in ELBOS if n != "trace_sequential"])
def test_every_elbo_estimates_the_same_number(name: str) -> None:
    """Against the mean log weight of 40,000 streamed paths, within 4.5 standard errors."""
    guide = rough_guide()
    with torch.no_grad():
        paths = guide.sample_paths(40_000).log_weight
    repeats, size = (120, 1) if "sequential" in name else (4, 2500)
    elbo = ELBOS[name](size)
    values = torch.tensor([-float(elbo.loss_and_grads(guide.model, guide)) for _ in range(repeats)])
    error = math.sqrt(float(paths.var()) / 40_000 + float(paths.var()) / (repeats * size))
    assert float(paths.mean()) < LOG_Z - 0.1  # a rough guide: its bound is not tight
    assert abs(float(values.mean()) - float(paths.mean())) < 4.5 * error


@pytest.mark.parametrize("name", [n for n in ELBOS if "sequential" not in n])
def test_every_elbo_trains_every_parameter(name: str) -> None:
    guide = rough_guide()
    elbo = ELBOS[name](20)
    elbo.loss_and_grads(guide.model, guide)
    for parameter_name, p in guide.named_parameters():
        assert p.grad is not None and float(p.grad.abs().max()) > 0, parameter_name


def test_reweighted_wake_sleep() -> None:
    """Both losses of an exact guide in closed form: -log Z, and the mean of -log q = u + log Z."""
    objective = ReweightedWakeSleep(**options("vectorized", 2000))
    guide = exact_guide()
    wake_theta, wake_phi = objective.loss_and_grads(guide.model, guide)
    assert wake_theta == pytest.approx(-LOG_Z, abs=1e-10)
    # u is half a chi-squared variable with two degrees of freedom: mean 1, variance 1.
    assert abs(wake_phi - (1 + LOG_Z)) < 4.5 / math.sqrt(2000)
    assert all(bool(p.grad.isfinite().all()) for p in guide.parameters())


def test_svi_reaches_log_z() -> None:
    """Pyro's own optimiser, which writes to ``.data``, and its own loop."""
    guide = rough_guide()
    svi = SVI(guide.model, guide, pyro.optim.ClippedAdam({"lr": 0.03}), ELBOS["trace"](40))
    for _ in range(120):
        svi.step()
    with torch.no_grad():
        elbo = float(guide.sample_paths(5000).log_weight.mean())
    assert LOG_Z - 0.2 < elbo < LOG_Z + 0.02


def test_importance_and_weights() -> None:
    guide = exact_guide()
    posterior = Importance(guide.model, guide=guide, num_samples=20).run()
    assert float(posterior.get_log_normalizer()) == pytest.approx(LOG_Z, abs=1e-6)
    assert float(posterior.get_ESS()) == pytest.approx(20.0, abs=1e-6)

    guide = rough_guide()
    log_weights, _, _ = vectorized_importance_weights(
        guide.model, guide, num_samples=40_000, max_plate_nesting=0, normalized=False
    )
    ratio = (log_weights.detach() - LOG_Z).exp()
    assert abs(float(ratio.mean()) - 1) < 4.5 * float(ratio.std()) / 200
    assert psis_diagnostic(guide.model, guide, num_particles=5000, max_plate_nesting=0) < 0.7


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_draws_from_the_guide(parallel: bool) -> None:
    """Mean and variance of the exact guide's draws, within 4.5 standard errors."""
    n = 4000 if parallel else 100
    guide = exact_guide()
    x = Predictive(guide.model, guide=guide, num_samples=n, parallel=parallel)()["x"].detach()
    assert x.shape == (n, 2)
    assert bool(((x.mean(0) - LOC).abs() < 4.5 * SCALE / math.sqrt(n)).all())
    assert bool(((x.var(0) - SCALE**2).abs() < 4.5 * SCALE**2 * math.sqrt(2 / n)).all())


@pytest.mark.parametrize("parallel", [False, True])
def test_weighed_predictive_has_the_path_weights(parallel: bool) -> None:
    guide = exact_guide()
    with torch.no_grad():
        result = WeighedPredictive(guide.model, guide=guide, num_samples=20, parallel=parallel)()
    torch.testing.assert_close(result.log_weights, torch.full((20,), LOG_Z, dtype=torch.float64), rtol=0, atol=1e-10)
    guide = rough_guide()
    with torch.no_grad():
        result = WeighedPredictive(guide.model, guide=guide, num_samples=2000, parallel=True)()
    ratio = (result.log_weights - LOG_Z).exp()
    x = result.samples["x"].reshape(2000, 2)
    mean = (ratio.unsqueeze(-1) * x).mean(0) / ratio.mean()
    error = (ratio.unsqueeze(-1) * (x - mean)).std(0) / math.sqrt(2000)
    assert bool(((mean - LOC).abs() < 4.5 * error).all())


def test_the_documented_limits_are_true() -> None:
    """TraceTMC_ELBO drops what only the guide has, and SMCFilter refuses it; the class says so."""
    documentation = pb.AutoStochasticFlow.__doc__
    assert documentation is not None and "SMCFilter" in documentation and "TraceTMC_ELBO" in documentation
    guide = exact_guide()
    assert abs(-TraceTMC_ELBO(max_plate_nesting=0).loss(guide.model, guide) - LOG_Z) > 1.0

    class Model:
        def init(self, state: Any) -> None:
            state["x"] = guide.model()

    class Guide:
        def init(self, state: Any) -> None:
            guide()

    with pytest.raises(KeyError, match="_AutoStochasticFlow_latent"):
        SMCFilter(Model(), Guide(), num_particles=5, max_plate_nesting=0).init()


def test_outside_inference_the_guide_is_a_sampler() -> None:
    guide = exact_guide()
    x = guide()["x"]
    assert x.shape == (2,) and x.dtype == torch.float64
    with pyro.plate("particles", 7):
        assert guide()["x"].shape == (7, 2)


def test_as_a_guide_inside_a_larger_pyro_program() -> None:
    """A site of its own beside the guide's: log Z of the product of both."""

    def larger() -> None:
        guide.model()
        pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 2.0))
        pyro.factor("tilt", torch.tensor(1.5, dtype=torch.float64))

    def both() -> None:
        guide()
        pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 2.0))

    guide = exact_guide()
    loss = Trace_ELBO(**options("vectorized", 10)).loss(larger, both)
    assert -loss == pytest.approx(LOG_Z + 1.5, abs=1e-10)
