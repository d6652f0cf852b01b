"""The compatibility module under ArviZ 1.x, in an environment without torch: its files are loaded by path.

Under ArviZ 0.23 these tests run as well, so both generations are held to the same truths.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest

ROOM = Path(__file__).resolve().parents[2] / "pyro_boltzmann" / "diagnostics"


@pytest.fixture(scope="module")
def compat() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("compat_by_path", ROOM / "compat.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("shape", [0.3, 0.9])
def test_khat_of_exact_pareto_weights(compat: types.ModuleType, shape: float) -> None:
    """k-hat recovers the tail index; a wrong sign of the log weight would give a light tail.

    The standard error of k-hat at M = 3 sqrt(N) tail points is about (1 + k) / sqrt(M); bound 4.5 of them.
    """
    rng = np.random.default_rng(3)
    number = 40_000
    log_weights = -shape * np.log1p(-rng.random(number))
    smoothed, khat = compat.pareto_smooth(log_weights)
    tail = 3 * np.sqrt(number)
    assert abs(khat - shape) < 4.5 * (1 + shape) / np.sqrt(tail)
    assert np.isclose(np.exp(smoothed).sum(), 1.0)


def test_khat_does_not_see_the_scale(compat: types.ModuleType) -> None:
    log_weights = np.random.default_rng(4).normal(size=5_000)
    assert np.isclose(compat.pareto_smooth(log_weights)[1], compat.pareto_smooth(log_weights + 700.0)[1])


def test_netcdf_round_trip(compat: types.ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    groups = {
        "posterior": {"x": rng.normal(size=(2, 50, 3))},
        "sample_stats": {"log_weight": rng.normal(size=(2, 50))},
        "proposal": {"x": rng.normal(size=(2, 50, 3))},
    }
    tree = compat.make_tree(groups, {"khat": 0.25, "log_normalizer": -1.5})
    compat.write_tree(tree, tmp_path / "draws.nc")
    arrays, attrs = compat.tree_to_arrays(compat.read_tree(tmp_path / "draws.nc"))
    for group, members in groups.items():
        for name, values in members.items():
            np.testing.assert_array_equal(arrays[group][name], values)
    assert attrs["khat"] == 0.25 and attrs["log_normalizer"] == -1.5


def test_generation_is_the_installed_one(compat: types.ModuleType) -> None:
    major = int(compat.arviz().__version__.split(".")[0])
    assert compat.has_datatree() == (major >= 1)
