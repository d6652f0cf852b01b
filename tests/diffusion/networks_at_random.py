"""Networks for the tests: their last layers start at zero, so every weight is drawn anew."""

import torch


def at_random(module, seed=0, scale=1.0):
    """The module with all parameters redrawn with the spread of torch's default initialisation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter.shape[-1] if parameter.dim() > 1 else 4
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return module


def configurations(num_particles, spatial_dim, num, seed=0, dtype=torch.float32):
    """Mean-free positions (num, N, D) at distances of about one."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, num_particles, spatial_dim, generator=generator, dtype=torch.float64)
    return (x - x.mean(-2, keepdim=True)).to(dtype)


def orthogonal(spatial_dim, seed, determinant):
    """A random orthogonal matrix of the given determinant, +1 or -1."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(spatial_dim, spatial_dim, generator=generator, dtype=torch.float64))
    if torch.linalg.det(q) * determinant < 0:
        q[:, 0] = -q[:, 0]
    return q
