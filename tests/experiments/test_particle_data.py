"""Sets of configurations: none in two of them, the law of the target, resumed and read again."""

import math

import pytest
import torch

from pyro_boltzmann.energies.catalogue import catalogue
from pyro_boltzmann.exceptions import CheckpointError
from pyro_boltzmann.experiments import particle_data
from pyro_boltzmann.experiments.particle_data import DataPlan, keep_particle_data, num_shared

SHORT = DataPlan(math.sqrt(6.0), 5, thin=2, num_warmup=60)
SIZES = {"num_train": 400, "num_validation": 70, "num_test": 110}


def test_sets_are_disjoint_of_the_asked_size_and_read_again(tmp_path, monkeypatch):
    target, path = catalogue["dw4"], tmp_path / "run" / "dw4.safetensors"
    data = keep_particle_data(target, path, **SIZES, seed=3, plan=SHORT)
    assert [len(data.train), len(data.validation), len(data.test)] == list(SIZES.values())
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert num_shared(getattr(data, first), getattr(data, second)) == 0
    assert 0.8 * 400 < data.num_distinct["train"] <= 400
    assert abs(data.virial - 6) < 4.5 * data.virial_error and data.seconds > 0
    assert [one.name for one in path.parent.iterdir()] == ["dw4.safetensors"]
    monkeypatch.setattr(particle_data, "parallel_tempering", lambda *args, **kwargs: pytest.fail("drawn again"))
    again = keep_particle_data(target, path, **SIZES, seed=3, plan=SHORT)
    assert torch.equal(again.train, data.train) and torch.equal(again.test, data.test)
    assert again.mean_energy == data.mean_energy and again.seconds == data.seconds
    with pytest.raises(CheckpointError, match="other particle data"):
        keep_particle_data(target, path, **SIZES, seed=4, plan=SHORT)


def test_exact_draws_where_there_are_some(tmp_path):
    target = catalogue["dw2"]
    data = keep_particle_data(target, tmp_path / "dw2", num_train=500, num_validation=20, num_test=300, seed=0)
    assert data.num_distinct == {"train": 500, "validation": 20, "test": 300} and data.seconds == 0
    assert abs(data.mean_energy - target.mean_energy) < 4.5 * data.mean_energy_error


def test_a_wrong_law_is_refused(tmp_path):
    target = catalogue["dw2"]

    class Doubled(type(target)):
        def _sample(self, *args):
            return 1.2 * super()._sample(*args)

    with pytest.raises(ValueError, match=r"virial of the draws of dw2 is"):
        keep_particle_data(Doubled(), tmp_path / "bad", num_train=500, num_validation=20, num_test=300, seed=0)
    assert not (tmp_path / "bad").exists()


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    target = catalogue["dw4"]
    whole = keep_particle_data(target, tmp_path / "whole", **SIZES, seed=3, plan=SHORT)
    real = particle_data.parallel_tempering

    def stopped(*args, num_samples, **kwargs):
        real(*args, num_samples=num_samples // 2 // 32 * 32, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(particle_data, "parallel_tempering", stopped)
        keep_particle_data(target, tmp_path / "cut", **SIZES, seed=3, plan=SHORT)
    assert (tmp_path / "cut.running").exists() and not (tmp_path / "cut").exists()
    resumed = keep_particle_data(target, tmp_path / "cut", **SIZES, seed=3, plan=SHORT)
    assert torch.equal(resumed.train, whole.train) and not (tmp_path / "cut.running").exists()


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="no plan for 'lj55'"):
        keep_particle_data(catalogue["lj55"], tmp_path / "a", **SIZES, seed=0)
    with pytest.raises(ValueError, match="a row or more"):
        keep_particle_data(catalogue["dw4"], tmp_path / "a", num_train=0, num_validation=1, num_test=1, seed=0)
    (tmp_path / "broken").write_text("nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        keep_particle_data(catalogue["dw4"], tmp_path / "broken", **SIZES, seed=0)
