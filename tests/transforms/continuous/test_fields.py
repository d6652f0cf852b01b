import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.transforms import MeanFreeBasis
from pyro_boltzmann.transforms.continuous import (
    ConstantKernel,
    ContinuousTransform,
    EmbeddedAtomField,
    FieldSum,
    GaussianKernels,
    KernelField,
    SplineKernels,
)
from pyro_boltzmann.transforms.continuous.piecewise_polynomials import even_spline_table

MAKERS = {
    "splines": KernelField,
    "cubic": lambda n, d: KernelField(n, d, kernels=SplineKernels(30, 6.0, degree=3)),
    "gaussians": lambda n, d: KernelField(
        n,
        d,
        kernels=GaussianKernels.uniform(50, 0.0, 8.0, 0.5, trainable_centres=True, trainable_widths=True),
        time_kernels=GaussianKernels.uniform(10, 0.0, 1.0, 0.3, trainable_centres=True, trainable_widths=True),
    ),
    "lennard-jones": lambda n, d: KernelField(
        n, d, kernels=GaussianKernels.lennard_jones(), time_kernels=GaussianKernels.lennard_jones_time()
    ),
    "timeless": lambda n, d: KernelField(n, d, time_kernels=ConstantKernel()),
    "embedded atoms": EmbeddedAtomField,
    "one density": lambda n, d: EmbeddedAtomField(
        n, d, num_densities=1, width=3, kernels=SplineKernels(20, 6.0, degree=3), time_kernels=ConstantKernel()
    ),
    "sum": lambda n, d: FieldSum([KernelField(n, d), EmbeddedAtomField(n, d, num_densities=2, width=5)]),
}
SCALES = torch.tensor([0.0, 0.02, 0.5, 1.0, 3.0, 8.0, 100.0], dtype=torch.float64)
"""Of standard normal coordinates: particles that meet, inside the kernels, at their end, and far beyond."""


def make(name, num_particles, dim, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        field = MAKERS[name](num_particles, dim).to(dtype)
        with torch.no_grad():
            for parameter in field.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
    return field


def points(dim, dtype=torch.float64, seed=1):
    z = torch.randn(len(SCALES), dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (z * SCALES.unsqueeze(-1)).to(dtype)


def trace(function, x):
    """Of the Jacobian of rows, by automatic differentiation, column by column."""
    x = x.detach().requires_grad_()
    y = function(x)
    columns = [torch.autograd.grad(y[..., k].sum(), x, retain_graph=True)[0][..., k] for k in range(x.shape[-1])]
    return torch.stack(columns, -1).sum(-1)


@pytest.mark.parametrize("num_particles, dim", [(2, 1), (3, 1), (4, 2), (5, 3)])
@pytest.mark.parametrize("name", MAKERS)
def test_divergence_is_the_trace_of_the_jacobian_at_all_distances(name, num_particles, dim):
    field, x = make(name, num_particles, dim), points((num_particles - 1) * dim)
    velocity, divergence = field.velocity_and_divergence(0.3, x)
    assert velocity.shape == x.shape and divergence.shape == x.shape[:-1]
    torch.testing.assert_close(velocity, field(0.3, x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(divergence, trace(lambda z: field(0.3, z), x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MAKERS)
def test_divergence_in_single_precision(name):
    field, x = make(name, 4, 2, torch.float32), points(6, torch.float32)
    found = field.velocity_and_divergence(0.3, x)[1]
    expected = trace(lambda z: field(0.3, z), x)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(expected.abs().max().detach()))


@pytest.mark.parametrize("num_particles, dim", [(4, 2), (50, 3)])
@pytest.mark.parametrize("name", ["splines", "gaussians", "embedded atoms"])
def test_divergence_is_also_the_trace_on_all_positions(name, num_particles, dim):
    field, basis = make(name, num_particles, dim), MeanFreeBasis(num_particles, dim)
    positions = torch.randn(2, num_particles, dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def velocities(flat):
        coordinates = basis.to_coordinates(flat.unflatten(-1, (num_particles, dim)))
        return basis.to_particles(field(0.3, coordinates)).flatten(-2)

    divergence = field.velocity_and_divergence(0.3, basis.to_coordinates(positions))[1]
    torch.testing.assert_close(divergence, trace(velocities, positions.flatten(-2)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MAKERS)
def test_symmetries_in_single_precision(name):
    field, basis = make(name, 5, 3, torch.float32), MeanFreeBasis(5, 3)
    generator = torch.Generator().manual_seed(3)
    x = basis.to_coordinates(torch.randn(20, 5, 3, generator=generator) * torch.logspace(-1, 1, 20).view(-1, 1, 1))
    orthogonal = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
    orthogonal = orthogonal * torch.linalg.det(orthogonal).sign()
    permutation = torch.randperm(5, generator=generator)
    shift = torch.randn(3, generator=generator)
    velocity, divergence = (one.detach() for one in field.velocity_and_divergence(0.7, x))
    size, content = float(velocity.abs().max()), float(divergence.abs().max())
    for moved in (
        lambda p: p @ orthogonal,
        lambda p: -(p @ orthogonal),
        lambda p: p[:, permutation],
    ):

        def act(z, moved=moved):
            return basis.to_coordinates(moved(basis.to_particles(z)))

        other_velocity, other_divergence = field.velocity_and_divergence(0.7, act(x))
        torch.testing.assert_close(other_velocity, act(velocity), rtol=1e-5, atol=1e-5 * size)
        torch.testing.assert_close(other_divergence, divergence, rtol=1e-5, atol=1e-5 * content)
    translated = basis.to_coordinates(basis.to_particles(x) + shift)
    torch.testing.assert_close(field(0.7, translated), velocity, rtol=1e-5, atol=1e-5 * size)


def test_embedded_atom_field_is_minus_the_gradient_of_its_potential():
    field, x = make("embedded atoms", 4, 2), points(6).requires_grad_()
    (gradient,) = torch.autograd.grad(field.potential(0.3, x).sum(), x)
    torch.testing.assert_close(field(0.3, x), -gradient, rtol=1e-10, atol=1e-10)


def test_embedded_atom_field_is_not_a_sum_over_pairs():
    """Three particles: what the third does to the first depends on where the second is."""
    field, basis = make("embedded atoms", 3, 1), MeanFreeBasis(3, 1)

    def force_on_first(second, third):
        positions = torch.tensor([[[0.0], [second], [third]]], dtype=torch.float64)
        return basis.to_particles(field(0.3, basis.to_coordinates(positions)))[0, 0, 0]

    mixed = (
        force_on_first(1.0, -1.5) - force_on_first(2.0, -1.5) - force_on_first(1.0, -3.0) + force_on_first(2.0, -3.0)
    )
    assert mixed.abs() > 1e-2
    pairwise = make("splines", 3, 1)
    field = pairwise
    mixed = (
        force_on_first(1.0, -1.5) - force_on_first(2.0, -1.5) - force_on_first(1.0, -3.0) + force_on_first(2.0, -3.0)
    )
    assert mixed.abs() < 1e-12


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_of_inputs_and_parameters(name):
    field, x = make(name, 3, 2), points(4)[1:5].requires_grad_()
    names = [key for key, _ in field.named_parameters()]
    generator = torch.Generator().manual_seed(4)
    towards = torch.randn(4, 4, generator=generator).double(), torch.randn(4, generator=generator).double()

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.field = field

        def forward(self, z):
            velocity, divergence = self.field.velocity_and_divergence(0.3, z)
            return (velocity * towards[0]).sum() + (divergence * towards[1]).sum()

    loss = Loss()

    def value(z, *parameters):
        return torch.func.functional_call(
            loss, {f"field.{key}": one for key, one in zip(names, parameters, strict=True)}, (z,)
        )

    parameters = [one.detach().requires_grad_() for one in field.parameters()]
    assert torch.autograd.gradcheck(value, (x, *parameters), fast_mode=True)
    assert torch.autograd.gradgradcheck(value, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("name", MAKERS)
def test_every_parameter_learns_from_the_start(name):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        field = MAKERS[name](4, 2)
        x = torch.randn(200, 6) * 1.5
    velocity, divergence = field.velocity_and_divergence(0.3, x)
    (velocity.sin().sum() + divergence.square().mean()).backward()
    for key, parameter in field.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", MAKERS)
def test_state_copies_and_dtype(name):
    field, x = make(name, 4, 2), points(6)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        other = MAKERS[name](4, 2).double()
    assert not torch.equal(other(0.3, x), field(0.3, x))
    other.load_state_dict(field.state_dict())
    for one in (other, copy.deepcopy(field)):
        for ours, theirs in zip(
            one.velocity_and_divergence(0.3, x), field.velocity_and_divergence(0.3, x), strict=True
        ):
            assert torch.equal(ours, theirs)
    single = copy.deepcopy(field).to(torch.float32)
    assert all(value.dtype == torch.float32 for value in single.state_dict().values())
    assert single(0.3, x.float()).dtype == torch.float32


@pytest.mark.parametrize("name", MAKERS)
def test_particles_that_meet(name):
    field = make(name, 4, 2, torch.float32)
    x = torch.zeros(3, 6, requires_grad=True)
    velocity, divergence = field.velocity_and_divergence(0.3, x)
    assert torch.equal(velocity, torch.zeros(3, 6)) and divergence.isfinite().all()
    (velocity.sum() + divergence.sum()).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", MAKERS)
def test_not_a_number_stays_one(name):
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[0, 0] = torch.nan
    velocity, divergence = make(name, 4, 2).velocity_and_divergence(0.3, x)
    assert velocity[0].isnan().any() and divergence[0].isnan()
    assert velocity[1].isfinite().all() and divergence[1].isfinite()


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)])
@pytest.mark.parametrize("name", MAKERS)
def test_batches(name, batch):
    field = make(name, 4, 2)
    x = torch.randn(*batch, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    velocity, divergence = field.velocity_and_divergence(torch.tensor(0.3, dtype=torch.float64), x)
    flat = field.velocity_and_divergence(0.3, x.reshape(-1, 6) if x.numel() else torch.zeros(0, 6).double())
    torch.testing.assert_close(velocity, flat[0].view(*batch, 6))
    torch.testing.assert_close(divergence, flat[1].view(batch))


@pytest.mark.parametrize("name", MAKERS)
def test_errors(name):
    field = make(name, 4, 2)
    with pytest.raises(ShapeError, match=r"\(\*batch, 6\) for 4 particles.*\(5, 8\)"):
        field(0.3, torch.zeros(5, 8).double())
    with pytest.raises(ShapeError, match=r"one time for the whole batch.*\(5,\)"):
        field.velocity_and_divergence(torch.zeros(5), torch.zeros(5, 6).double())


def test_errors_of_constructors():
    with pytest.raises(ShapeError, match="at least 2"):
        KernelField(1, 2)
    with pytest.raises(ValueError, match="num_densities >= 1"):
        EmbeddedAtomField(4, 2, num_densities=0)
    with pytest.raises(ValueError, match="at least one field"):
        FieldSum([])
    with pytest.raises(TypeError, match="takes velocity fields, got Linear"):
        FieldSum([KernelField(4, 2), torch.nn.Linear(6, 6)])
    with pytest.raises(ShapeError, match=r"one dimension, got \[4, 6\]"):
        FieldSum([KernelField(4, 2), KernelField(3, 2)])
    with pytest.raises(ShapeError, match="works in dimension 6, the transform in 8"):
        ContinuousTransform(FieldSum([KernelField(4, 2)]), 8)


# torch.func.jacfwd loads rules for batched tensors, some of which torch compiles with its own deprecated compiler.
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["splines", "gaussians", "embedded atoms"])
def test_function_transforms(name):
    field, x = make(name, 4, 2), points(6)[1:]
    expected = torch.stack([torch.autograd.functional.jacobian(lambda z: field(0.3, z), row) for row in x])
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        found = torch.func.vmap(jacobian(lambda z: field(0.3, z)))(x)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MAKERS)
def test_training_after_inference_mode(name):
    field, x = MAKERS[name](6, 1), torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    even_spline_table.cache_clear()
    with torch.inference_mode():
        field.velocity_and_divergence(0.3, x)
    velocity, divergence = field.velocity_and_divergence(0.3, x)
    (velocity.sum() + divergence.sum()).backward()


class _Operations(TorchDispatchMode):
    """Counts the numbers that operations write, and the multiplications of matrix products."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view and isinstance(out, torch.Tensor):
            inner = args[0].shape[-1] if func.overloadpacket.__name__ in ("mm", "bmm") else 1
            self.count += out.numel() * inner
        return out


@pytest.mark.parametrize("name", ["splines", "gaussians", "embedded atoms"])
def test_operations_grow_as_the_square_of_the_number_of_particles(name):
    counts = []
    for number in (100, 200):
        field = make(name, number, 3, torch.float32)
        x = torch.randn(2, 3 * number - 3)
        field.velocity_and_divergence(0.3, x)  # fills what is kept between calls
        with _Operations() as operations:
            velocity, divergence = field.velocity_and_divergence(0.3, x)
            (velocity.sum() + divergence.sum()).backward()
        counts.append(operations.count)
    assert counts[1] < 4.1 * counts[0]
