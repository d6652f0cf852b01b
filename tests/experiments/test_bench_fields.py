import torch

from pyro_boltzmann.experiments import bench_fields
from pyro_boltzmann.experiments.bench_fields import field_costs, published_kernel_field
from pyro_boltzmann.transforms.continuous import GaussianKernels, KernelField


def test_published_formula_is_our_field_inside_the_kernels():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        field = KernelField(5, 3, kernels=GaussianKernels.uniform(50, 0.0, 8.0, 0.5)).double()
        positions = torch.randn(6, 5, 3, dtype=torch.float64)
    basis = field.pairs.basis
    velocities, divergence = published_kernel_field(field, positions)
    ours = field.velocity_and_divergence(bench_fields.TIME, basis.to_coordinates(positions))
    torch.testing.assert_close(basis.to_particles(ours[0]), velocities, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours[1], divergence, rtol=1e-4, atol=1e-4)


def test_rows_of_the_table(monkeypatch):
    monkeypatch.setattr(bench_fields, "SYSTEMS", (("DW-4", 4, 2, 5),))
    monkeypatch.setattr(bench_fields, "FIELD_REPEATS", 2)
    monkeypatch.setattr(bench_fields, "LARGE", 60)
    text = "\n".join(field_costs())
    assert text.count("asked: at most 0.333") == 4 and "by N^2" in text
