"""The public checks catch wrong blocks: each mistake below is a common one."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions.transforms as T
import pytest
import torch
from torch import Tensor

from pyro_boltzmann import catalogue, testing
from pyro_boltzmann.energies.memo import EnergyMemo
from pyro_boltzmann.exceptions import ShapeError
from pyro_boltzmann.stochastic import LangevinTransform, PathTransform, RandomWalkTransform
from pyro_boltzmann.stochastic.block import StepResult, StochasticBlock
from pyro_boltzmann.stochastic.noise import NoisePart, Parts

double_well = catalogue["double_well"]


class Scaling(StochasticBlock):
    """y = s x + xi with noise' = xi: a bijection with log-determinant d log s."""

    claimed = 2.0
    streamed = 0.0

    def __init__(self, involution: bool = False) -> None:
        super().__init__(2, (NoisePart("normal", 2),), is_involution=involution)
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def step(self, x: Tensor, noise: Parts, memo: EnergyMemo, index: int) -> StepResult:
        ladj = (self.claimed * self.scale.log()).expand(x.shape[:-1])
        return StepResult(self.scale * x + noise[0], noise, ladj, EnergyMemo())

    def step_inverse(self, x: Tensor, noise: Parts, memo: EnergyMemo, index: int) -> StepResult:
        if self.is_involution:
            return super().step_inverse(x, noise, memo, index)
        ladj = (-self.claimed * self.scale.log()).expand(x.shape[:-1])
        return StepResult((x - noise[0]) / self.scale, noise, ladj, EnergyMemo())

    def stream_step(self, *args: Any, **kwargs: Any) -> Any:
        x, ratio, memo, info = super().stream_step(*args, **kwargs)
        return x, ratio + self.streamed, memo, info


class WrongLadj(Scaling):
    claimed = 1.0


class WrongStream(Scaling):
    streamed = 1e-6


class DetachedParameter(Scaling):
    def step(self, x: Tensor, noise: Parts, memo: EnergyMemo, index: int) -> StepResult:
        result = super().step(x, noise, memo, index)
        return result._replace(x=result.x.detach(), ladj=torch.as_tensor(result.ladj).detach() + 0 * self.scale)


class DoublePrecision(Scaling):
    def step(self, x: Tensor, noise: Parts, memo: EnergyMemo, index: int) -> StepResult:
        result = super().step(x, noise, memo, index)
        return result._replace(x=result.x.double())


class FlattensBatches(Scaling):
    def step(self, x: Tensor, noise: Parts, memo: EnergyMemo, index: int) -> StepResult:
        result = super().step(x, noise, memo, index)
        return result._replace(ladj=torch.as_tensor(result.ladj).reshape(-1).sum() + torch.zeros(1))


class WrongKernel(LangevinTransform):
    """Forgets the force at y in the noise of the way back: still a number, no longer a weight."""

    def stream_step(self, *args: Any, **kwargs: Any) -> Any:
        x, ratio, memo, info = super().stream_step(*args, **kwargs)
        return x, 0.5 * ratio, memo, info


def test_a_right_block_passes() -> None:
    measured = testing.check_block(Scaling())
    assert measured["round_trip"] < 1e-12 and measured["gradients"] > 0


@pytest.mark.parametrize(
    ("block", "check", "message"),
    [
        (Scaling(involution=True), testing.check_round_trip, r"not inverted.*inverse\(call\(z\)\) - z: \d"),
        (WrongLadj(), testing.check_ladj, "log-determinant of WrongLadj is wrong.*call: ladj - slogdet: 0.693"),
        (WrongStream(), testing.check_path_weight, "streaming WrongStream is not the bijection.*S: "),
        (DetachedParameter(), testing.check_gradients, "gradient of 'scale' of DetachedParameter is zero"),
        (DoublePrecision(), testing.check_shapes, "DoublePrecision on shape .* gives .*torch.float64"),
        (FlattensBatches(), testing.check_shapes, "FlattensBatches on shape"),
    ],
)
def test_wrong_blocks_are_caught(block: Any, check: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(block)
    with pytest.raises(AssertionError):
        testing.check_block(block)


def test_wrong_weights_are_caught() -> None:
    def harmonic(x: Tensor) -> Tensor:
        return 0.5 * x.square().sum(-1)

    wrong = WrongKernel(harmonic, 2, 0.5, num_steps=3)
    with pytest.raises(AssertionError, match=r"E\[w\] / Z of WrongKernel is .* standard errors off"):
        testing.check_unbiased(wrong, harmonic, math.log(2 * math.pi))
    with pytest.raises(AssertionError, match=r"E\[exp\(S \+ u\(x\) - u\(y\)\)\] of WrongKernel"):
        testing.check_equilibrium(wrong, harmonic, torch.randn(20_000, 2))
    with pytest.raises(AssertionError, match="streaming WrongKernel"):
        testing.check_path_weight(wrong)


def test_a_wrong_normaliser_is_caught() -> None:
    with pytest.raises(AssertionError, match="standard errors off"):
        testing.check_unbiased(RandomWalkTransform(2, 0.3), double_well, double_well.log_z + 0.3)


def test_nan_weights_are_caught() -> None:
    def hole(x: Tensor) -> Tensor:
        return torch.where(x[..., 0].abs() < 0.1, math.nan, x.square().sum(-1))

    with pytest.raises(AssertionError, match=r"\d+ of 50000 weights of RandomWalkTransform are NaN"):
        testing.check_unbiased(RandomWalkTransform(2, 0.3), hole, 0.0)


def test_nan_is_never_below_a_tolerance() -> None:
    class Bad(Scaling):
        def step(self, x: Tensor, noise: Parts, memo: EnergyMemo, index: int) -> StepResult:
            result = super().step(x, noise, memo, index)
            return result._replace(x=result.x * math.nan)

    with pytest.raises(AssertionError, match="not inverted"):
        testing.check_round_trip(Bad())


def test_flows_and_paths_are_checked_too() -> None:
    testing.check_block(T.affine_coupling(3, hidden_dims=[4]), dim=3)
    testing.check_block(PathTransform([T.AffineTransform(0.0, 2.0), Scaling()], 2), double_well)
    with pytest.raises(ShapeError, match="AffineCoupling does not tell its dimension; pass dim="):
        testing.check_round_trip(T.affine_coupling(3))


def test_the_block_itself_is_left_alone() -> None:
    block = Scaling()
    testing.check_block(block)
    assert block.scale.dtype == torch.float32 and block.scale.grad is None
