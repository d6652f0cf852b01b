"""The simulation as a Pyro program: its law, its gradient, inference through it."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from pyro_boltzmann.energies import ModelEnergy
from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.sde import SDE, Absorbing, Reflecting

START = dist.Normal(torch.zeros(1), 1.0).to_event(1)
THETA, SIGMA, STEPS, NOISE = 1.0, 0.5, 4, 0.3


def observed_decay(value, scheme="euler"):
    model = SDE(lambda x: -THETA * x, SIGMA, 1).model(START, 1.0, STEPS, scheme=scheme)

    def program():
        pyro.sample("y", dist.Normal(model(), NOISE).to_event(1), obs=torch.tensor([value]))

    return program


def posterior_of_start(value):
    """Mean and variance of x_0 given y: all steps of Euler's scheme are linear."""
    factor = 1.0 - THETA / STEPS
    noise = sum(SIGMA**2 / STEPS * factor ** (2 * k) for k in range(STEPS))
    gain = factor**STEPS / (factor ** (2 * STEPS) + noise + NOISE**2)
    return gain * value, 1.0 - gain * factor**STEPS


def test_sites_and_shapes():
    sde = SDE(torch.sin, 0.3, 2, boundaries=[Reflecting(1, -1.0, 1.0)])
    model = sde.model(dist.Normal(torch.zeros(2), 0.1).to_event(1), 1.0, 5, scheme="runge_kutta", name="z")
    trace = poutine.trace(model).get_trace()
    shapes = {name: tuple(trace.nodes[name]["value"].shape) for name in ("z_0", "z_noise", "z_T")}
    assert shapes == {"z_0": (2,), "z_noise": (5, 2, 2), "z_T": (2,)}
    assert trace.stochastic_nodes == ["z_0", "z_noise"]
    with pyro.plate("particles", 7, dim=-2), pyro.plate("data", 3, dim=-1):
        assert model().shape == (7, 3, 2)


@pytest.mark.parametrize("scheme", ["euler", "milstein", "runge_kutta"])
def test_gradients_against_finite_differences(scheme):
    diffusion = (lambda x, c: 0.3 * (1.0 + c * x.square())) if scheme == "milstein" else 0.3
    drift = SDE(lambda x, c: (c * x).sin(), diffusion, 2, param_dim=1, boundaries=[Reflecting(0, -1.0, 1.0)])
    start = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)
    model = drift.model(start, 1.0, 3, scheme=scheme)
    x0 = 0.3 * torch.randn(4, 2, dtype=torch.float64)
    noise = torch.randn(4, 3, model.scheme.num_normals, 2, dtype=torch.float64)
    params = torch.full((1,), 0.7, dtype=torch.float64)
    assert torch.autograd.gradcheck(model.end, [t.requires_grad_() for t in (x0, noise, params)])


def test_milstein_keeps_no_graph_that_nobody_asked_for():
    model = SDE(torch.sin, torch.cos, 1).model(START, 1.0, 3, scheme="milstein")
    assert not model().requires_grad


def test_the_energy_of_the_program_is_its_joint_density():
    energy = ModelEnergy(observed_decay(0.8))
    z = torch.randn(6, energy.latent_dim)
    assert energy.latent_dim == 1 + STEPS
    x = z[:, 0]
    for k in range(STEPS):
        x = x - THETA / STEPS * x + SIGMA * STEPS**-0.5 * z[:, 1 + k]
    expected = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + dist.Normal(x, NOISE).log_prob(torch.tensor(0.8))
    torch.testing.assert_close(-energy(z), expected)


def test_nuts_finds_the_posterior_of_the_initial_state():
    kernel = NUTS(observed_decay(0.8), step_size=0.7, adapt_step_size=False, adapt_mass_matrix=False, max_tree_depth=2)
    mcmc = MCMC(kernel, num_samples=150, warmup_steps=10, disable_progbar=True)
    mcmc.run()
    x = mcmc.get_samples()["x_0"][:, 0].double()
    mean, variance = posterior_of_start(0.8)
    size = mcmc.diagnostics()["x_0"]["n_eff"].item()
    assert size > 50
    assert abs(x.mean() - mean) < 4.5 * (variance / size) ** 0.5
    assert abs(x.var() / variance - 1.0) < 4.5 * (2.0 / size) ** 0.5


def test_a_vectorised_guide_runs_on_it():
    program = observed_decay(0.8)
    svi = SVI(program, AutoNormal(program), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(8, vectorize_particles=True))
    assert all(torch.isfinite(torch.tensor(svi.step())) for _ in range(3))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="absorbing"):
        SDE(torch.sin, 1.0, 1, boundaries=[Absorbing(0, 0.0)]).model(START, 1.0, 4)
    with pytest.raises(ValueError, match="num_steps >= 1"):
        SDE(torch.sin, 1.0, 1).model(START, 1.0, 0)
    with pytest.raises(ShapeError, match=r"event shape \(2,\), got \(1,\)"):
        SDE(torch.sin, 1.0, 2).model(START, 1.0, 4)
