"""Fields that add."""

from __future__ import annotations

from torch import Tensor, nn

from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.transforms.continuous.velocity_field import VelocityField

__all__ = ["FieldSum"]


class FieldSum(VelocityField):
    r"""The sum of fields, :math:`v = \sum_k v_k` and :math:`\nabla \cdot v = \sum_k \nabla \cdot v_k`.

    :param fields: at least one, all of the same coordinates.
    :raises ValueError: if there is none.
    :raises TypeError: if one is no :class:`VelocityField`.
    :raises ShapeError: if their dimensions differ.

    >>> import torch
    >>> from pyro_boltzmann.transforms.continuous import KernelField
    >>> field = FieldSum([KernelField(4, 2), KernelField(4, 2)])
    >>> field(0.5, torch.randn(10, 6)).shape
    torch.Size([10, 6])
    """

    def __init__(self, fields: list[VelocityField]) -> None:
        super().__init__()
        if not fields:
            raise ValueError("a sum of fields needs at least one field, got none")
        for field in fields:
            if not isinstance(field, VelocityField):
                raise TypeError(f"a sum takes velocity fields, got {type(field).__name__}; derive it from NetworkField")
        dims = {int(dim) for field in fields if (dim := getattr(field, "dim", None)) is not None}
        if len(dims) > 1:
            raise ShapeError(f"the fields of a sum must work in one dimension, got {sorted(dims)}")
        self.dim: int | None = dims.pop() if dims else None
        self.fields = nn.ModuleList(fields)

    def forward(self, t: float | Tensor, x: Tensor) -> Tensor:
        total: Tensor = self.fields[0](t, x)
        for field in self.fields[1:]:
            total = total + field(t, x)
        return total

    def velocity_and_divergence(self, t: float | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        first, *others = self.fields
        velocity, divergence = _both(first, t, x)
        for field in others:
            more_velocity, more_divergence = _both(field, t, x)
            velocity, divergence = velocity + more_velocity, divergence + more_divergence
        return velocity, divergence


def _both(field: nn.Module, t: float | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(field, VelocityField)
    return field.velocity_and_divergence(t, x)
