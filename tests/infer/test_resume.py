"""A run that is stopped in any way ends, once resumed, with the parameters of an unbroken run, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE

import pyro.distributions.transforms as T
import pytest
import torch

import pyro_boltzmann as pb
from pyro_boltzmann.exceptions import CheckpointError, EnergyError
from pyro_boltzmann.infer import load_checkpoint
from pyro_boltzmann.infer.run import TrainingRun
from pyro_boltzmann.transforms import InverseTransform
from tests.infer.training_runs import NAMES, STEPS, build, settings, two_wells

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def default_sigint():
    """Python's own handler, which the run takes the place of."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def unbroken(name):
    """Guide and result of the run that nothing disturbs."""
    model, guide = build(name)
    return guide, pb.fit(model, guide, **settings(name))


def resumed(name, file, **changes):
    """Guide and result of a new process's attempt: everything fresh but the checkpoint."""
    model, guide = build(name)
    torch.manual_seed(random.randrange(2**31))  # whatever state the new process is in
    return guide, pb.fit(model, guide, checkpoint=file, **(settings(name) | changes))


def assert_same(first, second):
    (guide, result), (other_guide, other) = first, second
    state, other_state = guide.state_dict(), other_guide.state_dict()
    assert state.keys() == other_state.keys()
    different = [key for key in state if not torch.equal(state[key], other_state[key])]
    assert not different
    assert result.steps == other.steps
    assert result.evaluations == other.evaluations
    timeless = [key for key in result.history if key != "seconds"]
    rows = [torch.tensor([run.history[key] for key in timeless]) for run in (result, other)]
    torch.testing.assert_close(*rows, rtol=0, atol=0, equal_nan=True)


class Stop(Exception):
    """Raised to end a run from within."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_runs_resume_exactly(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.infer.training_runs", str(tmp_path)]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True, cwd=ROOT, env=environment) as server:
        pids = dict(server.stdout.readline().split() for _ in NAMES)
        assert list(pids) == NAMES
        chance = random.Random(time.time_ns())
        for name, pid in sorted(pids.items(), key=lambda _: chance.random()):
            file = tmp_path / f"{name}.safetensors"
            while not file.exists():
                time.sleep(0.01)
            time.sleep(chance.uniform(0.0, 0.02))
            os.kill(int(pid), signal.SIGKILL)
    steps = {name: load_checkpoint(tmp_path / f"{name}.safetensors")[1]["result"]["steps"] for name in NAMES}
    assert min(steps.values()) < STEPS
    for name in NAMES:
        assert_same(resumed(name, tmp_path / f"{name}.safetensors"), unbroken(name))


@pytest.mark.parametrize("name", NAMES)
def test_callback_that_raises(name, tmp_path):
    file = tmp_path / "run.safetensors"

    def callback(result):
        torch.rand(5)  # must not matter
        if result.steps >= 20:
            raise Stop

    model, guide = build(name)
    with pytest.raises(Stop) as caught:
        pb.fit(model, guide, checkpoint=file, callback=callback, **settings(name))
    assert "after update 20" in caught.value.__notes__[0]
    assert load_checkpoint(file)[1]["result"]["steps"] == 20
    assert_same(resumed(name, file), unbroken(name))


@pytest.mark.parametrize("name", ["log_variance", "trajectory_balance", "alpha_2", "alpha_2_paths", "idem", "bendem"])
def test_energy_that_fails_in_an_update(name, tmp_path):
    """What the objective had already remembered of the failed update is not in the checkpoint."""
    file, calls = tmp_path / "run.safetensors", []

    def energy(x):
        calls.append(x)
        if len(calls) == 40:
            raise Stop
        return two_wells(x)

    model, guide = build(name, energy)
    with pytest.raises(Stop):
        pb.fit(model, guide, checkpoint=file, **settings(name))
    assert load_checkpoint(file)[1]["result"]["steps"] < STEPS
    assert_same(resumed(name, file), unbroken(name))


@pytest.mark.parametrize("name", ["constant", "phases"])
def test_interrupt_finishes_the_update(name, tmp_path, default_sigint, monkeypatch):
    """The signal arrives inside the energy: the update is finished, saved, and only then interrupted."""
    file, calls, started = tmp_path / "run.safetensors", [], []
    update = TrainingRun.update
    monkeypatch.setattr(TrainingRun, "update", lambda run: (started.append(run), update(run))[1])

    def energy(x):
        calls.append(x)
        if len(calls) == 60:
            signal.raise_signal(signal.SIGINT)
        return two_wells(x)

    model, guide = build(name, energy)
    with pytest.raises(KeyboardInterrupt) as caught:
        pb.fit(model, guide, checkpoint=file, **settings(name))
    done = load_checkpoint(file)[1]["result"]["steps"]
    assert 0 < done == len(started) < STEPS
    assert f"after update {done}" in caught.value.__notes__[0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same(resumed(name, file), unbroken(name))


def test_second_interrupt_stops_at_once(tmp_path, default_sigint):
    """Even inside the optimiser's step, whose half-done work must not reach the checkpoint."""
    file = tmp_path / "run.safetensors"

    class Impatient(torch.optim.SGD):
        steps = 0

        def step(self, closure=None):
            super().step(closure)
            type(self).steps += 1
            if type(self).steps == 15:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
                raise AssertionError("the second interrupt did not act")

    def fit(**changes):
        Impatient.steps = 100 if changes else 0
        model, guide = build("constant")

        def make(parameters):
            return Impatient(parameters, lr=0.01, momentum=0.9)

        arguments = settings("constant") | {"optimizer": make, "checkpoint_every": 0.0} | changes
        return guide, pb.fit(model, guide, checkpoint=file, **arguments)

    with pytest.raises(KeyboardInterrupt) as caught:
        fit()
    assert "inside an update" in caught.value.__notes__[0]
    assert load_checkpoint(file)[1]["result"]["steps"] == 14
    continued = fit(checkpoint_every=30.0)
    assert_same(continued, fit(checkpoint_every=30.0, resume=False))


def test_error_inside_an_update_saves_the_update_before(tmp_path):
    """The failed update has drawn random numbers and moved the statistics of a batch normalisation; neither is kept."""
    file = tmp_path / "run.safetensors"

    def fit(breaks_at, **changes):
        calls = []

        def energy(x):
            calls.append(x)
            return two_wells(x)[:-1] if len(calls) == breaks_at else two_wells(x)

        torch.manual_seed(3)
        model = pb.BoltzmannModel(energy, 2)

        def blocks(energy, dim):
            return [InverseTransform(T.BatchNorm(dim, momentum=0.5)), T.affine_coupling(dim, [8])]

        guide = pb.AutoStochasticFlow(model, blocks)
        return guide, pb.fit(model, guide, **(settings("constant") | changes))

    with pytest.raises(EnergyError, match="batch shape") as caught:
        fit(25, checkpoint=file)  # the first call inspects the model
    assert "after update 23" in caught.value.__notes__[0]
    stored, metadata = load_checkpoint(file)
    assert metadata["result"]["steps"] == 23
    whole = fit(None)
    moving = next(name for name in whole[0].state_dict() if name.endswith("moving_mean"))
    assert not torch.equal(stored[f"guide.{moving}"], torch.zeros(2))
    assert_same(fit(None, checkpoint=file), whole)


def test_run_without_seed_is_saved_before_its_first_update(tmp_path):
    """The start of an unseeded run, initial weights included, can only come from its checkpoint."""
    file = tmp_path / "run.safetensors"
    changes = {"seed": None, "num_steps": STEPS}
    kept = []

    def callback(result):
        kept.append(file.read_bytes())
        raise Stop

    model, guide = build("constant")
    start = torch.get_rng_state()
    with pytest.raises(Stop):
        pb.fit(
            model, guide, checkpoint=file, checkpoint_every=1e9, callback=callback, **(settings("constant") | changes)
        )
    assert file.write_bytes(kept[0])  # as if killed before the first periodic checkpoint
    assert load_checkpoint(file)[1]["result"]["steps"] == 0
    again = resumed("constant", file, **changes)
    model, guide = build("constant")
    torch.set_rng_state(start)
    assert_same(again, (guide, pb.fit(model, guide, **(settings("constant") | changes))))


def test_longer_run_continues_a_finished_one(tmp_path):
    file = tmp_path / "run.safetensors"
    first = resumed("constant", file)
    assert first[1].steps == STEPS
    finished = resumed("constant", file)
    assert_same(finished, first)
    assert finished[1].stopped == "steps"
    remembered = load_checkpoint(file)[1]["run"]["first_elbo"]
    assert remembered is not None
    longer = resumed("constant", file, num_steps=STEPS + 20)
    assert load_checkpoint(file)[1]["run"]["first_elbo"] == remembered
    model, guide = build("constant")
    assert_same(longer, (guide, pb.fit(model, guide, **(settings("constant") | {"num_steps": STEPS + 20}))))


def test_evaluation_budget_counts_resumed_runs(tmp_path):
    """An update of this run costs the same each time, so the budget ends it after a known step, resumed or not."""
    file = tmp_path / "run.safetensors"
    _, whole = unbroken("constant")
    cost = (whole.evaluations.values + whole.evaluations.gradients) // STEPS
    assert whole.evaluations.values % STEPS == 0
    first = resumed("constant", file, max_evaluations=10 * cost)[1]
    assert (first.steps, first.stopped) == (10, "evaluations")
    second = resumed("constant", file, max_evaluations=25 * cost - 1)
    assert (second[1].steps, second[1].stopped) == (25, "evaluations")
    model, guide = build("constant")
    assert_same(second, (guide, pb.fit(model, guide, max_evaluations=25 * cost, **settings("constant"))))
    assert_same(resumed("constant", file), unbroken("constant"))


def test_time_budget_counts_resumed_runs(tmp_path):
    file = tmp_path / "run.safetensors"
    first = resumed("constant", file, max_seconds=0.02, num_steps=10**6)[1]
    assert first.stopped == "time"
    assert first.steps >= 1
    # The wall time is that of the whole loop, not of the updates alone.
    assert first.seconds >= 0.02
    again = resumed("constant", file, max_seconds=0.02, num_steps=10**6)[1]
    assert again.steps == first.steps
    assert again.seconds >= first.seconds


def test_adaptation_follows_the_acceptance_of_the_same_update(monkeypatch):
    """In a phase without reverse KL the scales follow the backward paths, never paths of an earlier phase."""
    adapted = []
    original = pb.stochastic.MetropolisAdjusted.adapt_scale
    monkeypatch.setattr(
        pb.stochastic.MetropolisAdjusted,
        "adapt_scale",
        lambda block, info, rate: (adapted.append(info), original(block, info, rate))[1],
    )
    unbroken("phases")
    assert len(adapted) == STEPS
    assert len({id(info) for info in adapted}) == STEPS


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"seed": 8}, "seed was 7, now 8"),
        ({"learning_rate": 0.01}, r"learning_rate was \[0.02\], now \[0.01\]"),
        ({"num_particles": 16}, "num_particles was 32, now 16"),
        ({"schedule": "cosine"}, "schedule was 'constant', now 'cosine'"),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=0.02)}, "optimizer was 'Adam', now 'SGD'"),
    ],
)
def test_checkpoint_of_another_run_is_refused(changes, what, tmp_path):
    file = tmp_path / "run.safetensors"
    resumed("constant", file, num_steps=2)
    before = file.read_bytes()
    with pytest.raises(CheckpointError, match=rf"belongs to another run \({what}\).*resume=False"):
        resumed("constant", file, num_steps=2, **changes)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "changes", "what"),
    [
        ("alpha_2", {"objective": pb.Alpha2(32, capacity=99)}, "elbo was .*'capacity': 150.*, now .*'capacity': 99"),
        ("log_variance", {"objective": "trajectory_balance"}, r"elbo was \['LogVariance'.*, now \['TrajectoryBalance'"),
        ("log_variance", {"weight_power": 0.5}, "'weight_power': 0.5"),
        ("phases", {"weight_power": 0.5}, "weight_power was None, now 0.5"),
    ],
)
def test_checkpoint_of_another_objective_is_refused(name, changes, what, tmp_path):
    file = tmp_path / "run.safetensors"
    first = {"num_steps": 2} if name != "phases" else {}
    resumed(name, file, **first)
    with pytest.raises(CheckpointError, match=rf"belongs to another run \(.*{what}"):
        resumed(name, file, **(first | changes))


def test_checkpoint_of_another_target_or_guide_is_refused(tmp_path):
    file = tmp_path / "run.safetensors"

    def blocks(energy, dim):
        return [T.affine_autoregressive(dim, [8])]

    def fit(model, blocks, **kwargs):
        return pb.fit(
            model, pb.AutoStochasticFlow(model, blocks), num_steps=2, progress=False, checkpoint=file, **kwargs
        )

    double_well = pb.BoltzmannModel(pb.catalogue["double_well"].energy, 2)
    fit(double_well, blocks)
    with pytest.raises(CheckpointError, match=r"another run \(target was"):
        fit(pb.BoltzmannModel(pb.catalogue["muller_brown"].energy, 2), blocks)
    with pytest.raises(CheckpointError, match=r"another run \(guide\)"):
        fit(double_well, lambda energy, dim: [T.affine_autoregressive(dim, [9])])
    assert fit(double_well, lambda energy, dim: [T.affine_autoregressive(dim, [9])], resume=False).steps == 2


def test_state_of_a_run_shares_nothing_with_the_run(tmp_path):
    """What was marked must not follow the generator or the buffers when they move on."""
    model, guide = build("constant")
    from pyro_boltzmann.infer.phase import plan_phases
    from pyro_boltzmann.infer.recipe import Recipe

    recipe = Recipe(*plan_phases("reverse_kl", 5), 16, "constant", None, 0.1, None)
    run = TrainingRun(model, guide, (), {}, recipe, torch.optim.Adam(guide.parameters()), None)
    tensors, _ = run.state()
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    torch.rand(3)
    for buffer in guide.buffers():
        buffer.add_(1.0)
    tensors, _ = run.state()
    assert all(torch.equal(tensors[name], before[name]) for name in before)
