"""Where a teacher at less noise takes over from the target: its times, and the gate."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["bootstrap_gate", "teacher_times"]


def teacher_times(times: Tensor, splits: Tensor) -> tuple[Tensor, Tensor]:
    r"""The teacher's time of each student's: uniform in the interval before the student's own.

    With :math:`0 = \tau_0 < \dots < \tau_n = 1` and :math:`t \in (\tau_k, \tau_{k+1}]`, it is uniform on
    :math:`(\tau_{k-1}, \tau_k)`. In the first interval it is 0, where the teacher is the target itself and its estimate
    the plain one.

    :param times: ``(n,)`` in [0, 1], float64.
    :param splits: :meth:`~pyro_boltzmann.diffusion.NoiseSchedule.split_times`.
    :return: the times ``(n,)``, and the interval k of each student's, ``(n,)``.

    Source: OuYang et al., arXiv 2409.09787, section 4.

    >>> u, k = teacher_times(torch.tensor([0.2, 0.6, 1.0]).double(), torch.tensor([0.0, 0.5, 0.75, 1.0]).double())
    >>> k.tolist(), bool(u[0] == 0), bool(0 <= u[1] <= 0.5), bool(0.5 <= u[2] <= 0.75)
    ([0, 1, 2], True, True, True)
    """
    splits = splits.to(times)
    interval = (torch.searchsorted(splits, times) - 1).clamp(0, len(splits) - 2)
    before = (interval - 1).clamp_min(0)
    low, high = splits[before], splits[before + 1]
    inside = low + (high - low) * torch.rand_like(times)
    return torch.where(interval > 0, inside, 0.0), interval


def bootstrap_gate(
    student_loss: Tensor, teacher_loss: Tensor, variance: Tensor, teacher_variance: Tensor, num_bootstrap: int
) -> Tensor:
    r"""Whether the teacher's level is learned so much better than the student's that it may teach:

    .. math:: \frac{l_t}{h_t} \frac{K_b - 1}{K_b} > \frac{l_u}{h_u} .

    :param student_loss: :math:`l_t`, the squared error of the energy at the student's noise, ``(n,)``.
    :param teacher_loss: :math:`l_u`, at the teacher's.
    :param variance: :math:`h_t`, the noise, ``(n,)``.
    :param teacher_variance: :math:`h_u > 0`.
    :param num_bootstrap: :math:`K_b`.
    :return: ``(n,)``; where a loss is NaN, or the teacher's not finite, it may not.

    Source: OuYang et al., arXiv 2409.09787, section 4; both losses are divided by their noise here.

    >>> h, g = torch.tensor([2.0, 2.0]), torch.tensor([1.0, 1.0])
    >>> bootstrap_gate(torch.tensor([4.0, 4.0]), torch.tensor([1.5, 1.7]), h, g, 5).tolist()  # 2 (1 - 1/5) = 1.6
    [True, False]
    """
    student = student_loss / variance * ((num_bootstrap - 1) / num_bootstrap)
    return (student > teacher_loss / teacher_variance) & teacher_loss.isfinite()
