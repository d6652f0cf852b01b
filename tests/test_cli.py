"""The command line: every command, and every way in which a run can go wrong, with the message it must give."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.distributions.transforms as T
import pytest
import torch

import pyro_boltzmann as pb
from pyro_boltzmann.cli import main
from pyro_boltzmann.diagnostics import Metric, Truth, from_netcdf, read_report
from pyro_boltzmann.energies.catalogue import Target, catalogue
from pyro_boltzmann.exceptions import EnergyError, NonFiniteEnergyError, ShapeError
from pyro_boltzmann.experiments import EXPERIMENTS
from pyro_boltzmann.experiments.run_metrics import draw_exact, failures_of, run_metrics
from pyro_boltzmann.experiments.targets import resolve_target
from pyro_boltzmann.stochastic import MetropolisAdjusted, RandomWalkTransform

ARCHITECTURES = "pyro_boltzmann.experiments.architectures"
PICTURES = {"samples.png", "log_weights.png", "energies.png", "path_ess.png", "training.png"}
ENERGIES = """
import math
import torch, pyro, pyro.distributions as dist
import pyro_boltzmann as pb

def bowl(x):
    return 0.5 * (x - 1).square().sum(-1)
bowl.dim = 3

def flat(x):
    return bowl(x)

def column(x):
    return 0.5 * x.square().sum(-1, keepdim=True)

def first_index_only(x):
    return x[:, 0].square()

def sometimes_nan(x):
    u = bowl(x)
    return torch.where(x[..., 0] > 0, torch.full_like(u, math.nan), u)

def always_nan(x):
    return bowl(x) * math.nan

def unbounded(x):
    return -x.square().sum(-1).exp()

class Net(torch.nn.Module):
    def forward(self, x):
        return 0.5 * x.square().sum(-1)
net = Net()

def program():
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", 2):
        pyro.sample("obs", dist.Normal(0.0, scale), obs=torch.ones(2))

def discrete():
    pyro.sample("coin", dist.Bernoulli(0.5))

model = pb.BoltzmannModel(bowl, 3)
number = 3
"""


class TinyArchitecture:
    """A flow and one Metropolis block, trained for a moment: the interface of the real ones."""

    name = "tiny"
    steps = 12
    callback: Callable[[Any], None] | None = None
    trainings = 0

    def guide(self, model: Any, target: Any = None) -> pb.AutoStochasticFlow:
        def blocks(energy: Any, dim: int) -> list[Any]:
            flow = T.affine_autoregressive(dim) if dim > 1 else T.Spline(1)
            return [flow, MetropolisAdjusted(RandomWalkTransform(dim, 0.5), energy)]

        return pb.AutoStochasticFlow(model, blocks)

    def train(self, model: Any, guide: Any, *, target: Any, seed: int, scale: float = 1.0, **kwargs: Any) -> Any:
        type(self).trainings += 1
        return pb.fit(
            model,
            guide,
            num_steps=self.steps,
            num_particles=32,
            seed=seed,
            log_every=2,
            callback=self.callback,
            **kwargs,
        )


@pytest.fixture
def pictures() -> None:
    """Ask for this to have pictures drawn."""


@pytest.fixture
def tiny(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[TinyArchitecture]:
    """The command line with a tiny sampler, in an empty folder that holds ``energies.py``."""

    class Tiny(TinyArchitecture):
        pass

    module = types.ModuleType(ARCHITECTURES)
    module.ARCHITECTURES = {"snf": Tiny(), "flow": Tiny()}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, ARCHITECTURES, module)
    (tmp_path / "cli_energies.py").write_text(ENERGIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "cli_energies", raising=False)
    if "pictures" not in request.fixturenames:
        # Half a second each: only the tests that look at them draw any.
        for module_name in ("sampling", "rereading"):
            monkeypatch.setattr(f"pyro_boltzmann.experiments.{module_name}.write_plots", lambda *args, **kwargs: [])
    return Tiny


def sample(target: str, *options: str, out: str = "run", number: int = 200, seed: int = 0) -> int:
    arguments = ["sample", target, "--num-samples", str(number), "--seed", str(seed), "--out", out, "--no-progress"]
    return main([*arguments, *options])


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that explains the failure, after the lines that say what was being done."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("pyro-boltzmann: error: "), lines
    assert "Traceback" not in "".join(lines)
    return lines[-1]


# ---- targets --------------------------------------------------------------------------------------------------------


def test_targets_table_and_json_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets"]) == 0
    table = capsys.readouterr().out
    assert main(["targets", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(catalogue)
    assert rows["double_well"]["log_z"] == catalogue["double_well"].log_z
    assert rows["dw4"]["exact_sampler"] is False and rows["dw4"]["log_z_error"] == 0.003
    line = next(line for line in table.splitlines() if line.startswith("dw4"))
    assert line.split() == [
        "dw4",
        "6",
        *["29.669", "+-", "0.003", "certified", "-22.544", "+-", "0.004", "no"],
        catalogue["dw4"].target_hash,
    ]
    known = {line.split()[0]: line for line in table.splitlines()[2:]}
    assert "-79.2 to -77.7  interval" in known["breast_cancer"] and known["lj55"].split()[2:4] == ["unknown"] * 2
    assert rows["breast_cancer"]["log_z"] is None and rows["breast_cancer"]["log_z_bounds"] == [-79.2, -77.7]
    assert "SMC" in rows["dw4"]["log_z_note"] and rows["lj55"]["log_z_note"] is None


def test_half_open_intervals_have_no_infinity_in_json(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def target(low: float, high: float) -> Target:
        return Target("t", 1, constants={}, log_z_origin="interval", log_z_bounds=(low, high))

    targets = {"low": target(1.06, math.inf), "high": target(-math.inf, 2.0)}
    monkeypatch.setattr("pyro_boltzmann.cli.catalogue", targets)
    assert main(["targets"]) == 0
    table = capsys.readouterr().out
    assert ">= 1.06  interval" in table and "<= 2  interval" in table
    assert main(["targets", "--json"]) == 0
    assert [row["log_z_bounds"] for row in json.loads(capsys.readouterr().out)] == [[1.06, None], [None, 2.0]]


@pytest.mark.parametrize(
    ("text", "dim"),
    [("bowl", 3), ("model", 3), ("program", 1)],
)
def test_module_targets_are_the_energies_they_name(tiny: object, text: str, dim: int) -> None:
    resolved = resolve_target(f"cli_energies:{text}")
    guide = pb.AutoStochasticFlow(resolved.model, lambda energy, dim: []).initialize()
    z = torch.randn(5, dim)
    scale = z[:, 0].exp()
    expected = 0.5 * (z - 1).square().sum(-1)
    if text == "program":
        log_normal = torch.distributions.LogNormal(0.0, 1.0).log_prob(scale) + z[:, 0]
        expected = -log_normal - 2 * torch.distributions.Normal(0.0, scale).log_prob(torch.ones(5))
    torch.testing.assert_close(guide.energy(z), expected)


def test_module_hash_follows_the_energy_not_its_name(tiny: object) -> None:
    bowl, flat, net = (resolve_target(f"cli_energies:{name}", 3).target_hash for name in ("bowl", "flat", "net"))
    assert bowl == flat != net


def test_module_energy_needs_a_dimension(tiny: object) -> None:
    for name in ("flat", "net", "Net"):
        with pytest.raises(ShapeError, match="--dim D"):
            resolve_target(f"cli_energies:{name}")
    with pytest.raises(ShapeError, match="has dimension 3, but --dim 2"):
        resolve_target("cli_energies:bowl", 2)


# ---- a run ----------------------------------------------------------------------------------------------------------


def test_sample_writes_everything_and_report_reads_it_again(
    tiny: type[TinyArchitecture], pictures: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample("double_well", number=500) == 0
    said = capsys.readouterr()
    files = {path.name for path in Path("run").iterdir()}
    assert files == {"samples.nc", "report.json", "run.json", "checkpoint.safetensors", *PICTURES}
    report, draws = read_report("run/report.json"), from_netcdf("run/samples.nc")
    metrics = report["metrics"]
    assert metrics["log_z"]["value"] == pytest.approx(draws.log_normalizer)
    assert metrics["log_z"]["truth"] == catalogue["double_well"].log_z
    # These two bracket the truth whatever the sampler; 4.5 standard errors.
    assert metrics["elbo"]["value"] - 4.5 * metrics["elbo"]["std_error"] < metrics["log_z"]["truth"]
    assert metrics["eubo"]["value"] + 4.5 * metrics["eubo"]["std_error"] > metrics["log_z"]["truth"]
    assert {"ess", "forward_ess", "khat", "max_weight", "n_nonfinite", "mean_energy", "virial", "e_w2"} <= set(metrics)
    assert {"delta_f", "mode_mass_tv", "modes_found"} <= set(metrics)
    # 12 updates of 32 paths: an energy at the start and at the end of the Metropolis step, both with a gradient.
    assert report["energy_evaluations"]["train"] == {"values": 2 * 12 * 32, "gradients": 2 * 12 * 32}
    assert report["energy_evaluations"]["sample"] == {"values": 2 * 500, "gradients": 0}
    assert report["target_hash"] == catalogue["double_well"].target_hash and report["threads"] >= 1

    table = said.out
    assert "10.29" in table and f"verdict: {report['verdict']}" in table and "samples.nc" in table
    for name in PICTURES:
        Path("run", name).unlink()
    assert main(["report", "run/samples.nc"]) == 0
    assert capsys.readouterr().out == table
    assert {path.name for path in Path("run").iterdir()} == files

    # Without report.json the draws still know the target, and their weights are scored again.
    Path("run/report.json").unlink()
    assert main(["report", "run"]) == 0
    again = capsys.readouterr().out
    assert "double_well by tiny" in again and "report.json is missing" in again
    rows = [line for line in table.splitlines() if line.startswith(("log_z", "ess", "delta_f", "mean_energy", "e_w2"))]
    assert len(rows) == 5
    assert [row.split() for row in rows] == [
        row.split() for row in again.splitlines() if row.startswith(("log_z", "ess", "delta_f", "mean_energy", "e_w2"))
    ]


def test_report_of_other_draws_is_refused(tiny: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample("cli_energies:bowl") == 0
    assert sample("cli_energies:bowl", out="other", seed=1) == 0
    Path("other/report.json").replace("run/report.json")
    capsys.readouterr()
    assert main(["report", "run/samples.nc"]) == 2
    assert "made of other draws" in error_of(capsys)


def test_same_seed_same_draws_and_a_finished_training_is_not_repeated(
    tiny: type[TinyArchitecture], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample("cli_energies:bowl") == 0
    assert sample("cli_energies:bowl", out="twin") == 0
    first, twin = from_netcdf("run/samples.nc"), from_netcdf("twin/samples.nc")
    assert torch.equal(first.log_weights, twin.log_weights) and torch.equal(first.samples["x"], twin.samples["x"])
    evaluations = read_report("run/report.json")["energy_evaluations"]["train"]
    assert sample("cli_energies:bowl", number=300) == 0
    assert read_report("run/report.json")["energy_evaluations"]["train"] == evaluations
    assert "continuing" in capsys.readouterr().err
    assert len(from_netcdf("run/samples.nc")) == 300


def test_interrupted_run_resumes_to_the_same_end(
    tiny: type[TinyArchitecture], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample("cli_energies:bowl", out="unbroken") == 0

    def interrupt(result: Any) -> None:
        if result.steps == 6:
            raise KeyboardInterrupt

    tiny.callback = staticmethod(interrupt)
    assert sample("cli_energies:bowl") == 130
    assert "the same command resumes from what is in run" in capsys.readouterr().err
    assert not Path("run/samples.nc").exists()
    tiny.callback = None
    assert sample("cli_energies:bowl") == 0
    unbroken, resumed = from_netcdf("unbroken/samples.nc"), from_netcdf("run/samples.nc")
    assert torch.equal(unbroken.log_weights, resumed.log_weights)
    spent = [read_report(f"{name}/report.json")["energy_evaluations"]["train"] for name in ("run", "unbroken")]
    assert spent[0] == spent[1]


@pytest.mark.parametrize("text", ["eight_schools", "cli_energies:program", "dw4"])
def test_programs_and_targets_without_exact_samples(tiny: object, pictures: None, text: str) -> None:
    assert sample(text, "--sampler", "flow") == 0
    report = read_report("run/report.json")
    assert ("eubo" in report["metrics"]) == (text == "eight_schools")
    one_dimensional = text == "cli_energies:program"
    assert Path("run/samples.png").exists() != one_dimensional
    if text == "dw4":
        assert main(["report", "run"]) == 0


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("double_wel", (), "did you mean 'double_well'"),
        ("double_well", ("--dim", "3"), "leave --dim out"),
        ("double_well", ("--sampler", "snff"), "known names: snf, flow"),
        ("nowhere_to_be_found:energy", (), "there is no module 'nowhere_to_be_found'"),
        ("cli_energies:bowll", (), "did you mean 'bowl'"),
        ("cli_energies:", (), "expected a catalogue name or module:function"),
        ("cli_energies:number", (), "is a int, expected an energy"),
        ("cli_energies:flat", (), "pass --dim D"),
        ("cli_energies:column", ("--dim", "2"), "must have the batch shape (8,), got (8, 1)"),
        ("cli_energies:first_index_only", ("--dim", "2"), "IndexError"),
        ("cli_energies:discrete", (), "coin"),
    ],
)
def test_unusable_targets_give_one_line(
    tiny: type[TinyArchitecture],
    capsys: pytest.CaptureFixture[str],
    target: str,
    options: tuple[str, ...],
    message: str,
) -> None:
    assert sample(target, *options) == 2
    assert message in error_of(capsys)
    assert tiny.trainings == 0


def test_module_that_cannot_be_imported(tiny: object, capsys: pytest.CaptureFixture[str]) -> None:
    Path("cli_broken.py").write_text("import math\nmath.nothing\n")
    assert sample("cli_broken:energy") == 2
    assert "importing 'cli_broken' failed: AttributeError" in error_of(capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["sample", "double_well", "--num-samples", "0", "--seed", "0", "--out", "x"], "whole number >= 1, got '0'"),
        (["sample", "double_well", "--num-samples", "5", "--seed", "-1", "--out", "x"], "--seed"),
        (["sample", "double_well", "--num-samples", "5", "--seed", "0"], "--out"),
        (["sample", "double_well", "--num-samples", "5", "--seed", "0", "--out", "x", "--minutes", "0"], "above 0"),
        (["reproduce", "snf-double-well"], "--out DIR is required"),
        (["reproduce"], "EXPERIMENT is required"),
        ([], "COMMAND"),
    ],
)
def test_usage_errors_are_one_line(capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(options)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1


def test_zero_draws_from_python_too(tiny: object) -> None:
    from pyro_boltzmann.experiments import sampling

    with pytest.raises(ShapeError, match=">= 1, got 0"):
        sampling.run("double_well", num_samples=0, seed=0, out="run")


def test_unwritable_out_is_found_before_training(
    tiny: type[TinyArchitecture], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("in the way")
    for out in ("file", "file/below"):
        assert sample("double_well", out=out) == 2
        assert f"cannot write into {out}" in error_of(capsys)
    assert tiny.trainings == 0


def test_truncated_and_foreign_checkpoints(tiny: type[TinyArchitecture], capsys: pytest.CaptureFixture[str]) -> None:
    assert sample("cli_energies:bowl") == 0
    trainings = tiny.trainings
    for target, options, seed, message in [
        ("cli_energies:bowl", (), 1, "seed 0, not 1"),
        ("cli_energies:bowl", ("--sampler", "flow"), 0, "sampler 'snf', not 'flow'"),
        ("double_well", (), 0, "target 'cli_energies:bowl', not 'double_well'"),
    ]:
        assert sample(target, *options, seed=seed) == 2
        error = error_of(capsys)
        assert message in error and "choose another --out" in error and "checkpoint.safetensors" in error
    assert tiny.trainings == trainings

    whole = Path("run/checkpoint.safetensors").read_bytes()
    Path("run/checkpoint.safetensors").write_bytes(whole[: len(whole) // 2])
    before = from_netcdf("run/samples.nc")
    assert sample("cli_energies:bowl") == 2
    assert "truncated" in error_of(capsys)
    assert from_netcdf("run/samples.nc").equals(before)
    Path("run/checkpoint.safetensors").unlink()
    assert sample("cli_energies:bowl") == 0


def test_changed_energy_does_not_continue_the_old_run(tiny: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample("cli_energies:bowl") == 0
    sys.modules["cli_energies"].bowl = sys.modules["cli_energies"].net  # type: ignore[attr-defined]
    assert sample("cli_energies:bowl", "--dim", "3") == 2
    assert "target_hash" in error_of(capsys)


@pytest.mark.filterwarnings("default:the energy was NaN")
def test_nan_at_the_end_states_saves_the_draws(
    tiny: type[TinyArchitecture], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample("cli_energies:sometimes_nan", "--dim", "2") == 2
    said = capsys.readouterr().err.splitlines()
    assert any(line.startswith("pyro-boltzmann: warning: the energy was NaN or -inf at") for line in said)
    error = said[-1]
    assert (
        error.startswith("pyro-boltzmann: error: the energy is NaN at")
        and f"saved to {Path('run', 'samples.nc')}" in error
    )
    draws = from_netcdf("run/samples.nc")
    assert draws.energy is not None and len(draws) == 200
    # NaN exactly where the energy says so.
    assert torch.equal(draws.energy.isnan(), draws.samples["x"][:, 0] > 0)
    assert main(["report", "run"]) == 2
    assert "log weights are NaN" in error_of(capsys)


def test_nan_that_stops_the_training_saves_the_draws_too(
    tiny: type[TinyArchitecture], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample("cli_energies:always_nan", "--dim", "2") == 2
    error = error_of(capsys)
    assert "training stopped: the energy is NaN at all 32 end states" in error and "saved to" in error
    assert from_netcdf("run/samples.nc").energy.isnan().all()  # type: ignore[union-attr]
    # A mended energy starts afresh: the broken checkpoint is kept, but out of its way.
    assert Path("run/checkpoint.safetensors.failed").exists()
    sys.modules["cli_energies"].always_nan = sys.modules["cli_energies"].flat  # type: ignore[attr-defined]
    assert sample("cli_energies:always_nan", "--dim", "2") == 0


def test_energy_unbounded_below_is_an_error(tiny: type[TinyArchitecture], capsys: pytest.CaptureFixture[str]) -> None:
    tiny.steps = 200
    assert sample("cli_energies:unbounded", "--dim", "2") == 2
    assert "energy" in error_of(capsys)
    assert Path("run/samples.nc").exists()


def test_debug_raises(tiny: object) -> None:
    with pytest.raises(EnergyError, match="batch shape"):
        sample("cli_energies:column", "--dim", "2", "--debug")
    with pytest.raises(NonFiniteEnergyError):
        sample("cli_energies:always_nan", "--dim", "2", "--debug")


# ---- metrics --------------------------------------------------------------------------------------------------------


def test_metrics_of_exact_samples_are_at_their_truths_and_floors() -> None:
    """Exact draws with constant weights, so every row has its truth; 4.5 standard errors (false alarm 1e-5)."""
    target = catalogue["double_well"]
    x = target.sample(20_000, generator=torch.Generator().manual_seed(1))
    assert target.log_z is not None
    ws = pb.WeightedSamples(x, torch.full((20_000,), target.log_z, dtype=torch.float64), energy=target(x))
    exact = draw_exact(target, 20_000, 0)
    rows = run_metrics(ws, x, target.energy, target=target, exact=exact)
    for name in ("mean_energy", "virial", "delta_f"):
        row = rows[name]
        truth = row.truth.value if isinstance(row.truth, Truth) else row.truth
        assert row.value is not None and row.std_error and truth is not None
        assert abs(row.value - truth) < 4.5 * row.std_error, name
    assert rows["modes_found"].value == 2
    for name in ("e_w2", "mode_mass_tv"):
        assert 0 < rows[name].value < 5 * rows[name].floor, name
    # The floor of a binomial: E|k/n - p| = sqrt(2 p (1 - p) / (pi n)), 50 repeats.
    p = 0.844307096211
    expected = math.sqrt(2 * p * (1 - p) / (math.pi * 20_000))
    assert abs(rows["mode_mass_tv"].floor - expected) < 4.5 * 0.76 * expected / math.sqrt(50)
    assert failures_of(rows) == []


def test_missed_mode_is_a_failure_that_khat_cannot_see() -> None:
    target = catalogue["double_well"]
    x = target.sample(20_000, generator=torch.Generator().manual_seed(1))
    right = x[x[:, 0] > 0]
    log_z = target.log_z + math.log(0.844307096211)  # type: ignore[operator]
    noise = 0.1 * torch.randn(len(right), generator=torch.Generator().manual_seed(2)).double()
    rows = run_metrics(pb.WeightedSamples(right, log_z + noise, energy=target(right)), right, None, target=target)
    assert rows["khat"].value < 0.5 and rows["ess"].value > 0.9
    (failure,) = failures_of(rows)
    assert "part of the target was not sampled" in failure


def test_virial_is_withheld_across_walls() -> None:
    x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)).abs()
    log_weights = torch.zeros(1000)
    log_weights[:3] = -math.inf
    rows = run_metrics(pb.WeightedSamples(x, log_weights), x, lambda x: 0.5 * x.square().sum(-1))
    assert rows["virial"].value is None and "wall" in str(rows["virial"].reason)


# ---- reproduce, processes -------------------------------------------------------------------------------------------


def test_reproduce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: dict[str, Any] = {}

    def run(**kwargs: Any) -> dict[str, Any]:
        asked.update(kwargs)
        rows = {"ess": Metric(0.5)}
        return pb.diagnostics.build_report(
            experiment="tiny", target="t", sampler="s", seed=3, num_samples=10, metrics=rows
        )

    module = types.ModuleType("cli_tiny_experiment")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cli_tiny_experiment", module)
    monkeypatch.setitem(EXPERIMENTS, "tiny", "cli_tiny_experiment")
    assert main(["reproduce", "--list"]) == 0
    assert capsys.readouterr().out.split() == list(EXPERIMENTS) and "snf-double-well" in EXPERIMENTS
    assert main(["reproduce", "tiny", "--seed", "3", "--out", str(tmp_path / "e"), "--minutes", "2"]) == 0
    assert asked == {"seed": 3, "out": tmp_path / "e", "minutes": 2.0, "num_samples": None}
    assert "tiny: t by s, N = 10, seed 3" in capsys.readouterr().out
    assert main(["reproduce", "snf-double", "--out", str(tmp_path)]) == 2
    assert "did you mean 'snf-double-well'" in error_of(capsys)


def process(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    root = Path(pb.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "pyro_boltzmann", *arguments]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_closed_pipe_is_silent(tmp_path: Path) -> None:
    with process("targets", cwd=tmp_path) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.close()
        said = child.stderr.read()
        assert (child.wait(), said) == (141, "")


@pytest.mark.slow
def test_real_sampler_from_another_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def well(x):\n    return 0.5 * x.square().sum(-1)\n")
    options = [
        "--num-samples",
        "500",
        "--seed",
        "0",
        "--out",
        "run",
        "--dim",
        "2",
        "--minutes",
        "0.02",
        "--threads",
        "1",
    ]
    with process("sample", "mine:well", "--sampler", "flow", *options, cwd=tmp_path) as child:
        out, said = child.communicate()
    assert child.returncode == 0, said
    report = read_report(tmp_path / "run" / "report.json")
    assert report["threads"] == 1
    row = report["metrics"]["elbo"]
    # log Z = log 2 pi bounds every ELBO.
    assert row["value"] < math.log(2 * math.pi) + 4.5 * row["std_error"] + 1e-4
    assert "fit:" in said and "verdict:" in out


def test_an_energy_that_raises_gives_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "broken_energy.py").write_text("def energy(x):\n    raise RuntimeError('no such molecule')\n")
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "broken_energy:energy", "--sampler", "flow", "--num-samples", "10", "--seed", "0",
                 "--out", "out", "--dim", "2"]) == 2  # fmt: skip
    error = capsys.readouterr().err
    assert "no such molecule" in error and "Traceback" not in error
