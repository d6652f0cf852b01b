"""The state of a run of parallel tempering and its one round: moves at all temperatures, then swaps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_boltzmann.energies.evaluation import Energy
from pyro_boltzmann.infer.tempering.ensemble import Ensemble, evaluate
from pyro_boltzmann.infer.tempering.kernel import Kernel
from pyro_boltzmann.infer.tempering.ladder import equalise
from pyro_boltzmann.infer.tempering.move import move
from pyro_boltzmann.infer.tempering.preconditioner import Preconditioner
from pyro_boltzmann.infer.tempering.proposal import Proposal

__all__ = ["PTRun"]


@dataclass
class PTRun:
    r"""``num_chains`` independent systems of one replica at each temperature.

    The replica at :math:`\lambda = 0` is drawn afresh each round. Swaps of even and odd neighbours take turns, without
    reversibility: a replica keeps its direction until a swap is rejected (Okabe et al. 2001; Syed et al.,
    arXiv 1905.02939).

    :ivar positions: :math:`\lambda_k`, ``(K,)`` float64.
    :ivar ensemble: batch shape ``(num_chains, K)``.
    :ivar step_sizes: of the moves at temperatures 1 to K - 1, ``(K - 1,)``, in the variables of ``scale``.
    :ivar replicas: which replica sits at each temperature, ``(num_chains, K)``.
    :ivar visited: by replica, which end it saw last: 0 neither, 1 the reference, 2 the target (coming from there).
    :ivar trips: completed round trips of each chain.
    :ivar acceptance: sum over rounds at temperatures 1 to K - 1.
    :ivar rejections: sum over offers of the rejection probability between neighbours, ``(K - 1,)``.
    """

    proposal: Proposal
    target: Energy
    kernel: Kernel
    num_moves: int
    mass: str
    positions: Tensor
    ensemble: Ensemble
    step_sizes: Tensor
    scale: Preconditioner
    replicas: Tensor
    visited: Tensor
    trips: Tensor
    rejections: Tensor
    offers: Tensor
    acceptance: Tensor
    rounds: int = 0
    moments: list[Tensor] = field(default_factory=list)

    @classmethod
    def start(
        cls,
        proposal: Proposal,
        target: Energy,
        kernel: Kernel,
        num_moves: int,
        mass: str,
        positions: Tensor,
        ensemble: Ensemble,
        step_sizes: Tensor,
        scale: Preconditioner,
    ) -> PTRun:
        """Begin from replicas that an annealing run left at each temperature."""
        chains, levels = ensemble.reference.shape
        device = positions.device
        run = cls(
            proposal,
            target,
            kernel,
            num_moves,
            mass,
            positions,
            ensemble,
            step_sizes,
            scale,
            torch.arange(levels, device=device).repeat(chains, 1),
            torch.zeros(chains, levels, dtype=torch.long, device=device),
            torch.zeros(chains, dtype=torch.long, device=device),
            torch.zeros(levels - 1, dtype=torch.float64, device=device),
            torch.zeros(levels - 1, dtype=torch.float64, device=device),
            torch.zeros(levels - 1, dtype=torch.float64, device=device),
        )
        run.forget()
        return run

    @property
    def num_chains(self) -> int:
        """Independent systems."""
        return len(self.trips)

    @property
    def differences(self) -> Tensor:
        r""":math:`u - u_0` of all replicas, ``(num_chains, K)``."""
        return (self.ensemble.target - self.ensemble.reference).double()

    def round(self, *, rate: float = 0.0) -> None:
        """Move all replicas and offer swaps.

        :param rate: of the adaptation of step sizes to their acceptance; 0 keeps the kernels fixed.
        """
        chains, levels = self.replicas.shape
        fresh = evaluate(self.proposal.energy, self.target, self.proposal.sample(chains), self.kernel.uses_gradients)
        upper = self.ensemble.map(lambda part: part[:, 1:])
        positions = self.positions[1:].to(self.ensemble.x)
        for _ in range(self.num_moves):
            moved = move(upper, self.proposal.energy, self.target, positions, self.kernel, self.step_sizes, self.scale)
            upper = moved.ensemble
            rates = moved.acceptance.mean(0)
            self.acceptance += rates.double() / self.num_moves
            if rate:
                grown = self.step_sizes * (rate * (rates - self.kernel.target_acceptance)).exp()
                self.step_sizes = grown.clamp_max(self.kernel.largest_step)
        self.ensemble = Ensemble.cat([fresh.reshape(chains, 1), upper], 1)
        self._swap(levels)
        self.rounds += 1

    def _swap(self, levels: int) -> None:
        lower = torch.arange(self.rounds % 2, levels - 1, 2, device=self.positions.device)
        if not len(lower):
            return
        d = self.differences
        gain = (self.positions[lower + 1] - self.positions[lower]) * (d[:, lower + 1] - d[:, lower])
        probability = gain.exp().clamp_max(1.0).nan_to_num(0.0)
        self.rejections[lower] += 1.0 - probability.mean(0)
        self.offers[lower] += 1.0
        taken = torch.rand_like(probability) < probability
        order = torch.arange(levels, device=lower.device).repeat(len(d), 1)
        order[:, lower] += taken.long()
        order[:, lower + 1] -= taken.long()
        self.replicas = self.replicas.gather(1, order)
        rows = (order + levels * torch.arange(len(d), device=lower.device).unsqueeze(-1)).flatten()
        self.ensemble = self.ensemble.reshape(-1).rows(rows).reshape(*order.shape)
        self._count_trips()

    def _count_trips(self) -> None:
        bottom, top = self.replicas[:, :1], self.replicas[:, -1:]
        returned = self.visited.gather(1, bottom) == 2
        self.trips += returned[:, 0].long()
        self.visited.scatter_(1, bottom, 1)
        self.visited.scatter_(1, top, torch.where(self.visited.gather(1, top) == 1, 2, self.visited.gather(1, top)))

    # Adaptation --------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Start the statistics anew."""
        for counted in (self.rejections, self.offers, self.acceptance, self.trips, self.visited):
            counted.zero_()
        levels, dim = self.ensemble.x.shape[1] - 1, self.ensemble.x.shape[-1]
        like = self.positions
        self.moments = [like.new_zeros(levels, dim), like.new_zeros(levels, dim, dim)]
        self.rounds = 0

    def watch(self) -> None:
        """Add the present replicas to the moments from which scales are taken."""
        x = self.ensemble.x[:, 1:].double().transpose(0, 1)
        self.moments[0] += x.mean(1)
        self.moments[1] += x.mT @ x / x.shape[1]

    def retune(self) -> None:
        """Set the scales to the standard deviations seen, and the temperatures where all swaps are rejected alike."""
        count = max(1, self.rounds)
        # Draws of successive rounds are correlated; a quarter of them is a cautious count.
        effective = max(self.num_chains, 0.25 * count * self.num_chains)
        new = Preconditioner.stack(
            [
                Preconditioner.of_moments(self.mass, mean, second, effective)
                for mean, second in zip(self.moments[0] / count, self.moments[1] / count, strict=True)
            ]
        ).to(self.ensemble.x)
        # Step sizes are in units of the scales: their product should not jump.
        self.step_sizes = self.step_sizes * (self.scale.log_size - new.log_size).exp()
        self.scale = new
        self.positions = torch.from_numpy(equalise(self.positions.cpu().numpy(), self.rejection_rates)).to(
            self.positions
        )

    @property
    def rejection_rates(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Of swaps between neighbours, ``(K - 1,)``."""
        rates: np.ndarray[Any, np.dtype[np.float64]] = (self.rejections / self.offers.clamp_min(1.0)).cpu().numpy()
        return rates

    # Checkpoints -------------------------------------------------------------------------------------------------

    _tensors = (
        *("positions", "step_sizes", "replicas", "visited", "trips", "rejections", "offers"),
        "acceptance",
    )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that changes, as tensors and JSON."""
        tensors = self.ensemble.state()
        tensors |= {name: getattr(self, name) for name in self._tensors}
        tensors |= {f"moments.{index}": value for index, value in enumerate(self.moments)}
        tensors["scale"] = self.scale.factor
        return tensors, {"rounds": self.rounds, "is_dense": self.scale.is_dense}

    @classmethod
    def restore(
        cls,
        proposal: Proposal,
        target: Energy,
        kernel: Kernel,
        num_moves: int,
        mass: str,
        tensors: dict[str, Tensor],
        described: dict[str, Any],
    ) -> PTRun:
        """The run that :meth:`state` was taken from."""
        ensemble = Ensemble.restore(tensors)
        named: dict[str, Any] = {name: tensors[name] for name in cls._tensors}
        scale = Preconditioner(tensors["scale"], described["is_dense"])
        run = cls(proposal, target, kernel, num_moves, mass, ensemble=ensemble, scale=scale, **named)
        run.rounds = described["rounds"]
        run.moments = [tensors["moments.0"], tensors["moments.1"]]
        return run
