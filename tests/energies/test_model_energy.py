"""The energy of a Pyro program equals Pyro's own potential, for all particles at once."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal
from pyro.infer.autoguide.utils import helpful_support_errors
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.integrator import potential_grad
from torch import Tensor
from torch.distributions import constraints

from pyro_boltzmann.energies.boltzmann import Boltzmann
from pyro_boltzmann.energies.boltzmann_model import BoltzmannModel
from pyro_boltzmann.energies.evaluation import count_evaluations, energy_and_gradient, energy_value
from pyro_boltzmann.energies.model_energy import ModelEnergy
from pyro_boltzmann.exceptions import ModelError, ShapeError

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
FEATURES = torch.linspace(-1.0, 2.0, 18).reshape(6, 3).sin()
LABELS = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])


def eight_schools() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("obs", dist.Normal(theta, ERRORS), obs=EFFECTS)


def nested_plates() -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.5))
    with pyro.plate("columns", 3, dim=-1):
        loc = pyro.sample("loc", dist.Normal(0.0, rate))
        with pyro.plate("rows", 4, dim=-2):
            cell = pyro.sample("cell", dist.StudentT(4.0, loc, rate))
            pyro.sample("obs", dist.Poisson(cell.exp()), obs=torch.arange(12.0).reshape(4, 3))
    with pyro.plate("other_rows", 4, dim=-2):
        pyro.sample("row", dist.LogNormal(rate.log(), 0.5))


def crossed_vector_sites() -> None:
    """A vector site in a plate, a simplex (one coordinate fewer) in a plate, and a global covariance."""
    shares = pyro.sample("shares", dist.Dirichlet(torch.tensor([2.0, 1.0, 3.0])))
    corr = pyro.sample("corr", dist.LKJCholesky(3, 1.5))
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros(3), 0.4).to_event(1))
    with pyro.plate("groups", 4):
        mean = pyro.sample("mean", dist.MultivariateNormal(torch.zeros(3), scale_tril=scale.unsqueeze(-1) * corr))
        mix = pyro.sample("mix", dist.Dirichlet(1.0 + 5.0 * shares))
        pyro.sample("obs", dist.Normal((mean * mix).sum(-1), 0.7), obs=torch.tensor([0.1, -0.4, 1.0, 2.0]))


def bounded_sites() -> None:
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    u = pyro.sample("u", dist.Uniform(0.0, 1.0))
    v = pyro.sample("v", dist.Uniform(torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 5.0])).to_event(1))
    pyro.sample("obs", dist.Binomial(10, p * u), obs=torch.tensor(3.0))
    pyro.factor("penalty", -v.square().sum(-1) * p)


def sequential_plate() -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    for i in pyro.plate("steps", 3):
        x = pyro.sample(f"x_{i}", dist.Normal(loc, 1.0 + i))
        pyro.sample(f"y_{i}", dist.Normal(x, 0.5), obs=torch.tensor(float(i)))


def scaled_and_masked() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=2.5), pyro.plate("data", 4):
        pyro.sample("obs", dist.Normal(z, 1.0), obs=torch.arange(4.0))
    with pyro.plate("masked", 4), poutine.mask(mask=torch.tensor([True, False, True, False])):
        w = pyro.sample("w", dist.Exponential(2.0))
        pyro.sample("obs_w", dist.Normal(w, z.exp()), obs=torch.ones(4))
    with poutine.mask(mask=False):
        pyro.sample("ignored", dist.Normal(z, 1.0), obs=torch.tensor(100.0))
    pyro.deterministic("doubled", 2 * z)


def partly_observed() -> None:
    with pyro.plate("data", 4):
        pyro.sample(
            "x", dist.Normal(1.0, 2.0), obs=torch.arange(4.0), obs_mask=torch.tensor([True, False, False, True])
        )


def undeclared_batch() -> None:
    """Batch dimensions without a plate: the potential sums over them all the same."""
    x = pyro.sample("x", dist.Normal(torch.zeros(4), 1.0))
    pyro.sample("obs", dist.Normal(x, 2.0), obs=torch.arange(4.0))


def vector_only() -> None:
    x = pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), torch.tensor([[2.0, 0.5], [0.5, 1.0]])))
    pyro.sample("obs", dist.Normal(x[..., 0] * x[..., 1], 1.0), obs=torch.tensor(0.3))


def boltzmann_site() -> None:
    x = pyro.sample("x", Boltzmann(lambda x: x.pow(4).sum(-1), 2))
    pyro.sample("obs", dist.Normal(x.sum(-1), 1.0), obs=torch.tensor(1.0))


def matrix_vector() -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 6):
        pyro.sample("obs", dist.Bernoulli(logits=FEATURES.to(w) @ w + b), obs=LABELS)


def reduced_from_the_left() -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.factor("f", -(x.sum(0) - x[0]).square())


def branching() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    scale = 1.0 if x > 0 else 3.0
    pyro.sample("obs", dist.Normal(x, scale), obs=torch.tensor(0.5))


BROADCASTING = [
    eight_schools,
    nested_plates,
    crossed_vector_sites,
    bounded_sites,
    sequential_plate,
    scaled_and_masked,
    partly_observed,
    undeclared_batch,
    vector_only,
    boltzmann_site,
]
VMAPPED = [matrix_vector, reduced_from_the_left]


def pyro_potential(model: Callable[[], Any]) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor]], int]:
    """Pyro's potential and its gradient as functions of one flat vector, unpacked here from Pyro's own trace."""
    _, potential, transforms, trace = initialize_model(model, init_strategy=pyro.infer.autoguide.init_to_median)
    shapes = {name: transform(trace.nodes[name]["value"]).shape for name, transform in transforms.items()}
    sizes = [shape.numel() for shape in shapes.values()]

    def value_and_gradient(z: Tensor) -> tuple[Tensor, Tensor]:
        parts = z.split(sizes)
        params = {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        gradient, value = potential_grad(potential, params)
        return value, torch.cat([gradient[name].reshape(-1) for name in shapes])

    return value_and_gradient, sum(sizes)


def points(energy: ModelEnergy, *batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*batch, energy.latent_dim, dtype=dtype, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def _double_precision() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_double_precision")
@pytest.mark.parametrize("model", [*BROADCASTING, *VMAPPED])
def test_energy_and_gradient_are_pyros_potential(model: Callable[[], Any]) -> None:
    energy = ModelEnergy(model)
    assert energy.strategy == ("vmap" if model in VMAPPED else "broadcast")
    potential, latent_dim = pyro_potential(model)
    assert energy.latent_dim == latent_dim
    z = points(energy, 6)
    u, gradient = energy_and_gradient(energy, z)
    expected = [potential(row) for row in z]
    torch.testing.assert_close(u.detach(), torch.stack([value.detach() for value, _ in expected]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.detach(), torch.stack([slope for _, slope in expected]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("model", [*BROADCASTING, *VMAPPED])
def test_float32_energy_is_pyros_potential_to_single_precision(model: Callable[[], Any]) -> None:
    energy = ModelEnergy(model)
    potential, _ = pyro_potential(model)
    z = points(energy, 5, dtype=torch.float32)
    assert energy(z).dtype == torch.float32
    expected = torch.stack([potential(row)[0].detach() for row in z])
    torch.testing.assert_close(energy(z), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", [*BROADCASTING, *VMAPPED])
def test_any_number_of_batch_dimensions(model: Callable[[], Any]) -> None:
    """Each particle has its own energy, also where the batch size equals the size of a plate."""
    energy = ModelEnergy(model)
    for batch in [(), (1,), (4,), (8,), (2, 3), (0,), (0, 3)]:
        z = points(energy, *batch, dtype=torch.float32)
        u = energy(z)
        assert u.shape == batch
        singles = [energy(row) for row in z.reshape(u.numel(), energy.latent_dim)]
        if singles:
            torch.testing.assert_close(u.reshape(-1), torch.stack(singles), rtol=1e-4, atol=1e-4)


def test_branching_program_falls_back_to_a_loop_and_says_how_to_mend_it() -> None:
    with pytest.warns(UserWarning, match=r"one particle at a time.*torch\.where"):
        energy = ModelEnergy(branching)
    assert energy.strategy == "loop"
    x = torch.tensor([[-1.0], [2.0]])
    expected = -dist.Normal(0.0, 1.0).log_prob(x[:, 0])
    expected = expected - dist.Normal(x[:, 0], torch.tensor([3.0, 1.0])).log_prob(torch.tensor(0.5))
    torch.testing.assert_close(energy(x), expected)
    assert energy(x[:0]).shape == (0,)


def test_nowhere_finite_energy_is_not_verified_and_not_batched() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.where(x > 50, 0.0, -math.inf))

    with pytest.warns(UserWarning, match="not finite"):
        energy = ModelEnergy(model)
    assert energy(torch.tensor([[0.0], [60.0]])).isinf().tolist() == [True, False]


@pytest.mark.parametrize("model", [eight_schools, nested_plates, crossed_vector_sites, bounded_sites, matrix_vector])
def test_layout_is_that_of_auto_continuous(model: Callable[[], Any]) -> None:
    """A latent of a Pyro guide and a vector of this energy are the same thing, site by site."""
    guide = AutoDiagonalNormal(model)
    guide()
    energy = ModelEnergy(model)
    assert energy.latent_dim == guide.latent_dim
    z = points(energy, dtype=torch.float32)
    sites = {}
    for site, unconstrained in guide._unpack_latent(z):
        with helpful_support_errors(site):
            sites[site["name"]] = torch.distributions.biject_to(site["fn"].support)(unconstrained)
    ours = energy.constrain(z)
    assert tuple(ours) == energy.site_names == tuple(sites)
    for name, value in sites.items():
        assert torch.equal(ours[name], value)


@pytest.mark.parametrize("model", [nested_plates, crossed_vector_sites, bounded_sites])
def test_constrain_and_unconstrain_are_inverse(model: Callable[[], Any]) -> None:
    energy = ModelEnergy(model)
    z = points(energy, 2, 3, dtype=torch.float32)
    values = energy.constrain(z)
    for name, value in values.items():
        assert value.shape == (2, 3, *energy.prototype_trace.nodes[name]["value"].shape)
    torch.testing.assert_close(energy.unconstrain(values), z, rtol=1e-3, atol=1e-3)


def test_unconstrain_refuses_missing_and_misshapen_sites() -> None:
    energy = ModelEnergy(eight_schools)
    values = energy.constrain(torch.zeros(4, energy.latent_dim))
    with pytest.raises(ModelError, match="tau"):
        energy.unconstrain({name: value for name, value in values.items() if name != "tau"})
    with pytest.raises(ShapeError, match=r"'theta'.*8.*\(4, 7\)"):
        energy.unconstrain({**values, "theta": torch.zeros(4, 7)})


def test_arguments_are_passed_to_the_program() -> None:
    def model(data: Tensor, *, scale: float) -> None:
        x = pyro.sample("x", dist.Normal(0.0, scale))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(x, 1.0), obs=data)

    energy = ModelEnergy(model, torch.tensor([1.0, 3.0]), scale=2.0)
    x = torch.tensor([[0.5], [-1.0]])
    expected = x[:, 0].square() / 8 + (x - torch.tensor([1.0, 3.0])).square().sum(-1) / 2
    expected = expected + math.log(2.0) + 1.5 * math.log(2 * math.pi)
    torch.testing.assert_close(energy(x), expected)


def test_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    ModelEnergy(eight_schools)
    ModelEnergy(matrix_vector)
    assert torch.equal(before, torch.random.get_rng_state())


def test_program_is_hidden_from_enclosing_handlers_and_plates() -> None:
    energy = ModelEnergy(eight_schools)
    z = points(energy, 5, dtype=torch.float32)
    alone = energy(z)
    with poutine.trace() as tracer, pyro.plate("schools", 8), poutine.mask(mask=False), poutine.scale(scale=0.1):
        inside = energy(z)
        again = ModelEnergy(eight_schools)
    assert torch.equal(inside, alone)
    assert torch.equal(again(z), alone)
    assert set(tracer.trace.nodes) <= {"schools"}


def test_whoever_evaluates_counts_and_nothing_is_counted_twice() -> None:
    submodel = BoltzmannModel(lambda x: x.square().sum(-1), 2)

    def model() -> None:
        x = submodel()
        pyro.sample("obs", dist.Normal(x.sum(-1), 1.0), obs=torch.tensor(0.0))

    for program in (boltzmann_site, model, submodel, matrix_vector):
        with count_evaluations() as count:
            energy = ModelEnergy(program)
            assert count.values == 0
            energy_value(energy, torch.zeros(7, energy.latent_dim))
        assert count.values == 7


def test_boltzmann_model_is_taken_as_it_is() -> None:
    for model in (
        BoltzmannModel(lambda x: x.square().sum(-1), 2),
        BoltzmannModel(lambda x: x.sum((-1, -2)), (3, 2), support=constraints.positive, temperature=2.0, name="r"),
    ):
        energy = ModelEnergy(model)
        assert energy.strategy == "direct"
        assert energy.site_names == (model.name,)
        z = torch.randn(4, energy.latent_dim)
        torch.testing.assert_close(energy(z), model.unconstrained_energy(z))
        torch.testing.assert_close(energy.constrain(z)[model.name], model.constrain(z)[model.name])


def test_out_of_range_proposals_are_values_and_not_exceptions() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).expand([2]).to_event(1))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        pyro.sample("obs", dist.Normal(x[..., 0], scale), obs=torch.tensor(0.0))

    energy = ModelEnergy(model)
    z = torch.tensor([[0.0, 0.0, -1e4], [math.nan, 0.0, 0.0], [math.inf, 0.0, 0.0], [0.0, 0.0, 0.0]])
    finite = energy(z).isfinite()
    assert finite.tolist() == [False, False, False, True]
    assert pyro.infer.util.is_validation_enabled()


def test_gradients_reach_parameters_of_the_program() -> None:
    scale = torch.tensor(2.0, requires_grad=True)

    def model() -> None:
        pyro.sample("x", dist.Normal(0.0, scale))

    (gradient,) = torch.autograd.grad(ModelEnergy(model)(torch.ones(1)), scale)
    torch.testing.assert_close(gradient, torch.tensor(1 / 2 - 1 / 8))


def test_pickle_and_deepcopy_after_use() -> None:
    energy = ModelEnergy(crossed_vector_sites)
    z = points(energy, 3, dtype=torch.float32).requires_grad_()
    energy(z)
    for clone in (pickle.loads(pickle.dumps(energy)), copy.deepcopy(energy)):
        assert torch.equal(clone(z), energy(z))


def discrete() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("kind", dist.Categorical(torch.ones(3)))


def counts() -> None:
    pyro.sample("events", dist.Poisson(3.0))


def subsampled() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 10, subsample_size=4) as index:
        pyro.sample("obs", dist.Normal(x, 1.0), obs=torch.zeros(10)[index])


def subsampled_in_a_loop() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    for i in pyro.plate("steps", 5, subsample_size=2):
        pyro.sample(f"obs_{i}", dist.Normal(x, 1.0), obs=torch.tensor(0.0))


def enumerated() -> None:
    pyro.sample("z", dist.Normal(0.0, 1.0), infer={"enumerate": "parallel"})


def observed_only() -> None:
    pyro.sample("obs", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))


def point_mass() -> None:
    pyro.sample("fixed", dist.Delta(torch.tensor(1.0)))


def moving_support() -> None:
    top = pyro.sample("top", dist.LogNormal(0.0, 1.0))
    pyro.sample("below", dist.Uniform(0.0, top))


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (discrete, "'kind'.*Categorical"),
        (counts, "'events'.*Poisson"),
        (subsampled, "'data'.*4 of 10"),
        (subsampled_in_a_loop, "'steps'.*2 of 5"),
        (enumerated, "'z'.*enumerat"),
        (observed_only, "no latent site"),
        (point_mass, "'fixed'.*Delta"),
        (moving_support, "'below'.*support|support.*'below'"),
    ],
)
def test_programs_without_an_energy_are_refused_by_name(model: Callable[[], Any], names: str) -> None:
    with pytest.raises(ModelError, match=names):
        ModelEnergy(model)


def test_a_site_that_comes_and_goes_is_refused_by_name() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if x.abs().max() > 50:
            pyro.sample("tail", dist.Normal(0.0, 1.0))

    energy = ModelEnergy(model)
    with pytest.raises(ModelError, match="'tail'"):
        energy(torch.full((3, 1), 60.0))


def test_wrong_width_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(\*batch, 10\).*\(4, 9\)"):
        ModelEnergy(eight_schools)(torch.zeros(4, 9))
