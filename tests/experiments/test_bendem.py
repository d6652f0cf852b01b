"""The experiments on diffusion samplers, in small."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyro_boltzmann import catalogue, cli
from pyro_boltzmann.diagnostics import Metric, WeightedSamples
from pyro_boltzmann.energies.evaluation import energy_value
from pyro_boltzmann.exceptions import CheckpointError
from pyro_boltzmann.experiments import bendem, bendem_methods, bendem_plans
from pyro_boltzmann.experiments.bendem_distances import floors, reference_distances
from pyro_boltzmann.experiments.bendem_methods import PUBLISHED, UnknownMethodError, methods_of, recipe
from pyro_boltzmann.experiments.bendem_page import ranking
from pyro_boltzmann.experiments.bendem_plans import PLANS
from pyro_boltzmann.experiments.bendem_references import keep_references
from pyro_boltzmann.experiments.bendem_rows import median_rows, worst_rows
from pyro_boltzmann.experiments.bendem_scores import score_errors
from pyro_boltzmann.experiments.denoising_settings import published_settings
from pyro_boltzmann.infer import IDEM


def test_a_short_run_resumes_and_keeps_its_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = replace(PLANS["gmm40"], width=32, depth=1, repeats=3)
    monkeypatch.setitem(bendem_plans.PLANS, "gmm40", small)
    arguments = ["reproduce", "bendem-gmm40", "--seed", "0", "--minutes", "0.1", "--num-samples", "200"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    rows = report["models"]["best seed 0"]
    assert rows["elbo"]["value"] < 0.0 < rows["eubo"]["value"]
    assert rows["train_evaluations"]["value"] == sum(report["energy_evaluations"]["train"].values()) > 0
    for name in ("samples", "energies", "scores", "log_weights"):
        assert (tmp_path / f"{name}.png").exists()
    assert "## Samples" in (tmp_path / "bendem-gmm40.md").read_text()
    before = json.loads((tmp_path / "parts.json").read_text())
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "parts.json").read_text()) == before
    assert cli.main([*arguments, "--method", "idem2", "--out", str(tmp_path)]) == 2
    assert "no method is named 'idem2'" in capsys.readouterr().err


def test_method_is_refused_where_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["reproduce", "denoising-estimators", "--method", "best", "--out", str(tmp_path)])
    assert "has no methods to choose from" in capsys.readouterr().err


def test_exact_draws_are_at_the_floor_and_weights_undo_a_bias(tmp_path: Path) -> None:
    target = catalogue["gmm40"]
    references = keep_references(target, 2000, 0, tmp_path / "r.safetensors", proposal=25.0)
    assert references is not None and references.exact
    # From a mixture in which half of the plane comes three times as often.
    x = target.sample(8000, generator=torch.Generator().manual_seed(1))
    rare = (torch.arange(8000) % 3 == 0) | (x[:, 0] > 0)
    x = x[rare]
    log_weights = torch.where(x[:, 0] > 0, 0.0, torch.log(torch.tensor(3.0)))
    ws = WeightedSamples(x, log_weights, energy=energy_value(target.energy, x))
    rows = reference_distances(ws, x, target, references, 400)
    mean, spread = floors(target, references, 400)["x_w2"]
    raw, weighted = rows["x_w2_raw"].value, rows["x_w2"].value
    assert raw is not None and weighted is not None
    assert weighted < mean + 4.5 * spread < raw


def test_references_are_kept_and_guarded(tmp_path: Path) -> None:
    file, target = tmp_path / "r.safetensors", catalogue["gmm40"]
    first = keep_references(target, 10, 0, file, proposal=25.0)
    again = keep_references(target, 10, 0, file, proposal=25.0)
    assert first is not None and again is not None
    assert torch.equal(first.first.z, again.first.z) and not torch.equal(first.first.z, first.second.z)
    with pytest.raises(CheckpointError, match="another run"):
        keep_references(target, 10, 1, file, proposal=25.0)
    assert keep_references(target, 0, 0, file, proposal=25.0) is None


def test_the_exact_score_has_no_error() -> None:
    target = catalogue["gmm40"]

    class Field:
        def score_and_spread(self, x: torch.Tensor, h: float) -> tuple[torch.Tensor, torch.Tensor]:
            y = x.double().requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(target.noised_energy(y, h).sum(), y)
            return -gradient, torch.ones(1)

    class Guide:
        field, base_loc = Field(), torch.zeros(2)
        variances = torch.tensor([1e4, 1.0, 1e-2, 0.0], dtype=torch.float64)

    curves = score_errors(Guide(), target, target.sample(500), 0)  # type: ignore[arg-type]
    assert max(curves["error"]) < 1e-5
    # Nothing is left where the noise is far below or far above the width of the target.
    assert curves["loss"][0] < 0.01 and curves["loss"][-1] < 0.2 and min(curves["loss"]) >= 0.0


def test_median_and_worst_know_what_is_better() -> None:
    seeds = [{"ess": Metric(e), "x_w2": Metric(w), "log_z": Metric(z, truth=0.0)} for e, w, z in
             ((0.9, 4.0, -0.3), (0.5, None, 0.1), (0.7, 6.0, 0.2))]  # fmt: skip
    assert [median_rows(seeds)[name].value for name in seeds[0]] == [0.7, 6.0, 0.2]
    assert [worst_rows(seeds)[name].value for name in seeds[0]] == [0.5, None, -0.3]
    assert ranking([{"ess": Metric(0.5), "x_w2": Metric(4.0)}], [{"ess": Metric(0.6), "x_w2": Metric(None)}]) == {
        "ess": "no",
        "x_w2": "yes",
    }
    overlapping = ranking([{"ess": Metric(e)} for e in (0.1, 0.3)], [{"ess": Metric(e)} for e in (0.05, 0.2)])
    assert overlapping == {"ess": "overlap"}


def test_methods_by_name() -> None:
    target, plan = catalogue["gmm40"], PLANS["gmm40"]
    assert methods_of("bendem") == ("bendem",) and set(methods_of("all")) == {*PUBLISHED, "best"}
    chosen = recipe("best", target, plan, share=0.5)
    assert chosen.fit["num_steps"] == plan.updates // 2 and chosen.guide["kind"] == plan.kind
    with pytest.raises(UnknownMethodError, match=r"published settings exist for .*use --method best"):
        recipe("idem", catalogue["funnel10"], plan)
    with pytest.raises(UnknownMethodError, match=r"are compared on gmm40, dw4"):
        recipe("idem", catalogue["lj13"], PLANS["lj13"], compared=True)
    brief = recipe("bendem", target, plan, share=0.5, compared=True)
    assert brief.guide["num_steps"] == plan.shortened_steps(0.5) and brief.fit["schedule"] == "cosine"
    published = published_settings("idem", "gmm40")
    found = recipe("idem", target, plan)
    assert found.guide == {"kind": "score", "schedule": published.schedule, "num_steps": published.num_steps}
    assert found.fit == {
        "num_steps": bendem_methods.ENDLESS,
        "learning_rate": published.learning_rate,
        "clip_norm": published.clip_norm,
    }
    assert isinstance(found.objective, IDEM) and found.objective.settings() == published.objective.settings()
    assert found.frame is not None and float(found.frame.width) == published.frame.width
    assert bendem.GMM40.target_name == "gmm40"
