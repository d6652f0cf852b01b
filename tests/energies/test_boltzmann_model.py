"""A tilted reference gives the right density and the right log Z in every algorithm of Pyro that takes a program."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    HMC,
    MCMC,
    NUTS,
    SVI,
    Importance,
    JitTrace_ELBO,
    Predictive,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    WeighedPredictive,
)
from pyro.infer.autoguide import AutoLaplaceApproximation, AutoMultivariateNormal, AutoNormal
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_boltzmann.energies.boltzmann_model import BoltzmannModel
from pyro_boltzmann.energies.evaluation import count_evaluations
from pyro_boltzmann.exceptions import EnergyError, ShapeError

LOC = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
PRECISION = torch.tensor([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]], dtype=torch.float64)
TEMPERATURE = 1.7
LOG_Z = 1.5 * math.log(2 * math.pi * TEMPERATURE) - 0.5 * float(torch.logdet(PRECISION))
TARGET = dist.MultivariateNormal(LOC, PRECISION.inverse() * TEMPERATURE)

vectorised: dict[str, Any] = {"num_particles": 5, "vectorize_particles": True, "max_plate_nesting": 0}


def gaussian(x: Tensor) -> Tensor:
    centred = x - LOC
    return 0.5 * ((centred @ PRECISION) * centred).sum(-1)


def double_normal(x: Tensor) -> Tensor:
    return 0.5 * x.square().sum(-1)


def gaussian_model() -> BoltzmannModel:
    return BoltzmannModel(gaussian, 3, temperature=TEMPERATURE, dtype=torch.float64)


def exact_guide() -> None:
    pyro.sample("x", TARGET)


def log_prob_of(model: Callable[[], Any], x: Tensor) -> Tensor:
    trace = poutine.trace(poutine.condition(model, {"x": x})).get_trace()
    trace.compute_log_prob()
    total: Tensor = sum(site["log_prob"] for site in trace.nodes.values() if site["type"] == "sample")
    return total


def draw(model: BoltzmannModel) -> Tensor:
    value: Tensor = poutine.trace(model).get_trace().nodes[model.name]["value"]
    return value


@pytest.mark.parametrize("event_shape", [(), (3,), (3, 2), 4])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_trace_log_prob_is_minus_energy(event_shape: int | tuple[int, ...], temperature: float) -> None:
    shape = (event_shape,) if isinstance(event_shape, int) else event_shape

    def energy(x: Tensor) -> Tensor:
        return (x.cos() * 3 + x.square()).flatten(x.dim() - len(shape)).sum(-1) if shape else x.cos() * 3 + x.square()

    model = BoltzmannModel(energy, event_shape, temperature=temperature, dtype=torch.float64)
    x = 5 * torch.randn(7, *shape, dtype=torch.float64)
    torch.testing.assert_close(log_prob_of(model, x), -energy(x) / temperature, rtol=0, atol=1e-11)
    assert draw(model).shape == shape
    assert model.latent_dim == math.prod(shape)


@pytest.mark.parametrize(
    ("support", "energy"),
    [
        (constraints.positive, lambda x: (2 * x - x.log()).sum(-1)),
        (constraints.interval(-1.0, 3.0), lambda x: x.square().sum(-1)),
        (constraints.unit_interval, lambda x: -(x * (1 - x)).log().sum(-1)),
        (constraints.simplex, lambda x: -x.log().sum(-1)),
        (constraints.greater_than(2.0), lambda x: x.sum(-1)),
    ],
)
def test_supports(support: constraints.Constraint, energy: Any) -> None:
    """The trace has -u on the support, draws stay in it, and the unconstrained energy is Pyro's potential."""
    model = BoltzmannModel(energy, 3, support=support, dtype=torch.float64)
    x = torch.stack([draw(model) for _ in range(5)])
    assert support.check(x).all()
    torch.testing.assert_close(log_prob_of(model, x), -energy(x))
    _, potential, transforms, _ = initialize_model(model)
    z = torch.randn(6, model.latent_dim, dtype=torch.float64)
    torch.testing.assert_close(model.unconstrained_energy(z), torch.stack([potential({"x": row}) for row in z]))
    torch.testing.assert_close(transforms["x"](model.constrain(z)["x"]), z)


def test_unconstrained_energy_of_positive_support_has_its_closed_form() -> None:
    model = BoltzmannModel(lambda x: x.sum(-1), 2, support=constraints.positive, temperature=2.0)
    z = torch.randn(4, 5, 2)
    torch.testing.assert_close(model.unconstrained_energy(z), (z.exp() / 2 - z).sum(-1))


def test_unconstrained_energy_is_the_bare_energy_where_nothing_is_to_add() -> None:
    assert BoltzmannModel(gaussian, 3).unconstrained_energy is gaussian
    for model in (
        BoltzmannModel(gaussian, 3, temperature=2.0),
        BoltzmannModel(lambda x: x.square(), ()),
        BoltzmannModel(lambda x: x.sum((-1, -2)), (3, 2)),
    ):
        assert model.unconstrained_energy is model.unconstrained_energy
        assert model.unconstrained_energy is not model.energy
        z = torch.randn(4, model.latent_dim, dtype=torch.float64)
        x = z.reshape(4, *model.event_shape)
        torch.testing.assert_close(model.unconstrained_energy(z), model.energy(x) / model.temperature)
        assert torch.equal(model.constrain(z)["x"], x)


def test_unconstrained_energy_checks_shapes_before_the_log_determinant_can_hide_them() -> None:
    with pytest.raises(EnergyError, match=r"\(5,\).*\(\)"):
        BoltzmannModel(lambda x: x.sum(), 2, support=constraints.positive).unconstrained_energy(torch.zeros(5, 2))
    with pytest.raises(ShapeError, match=r"\(\*batch, 2\).*\(5, 3\)"):
        BoltzmannModel(double_normal, 2, support=constraints.positive).unconstrained_energy(torch.zeros(5, 3))


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites configured for enumeration")
@pytest.mark.parametrize(
    "elbo",
    [
        Trace_ELBO(),
        Trace_ELBO(num_particles=3),
        Trace_ELBO(**vectorised),
        RenyiELBO(alpha=0.5, num_particles=4),
        RenyiELBO(alpha=0.0, **vectorised),
        TraceGraph_ELBO(),
        TraceGraph_ELBO(**vectorised),
        TraceMeanField_ELBO(),
        TraceMeanField_ELBO(**vectorised),
        TraceEnum_ELBO(max_plate_nesting=0),
        TraceEnum_ELBO(**vectorised),
    ],
    ids=lambda elbo: f"{type(elbo).__name__}-{elbo.num_particles}-{elbo.vectorize_particles}",
)
def test_elbo_of_the_exact_guide_is_log_z_without_noise(elbo: Any) -> None:
    assert -elbo.loss(gaussian_model(), exact_guide) == pytest.approx(LOG_Z, abs=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_jit_elbo() -> None:
    guide = exact_autoguide(gaussian_model())
    elbo = JitTrace_ELBO(ignore_jit_warnings=True)
    for _ in range(2):
        assert -elbo.loss_and_grads(gaussian_model(), guide) == pytest.approx(LOG_Z, abs=1e-5)


def test_mean_field_elbo_with_its_analytic_kl_is_log_z_on_average() -> None:
    """Here Pyro replaces log q - log r by a closed form, so single values are noisy; 4.5 standard errors."""
    model = BoltzmannModel(double_normal, 2, dtype=torch.float64)

    def guide() -> None:
        zeros = torch.zeros(2, dtype=torch.float64)
        pyro.sample("x", dist.Normal(zeros + 0.3, 0.8).to_event(1))

    elbo = TraceMeanField_ELBO()
    values = torch.tensor([-elbo.loss(model, guide) for _ in range(2000)])
    exact = math.log(2 * math.pi) - 2 * (0.5 * (0.64 + 0.09 - 1) - math.log(0.8))
    assert (values.mean() - exact).abs() < 4.5 * values.std() / math.sqrt(len(values)) + 1e-6


@pytest.mark.parametrize("vectorize", [False, True])
def test_reweighted_wake_sleep(vectorize: bool) -> None:
    options = {"vectorize_particles": True, "max_plate_nesting": 0} if vectorize else {}
    rws = ReweightedWakeSleep(num_particles=4, insomnia=1.0, model_has_params=False, **options)
    _, phi_loss = rws.loss(gaussian_model(), exact_autoguide(gaussian_model()))
    assert math.isfinite(phi_loss)
    rws = ReweightedWakeSleep(num_particles=4, insomnia=1.0, model_has_params=True, **options)
    theta_loss, _ = rws.loss(gaussian_model(), exact_autoguide(gaussian_model()))
    assert -theta_loss == pytest.approx(LOG_Z, abs=1e-5)


def test_importance_with_the_exact_guide() -> None:
    importance = Importance(gaussian_model(), exact_guide, num_samples=20).run()
    assert float(importance.get_log_normalizer()) == pytest.approx(LOG_Z, abs=1e-5)
    assert float(importance.get_ESS()) == pytest.approx(20, rel=1e-6)


def test_importance_from_the_reference_is_unbiased() -> None:
    """E[w] = Z: the mean weight of 2000 draws within 4.5 standard errors."""
    model = BoltzmannModel(lambda x: 0.7 * (x - 0.5).square().sum(-1), 2, dtype=torch.float64)
    importance = Importance(model, num_samples=2000).run()
    weights = torch.tensor([float(log_weight) for log_weight in importance.log_weights]).exp()
    z = math.pi / 0.7
    assert (weights.mean() - z).abs() < 4.5 * weights.std() / math.sqrt(len(weights))


@pytest.mark.parametrize("parallel", [False, True])
def test_weighed_predictive_gives_equal_weights(parallel: bool) -> None:
    result = WeighedPredictive(gaussian_model(), guide=exact_guide, num_samples=10, parallel=parallel)()
    torch.testing.assert_close(result.log_weights, torch.full((10,), LOG_Z, dtype=torch.float64))


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_returns_the_draws_of_the_guide(parallel: bool) -> None:
    """Means within 4.5 standard errors, N = 800."""
    predictive = Predictive(
        gaussian_model(), guide=exact_guide, num_samples=800, parallel=parallel, return_sites=("x",)
    )
    x = predictive()["x"].reshape(-1, 3)
    assert x.shape == (800, 3)
    assert ((x.mean(0) - LOC).abs() < 4.5 * TARGET.variance.sqrt() / math.sqrt(800)).all()


@pytest.mark.parametrize("kernel", [NUTS, HMC])
def test_hamiltonian_samplers(kernel: Any) -> None:
    """Means within 4.5 standard errors at a pessimistic effective sample size of 40 for 200 draws."""
    options = {"trajectory_length": 1.5} if kernel is HMC else {}
    mcmc = MCMC(kernel(gaussian_model(), **options), num_samples=200, warmup_steps=60, disable_progbar=True)
    mcmc.run()
    x = mcmc.get_samples()["x"]
    assert ((x.mean(0) - LOC).abs() < 4.5 * TARGET.variance.sqrt() / math.sqrt(40)).all()


def exact_autoguide(model: BoltzmannModel) -> AutoMultivariateNormal:
    guide = AutoMultivariateNormal(model)
    guide()
    tril = torch.linalg.cholesky(TARGET.covariance_matrix)
    guide.loc = pyro.nn.PyroParam(LOC.clone())
    guide.scale = pyro.nn.PyroParam(torch.diagonal(tril).clone(), constraints.positive)
    guide.scale_tril = pyro.nn.PyroParam(
        tril / torch.diagonal(tril).unsqueeze(-1), dist.constraints.unit_lower_cholesky
    )
    return guide


def test_auto_multivariate_normal_at_the_optimum() -> None:
    guide = exact_autoguide(gaussian_model())
    assert -Trace_ELBO(**vectorised).loss(gaussian_model(), guide) == pytest.approx(LOG_Z, abs=1e-5)


def test_auto_normal_at_the_optimum() -> None:
    model = BoltzmannModel(lambda x: 2 * (x - 1).square().sum(-1), 3, dtype=torch.float64)
    guide = AutoNormal(model)
    guide()
    guide.locs.x = pyro.nn.PyroParam(torch.ones(3, dtype=torch.float64))
    guide.scales.x = pyro.nn.PyroParam(torch.full((3,), 0.5, dtype=torch.float64), constraints.positive)
    assert -Trace_ELBO().loss(model, guide) == pytest.approx(1.5 * math.log(math.pi / 2), abs=1e-5)


def test_auto_laplace_is_exact_on_a_gaussian() -> None:
    guide = AutoLaplaceApproximation(gaussian_model())
    guide()
    guide.loc = pyro.nn.PyroParam(LOC.clone())
    laplace = guide.laplace_approximation()
    assert -Trace_ELBO().loss(gaussian_model(), laplace) == pytest.approx(LOG_Z, abs=1e-5)


def test_svi_trains_the_guide_and_never_the_target() -> None:
    energy = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(-2))
    before = [parameter.clone() for parameter in energy.parameters()]
    model = BoltzmannModel(lambda x: 0.5 * x.square().sum(-1) + energy(x.unsqueeze(-2)).squeeze(-1), 2)
    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    losses = [svi.step() for _ in range(3)]
    assert all(math.isfinite(loss) for loss in losses)
    assert all(torch.equal(old, new) for old, new in zip(before, energy.parameters(), strict=True))
    assert all(name.startswith("AutoNormal") for name in pyro.get_param_store())


def test_custom_reference_cancels() -> None:
    reference = dist.StudentT(3.0, LOC, 4.0).to_event(1)
    model = BoltzmannModel(gaussian, 3, reference=reference, temperature=TEMPERATURE)
    assert model.reference is reference
    x = TARGET.sample((5,))
    torch.testing.assert_close(log_prob_of(model, x), -gaussian(x) / TEMPERATURE)
    assert -Trace_ELBO().loss(model, exact_guide) == pytest.approx(LOG_Z, abs=1e-5)


def test_reference_brings_its_support() -> None:
    model = BoltzmannModel(lambda x: x.sum(-1), 2, reference=dist.Gamma(2.0, 1.0).expand([2]).to_event(1))
    z = torch.randn(4, 2)
    torch.testing.assert_close(model.unconstrained_energy(z), (z.exp() - z).sum(-1))


def test_misfit_references_are_refused() -> None:
    with pytest.raises(ShapeError, match="to_event"):
        BoltzmannModel(gaussian, 3, reference=dist.Normal(torch.zeros(3), 1.0))
    with pytest.raises(ShapeError, match="support"):
        BoltzmannModel(gaussian, 3, support=constraints.positive, reference=dist.Normal(LOC, 1.0).to_event(1))


def test_float32_cancels_far_from_the_reference() -> None:
    """The reference has log-density -3000 here; rounding must stay at its last digit (2^-12 at 3000)."""
    model = BoltzmannModel(lambda x: 1e-3 * x.square().sum(-1), 60)
    x = torch.full((2, 60), 10.0)
    torch.testing.assert_close(log_prob_of(model, x), torch.full((2,), -6.0), rtol=0, atol=5e-4)


def test_hard_wall_gives_weight_zero_and_no_nan() -> None:
    def wall(x: Tensor) -> Tensor:
        return torch.where(x[..., 0] > 0, double_normal(x), torch.inf)

    model = BoltzmannModel(wall, 2)
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-3e38, 0.0], [3e38, 0.0]])
    assert log_prob_of(model, x).tolist() == [-0.5, -math.inf, -math.inf, -math.inf]
    weights = torch.tensor([float(w) for w in Importance(model, num_samples=1000).run().log_weights]).exp()
    # Exactly the half space: each weight is 2 pi or 0, so the mean has the standard error of a fair coin.
    assert (weights.mean() - math.pi).abs() < 4.5 * math.pi / math.sqrt(1000)


def test_edge_of_the_support_has_weight_zero() -> None:
    model = BoltzmannModel(lambda x: x.sum(-1), 2, support=constraints.positive)
    assert log_prob_of(model, torch.tensor([[0.0, 1.0], [1.0, 1.0]])).tolist() == [-math.inf, -2.0]


def test_nan_energy_passes_through_to_the_weights() -> None:
    model = BoltzmannModel(lambda x: x.sum(-1) * torch.nan, 2)
    with pytest.warns(UserWarning, match="NaN"):
        log_prob = log_prob_of(model, torch.ones(3, 2))
    assert log_prob.isnan().all()


def test_dtype_follows_the_default_at_call_time() -> None:
    model = BoltzmannModel(double_normal, 2)
    assert draw(model).dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert draw(model).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert draw(BoltzmannModel(double_normal, 2, dtype=torch.float64)).dtype == torch.float64


def test_each_particle_is_counted_once() -> None:
    with count_evaluations() as count:
        Trace_ELBO(**vectorised).loss(gaussian_model(), exact_guide)
    assert count.values == 5


def test_bad_input_is_refused() -> None:
    with pytest.raises(EnergyError, match="batch shape"):
        BoltzmannModel(lambda x: x, 2)()
    with pytest.raises(EnergyError, match="temperature"):
        BoltzmannModel(double_normal, 2, temperature=0.0)
    with pytest.raises(ShapeError, match="positive"):
        BoltzmannModel(double_normal, (2, 0))


def test_pickle_after_use() -> None:
    model = gaussian_model()
    draw(model)
    copy = pickle.loads(pickle.dumps(model))
    assert copy.unconstrained_energy is copy.unconstrained_energy
    assert -Trace_ELBO().loss(copy, exact_guide) == pytest.approx(LOG_Z, abs=1e-5)


def test_name_and_plate() -> None:
    model = BoltzmannModel(gaussian, 3, name="r", dtype=torch.float64)
    with pyro.plate("particles", 4):
        trace = poutine.trace(model).get_trace()
    assert trace.nodes["r"]["value"].shape == (4, 3)
    torch.testing.assert_close(trace.log_prob_sum(), -gaussian(trace.nodes["r"]["value"]).sum())
