"""Training: every kind of guide and objective, budgets, records, and what an update costs besides the mathematics."""

from __future__ import annotations

import math
import signal
import sys
import threading

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal

import pyro_boltzmann as pb
from pyro_boltzmann.exceptions import CheckpointError, EnergyError, ModelError, NonFiniteEnergyError, OutputError
from pyro_boltzmann.infer.interrupt import deferred_interrupt
from pyro_boltzmann.infer.randomness import seeded
from pyro_boltzmann.stochastic import LangevinTransform, MetropolisAdjusted, RandomWalkTransform

DATA = torch.tensor([0.3, -1.1, 2.0])
QUIET = {"progress": False, "seed": 0}


def conjugate(data=DATA):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(data)):
        pyro.sample("obs", dist.Normal(mean, 1.0), obs=data)


POSTERIOR = (float(DATA.sum() / (len(DATA) + 0.25)), (len(DATA) + 0.25) ** -0.5)
EVIDENCE = float(dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 4.0).log_prob(DATA))


def quadratic(x):
    return 0.5 * (x - 1.0).square().sum(-1)


def affine(energy, dim):
    return [T.affine_autoregressive(dim, [4])]


def flow(energy=quadratic, blocks=affine, dim=2, **kwargs):
    torch.manual_seed(0)
    model = pb.BoltzmannModel(energy, dim)
    return model, pb.AutoStochasticFlow(model, blocks, **kwargs)


@pytest.mark.parametrize(
    "objective",
    [
        "reverse_kl",
        TraceMeanField_ELBO(num_particles=64, vectorize_particles=True),
        RenyiELBO(alpha=0.5, num_particles=16, vectorize_particles=True),
    ],
    ids=lambda objective: objective if isinstance(objective, str) else type(objective).__name__,
)
def test_pyro_guide_finds_the_conjugate_posterior(objective):
    """The family holds the posterior, so any bound has its maximum, the log evidence, there."""
    guide = AutoDiagonalNormal(conjugate)
    settings = {"num_steps": 250, "num_particles": 64, "learning_rate": 0.03, "schedule": "cosine"}
    result = pb.fit(conjugate, guide, DATA, objective=objective, **settings, **QUIET)
    assert guide.loc.item() == pytest.approx(POSTERIOR[0], abs=0.03)
    assert guide.scale.item() == pytest.approx(POSTERIOR[1], rel=0.05)
    assert result.history["elbo"][-1] == pytest.approx(EVIDENCE, abs=0.05)
    assert math.isnan(result.history["ess"][-1])
    assert result.steps == 250


def test_stochastic_flow_of_a_pyro_program():
    torch.manual_seed(0)
    guide = pb.AutoStochasticFlow(conjugate, lambda u, d: [T.Spline(d, bound=4.0), LangevinTransform(u, d, 0.05)])
    result = pb.fit(conjugate, guide, DATA, num_steps=150, learning_rate=0.05, schedule="cosine", **QUIET)
    assert result.history["elbo"][-1] == pytest.approx(EVIDENCE, abs=0.05)
    assert result.history["ess"][-1] > 0.9


def test_log_z_is_the_limit_of_the_elbo():
    model, guide = flow()
    result = pb.fit(model, guide, num_steps=300, learning_rate=0.02, schedule="cosine", **QUIET)
    assert result.history["elbo"][-1] == pytest.approx(math.log(2 * math.pi), abs=0.01)
    assert result.history["elbo"][0] < result.history["elbo"][-1] - 0.3
    assert result.history["ess"][-1] > 0.97


def test_history_counts_and_rates():
    """Rows every ``log_every`` updates and at the last; counts in closed form; the cosine schedule ends at 1 %."""
    model, guide = flow()
    rates = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            super().step(closure)

    def make(parameters):
        return Watched(parameters, lr=0.1)

    result = pb.fit(
        model, guide, num_steps=23, num_particles=10, log_every=5, schedule="cosine", optimizer=make, **QUIET
    )  # fmt: skip
    assert result.history["step"] == [5, 10, 15, 20, 23]
    assert result.history["evaluations"] == [2 * 10 * step for step in result.history["step"]]
    assert result.evaluations == pb.energies.evaluation.EvaluationCount(230, 230)
    expected = [0.1 * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / 23))) for step in range(23)]
    assert rates == pytest.approx(expected)
    assert {len(column) for column in result.history.values()} == {5}
    assert result.seconds >= result.history["seconds"][-1] > 0
    assert result.stopped == "steps"


def test_gradient_is_clipped():
    model, guide = flow(lambda x: 1e4 * quadratic(x))
    before = [p.detach().clone() for p in guide.parameters()]

    def make(parameters):
        return torch.optim.SGD(parameters, lr=1.0)

    result = pb.fit(model, guide, num_steps=1, clip_norm=0.1, optimizer=make, log_every=1, **QUIET)
    moved = torch.cat([(p - q).flatten() for p, q in zip(guide.parameters(), before, strict=True)]).norm().item()
    assert result.history["grad_norm"][0] > 1e3  # as it was before clipping
    assert moved == pytest.approx(0.1, rel=1e-3)


def test_adaptive_scales_alone_can_be_trained():
    """No parameter at all: the random walk reaches its target acceptance, 0.44 in one dimension (4.5 s.e. of the last
    batch is 0.02; the adaptation itself wanders by about as much)."""
    walk = RandomWalkTransform(1, 30.0, num_steps=3)
    model, guide = flow(lambda x: 0.5 * x.square().sum(-1), lambda u, d: [MetropolisAdjusted(walk, u, adapt=True)], 1)
    assert not list(guide.parameters())
    pb.fit(model, guide, num_steps=150, adapt_rate=0.3, **QUIET)
    draws = pb.importance_sample(model, guide, num_samples=10_000, seed=1)
    assert draws.info["blocks"][0]["acceptance"] == pytest.approx(0.44, abs=0.04)


def test_scales_adapt_to_backward_paths_in_forward_phases():
    walk = RandomWalkTransform(1, 30.0, num_steps=3)
    model, guide = flow(lambda x: 0.5 * x.square().sum(-1), lambda u, d: [MetropolisAdjusted(walk, u, adapt=True)], 1)
    pb.fit(model, guide, num_steps=150, adapt_rate=0.3, objective="forward_kl", data=torch.randn(5000, 1), **QUIET)
    draws = pb.importance_sample(model, guide, num_samples=10_000, seed=1)
    assert draws.info["blocks"][0]["acceptance"] == pytest.approx(0.44, abs=0.04)


def test_seed_is_reproducible_whatever_came_before():
    """The global generator is left alone, and neither it nor an earlier use of the guide changes the run."""
    states = []
    for use_first in (False, True):
        torch.manual_seed(5)
        model, guide = flow()
        if use_first:
            guide()
            pb.importance_sample(model, guide, num_samples=3)
            torch.rand(10)
        before = torch.get_rng_state()
        pb.fit(model, guide, num_steps=5, **QUIET)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(guide.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_lazily_built_flow_is_initialised_from_the_seed():
    def weights(noise):
        torch.manual_seed(noise)
        guide = pb.AutoStochasticFlow(conjugate, lambda u, d: [T.Planar(d)])
        pb.fit(conjugate, guide, DATA, num_steps=1, **QUIET)
        return torch.cat([p.detach().flatten() for p in guide.parameters()])

    assert torch.equal(weights(1), weights(2))


def test_progress_bar_and_silence(capfd):
    model, guide = flow()
    pb.fit(model, guide, num_steps=4, progress=False)
    assert capfd.readouterr() == ("", "")
    pb.fit(model, guide, num_steps=4, log_every=2, progress=True)
    shown = capfd.readouterr().err
    assert "fit: 100%" in shown and "4/4" in shown
    assert "elbo=" in shown and "ess=" in shown and "evals=2.0e+03" in shown


def test_callback_sees_each_row_and_disturbs_nothing():
    seen, states = [], []
    for callback in (None, lambda result: (seen.append((result.steps, len(result.history["elbo"]))), torch.rand(7))):
        model, guide = flow()
        pb.fit(model, guide, num_steps=6, log_every=2, callback=callback, **QUIET)
        states.append(guide.state_dict())
    assert seen == [(2, 1), (4, 2), (6, 3)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_nothing_is_left_behind():
    """No gradient, no graph in a cache, no open evaluation count."""
    from pyro_boltzmann.energies import evaluation

    model, guide = flow(blocks=lambda u, d: [*affine(u, d), LangevinTransform(u, d, 0.1, learnable=True)])
    with pytest.raises(ZeroDivisionError):
        pb.fit(model, guide, num_steps=4, log_every=2, callback=lambda result: 1 / 0, progress=False)
    assert all(p.grad is None for p in guide.parameters())
    assert not evaluation._open_counts


def test_overhead_of_an_update_is_constant_and_small(monkeypatch):
    """What is not loss, backward and optimiser: one copy of the generator, only if there is a checkpoint, and
    statistics of the batch only in rows that are kept."""
    from pyro_boltzmann.infer import run

    calls = {"states": 0, "ess": 0}

    def count(name, f):
        return lambda *args: (calls.__setitem__(name, calls[name] + 1), f(*args))[1]

    monkeypatch.setattr(run, "generator_states", count("states", run.generator_states))
    monkeypatch.setattr(run, "kish_ess", count("ess", run.kish_ess))
    model, guide = flow()
    pb.fit(model, guide, num_steps=40, log_every=20, **QUIET)
    assert calls == {"states": 1, "ess": 2}


# Interrupts ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def default_sigint():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_second_interrupt_acts_at_once(default_sigint):
    done = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():
        signal.raise_signal(signal.SIGINT)
        done.append(1)
        signal.raise_signal(signal.SIGINT)
        done.append(2)
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_error_in_the_block_goes_before_the_interrupt(default_sigint):
    with pytest.raises(ZeroDivisionError), deferred_interrupt():
        signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupts_of_other_programs_and_threads_are_left_alone(default_sigint):
    heard = []

    def mine(number, frame):
        return heard.append(number)

    signal.signal(signal.SIGINT, mine)
    with deferred_interrupt():
        assert signal.getsignal(signal.SIGINT) is mine
        signal.raise_signal(signal.SIGINT)
    assert heard == [signal.SIGINT]

    def in_thread():
        with deferred_interrupt():
            heard.append("ran")

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert heard[-1] == "ran"


def test_seeded_none_uses_the_global_generator():
    torch.manual_seed(3)
    with seeded(None):
        first = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(first, torch.rand(1))


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("energy", "message"),
    [
        (lambda x: x.square(), r"batch shape \(256,\), got \(256, 2\); reduce over the event dimensions"),
        (lambda x: x.square().sum(), r"batch shape \(256,\), got \(\); reduce"),
        (lambda x: x.square().sum(-1, keepdim=True), r"batch shape \(256,\), got \(256, 1\)"),
        (lambda x: x.square().sum(-1).detach().numpy(), "must return a torch.Tensor .* got ndarray"),
    ],
)
def test_energy_of_wrong_shape(energy, message):
    torch.manual_seed(0)
    model = pb.BoltzmannModel(lambda x: energy(x) if x.dim() > 1 else quadratic(x), 2)
    guide = pb.AutoStochasticFlow(model, affine)
    for use in (
        lambda: pb.fit(model, guide, num_steps=2, progress=False),
        lambda: pb.importance_sample(model, guide, num_samples=256),
    ):
        with pytest.raises(EnergyError, match=message):
            use()


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_energy_that_is_nowhere_finite(value, tmp_path):
    """At once, and the guide as it was is in the checkpoint."""
    file = tmp_path / "run.safetensors"
    model, guide = flow(lambda x: value * x.square().sum(-1))
    before = {name: tensor.clone() for name, tensor in guide.state_dict().items()}
    with pytest.raises(NonFiniteEnergyError, match=r"is (NaN|-inf) at all 256 end states.*finite or \+inf.*log"):
        pb.fit(model, guide, num_steps=500, checkpoint=file, **QUIET)
    assert all(torch.equal(before[name], tensor) for name, tensor in guide.state_dict().items())
    stored, metadata = pb.infer.load_checkpoint(file)
    assert metadata["result"]["steps"] == 0
    assert all(torch.equal(stored[f"guide.{name}"], before[name]) for name in before)


def test_energy_that_is_nan_in_places():
    """Training goes on with the rest, and says so; weighing refuses."""
    model, guide = flow(lambda x: torch.where(x[..., 0] > 1.5, torch.nan, quadratic(x)))
    with pytest.warns(UserWarning, match=r"NaN or -inf at \d+ end states.*importance_sample will refuse"):
        result = pb.fit(model, guide, num_steps=20, **QUIET)
    assert result.nonfinite > 20
    assert result.skipped == 0
    with pytest.raises(NonFiniteEnergyError, match="is NaN at"):
        pb.importance_sample(model, guide, num_samples=1000, seed=0)


def test_energy_that_is_infinite_everywhere():
    model, guide = flow(lambda x: torch.full_like(x[..., 0], torch.inf) + x[..., 0] * 0)
    with pytest.raises(
        EnergyError, match=r"100 updates in a row.*place the base distribution where the energy is finite"
    ):
        pb.fit(model, guide, num_steps=200, num_particles=4, **QUIET)


@pytest.mark.parametrize(
    "energy",
    [lambda x: -quadratic(x), lambda x: -x.square().sum(-1).square(), lambda x: x.sum(-1).sinh()],
    ids=["sign error", "quartic", "exponential"],
)
def test_energy_without_lower_bound(energy, tmp_path):
    file = tmp_path / "run.safetensors"
    model, guide = flow(energy)
    with pytest.raises(EnergyError, match=r"unbounded below.*sign of the energy|not finite") as caught:
        pb.fit(model, guide, num_steps=5000, num_particles=16, learning_rate=0.2, checkpoint=file, **QUIET)
    assert "after update" in caught.value.__notes__[0]
    assert pb.infer.load_checkpoint(file)[1]["result"]["steps"] > 1


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.0, 1.0)], ids=["mixture", "maximum likelihood"])
def test_energy_without_lower_bound_is_seen_in_every_objective(weights):
    """The data follow the runaway, as the draws of a sampler on which it is trained again do."""
    model, guide = flow(lambda x: -(x.square().sum(-1) ** 4))
    data = 300.0 * torch.randn(1000, 2)
    settings = {"objective": [pb.Phase(2000, *weights)], "data": data, "learning_rate": 0.05, "num_particles": 64}
    with pytest.raises(EnergyError, match=r"unbounded below.*sign of the energy"):
        pb.fit(model, guide, **settings, **QUIET)


def test_growing_elbo_alone_is_no_alarm():
    """A stiff but honest energy: from -1e9 to order one."""
    model, guide = flow(lambda x: 1e8 * quadratic(x) / 100)
    result = pb.fit(model, guide, num_steps=30, learning_rate=0.05, **QUIET)
    assert result.history["elbo"][-1] > result.history["elbo"][0]


def discrete(data=DATA):
    kind = pyro.sample("kind", dist.Bernoulli(0.5))
    pyro.sample("obs", dist.Normal(kind, 1.0), obs=data[0])


def subsampled(data=DATA):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(data), subsample_size=2) as index:
        pyro.sample("obs", dist.Normal(mean, 1.0), obs=data[index])


@pytest.mark.parametrize(
    ("model", "message"),
    [(discrete, "latent site 'kind' is discrete.*sum the site out"), (subsampled, "plate 'data' uses 2 of 3.*remove")],
)
def test_programs_that_are_no_energies(model, message):
    for use in (pb.fit, pb.importance_sample):
        guide = pb.AutoStochasticFlow(model, affine)
        with pytest.raises(ModelError, match=message):
            use(model, guide, DATA, progress=False)


def test_wrong_width():
    model, _ = flow()
    with pytest.raises(ValueError, match="3"):
        pb.fit(model, pb.AutoStochasticFlow(model, affine, latent_dim=3), num_steps=1, progress=False)


def test_energy_that_cannot_be_called():
    with pytest.raises(TypeError, match="callable"):
        pb.fit(*flow(energy=3.0), num_steps=1, progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps must be a positive integer, got 0"),
        ({"num_steps": 2.5}, "num_steps must be a positive integer, got 2.5"),
        ({"num_particles": 0}, "num_particles must be positive, got 0"),
        ({"log_every": 0}, "log_every must be positive, got 0"),
        ({"clip_norm": 0.0}, "clip_norm must be positive, or None"),
        ({"schedule": "linear"}, '"constant" or "cosine", got \'linear\''),
        ({"objective": "elbo"}, '"reverse_kl", "forward_kl", "log_variance", .*"alpha_2".* got \'elbo\''),
        ({"objective": "log_variance", "num_particles": 1}, "a variance needs num_particles >= 2"),
        ({"objective": []}, r"a non-empty list of Phase.* got \[\]"),
        ({"objective": [(300, 0, 1)]}, "a non-empty list of Phase"),
        ({"objective": None}, "a non-empty list of Phase.* got None"),
        ({"objective": Trace_ELBO}, "an instance of a Pyro ELBO"),
        ({"objective": [pb.Phase(3)], "num_steps": 4}, "num_steps=4 contradicts the phases, which have 3"),
        ({"objective": "forward_kl"}, "forward KL needs data: pass data="),
        ({"objective": [pb.Phase(3, 1, 1)]}, "forward KL needs data: pass data="),
    ],
)
def test_settings_that_make_no_sense(arguments, message):
    model, guide = flow()
    with pytest.raises(ValueError, match=message):
        pb.fit(model, guide, progress=False, **arguments)


@pytest.mark.parametrize("arguments", [(0,), (2.5,), (3, 0, 0), (3, -1, 2), (3, math.nan, 1), (3, math.inf, 1)])
def test_phases_that_make_no_sense(arguments):
    with pytest.raises(ValueError, match="a phase needs an integer num_steps >= 1 and finite, non-negative weights"):
        pb.Phase(*arguments)


def test_guides_that_cannot_be_trained():
    model, _ = flow()
    with pytest.raises(TypeError, match="guides that are modules, got function; use Pyro's SVI"):
        pb.fit(model, lambda: None, num_steps=1, progress=False)
    fixed = pb.AutoStochasticFlow(model, lambda u, d: [LangevinTransform(u, d, 0.1)])
    with pytest.raises(ValueError, match=r"no parameter to train.*learnable=True or adapt=True.*importance_sample"):
        pb.fit(model, fixed, num_steps=1, progress=False)
    with pytest.raises(TypeError, match=r"ForwardKL .* needs an AutoStochasticFlow, got AutoMultivariateNormal"):
        guide = AutoMultivariateNormal(model)
        pb.fit(model, guide, objective="forward_kl", data=torch.zeros(3, 2), num_steps=1, progress=False)


def test_unwritable_checkpoint_is_known_before_the_first_update(tmp_path):
    (tmp_path / "file").write_text("in the way")
    calls = []
    model, guide = flow(lambda x: (calls.append(1), quadratic(x))[1])
    guide.initialize()
    calls.clear()
    with pytest.raises(OutputError, match=r"cannot write .*; choose"):
        pb.fit(model, guide, num_steps=5, checkpoint=tmp_path / "file" / "run.safetensors", **QUIET)
    assert not calls


def test_disk_that_fills_up_hides_no_other_error(tmp_path, monkeypatch):
    model, guide = flow()

    def callback(result):
        monkeypatch.setattr(sys.modules["pyro_boltzmann.infer.fit"], "save_checkpoint", full)
        raise ZeroDivisionError

    def full(*args):
        raise OutputError("no space left on device")

    with pytest.raises(ZeroDivisionError) as caught:
        pb.fit(model, guide, num_steps=20, checkpoint=tmp_path / "run.safetensors", callback=callback, **QUIET)
    assert "could not be saved: no space left" in caught.value.__notes__[0]


def test_folder_as_checkpoint(tmp_path):
    model, guide = flow()
    with pytest.raises(CheckpointError, match="no checkpoint file at"):
        pb.fit(model, guide, num_steps=5, checkpoint=tmp_path, **QUIET)


@pytest.mark.parametrize("limit", ["max_seconds", "max_evaluations"])
def test_negative_limits_are_refused(limit):
    model = pb.BoltzmannModel(lambda x: 0.5 * x.square().sum(-1), 2)
    guide = pb.AutoStochasticFlow(model, lambda energy, dim: [pb.transforms.ElementwiseAffine(dim)])
    with pytest.raises(ValueError, match=f"{limit} must not be negative, got -1"):
        pb.fit(model, guide, num_steps=2, progress=False, **{limit: -1})
