"""Row selection by bits is torch.where, for any content; the column layout keeps values."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_boltzmann.energies.columns import COLUMNS_UP_TO, by_columns
from pyro_boltzmann.energies.rows import RowMask


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_select_is_where_to_the_bit(dtype: torch.dtype, layout: str) -> None:
    generator = torch.Generator().manual_seed(0)
    special = torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0, 1e-40, 3.0], dtype=dtype)
    new = special[torch.randint(7, (97, 3), generator=generator)]
    old = special[torch.randint(7, (97, 3), generator=generator)]
    mask = torch.rand(97, generator=generator) < 0.5
    with torch.no_grad():
        if layout == "columns":
            new, old = by_columns(new), by_columns(old)
        chosen = RowMask(mask).select(new, old)
        expected = torch.where(mask.unsqueeze(-1), new, old)
        flat = RowMask(mask).select(new[:, 0].clone(), old[:, 0].clone())
    torch.testing.assert_close(chosen, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(chosen.signbit(), expected.signbit())
    torch.testing.assert_close(flat, expected[:, 0], rtol=0, atol=0, equal_nan=True)


def test_select_is_differentiable_where_a_graph_is_kept() -> None:
    new = torch.ones(4, 2, requires_grad=True)
    old = torch.zeros(4, 2, requires_grad=True)
    mask = torch.tensor([True, False, True, False])
    RowMask(mask).select(new, old).sum().backward()
    assert new.grad is not None and old.grad is not None
    assert torch.equal(new.grad[:, 0].bool(), mask) and torch.equal(old.grad[:, 0].bool(), ~mask)


def test_columns_change_the_layout_only() -> None:
    x = torch.randn(50, 4)
    with torch.no_grad():
        y = by_columns(x)
        wide = torch.randn(5, COLUMNS_UP_TO + 1)
        assert by_columns(wide) is wide and by_columns(y) is y
    assert torch.equal(x, y) and y.stride() == (1, 50)
    assert by_columns(x) is x  # a graph may be kept here


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("grad", [False, True])
def test_negative_rows(dtype: torch.dtype, grad: bool) -> None:
    values = torch.tensor([-1.0, 0.0, 2.0, -math.inf, math.inf, -1e-7, 1e-7], dtype=dtype)
    with torch.set_grad_enabled(grad):
        rows = RowMask.negative(values)
        chosen = rows.select(torch.ones(7, 3, dtype=dtype), torch.zeros(7, 3, dtype=dtype))
    assert torch.equal(rows.mask, values < 0)
    assert int(rows.count()) == int((values < 0).sum())
    assert torch.equal(chosen[:, 2].bool(), values < 0)


@torch.no_grad()
def test_select_may_overwrite_the_new_rows_but_never_the_old() -> None:
    new, old, mask = torch.ones(6, 2), torch.zeros(6, 2), torch.tensor([True, False] * 3)
    chosen = RowMask(mask).select(new, old, overwrite=True)
    assert chosen is not new and chosen.data_ptr() == new.data_ptr()
    assert torch.equal(chosen[:, 0], mask.float()) and not old.any()
    same = torch.full((6, 2), 5.0)
    assert torch.equal(RowMask(mask).select(same.view(6, 2), same, overwrite=True), torch.full((6, 2), 5.0))
    assert torch.equal(same, torch.full((6, 2), 5.0))
