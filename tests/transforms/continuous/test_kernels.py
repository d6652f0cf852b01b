import copy
import itertools
import pickle

import pytest
import torch

from pyro_boltzmann.transforms.continuous import ConstantKernel, GaussianKernels, KernelField, SplineKernels

DISTANCES = torch.linspace(0.0, 14.0, 141, dtype=torch.float64)
KERNELS = {
    "gaussians": lambda: GaussianKernels.uniform(50, 0.0, 8.0, 0.5),
    "lennard-jones": GaussianKernels.lennard_jones,
    "quintic": SplineKernels,
    "cubic": lambda: SplineKernels(17, 6.0, degree=3),
    "one": lambda: SplineKernels(1, 2.0),
}


@pytest.mark.parametrize("name", KERNELS)
def test_derivatives_are_those_of_the_sum(name):
    kernels = KERNELS[name]().double()
    weights = torch.randn(3, kernels.num_kernels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    d = DISTANCES.clone().requires_grad_()
    found = kernels.derivatives(d, weights, 2)
    torch.testing.assert_close(found[0], (kernels(d) @ weights.mT).mT, rtol=1e-12, atol=1e-12)
    for lower, higher in itertools.pairwise(found):
        slopes = [torch.autograd.grad(row.sum(), d, retain_graph=True)[0] for row in lower]
        torch.testing.assert_close(torch.stack(slopes), higher, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_vanish_far_away_and_never_underflow(name):
    kernels = KERNELS[name]()
    far = kernels.derivatives(torch.tensor([1e2, 1e6]), torch.ones(1, kernels.num_kernels), 2)
    assert all(one.abs().max() < 1e-12 for one in far)
    values = kernels(torch.linspace(0.0, 100.0, 10_001))
    assert not ((values != 0.0) & (values.abs() < torch.finfo(torch.float32).tiny)).any()


@pytest.mark.parametrize("degree", [3, 5])
def test_splines_are_smooth_and_add_up_to_one(degree):
    kernels = SplineKernels(20, 6.0, degree=degree).double()
    spacing = float(kernels.spacing)
    inside = torch.linspace(0.0, 6.0 - degree * spacing, 50, dtype=torch.float64)
    torch.testing.assert_close(kernels(inside).sum(-1), torch.ones_like(inside), rtol=0, atol=1e-12)
    knots = spacing * torch.arange(1, kernels.num_intervals + 1, dtype=torch.float64)
    weights = torch.randn(1, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    below = kernels.derivatives(knots - 1e-9, weights, degree - 1)
    above = kernels.derivatives(knots + 1e-9, weights, degree - 1)
    for order, (left, right) in enumerate(zip(below, above, strict=True)):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-6 * spacing ** -(order + 1))
    odd = kernels.derivatives(torch.zeros(1, dtype=torch.float64), weights, degree - 1)[1::2]
    assert all(one.abs().max() == 0.0 for one in odd)  # even at zero


def test_gaussians_are_the_published_formula():
    kernels = GaussianKernels(torch.tensor([0.5, 1.0, 2.5]), torch.tensor([0.3, 0.5, 1.0]))
    for d in (0.0, 0.7, 3.0):
        bumps = [2.718281828459045 ** (-(((d - m) / g) ** 2)) for m, g in ((0.5, 0.3), (1.0, 0.5), (2.5, 1.0))]
        expected = torch.tensor([one / (1e-6 + sum(bumps)) for one in bumps])
        torch.testing.assert_close(kernels(torch.tensor(d)), expected, rtol=1e-5, atol=1e-7)


def test_lennard_jones_centres():
    kernels = GaussianKernels.lennard_jones(50)
    assert float(kernels.centres.max()) == pytest.approx(32 * ((1 - 1.5 / 16) / 2) ** 2)
    assert (kernels.centres.diff() > 0).all()
    widths = GaussianKernels.lennard_jones_time(10).log_widths.exp()
    assert float(widths[0]) == pytest.approx((0.3 + 2 * 0.25**2) / 10**0.5)


def test_what_is_trainable_and_what_moves():
    fixed = GaussianKernels.uniform(5, 0.0, 1.0, 0.3)
    assert not list(fixed.parameters()) and set(fixed.state_dict()) == {"centres", "log_widths"}
    free = GaussianKernels.uniform(5, 0.0, 1.0, 0.3, trainable_centres=True, trainable_widths=True)
    assert {name for name, _ in free.named_parameters()} == {"centres", "log_widths"}
    for kernels in (fixed, free, SplineKernels(5, 2.0)):
        assert all(value.dtype == torch.float64 for value in copy.deepcopy(kernels).double().state_dict().values())
        assert all(value.is_meta for value in copy.deepcopy(kernels).to("meta").state_dict().values())
        again = pickle.loads(pickle.dumps(kernels))
        assert torch.equal(again(torch.ones(1)), kernels(torch.ones(1)))


def test_errors():
    with pytest.raises(ValueError, match="positive widths"):
        GaussianKernels(torch.zeros(3), 0.0)
    with pytest.raises(ValueError, match="vector of centres"):
        GaussianKernels(torch.zeros(3, 2), 1.0)
    with pytest.raises(ValueError, match="degree 3 or 5"):
        SplineKernels(degree=4)
    with pytest.raises(ValueError, match="order=3"):
        GaussianKernels.uniform(5, 0.0, 1.0, 0.3).derivatives(torch.ones(1), torch.ones(1, 5), 3)
    with pytest.raises(ValueError, match="order=5"):
        SplineKernels().derivatives(torch.ones(1), torch.ones(1, 64), 5)


# The published code's defects (equivariant_flows, section 5: 1, 2, 3, 11), each gone here.


def _published_divergence(field, distance):
    """Two particles in the plane, with the published derivative of the kernels."""
    from pyro_boltzmann.experiments.bench_fields import published_kernel_field

    positions = torch.tensor([[[distance / 2, 0.0], [-distance / 2, 0.0]]], dtype=torch.float64)
    return published_kernel_field(field, positions)[1]


@pytest.mark.parametrize("distance, is_wrong", [(2.0, False), (9.5, True), (10.0, True)])
def test_quotient_rule_beyond_the_last_centre(distance, is_wrong):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        field = KernelField(2, 2, kernels=GaussianKernels.uniform(50, 0.0, 8.0, 0.5)).double()
    x = torch.tensor([[distance / 2**0.5, 0.0]], dtype=torch.float64)  # z = (x_1 - x_2) / sqrt(2)
    divergence = field.velocity_and_divergence(0.3, x)[1]
    expected = torch.autograd.functional.jacobian(lambda z: field(0.3, z[None])[0], x[0]).trace()
    torch.testing.assert_close(divergence[0], expected, rtol=1e-10, atol=1e-12)
    assert ((_published_divergence(field, distance) - expected).abs() > 1e-3).all() == is_wrong


def test_importance_learns_although_it_starts_at_zero():
    field = KernelField(3, 2)
    assert (field.importance == 0.0).all()
    field(0.3, torch.ones(1, 4)).square().sum().backward()
    assert (field.importance.grad != 0.0).any()


def test_field_without_time():
    field = KernelField(3, 2, time_kernels=ConstantKernel())
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(field(0.0, x), field(1.0, x))
    timed = KernelField(3, 2)
    assert not torch.equal(timed(0.0, x), timed(1.0, x))
