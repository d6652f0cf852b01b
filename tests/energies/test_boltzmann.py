"""The Boltzmann distribution: its density, its samplers, and its place in a larger program."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, Predictive, Trace_ELBO
from pyro.infer.autoguide.initialization import InitMessenger, init_to_feasible, init_to_median, init_to_uniform
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor
from torch.distributions import constraints

from pyro_boltzmann.energies.boltzmann import Boltzmann
from pyro_boltzmann.energies.evaluation import count_evaluations
from pyro_boltzmann.energies.model_energy import ModelEnergy
from pyro_boltzmann.energies.tempered import TemperedEnergy
from pyro_boltzmann.exceptions import EnergyError, ShapeError


def harmonic(x: Tensor) -> Tensor:
    return 0.5 * x.square().sum(-1)


def exponential(x: Tensor) -> Tensor:
    return 3.0 * x


def chain(data: Tensor) -> None:
    """A Boltzmann prior of temperature 2 (so N(0, 2)) under a normal observation: the posterior is N(2/3 y, 2/3)."""
    x = pyro.sample("x", Boltzmann(harmonic, 2, temperature=2.0))
    pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=data)


def test_log_prob_with_normalizer_is_the_normal_density() -> None:
    temperature = 2.5
    log_z = math.log(2 * math.pi * temperature)
    boltzmann = Boltzmann(harmonic, 2, temperature=temperature, log_normalizer=log_z)
    x = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    expected = dist.Normal(0.0, math.sqrt(temperature)).expand([2]).to_event(1).log_prob(x)
    torch.testing.assert_close(boltzmann.log_prob(x), expected)


def test_tempered_energy_divides_and_refuses_bad_temperatures() -> None:
    x = torch.tensor([[2.0, 0.0]])
    torch.testing.assert_close(TemperedEnergy(harmonic, 4.0)(x), torch.tensor([0.5]))
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(EnergyError, match="temperature"):
            TemperedEnergy(harmonic, temperature)


@pytest.mark.parametrize("batch_shape", [(), (3,), (4, 1)])
def test_expand_gives_one_log_prob_per_batch_element(batch_shape: tuple[int, ...]) -> None:
    boltzmann = Boltzmann(harmonic, 2).expand(batch_shape)
    assert boltzmann.batch_shape == batch_shape and boltzmann.event_shape == (2,) and boltzmann.event_dim == 1
    x = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(boltzmann.log_prob(x), torch.full(batch_shape, -2.5))
    assert boltzmann.log_prob(torch.ones(5, *batch_shape, 2)).shape == (5, *batch_shape)


@pytest.mark.parametrize("event_shape", [(), (2,), (3, 2)])
def test_event_shapes(event_shape: tuple[int, ...]) -> None:
    event_dim = len(event_shape)
    boltzmann = Boltzmann(lambda x: x.flatten(x.dim() - event_dim).sum(-1) if event_dim else x, event_shape)
    assert boltzmann.support.event_dim == event_dim
    assert boltzmann.log_prob(torch.ones(5, *event_shape)).tolist() == [-math.prod(event_shape)] * 5


def test_sampling_without_a_sampler_names_the_mends() -> None:
    for boltzmann in (Boltzmann(harmonic, 2), Boltzmann(harmonic, 2).expand([3])):
        for draw in (boltzmann.sample, boltzmann.rsample, boltzmann):
            with pytest.raises(NotImplementedError, match=r"sampler=.*importance_sample.*BoltzmannModel"):
                draw()


def test_running_the_prior_without_a_sampler_raises() -> None:
    for parallel in (False, True):
        with pytest.raises(NotImplementedError, match="sampler="):
            Predictive(lambda: pyro.sample("x", Boltzmann(harmonic, 2)), num_samples=2, parallel=parallel)()


def test_sampler_draws_every_shape() -> None:
    boltzmann = Boltzmann(harmonic, 2, sampler=lambda shape: torch.randn(*shape, 2)).expand([3])
    torch.manual_seed(0)
    x = boltzmann.sample((20000,))
    assert x.shape == (20000, 3, 2)
    # Standard errors 1/sqrt(n) of a mean and sqrt(2/n) of a variance, n = 120,000; 4.5 of them.
    assert x.mean().abs() < 4.5 / math.sqrt(x.numel())
    assert (x.var() - 1).abs() < 4.5 * math.sqrt(2 / x.numel())


def test_sampler_of_wrong_shape_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(4, 2\).*\(4, 3\)"):
        Boltzmann(harmonic, 2, sampler=lambda shape: torch.zeros(*shape, 3)).sample((4,))


def test_energy_of_wrong_shape_is_refused() -> None:
    with pytest.raises(EnergyError, match="batch shape"):
        Boltzmann(lambda x: x, 2).log_prob(torch.zeros(3, 2))


def test_support_with_too_many_event_dimensions_is_refused() -> None:
    with pytest.raises(ShapeError, match="event dimensions"):
        Boltzmann(harmonic, (), support=constraints.simplex)
    with pytest.raises(ShapeError, match="positive"):
        Boltzmann(harmonic, 0)


def test_validation_checks_the_support() -> None:
    boltzmann = Boltzmann(exponential, (), support=constraints.positive, validate_args=True)
    with pytest.raises(ValueError, match="support"):
        boltzmann.log_prob(torch.tensor(-1.0))
    torch.testing.assert_close(boltzmann.log_prob(torch.tensor(2.0)), torch.tensor(-6.0))


def test_evaluations_are_counted() -> None:
    with count_evaluations() as count:
        Boltzmann(harmonic, 2).log_prob(torch.zeros(7, 2))
    assert count.values == 7


def test_pickle() -> None:
    copy = pickle.loads(pickle.dumps(Boltzmann(exponential, (), support=constraints.positive).expand([2])))
    torch.testing.assert_close(copy.log_prob(torch.ones(2)), torch.tensor([-3.0, -3.0]))


@pytest.mark.parametrize("init", [init_to_uniform, init_to_feasible, init_to_median])
@pytest.mark.parametrize("support", [constraints.real_vector, constraints.simplex, constraints.positive])
def test_init_strategies_find_a_point_of_the_support(init: Any, support: constraints.Constraint) -> None:
    def model() -> None:
        pyro.sample("x", Boltzmann(harmonic, 3, support=support))

    x = poutine.trace(InitMessenger(init)(model)).get_trace().nodes["x"]["value"]
    assert x.shape == (3,)
    assert support.check(x).all()


def test_nuts_initialises_and_samples_the_posterior() -> None:
    data = torch.tensor([3.0, -1.5])
    pyro.set_rng_seed(1)
    mcmc = MCMC(NUTS(chain), num_samples=300, warmup_steps=100, disable_progbar=True)
    mcmc.run(data)
    x = mcmc.get_samples()["x"]
    # NUTS on an isotropic normal mixes at least as well as 100 independent draws here; sd sqrt(2/3).
    assert ((x.mean(0) - data * 2 / 3).abs() < 4.5 * math.sqrt(2 / 3 / 100)).all()


def test_potential_and_model_energy_are_the_posterior_energy() -> None:
    data = torch.tensor([3.0, -1.5])
    _, potential, _, _ = initialize_model(chain, (data,))
    energy = ModelEnergy(chain, data)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    expected = 0.25 * x.square().sum(-1) + 0.5 * (x - data).square().sum(-1) + math.log(2 * math.pi)
    torch.testing.assert_close(energy(x), expected)
    torch.testing.assert_close(torch.stack([potential({"x": row}) for row in x]), expected)


def test_condition_and_replay_in_a_program() -> None:
    data = torch.zeros(2)
    trace = poutine.trace(poutine.condition(chain, {"x": torch.ones(2)})).get_trace(data)
    torch.testing.assert_close(trace.log_prob_sum(), torch.tensor(-0.5 - 1.0 - math.log(2 * math.pi)))


def test_site_inside_a_plate() -> None:
    def model() -> None:
        with pyro.plate("particles", 4):
            pyro.sample("x", Boltzmann(exponential, (), support=constraints.positive))

    energy = ModelEnergy(model)
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(energy(z), (3 * z.exp() - z).sum(-1))
    assert energy.strategy == "broadcast"


def test_elbo_of_the_exact_posterior_is_the_evidence_of_a_larger_program() -> None:
    data = torch.tensor([3.0, -1.5], dtype=torch.float64)

    def guide(data: Tensor) -> None:
        pyro.sample("x", dist.Normal(data * 2 / 3, math.sqrt(2 / 3)).to_event(1))

    evidence = math.log(4 * math.pi) + float(dist.Normal(0.0, math.sqrt(3.0)).log_prob(data).sum())
    elbo = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=0)
    assert -elbo.loss(chain, guide, data) == pytest.approx(evidence, abs=1e-5)
