"""Posteriors whose energies are written out: seeds, Brownian motion, breast cancer."""

import functools
import math
import pickle
import sys

import numpy as np
import pyro
import pytest
import torch
from scipy import stats
from scipy.special import gammaln, logsumexp

from pyro_boltzmann.energies import ModelEnergy
from pyro_boltzmann.energies.catalogue import BreastCancer, catalogue
from pyro_boltzmann.energies.catalogue.brownian import BROWNIAN_OBSERVED, RandomWalk
from pyro_boltzmann.energies.catalogue.contract import STANDARD_ERRORS
from pyro_boltzmann.energies.catalogue.seeds import SEEDS_GERMINATED, SEEDS_TOTAL
from pyro_boltzmann.energies.evaluation import energy_and_gradient
from pyro_boltzmann.exceptions import MissingExtraError

NAMES = ["seeds", "brownian", "breast_cancer"]


@pytest.fixture(params=NAMES)
def target(request):
    if request.param == "breast_cancer":
        pytest.importorskip("sklearn")
    return catalogue[request.param]


def test_energies_written_out_are_those_of_the_programs(target):
    program = ModelEnergy(functools.partial(target.program, **target.data))
    assert program.strategy == "broadcast"
    assert target.energy.strategy == "direct"
    x = 0.5 * torch.randn(7, target.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, gradient = energy_and_gradient(program, x)
    # Programs hold some constants in float32.
    torch.testing.assert_close(target.energy(x), u.detach(), rtol=1e-7, atol=1e-6)
    with torch.no_grad():
        _, formula = energy_and_gradient(target.energy, x)
    torch.testing.assert_close(formula, gradient.detach(), rtol=1e-6, atol=1e-6)
    assert [*target.energy.constrain(x)] == list(program.site_names)


def test_other_data_are_not_given_the_energy_of_these(target):
    name = {"seeds": "germinated", "brownian": "y", "breast_cancer": "labels"}[target.name]
    other = {name: torch.ones_like(target.data[name])}
    x = torch.full((2, target.dim), 0.1)
    expected = ModelEnergy(functools.partial(target.program, **{**target.data, **other}))(x)
    assert (expected - target(x)).abs().min() > 0.1
    for energy in (
        ModelEnergy(target.model(**other)),
        ModelEnergy(target.model(), **other),
        ModelEnergy(target.model()).with_arguments(**other),
    ):
        torch.testing.assert_close(energy(x), expected)
    back = ModelEnergy(target.model(), **other).with_arguments()
    assert back.strategy == "direct"
    torch.testing.assert_close(back(x), target(x))


def test_models_draw_data_and_survive_pickling(target):
    name = {"seeds": "germinated", "brownian": "y", "breast_cancer": "y"}[target.name]
    argument = "labels" if target.name == "breast_cancer" else name
    trace = pyro.poutine.trace(target.model(**{argument: None})).get_trace()
    assert not trace.nodes[name]["is_observed"]
    x = torch.zeros(3, target.dim)
    torch.testing.assert_close(ModelEnergy(pickle.loads(pickle.dumps(target.model())))(x), target(x))


def test_seeds_prior_likelihood_and_binomial_coefficients():
    target = catalogue["seeds"]
    x = 0.3 * torch.randn(26, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    z = x.numpy()
    tau, alpha, b = math.exp(z[0]), z[1:5], z[5:]
    j = np.arange(1, 22)
    x1, x2 = (j > 11).astype(float), (((j >= 6) & (j <= 11)) | (j >= 17)).astype(float)
    p = 1 / (1 + np.exp(-(alpha[0] + alpha[1] * x1 + alpha[2] * x2 + alpha[3] * x1 * x2 + b)))
    log_joint = (
        stats.gamma(0.01, scale=100).logpdf(tau)
        + z[0]
        + stats.norm(0, 10).logpdf(alpha).sum()
        + stats.norm(0, tau**-0.5).logpdf(b).sum()
        + stats.binom(np.array(SEEDS_TOTAL), p).logpmf(np.array(SEEDS_GERMINATED)).sum()
    )
    assert target(x).item() == pytest.approx(-log_joint, abs=1e-9)


def seeds_log_z(power: float = 1.0, num_taus: int = 37, num_effects: int = 161) -> float:
    r"""log of the integral of exp(-power u): effects one by one, the four cell means on a grid, then log tau."""
    r, n = np.array(SEEDS_GERMINATED, float), np.array(SEEDS_TOTAL, float)
    log_choose = gammaln(n + 1) - gammaln(r + 1) - gammaln(n - r + 1)
    t = np.linspace(-8.5, 8.5, num_effects)
    log_taus = np.linspace(-2.5, 8.5, num_taus)

    def log_likelihood(cell, means, log_tau):
        scale = math.exp(-log_tau / 2) / math.sqrt(power)
        total = np.full(len(means), len(cell) * math.log((t[1] - t[0]) * scale))
        for j in cell:
            logit = means[:, None] + scale * t
            log_p = log_choose[j] + r[j] * logit - n[j] * np.logaddexp(0, logit)
            total += logsumexp(power * (log_p + 0.5 * log_tau - 0.5 * math.log(2 * math.pi)) - t**2 / 2, 1)
        return total

    terms = []
    for log_tau in log_taus:
        means, logs = [], []
        for cell in (range(5), range(5, 11), range(11, 16), range(16, 21)):
            m = np.linspace(-6, 6, 121)
            rough = np.exp((table := log_likelihood(cell, m, log_tau)) - logsumexp(table))
            middle = (rough * m).sum()
            step = 0.8 * math.sqrt((rough * (m - middle) ** 2).sum())
            means.append(middle + step * np.arange(-8, 9))
            logs.append(log_likelihood(cell, means[-1], log_tau) + math.log(step))
        m00, m01, m10, m11 = np.meshgrid(*means, indexing="ij", sparse=True)
        square = m00**2 + (m10 - m00) ** 2 + (m01 - m00) ** 2 + (m11 - m01 - m10 + m00) ** 2
        log_prior = -square / 200 - 4 * math.log(10) - 2 * math.log(2 * math.pi)
        log_gamma = 0.01 * math.log(0.01) - math.lgamma(0.01) + 0.01 * log_tau - 0.01 * math.exp(log_tau)
        coupled = power * log_prior + sum(np.meshgrid(*logs, indexing="ij", sparse=True))
        terms.append(logsumexp(coupled) + power * log_gamma)
    return logsumexp(terms) + math.log(log_taus[1] - log_taus[0])


def test_seeds_evidence_and_mean_energy_by_nested_quadrature():
    target = catalogue["seeds"]
    # The mean energy is minus the derivative in the power; its central difference errs by a sixth of h^2 u'''.
    below, above = seeds_log_z(0.99), seeds_log_z(1.01)
    assert target.log_z == pytest.approx(seeds_log_z(), abs=1e-6)
    assert target.mean_energy == pytest.approx((below - above) / 0.02, abs=5e-3)
    # Published: SMC -73.35 +- 0.04, best ELBO -73.45.
    assert -73.45 < target.log_z < -73.35 + STANDARD_ERRORS * 0.04


def test_brownian_evidence_and_mean_energy_by_quadrature_over_the_scales():
    target = catalogue["brownian"]
    y = np.float32(BROWNIAN_OBSERVED).astype(float)
    times = np.r_[1:11, 21:31]
    eigenvalues, vectors = np.linalg.eigh(np.minimum.outer(times, times).astype(float))
    logs = np.linspace(-18, 6, 601)
    a, b = logs[:, None, None], logs[None, :, None]
    variance = np.exp(2 * a) * eigenvalues + np.exp(2 * b)
    misfit = 0.5 * ((vectors.T @ y) ** 2 / variance).sum(-1)
    a, b = a[..., 0], b[..., 0]
    log_prior = stats.norm(0, 2).logpdf(a) + stats.norm(0, 2).logpdf(b)
    log_joint = log_prior - 10 * math.log(2 * math.pi) - 0.5 * np.log(variance).sum(-1) - misfit
    cell = 2 * math.log(logs[1] - logs[0])
    assert target.log_z == pytest.approx(logsumexp(log_joint) + cell, abs=1e-9)
    # The quadratic terms at their minimum are the misfit; the thirty positions add a half each.
    u = -log_prior + 30 * a + 20 * b + 25 * math.log(2 * math.pi) + misfit + 15
    assert target.mean_energy == pytest.approx((np.exp(log_joint - logsumexp(log_joint)) * u).sum(), abs=1e-8)
    # The best published ELBO is a lower bound.
    assert target.log_z > 1.06


def test_brownian_draws_have_the_posterior_mean_and_covariance_of_the_walk():
    target = catalogue["brownian"]
    x = target.sample(50_000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    # At a stationary law <x_i du/dx_j> = delta_ij, for the coordinates that the scales do not share.
    _, gradient = target.energy_and_gradient(x)
    for i, j in ((0, 0), (1, 1), (2, 2), (14, 14), (31, 31), (2, 3), (14, 20), (0, 14), (1, 31)):
        values = x[:, i] * gradient[:, j]
        assert abs(values.mean() - float(i == j)) < STANDARD_ERRORS * values.std() / math.sqrt(len(x)), (i, j)


def test_random_walk_is_a_multivariate_normal():
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64)
    times = torch.arange(1.0, 6.0, dtype=torch.float64)
    walk = RandomWalk(scale, 5)
    covariance = scale.square().view(2, 1, 1) * torch.minimum(times, times.unsqueeze(-1))
    normal = torch.distributions.MultivariateNormal(torch.zeros(2, 5).double(), covariance)
    x = torch.randn(7, 2, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    torch.testing.assert_close(walk.log_prob(x), normal.log_prob(x))
    assert walk.expand([3, 2]).sample((4,)).shape == (4, 3, 2, 5)
    pyro.set_rng_seed(5)
    draws = walk.sample((100_000,))
    # Entries of a sample covariance have variance (c_ii c_jj + c_ij^2) / n.
    found = torch.einsum("nbi,nbj->bij", draws, draws) / len(draws)
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    error = ((diagonal.unsqueeze(-1) * diagonal.unsqueeze(-2) + covariance.square()) / len(draws)).sqrt()
    assert ((found - covariance).abs() < STANDARD_ERRORS * error).all()


def test_breast_cancer_has_its_prior_and_its_published_scaling():
    datasets = pytest.importorskip("sklearn.datasets")
    table, labels = datasets.load_breast_cancer(return_X_y=True)
    target = catalogue["breast_cancer"]
    features = target.data["features"].double().numpy()
    assert features.shape == (569, 31) and (features[:, 0] == 1).all()
    np.testing.assert_allclose(features[:, 1:], table / table.std(0), rtol=1e-6)
    w = 0.1 * np.random.RandomState(0).standard_normal(31)
    logits = features @ w
    log_likelihood = np.where(labels == 1, -np.logaddexp(0, -logits), -np.logaddexp(0, logits)).sum()
    # A published code computes this prior and leaves it out.
    truth = -log_likelihood - stats.norm(0, 10).logpdf(w).sum()
    assert target(torch.from_numpy(w)).item() == pytest.approx(truth, rel=1e-9)


def test_without_scikit_learn_only_the_data_are_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    target = BreastCancer()
    assert target.target_hash == catalogue["breast_cancer"].target_hash
    for use in (lambda: target(torch.zeros(31)), lambda: target.energy, lambda: target.model()):
        with pytest.raises(MissingExtraError, match=r'pip install "pyro-boltzmann\[sklearn\]"'):
            use()
