"""Networks of states and noise levels: shapes, symmetries, smoothness."""

import copy
import itertools
import pickle

import pytest
import torch

from pyro_boltzmann.diffusion import (
    EnergyMLP,
    EquivariantNetwork,
    FourierFeatures,
    InvariantNetwork,
    NoiseEmbedding,
    ScoreMLP,
)
from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.transforms import MeanFreeBasis, ParticlePairs, RadialFeatures
from tests.diffusion.networks_at_random import at_random, configurations, orthogonal

NETWORKS = {
    "score": lambda: ScoreMLP(6, width=32, depth=2),
    "energy": lambda: EnergyMLP(6, width=32, depth=2),
    "equivariant": lambda: EquivariantNetwork(4, 2, width=16),
    "equivariant_scalars": lambda: EquivariantNetwork(4, 2, width=16, num_scalars=2),
    "invariant": lambda: InvariantNetwork(4, 2, width=16),
}
SIZES = [(2, 1), (4, 2), (5, 3), (13, 3)]


@pytest.fixture(params=NETWORKS)
def network(request):
    return at_random(NETWORKS[request.param]())


def outputs(network, x, h):
    out = network(x, h)
    return out if isinstance(out, tuple) else (out,)


def test_each_row_is_treated_alone_in_every_batch_shape(network):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 5, 6, generator=generator)
    h = torch.rand(3, 5, generator=generator)
    whole = outputs(network, x, h)
    for i, j in itertools.product(range(3), range(5)):
        for out, row in zip(whole, outputs(network, x[i, j], h[i, j]), strict=True):
            torch.testing.assert_close(row, out[i, j], rtol=1e-4, atol=1e-5)
    for variance, full in [
        (h[:, :1], h[:, :1].expand(3, 5)),
        (h[0], h[0].expand(3, 5)),
        (0.3, torch.full((3, 5), 0.3)),
        (torch.tensor([0.3], dtype=torch.float64), torch.full((3, 5), 0.3)),
    ]:
        for out, expected in zip(outputs(network, x, variance), outputs(network, x, full), strict=True):
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    assert outputs(network, x[:0], 0.3)[0].shape == (0, *whole[0].shape[1:])


def test_the_noise_level_matters_and_none_is_finite(network):
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(2))
    results = [outputs(network, x, h)[0] for h in (0.0, 1e-6, 1e-3, 1.0, 1e4)]
    assert all(out.isfinite().all() for out in results)
    for first, second in itertools.pairwise(results):
        assert (first - second).abs().max() > 1e-3


def test_untrained_networks_correct_nothing():
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(2))
    for build in NETWORKS.values():
        first, *scalars = outputs(build(), x, 0.3)
        assert first.count_nonzero() == 0
        for each in scalars:
            torch.testing.assert_close(each, torch.ones(7, 2))


def test_every_parameter_receives_a_gradient(network):
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(3))
    loss = sum(out.square().sum() for out in outputs(network, x, torch.linspace(0.01, 2, 9)))
    for name, gradient in zip(
        dict(network.named_parameters()), torch.autograd.grad(loss, list(network.parameters())), strict=True
    ):
        assert gradient.isfinite().all() and gradient.count_nonzero() > 0, name


def test_copies(network):
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(4))
    expected = outputs(network, x, 0.2)
    blank = copy.deepcopy(network)
    at_random(blank, seed=9)
    assert not outputs(blank, x, 0.2)[0].equal(expected[0])
    blank.load_state_dict(network.state_dict())
    for clone in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), blank):
        for out, truth in zip(outputs(clone, x, 0.2), expected, strict=True):
            assert out.equal(truth)


def test_double_precision_and_two_derivatives(network):
    network = copy.deepcopy(network).double()
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)

    def function(x):
        return outputs(network, x, torch.tensor([0.1, 0.7]))

    assert all(out.dtype == torch.float64 for out in function(x))
    assert torch.autograd.gradcheck(function, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, x, fast_mode=True)


def test_no_graph_without_gradients(network):
    with torch.no_grad():
        assert not any(out.requires_grad for out in outputs(network, torch.zeros(2, 6), 0.3))


@pytest.mark.parametrize(
    ("build", "sums"),
    [
        (lambda: EquivariantNetwork(4, 2, width=16, num_scalars=1), [14.111608, 8.334707]),
        (lambda: InvariantNetwork(5, 3, width=16), [-29.985784]),
        (lambda: EquivariantNetwork(13, 3, width=8, depth=2), [8.581981]),
    ],
)
def test_first_weights_and_their_names_follow_from_the_seed(build, sums):
    """Trained networks and published pages rest on them: these sums are older than the trunk's present place."""
    torch.manual_seed(5)
    network = build()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    z = torch.randn(7, network.passing.pairs.dim, generator=generator)
    results = outputs(network, z, torch.rand(7, generator=generator))
    assert [float(out.detach().double().sum()) for out in results] == pytest.approx(sums, rel=1e-5)
    names = [name for name, _ in network.named_parameters() if name.startswith("passing")]
    first = ("noise.linear.weight", "noise.linear.bias", "biases.weight", "biases.bias", "distances.0.weight")
    assert names[:5] == [f"passing.{name}" for name in first]


@pytest.mark.parametrize("num_particles, spatial_dim", SIZES)
@pytest.mark.parametrize("determinant", [1, -1])
def test_symmetries_of_particles(num_particles, spatial_dim, determinant):
    basis = MeanFreeBasis(num_particles, spatial_dim)
    x = configurations(num_particles, spatial_dim, 20, seed=num_particles)
    q = orthogonal(spatial_dim, 7, determinant).float()
    order = torch.randperm(num_particles, generator=torch.Generator().manual_seed(8))
    shift = torch.linspace(-0.7, 0.4, spatial_dim)
    moved = (x @ q)[:, order] + shift
    h = torch.linspace(0.0, 3.0, 20)
    z, z_moved = basis.to_coordinates(x), basis.to_coordinates(moved)
    equivariant = at_random(EquivariantNetwork(num_particles, spatial_dim, width=16, num_scalars=2))
    vector, scalars = equivariant(z, h)
    vector_moved, scalars_moved = equivariant(z_moved, h)
    size = vector.abs().max()
    expected = basis.to_coordinates((basis.to_particles(vector) @ q)[:, order])
    assert size > 0.05 and (vector_moved - expected).abs().max() < 1e-5 * size.clamp_min(1.0)
    assert scalars.std(0).min() > 1e-4 and (scalars > 0).all()
    assert (scalars_moved - scalars).abs().max() < 1e-5 * scalars.abs().max().clamp_min(1.0)
    invariant = at_random(InvariantNetwork(num_particles, spatial_dim, width=16))
    f = invariant(z, h)
    assert f.std() > 1e-2 and (invariant(z_moved, h) - f).abs().max() < 1e-5 * f.abs().max().clamp_min(1.0)


def test_particles_that_meet():
    basis = MeanFreeBasis(13, 3)
    x = configurations(13, 3, 4, seed=1)
    x[0, 1] = x[0, 0]
    x[1, 5:9] = x[1, 4]
    x[2] = 0.0
    z = basis.to_coordinates(x).requires_grad_()
    vector, scalars = at_random(EquivariantNetwork(13, 3, width=16, num_scalars=1))(z, 0.01)
    assert vector.isfinite().all() and scalars.isfinite().all()
    energy = at_random(InvariantNetwork(13, 3, width=16))(z, 0.01)
    (score,) = torch.autograd.grad(energy.sum(), z, create_graph=True)
    (second,) = torch.autograd.grad(score.square().sum() + vector.square().sum(), z)
    assert energy.isfinite().all() and score.isfinite().all() and second.isfinite().all()
    # By symmetry two particles at one place feel the same.
    forces = basis.to_particles(score.detach())[0]
    assert (forces[0] - forces[1]).abs().max() < 1e-5 * forces[0].abs().max()


def test_messages_tell_configurations_with_the_same_distances_apart():
    """Two homometric sets (Bloom, 1977): the same fifteen distances, arranged differently."""
    x = torch.tensor([[0.0, 1, 4, 10, 12, 17], [0, 1, 8, 11, 13, 17]]).unsqueeze(-1) / 4
    distances = (x - x.mT).abs().flatten(1).sort().values
    assert distances[0].equal(distances[1])
    z = MeanFreeBasis(6, 1).to_coordinates(x)
    first, second = at_random(InvariantNetwork(6, 1, width=16))(z, 0.1)
    assert (first - second).abs() > 1e-2


def test_pairs_against_explicit_sums():
    pairs = ParticlePairs(5, 3)
    x = configurations(5, 3, 7, dtype=torch.float64)
    z = pairs.basis.to_coordinates(x)
    i, j = torch.triu_indices(5, 5, offset=1)
    differences = pairs.differences(pairs.columns(z))
    torch.testing.assert_close(differences, (x[:, i] - x[:, j]).transpose(0, 1))
    torch.testing.assert_close(pairs.rows(pairs.columns(z)), z)
    forces = torch.zeros_like(x).index_add(1, i, differences.transpose(0, 1))
    forces.index_add_(1, j, -differences.transpose(0, 1))
    torch.testing.assert_close(pairs.basis.to_particles(pairs.rows(pairs.forces(differences))), forces)
    nodes = torch.randn(5, 7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(pairs.of_both(nodes), nodes[i] + nodes[j])
    edges = torch.randn(10, 7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sums = torch.zeros(5, 7, 2, dtype=torch.float64).index_add(0, i, edges).index_add(0, j, edges)
    torch.testing.assert_close(pairs.of_each(edges), sums / 2)


def test_fourier_features_and_noise_embedding():
    features = FourierFeatures(3, lowest=1.0, highest=4.0)
    x = torch.tensor([[0.3, -1.0]])
    w = torch.tensor([1.0, 2.0, 4.0])
    expected = torch.cat([(x[..., None] * w).sin(), (x[..., None] * w).cos()], -1)
    torch.testing.assert_close(features(x), expected)
    assert FourierFeatures(0)(x).shape == (1, 2, 0)
    embedding = NoiseEmbedding(8, smallest_sigma=1e-3)
    # At h = 0 the logarithm is that of the smallest noise.
    torch.testing.assert_close(embedding(torch.tensor(0.0)), embedding(torch.tensor(1e-20)))
    assert embedding(torch.zeros(2, 3)).shape == (2, 3, 8)
    assert ScoreMLP(2, num_frequencies=0)(torch.zeros(4, 2), 0.1).shape == (4, 2)
    assert ScoreMLP(2, depth=0, out_dim=5)(torch.zeros(4, 2), 0.1).shape == (4, 5)


def test_radial_features():
    radial = RadialFeatures(6, radius=4.0, floor=0.1)
    r = torch.tensor([0.0, 1.0, 2.5])
    d = (r.square() + 0.01).sqrt()
    expected = (1 + (d[:, None] - torch.arange(5.0)).square()) ** -2
    torch.testing.assert_close(radial(r.square()), torch.cat([expected, (1 + d.square()).log()[:, None]], -1))


def test_errors():
    with pytest.raises(ShapeError, match=r"\(\*batch, 2\), got \(4, 3\)"):
        ScoreMLP(2)(torch.zeros(4, 3), 0.1)
    with pytest.raises(ShapeError, match=r"\(3,\) does not broadcast to the batch shape \(4,\)"):
        ScoreMLP(2)(torch.zeros(4, 2), torch.zeros(3))
    with pytest.raises(ShapeError, match=r"\(\*batch, 6\) for 4 particles"):
        InvariantNetwork(4, 2)(torch.zeros(5, 8), 0.1)
    for bad in (lambda: ScoreMLP(0), lambda: ScoreMLP(2, input_scale=0.0), lambda: EquivariantNetwork(4, 2, depth=0)):
        with pytest.raises(ValueError, match="needs"):
            bad()
    with pytest.raises(ValueError, match="num_scalars"):
        EquivariantNetwork(4, 2, num_scalars=-1)
    with pytest.raises(ValueError, match="Fourier features need"):
        FourierFeatures(3, lowest=2.0, highest=1.0)
    with pytest.raises(ValueError, match="smallest_sigma"):
        NoiseEmbedding(3, smallest_sigma=0.0)
    with pytest.raises(ValueError, match="radial features need"):
        RadialFeatures(2)
