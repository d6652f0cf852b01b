"""WeightedSamples and its ArviZ form, on whichever ArviZ generation is installed."""

import math
import pickle
import warnings

import numpy as np
import pytest
import torch

from pyro_boltzmann.diagnostics import WeightedSamples, compat, from_arviz, from_netcdf
from pyro_boltzmann.exceptions import NonFiniteEnergyError, OutputError, ReportError, ShapeError


def make(size=4000, chains=1, scale=1.4, **kwargs):
    """Draws from N(0, scale^2) in two dimensions weighted for an unnormalised standard normal: log Z = log 2 pi."""
    generator = torch.Generator().manual_seed(size + chains)
    x = scale * torch.randn(size, 2, generator=generator)
    energy = 0.5 * x.square().sum(-1).double()
    log_q = -0.5 * (x / scale).square().sum(-1).double() - math.log(2 * math.pi * scale**2)
    samples = {"location": x, "height.a": x[:, 0].exp()}
    return WeightedSamples(samples, -energy - log_q, num_chains=chains, log_q=log_q, energy=energy, **kwargs)


def test_statistics_of_a_known_normal():
    ws = make(50_000)
    assert abs(ws.log_normalizer - math.log(2 * math.pi)) < 4.5 * ws.log_normalizer_error
    one = 1.4 * math.sqrt(2 / 1.4**2 * (1 - 0.5 / 1.4**2))  # E[w^2]/Z^2 in one dimension is s^2 / sqrt(2 s^2 - 1)
    assert one == pytest.approx(math.sqrt(2 * 1.4**2 - 1) / 1.4)
    assert ws.ess == pytest.approx((2 * 1.4**2 - 1) / 1.4**4, abs=0.01)
    mean, error = ws.expectation(lambda sites: sites["location"].square())
    assert mean.dtype == torch.float64
    assert ((mean - 1).abs() < 4.5 * error).all()
    assert float(ws.weights.sum()) == pytest.approx(1.0)
    assert ws.max_weight == float(ws.weights.max())
    kl = 2 * (0.5 * (1.4**2 - 1) - math.log(1.4))
    assert abs(ws.elbo - (math.log(2 * math.pi) - kl)) < 4.5 * ws.elbo_error
    assert ws.reliable
    assert ws.num_nonfinite == 0


def test_resampled_draws_have_the_moments_of_the_target():
    ws = make(50_000)
    for method in ("systematic", "multinomial"):
        draws = ws.resample(20_000, method=method, generator=torch.Generator().manual_seed(1))["location"]
        variance = draws.double().square().mean(0)
        # Var(x^2) = 2; both the resampling and the weights add noise.
        assert ((variance - 1).abs() < 4.5 * math.sqrt(2 / 20_000 + 2 / (ws.ess * 50_000))).all()
    with pytest.raises(ValueError, match="systematic"):
        ws.resample(3, method="stratified")


def test_chains_may_come_as_a_leading_dimension():
    flat = make(600, chains=3)
    grid = WeightedSamples(
        {name: value.reshape(3, 200, *value.shape[1:]) for name, value in flat.samples.items()},
        flat.log_weights.reshape(3, 200),
        log_q=flat.log_q.reshape(3, 200),
        energy=flat.energy.reshape(3, 200),
    )
    assert grid.equals(flat)
    assert grid.num_chains == 3


def test_one_tensor_is_called_x():
    ws = WeightedSamples(torch.zeros(5, 2, requires_grad=True), torch.zeros(5))
    assert list(ws.samples) == ["x"]
    assert not ws.samples["x"].requires_grad
    mean, _ = ws.expectation(lambda x: x + 1)
    assert mean.tolist() == [1.0, 1.0]


def test_pickle_keeps_everything():
    ws = make(200, info={"acceptance": [0.5]}, seconds=1.0)
    assert ws.ess > 0  # fills a cache
    assert pickle.loads(pickle.dumps(ws)).equals(ws)


@pytest.mark.parametrize(
    ("samples", "log_weights", "chains"),
    [
        (torch.zeros(0, 2), torch.zeros(0), None),
        (torch.zeros(4, 2), torch.zeros(5), None),
        (torch.zeros(4), torch.zeros(4), 3),
        (torch.zeros(4), torch.zeros(2, 2), 4),
        (torch.zeros(4), torch.zeros(1, 2, 2), None),
    ],
)
def test_bad_shapes_raise(samples, log_weights, chains):
    with pytest.raises(ShapeError):
        WeightedSamples(samples, log_weights, num_chains=chains)


def test_summary_never_shows_log_z_alone():
    text = repr(make(4000))
    for word in ("log Z", "+-", "ESS", "k-hat", "N = 4000"):
        assert word in text
    heavy = WeightedSamples(torch.zeros(2000), -2 * torch.rand(2000, generator=torch.Generator().manual_seed(0)).log())
    assert "+- n/a (k-hat)" in repr(heavy)
    assert "unreliable" in repr(heavy)


def test_all_zero_weights_give_an_error_not_a_nan():
    ws = WeightedSamples(torch.zeros(3), torch.full((3,), -math.inf))
    assert ws.num_nonfinite == 3
    assert "no estimate" in repr(ws)
    for statistic in ("ess", "log_normalizer", "log_normalizer_error", "khat", "weights", "max_weight"):
        with pytest.raises(NonFiniteEnergyError, match="all 3 weights are zero"):
            getattr(ws, statistic)


@pytest.mark.parametrize("resample", ["none", "systematic", "multinomial", "psis"])
@pytest.mark.parametrize("chains", [1, 4])
def test_file_round_trip(tmp_path, resample, chains):
    ws = make(
        400,
        chains,
        evaluations={"sample": {"values": 400, "gradients": 0}},
        seconds={"sample": 0.5},
        info={"blocks": [{"acceptance": 0.6}]},
    )
    path = ws.save(tmp_path / "deep" / "samples.nc", resample=resample)
    back = from_netcdf(path)
    assert back.equals(ws)
    assert back.samples["location"].dtype == torch.float32
    assert [p.name for p in path.parent.iterdir()] == ["samples.nc"]


def test_equality_looks_into_tensors_of_info():
    def draws(last):
        return WeightedSamples(torch.zeros(2), torch.zeros(2), info={"z": torch.tensor([0.0, last]), "n": 1})

    assert draws(1.0).equals(draws(1.0))
    assert not draws(1.0).equals(draws(2.0))


def test_unusable_weights_can_still_be_saved(tmp_path):
    """A run that met NaN loses nothing: the draws are saved before anything raises."""
    ws = WeightedSamples(torch.arange(3.0), torch.tensor([0.0, math.nan, -math.inf]))
    back = from_netcdf(ws.save(tmp_path / "samples.nc"))
    assert back.equals(ws)
    with pytest.raises(NonFiniteEnergyError, match="1 of 3"):
        _ = back.ess


def test_arviz_layout():
    ws = make(400, chains=4)
    groups, attrs = compat.tree_to_arrays(ws.to_arviz())
    assert set(groups) == {"posterior", "sample_stats"}
    assert groups["posterior"]["location"].shape == (4, 100, 2)
    stats = groups["sample_stats"]
    assert set(stats) == {"log_weight", "log_weight_psis", "lp", "log_q", "potential_energy"}
    np.testing.assert_array_equal(stats["lp"], -stats["potential_energy"])
    np.testing.assert_allclose(stats["log_weight"], stats["lp"] - stats["log_q"])
    for name, value in {
        "khat": ws.khat,
        "kish_ess": ws.ess,
        "log_normalizer": ws.log_normalizer,
        "log_normalizer_error": ws.log_normalizer_error,
    }.items():
        assert attrs[name] == pytest.approx(value)
    tree = ws.to_arviz()
    assert tree["posterior"]["location"].dims[:2] == ("chain", "draw")


@pytest.mark.parametrize("resample", ["systematic", "multinomial", "psis"])
def test_resampled_posterior_is_equally_weighted(resample):
    ws = make(8000, chains=4)
    groups, _ = compat.tree_to_arrays(ws.to_arviz(resample, generator=torch.Generator().manual_seed(0)))
    draws, stats = groups["posterior"]["location"].astype(float), groups["sample_stats"]
    assert ((draws**2).mean((0, 1)) - 1 < 4.5 * math.sqrt(2 / 8000 + 2 / (ws.ess * 8000))).all()
    np.testing.assert_allclose(stats["potential_energy"], 0.5 * (draws**2).sum(-1), rtol=1e-5)
    # Equal within a chain, and their mean over all draws is still the estimate of Z.
    assert np.ptp(stats["log_weight"], axis=1).max() == 0
    assert np.logaddexp.reduce(stats["log_weight"].ravel()) - math.log(8000) == pytest.approx(ws.log_normalizer)
    np.testing.assert_array_equal(groups["proposal"]["location"].reshape(8000, 2), ws.samples["location"].numpy())
    for chain in range(4):
        own = {tuple(row) for row in groups["proposal"]["location"][chain].tolist()}
        assert {tuple(row) for row in groups["posterior"]["location"][chain].tolist()} <= own


def test_arviz_consumes_a_resampled_posterior_without_warnings():
    ws = make(8000, chains=4, scale=3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = ws.to_arviz("systematic", generator=torch.Generator().manual_seed(0))
        arviz = compat.arviz()
        table = arviz.summary(tree, var_names=["location"])
        ess = arviz.ess(tree, var_names=["location"], method="mean")
    assert len(table) == 2
    # Copies stand together, so ArviZ sees them: its ESS is that of the weighted mean (the target variance is 1), not N.
    found = float(np.mean(np.asarray(ess["location"])))
    _, error = ws.expectation(lambda sites: sites["location"])
    expected = float(error.pow(-2).mean())
    assert expected < 0.5 * 8000
    assert found == pytest.approx(expected, rel=0.2)


def test_unknown_resampling_and_names():
    with pytest.raises(ValueError, match="systematic"):
        make(10).to_arviz("stratified")
    with pytest.raises(OutputError, match="a/b"):
        WeightedSamples({"a/b": torch.zeros(3)}, torch.zeros(3)).save("unused.nc")


def test_unwritable_output(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        make(10).save(tmp_path / "file" / "samples.nc")
    (tmp_path / "folder.nc" / "inside").mkdir(parents=True)
    with pytest.raises(OutputError, match="cannot write"):
        make(10).save(tmp_path / "folder.nc")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.nc"]


def test_foreign_truncated_and_missing_files(tmp_path):
    path = make(500).save(tmp_path / "samples.nc")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ReportError, match="cannot read"):
        from_netcdf(path)
    path.write_text("not netCDF")
    with pytest.raises(ReportError, match="cannot read"):
        from_netcdf(path)
    with pytest.raises(ReportError, match="cannot read"):
        from_netcdf(tmp_path / "missing.nc")
    with pytest.raises(ReportError, match="log_weight"):
        from_arviz(compat.make_tree({"posterior": {"x": np.zeros((1, 3))}}, {}))


def test_compat_matches_the_installed_generation():
    """The sign convention of 1.x (negated log weights) must not leak: a heavy *right* tail has a large k-hat."""
    heavy = -1.0 * np.log(np.random.default_rng(0).random(4000))
    assert compat.pareto_smooth(heavy)[1] > 0.8
    assert compat.pareto_smooth(-heavy)[1] < 0.3
    kind = type(compat.make_tree({"posterior": {"x": np.zeros((1, 3))}}, {})).__name__
    assert kind == ("DataTree" if compat.has_datatree() else "InferenceData")


@pytest.mark.skipif(not compat.has_datatree(), reason="needs ArviZ 1.x (Python >= 3.12)")
def test_datatree_of_arviz_1():
    tree = make(100).to_arviz("systematic")
    assert {"posterior", "sample_stats", "proposal", "sample_stats_proposal"} <= set(tree.children)


@pytest.mark.skipif(compat.has_datatree(), reason="needs ArviZ 0.23")
def test_inference_data_of_arviz_0():
    tree = make(100).to_arviz("systematic")
    assert {"posterior", "sample_stats", "proposal", "sample_stats_proposal"} <= set(tree.groups())
