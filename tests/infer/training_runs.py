"""Small training runs for the tests of resuming; run as a module, it starts all of them to be killed.

``python -m tests.infer.training_runs FOLDER`` forks one process a run, prints ``NAME PID`` for each and waits. Each run
keeps its checkpoint in ``FOLDER/NAME.safetensors`` and saves it after every update.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions.transforms as T
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal

import pyro_boltzmann as pb
from pyro_boltzmann.diffusion import EnergyMLP, ScoreMLP
from pyro_boltzmann.stochastic import LangevinTransform, MetropolisAdjusted, RandomWalkTransform
from pyro_boltzmann.transforms import ContinuousTransform, MLPField

STEPS = 40
NAMES = ["constant", "cosine", "forward", "phases", "score", "pyro_guide", "pyro_elbo"]
NAMES += ["log_variance", "trajectory_balance", "alpha_2", "alpha_2_paths", "idem", "bendem", "flow_matching"]

_centre = torch.tensor([[-2.0, 0.0], [2.0, 1.0]])


def two_wells(x: torch.Tensor) -> torch.Tensor:
    """A mixture of two Gaussians."""
    return -(-0.5 * (x.unsqueeze(-2) - _centre).square().sum(-1)).logsumexp(-1)


def slow_two_wells(x: torch.Tensor) -> torch.Tensor:
    """The same numbers, slowly enough to be killed in time."""
    time.sleep(0.004)
    return two_wells(x)


def settings(name: str) -> dict[str, Any]:
    """The arguments of ``fit`` for the run called ``name``."""
    data = torch.randn(200, 2, generator=torch.Generator().manual_seed(1)) + 1
    half = STEPS // 2
    denoising: dict[str, Any] = {"num_noise": 12, "capacity": 150, "refresh_every": 7, "num_refresh": 60}
    special: dict[str, dict[str, Any]] = {
        "cosine": {"schedule": "cosine"},
        "forward": {"objective": "forward_kl", "data": data, "schedule": "cosine"},
        "phases": {
            "objective": [pb.Phase(half, 0.5, 0.5), pb.Phase(half, 0, 1)],
            "data": pb.WeightedSamples(data, data[:, 0].double(), info={"z": data}),
        },
        "log_variance": {"objective": "log_variance", "data": pb.WeightedSamples(data, data[:, 0], info={"z": data})},
        "trajectory_balance": {"objective": pb.TrajectoryBalance(32, replay=150)},
        "alpha_2": {"objective": pb.Alpha2(32, capacity=150, num_rungs=2, num_leapfrog=2)},
        "alpha_2_paths": {"objective": pb.Alpha2(32, capacity=150, refresh_every=3)},
        "idem": {"objective": pb.IDEM(32, near_buffer=True, weighted=True, **denoising)},
        "bendem": {"objective": pb.BEnDEM(32, check_every=3, patience=2, decay=0.9, **denoising)},
        "flow_matching": {"objective": "flow_matching", "data": data},
        "pyro_elbo": {"objective": Trace_ELBO(num_particles=8, vectorize_particles=True)},
    }
    chosen = special.get(name, {})
    length = {} if "objective" in chosen and name == "phases" else {"num_steps": STEPS}
    common = {"num_particles": 32, "learning_rate": 0.02, "seed": 7, "progress": False, "log_every": 4}
    return common | length | chosen


def build(name: str, energy: Any = two_wells) -> tuple[Any, Any]:
    """A model and its guide, with parameters, adaptive scales and annealed blocks."""
    pyro.clear_param_store()  # where Pyro's guides would find the parameters of an earlier one
    torch.manual_seed(3)
    model = pb.BoltzmannModel(energy, 2)
    if name.startswith("pyro"):
        return model, AutoDiagonalNormal(model)

    if name == "flow_matching":
        return model, pb.AutoStochasticFlow(model, lambda energy, dim: [ContinuousTransform(MLPField(dim, 8), dim, 2)])
    if name in ("idem", "bendem"):
        kind, network = ("score", ScoreMLP(2, 16, 1)) if name == "idem" else ("energy", EnergyMLP(2, 16, 1))
        return model, pb.AutoDiffusion(model, network, kind=kind, num_steps=5, use_target=name == "idem")

    def blocks(energy: Any, dim: int) -> list[Any]:
        if name == "alpha_2":
            return [T.affine_coupling(dim, hidden_dims=[8])]
        annealed = pb.AnnealedEnergy(pb.NormalEnergy(), energy, 0.5, learnable=True)
        if name == "score":
            walk = RandomWalkTransform(dim, 0.5, num_steps=2, learnable=True)
            metropolis = MetropolisAdjusted(walk, annealed, gradient="score")
        else:
            metropolis = MetropolisAdjusted(RandomWalkTransform(dim, [0.5, 0.7], num_steps=2), annealed, adapt=True)
        langevin = LangevinTransform(energy, dim, 0.05, learnable=True)
        return [T.affine_coupling(dim, hidden_dims=[8]), metropolis, langevin]

    return model, pb.AutoStochasticFlow(model, blocks)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    model, guide = build("constant")
    pb.fit(model, guide, num_steps=1, progress=False)  # the first optimiser imports much of torch; do it once for all
    children = []
    for name in NAMES:
        pid = os.fork()
        if pid == 0:
            file = folder / f"{name}.safetensors"
            model, guide = build(name, slow_two_wells)
            pb.fit(model, guide, checkpoint=file, checkpoint_every=0.0, **settings(name))
            os._exit(0)
        children.append(pid)
        print(name, pid, flush=True)
    sys.stdin.read()  # until all have been killed, so that no number is given to another process before
    for pid in children:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
