"""Training data: the same from one seed whatever happened on the way."""

import pyro.distributions as dist
import pytest
import torch

from pyro_boltzmann.exceptions import CheckpointError, ShapeError, SolverError
from pyro_boltzmann.sde import SDE, Absorbing, TransitionData, draw_transitions, transitions

START = dist.Normal(torch.zeros(2), 1.0).to_event(1)
OPTIONS = {"step_size": 0.1, "block_size": 64, "seed": 7}


def decay(rate=1.0, **more):
    return SDE(lambda x: -rate * x, 0.3, 2, **more)


def assert_same(first, second):
    assert first.tensors().keys() == second.tensors().keys()
    for name, value in first.tensors().items():
        assert torch.equal(value, second.tensors()[name]), name


def stopping_after(number, error):
    """An equation whose drift raises when block ``number`` begins."""
    calls = 0

    def drift(x):
        nonlocal calls
        if len(x) > 8:
            calls += 1
            if calls > 10 * number:
                raise error
        return -x

    return SDE(drift, 0.3, 2)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SolverError("x")])
def test_an_interruption_changes_nothing(tmp_path, error):
    whole = draw_transitions(decay(), START, 1.0, 250, **OPTIONS)
    file = tmp_path / "pairs.safetensors"
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        draw_transitions(stopping_after(2, error), START, 1.0, 250, checkpoint=file, **OPTIONS)
    assert len(TransitionData.load(file)) == 128
    assert_same(draw_transitions(decay(), START, 1.0, 250, checkpoint=file, **OPTIONS), whole)
    assert_same(TransitionData.load(file), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.safetensors"]


def test_a_finished_file_is_read_and_a_longer_run_continues_it(tmp_path, monkeypatch):
    file = tmp_path / "pairs.safetensors"
    short = draw_transitions(decay(), START, (0.0, 1.0), 200, checkpoint=file, save_seconds=0.0, **OPTIONS)
    long = draw_transitions(decay(), START, (0.0, 1.0), 300, checkpoint=file, **OPTIONS)
    assert_same(long, draw_transitions(decay(), START, (0.0, 1.0), 300, **OPTIONS))
    assert_same(long[:192], short[:192])
    monkeypatch.setattr(transitions, "simulate", None)
    assert_same(draw_transitions(decay(), START, (0.0, 1.0), 300, checkpoint=file, **OPTIONS), long)
    assert_same(draw_transitions(decay(), START, (0.0, 1.0), 100, checkpoint=file, **OPTIONS), long[:100])


def test_a_file_of_other_data_is_refused_by_name(tmp_path):
    file = tmp_path / "pairs.safetensors"
    draw_transitions(decay(), START, 1.0, 100, checkpoint=file, **OPTIONS)
    for changes, words in [
        ({"seed": 8}, "seed was 7, is 8"),
        ({"step_size": 0.2}, "step_size was 0.1, is 0.2"),
        ({"scheme": "runge_kutta"}, "scheme was euler, is runge_kutta"),
    ]:
        with pytest.raises(CheckpointError, match=words):
            draw_transitions(decay(), START, 1.0, 100, checkpoint=file, **OPTIONS | changes)
    with pytest.raises(CheckpointError, match="drift and diffusion are others"):
        draw_transitions(decay(1.1), START, 1.0, 100, checkpoint=file, **OPTIONS)
    other = dist.Normal(torch.ones(2), 1.0).to_event(1)
    with pytest.raises(CheckpointError, match="initial law"):
        draw_transitions(decay(), other, 1.0, 100, checkpoint=file, **OPTIONS)
    with pytest.raises(CheckpointError, match="equation was"):
        draw_transitions(decay(boundaries=[Absorbing(0, high=9.0)]), START, 1.0, 100, checkpoint=file, **OPTIONS)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        draw_transitions(decay(), START, 1.0, 100, checkpoint=file, **OPTIONS)
    with pytest.raises(CheckpointError, match="cannot be read"):
        TransitionData.load(tmp_path / "none")


def test_the_global_generator_stays_and_does_not_matter():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = draw_transitions(decay(), START, (0.1, 1.0), 100, **OPTIONS)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert_same(first, draw_transitions(decay(), START, (0.1, 1.0), 100, **OPTIONS))
    assert not torch.equal(first.x0, draw_transitions(decay(), START, 1.0, 100, **OPTIONS | {"seed": 8}).x0)


def test_times_are_uniform_and_belong_to_their_rows():
    still = SDE(lambda x: torch.ones_like(x), 0.0, 2)
    data = draw_transitions(still, START, (0.5, 2.5), 4000, **OPTIONS)
    torch.testing.assert_close(data.state - data.x0, data.time[:, None].expand(4000, 2), rtol=0, atol=1e-5)
    assert data.time.min() >= 0.5 and data.time.max() <= 2.5
    # Blocks are independent: mean 1.5, variance 1/3.
    assert abs(data.time.mean() - 1.5) < 4.5 * (1 / 3 / 4000) ** 0.5
    assert len(torch.unique(data.x0, dim=0)) == 4000


def test_parameters_are_drawn_or_fixed():
    sde = SDE(lambda x, c: c[..., :1].expand_as(x), 0.0, 2, param_dim=1)
    for params in (dist.Uniform(torch.zeros(1), 3.0).to_event(1), torch.tensor([2.0])):
        data = draw_transitions(sde, START, 1.0, 100, params=params, **OPTIONS)
        assert data.params.shape == (100, 1)
        torch.testing.assert_close(data.state - data.x0, data.params.expand(100, 2), rtol=0, atol=1e-5)
        assert_same(data[torch.arange(100) < 50], data[:50])
    with pytest.raises(ShapeError, match="param_dim=1, got params=None"):
        draw_transitions(sde, START, 1.0, 10, **OPTIONS)
    with pytest.raises(ShapeError, match=r"shape \(1,\) for one draw, got \(2,\)"):
        draw_transitions(sde, START, 1.0, 10, params=torch.ones(2), **OPTIONS)


def test_exits_are_marked():
    data = draw_transitions(decay(boundaries=[Absorbing(0, high=1.0)]), START, 1.0, 500, **OPTIONS)
    assert data.exited.any() and (data.state[data.exited & (data.x0[:, 0] < 1.0), 0] == 1.0).all()
    assert (data[~data.exited].state[:, 0] < 1.0).all()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"num_pairs": 0}, "num_pairs >= 1"),
        ({"time": 0.0}, "positive number"),
        ({"time": (2.0, 1.0)}, "low <= high"),
        ({"initial": dist.Normal(torch.zeros(2), 1.0)}, "to_event"),
    ],
)
def test_bad_input_is_refused(changes, words):
    arguments = {"initial": START, "time": 1.0, "num_pairs": 10} | changes
    with pytest.raises(ValueError, match=words):
        draw_transitions(decay(), **arguments, **OPTIONS)


def test_shapes_of_transitions_are_checked():
    with pytest.raises(ShapeError, match=r"time of 3 transitions must have shape \(3,\), got \(2,\)"):
        TransitionData(torch.zeros(3, 1), torch.ones(2), torch.zeros(3, 1), torch.zeros(3, dtype=torch.bool))
