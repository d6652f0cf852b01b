"""Fixed ends of paths, and the density that a guide gives them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from pyro_boltzmann.energies.memo import EnergyMemo
from pyro_boltzmann.guides.auto_stochastic_flow import AutoStochasticFlow, WeightedPath
from pyro_boltzmann.stochastic.info import BlockInfo
from pyro_boltzmann.stochastic.path import PathTransform

__all__ = ["PathEnds", "sample_ends", "weigh_ends"]


class PathEnds(NamedTuple):
    r"""Where paths end in the extended space, without a graph.

    :ivar joint: :math:`(x_T, n')`, ``(n, latent_dim + noise_dim)``: latents, and the noise of the way back.
    :ivar energy: ``(n,)``, the model's energy at :math:`x_T`; ``None`` where it was not asked for.
    :ivar memo: what is known of the model's energy at :math:`x_T`.
    :ivar log_q: ``(n,)`` float64, :math:`\log \hat q - \log p(n')` under the guide as it was, if it drew them.
    :ivar infos: one :class:`~pyro_boltzmann.stochastic.BlockInfo` a block, ``None`` for flows.
    """

    joint: Tensor
    energy: Tensor | None = None
    memo: EnergyMemo | None = None
    log_q: Tensor | None = None
    infos: tuple[BlockInfo | None, ...] = ()

    def rows(self, index: Tensor) -> PathEnds:
        """The ends ``index``, a mask or integers."""
        energy = None if self.energy is None else self.energy[index]
        log_q = None if self.log_q is None else self.log_q[index]
        return PathEnds(self.joint[index], energy, None if self.memo is None else self.memo.rows(index), log_q)


def sample_ends(
    guide: AutoStochasticFlow,
    num_samples: int,
    *args: Any,
    spread: float = 1.0,
    with_energy: bool = True,
    generator: Generator | None = None,
    **kwargs: Any,
) -> PathEnds:
    r"""Draw paths forwards and keep the points of the extended space in which they end.

    :param guide: whose path.
    :param num_samples: how many.
    :param args: the model's arguments.
    :param spread: multiplies the standard deviation of the base and of all Gaussian noise: more than one for paths that
        visit more than the guide's own.
    :param with_energy: evaluate the model's energy at the latents.

    >>> import pyro_boltzmann as pb
    >>> model = pb.BoltzmannModel(lambda x: 0.5 * x.square().sum(-1), 2)
    >>> guide = pb.AutoStochasticFlow(model, lambda u, dim: [pb.stochastic.LangevinTransform(u, dim, 0.1)])
    >>> sample_ends(guide, 5).joint.shape  # two latents, two of noise
    torch.Size([5, 4])
    """
    path = guide._start(args, kwargs)
    with torch.no_grad():
        loc, scale = guide.base_loc, guide.base_scale
        shape = (num_samples, path.dim)
        standard = spread * torch.randn(shape, dtype=loc.dtype, device=loc.device, generator=generator)
        x0 = loc + scale * standard
        noise = path.sample_noise(x0.shape[:-1], x0, generator)
        if spread != 1.0:
            noise = noise * _spread_row(path, spread, noise)
        joint, ladj, memo = path.run(torch.cat([x0, noise], -1))
        log_q = _path_log_q(guide, path, standard, noise, joint, ladj)
        energy = memo.value(guide.energy, joint[..., : path.dim]) if with_energy else None
    return PathEnds(joint, energy, memo.only(guide.energy), log_q, path.infos)


def weigh_ends(guide: AutoStochasticFlow, ends: PathEnds, *args: Any, **kwargs: Any) -> WeightedPath:
    r"""Weigh paths by their ends, which stay fixed: their density alone depends on the parameters,

    .. math:: \log \hat q_\theta(x_T, n') = \log q_0(x_0) + \log p(n) - \log|\det|, \qquad
        (x_0, n) = F_\theta^{-1}(x_T, n').

    The path is run backwards from its end. So ``log_q`` (which is :math:`\log \hat q_\theta - \log p(n')`) has a graph
    that leads to the parameters, but not through the draw; ``energy`` is a constant. Each ``log_branch`` of the
    ``infos`` is the log-probability of the branches on the way back.

    >>> import pyro_boltzmann as pb
    >>> from pyro_boltzmann.transforms import ElementwiseAffine
    >>> model = pb.BoltzmannModel(lambda x: 0.5 * x.square().sum(-1), 2)
    >>> guide = pb.AutoStochasticFlow(model, lambda u, dim: [ElementwiseAffine(dim)])
    >>> paths = weigh_ends(guide, sample_ends(guide, 5))
    >>> paths.log_q.requires_grad, paths.z.requires_grad, paths.energy.requires_grad
    (True, False, False)
    """
    path = guide._start(args, kwargs)
    known = EnergyMemo() if ends.memo is None else EnergyMemo(dict(ends.memo.entries))
    start, ladj, _ = path.run(ends.joint, known, inverse=True)
    x0, noise = start[..., : path.dim], start[..., path.dim :]
    log_q = _path_log_q(guide, path, (x0 - guide.base_loc) / guide.base_scale, noise, ends.joint, -ladj)
    z = ends.joint[..., : path.dim]
    energy = torch.full_like(z[..., 0], math.nan) if ends.energy is None else ends.energy
    return guide._weigh(z, energy, log_q, path.infos)


def _path_log_q(
    guide: AutoStochasticFlow, path: PathTransform, standard: Tensor, noise: Tensor, joint: Tensor, ladj: Tensor
) -> Tensor:
    log_q = guide._base_log_prob(standard) - ladj.double()
    if path.noise_dim:
        log_q = log_q + path.noise_log_prob(noise.double()) - path.noise_log_prob(joint[..., path.dim :].double())
    return log_q


def _spread_row(path: PathTransform, spread: float, like: Tensor) -> Tensor:
    """The factors of the flat noise, ``(noise_dim,)``."""
    factors = [
        spread if part.kind == "normal" else 1.0
        for block in path.stochastic_blocks
        for _ in range(block.num_repeats)
        for part in block.step_noise
        for _ in range(part.size)
    ]
    return torch.tensor(factors, dtype=like.dtype, device=like.device)
