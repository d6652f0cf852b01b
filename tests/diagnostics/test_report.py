"""The record of a run and the rules by which it refuses to lie."""

import json
import math
import os
import re

import pytest
import torch

from pyro_boltzmann.diagnostics import (
    Metric,
    Truth,
    WeightedSamples,
    build_report,
    format_report,
    read_report,
    weight_metrics,
    write_report,
)
from pyro_boltzmann.exceptions import OutputError, ReportError

KEYS = [
    "experiment", "target", "sampler", "seed", "num_samples", "metrics", "models", "energy_evaluations",
    "wall_seconds", "cpu_seconds", "threads", "target_hash", "verdict", "reasons", "versions",
]  # fmt: skip


def build(metrics, **kwargs):
    record = {
        "experiment": "demo", "target": "double_well", "sampler": "rnvp_mc", "seed": 1, "num_samples": 100_000,
        "energy_evaluations": {"train": {"values": 10, "gradients": 5}, "sample": {"values": 7, "gradients": 0}},
        "wall_seconds": {"train": 1.5, "sample": 0.5}, "cpu_seconds": {"train": 1.5, "sample": 0.5}, "threads": 2,
        "target_hash": "abc",
    }  # fmt: skip
    return build_report(metrics=metrics, **(record | kwargs))


def rows(khat=0.1, elbo=10.0, truth=10.29348, **kwargs):
    return {
        "log_z": Metric(10.29, 0.01, truth=truth),
        "ess": Metric(0.9),
        "khat": Metric(khat),
        "elbo": Metric(elbo, 0.01),
        **kwargs,
    }


def test_layout_is_that_of_the_design():
    report = build(rows(e_w2=Metric(0.06, floor=0.051)), models={"rnvp": rows()})
    assert list(report) == KEYS
    assert report["metrics"]["log_z"] == {"value": 10.29, "std_error": 0.01, "floor": None, "truth": 10.29348}
    assert set(report["models"]) == {"rnvp"}
    assert report["verdict"] == "reliable"
    assert "torch" in report["versions"]


@pytest.mark.parametrize(("khat", "num_samples", "verdict"), [
    (0.69, 100_000, "reliable"), (0.71, 100_000, "unreliable"), (0.6, 100, "unreliable"), (0.4, 100, "reliable"),
    (math.inf, 100_000, "unreliable"), (None, 100_000, "unreliable"),
])  # fmt: skip
def test_verdict_follows_khat(khat, num_samples, verdict):
    report = build(rows(khat), num_samples=num_samples)
    assert report["verdict"] == verdict
    hidden = report["metrics"]["log_z"]["std_error"] is None
    assert hidden == (verdict == "unreliable")
    # The mean log weight needs no weights: its error stays.
    assert report["metrics"]["elbo"]["std_error"] == 0.01
    assert ("n/a (k-hat)" in format_report(report)) == hidden
    assert report["metrics"]["log_z"]["value"] == 10.29


@pytest.mark.parametrize(("khat", "remarked"), [(0.1, False), (0.55, False), (0.65, True), (0.75, False)])
def test_a_khat_close_to_its_limit_is_remarked_upon(khat, remarked):
    report = build(rows(khat), models={"other": rows(0.68)})
    assert any("khat: 0.65 is close to its limit 0.70" in line for line in report["reasons"]) == remarked
    assert any(line.startswith("models.other.khat: 0.68 is close") for line in report["reasons"])


def test_log_z_without_khat_is_unreliable_unless_a_reason_is_given():
    metrics = rows()
    del metrics["khat"]
    assert build(metrics)["verdict"] == "unreliable"
    metrics["khat"] = Metric(None, reason="paths were resampled; the error is from 8 replicates")
    report = build(metrics)
    assert report["verdict"] == "reliable"
    assert "khat: paths were resampled; the error is from 8 replicates" in report["reasons"]


@pytest.mark.parametrize("quality", ["exact", "certified"])
@pytest.mark.parametrize(("name", "sign"), [("elbo", 1), ("eubo", -1)])
def test_impossible_bounds_are_refused(quality, name, sign):
    truth = Truth(10.0, 0.02, quality)
    slack = 4.5 * math.hypot(0.01, 0.02) + 1e-4

    def report(excess):
        metrics = rows(elbo=9.0, truth=truth)
        metrics[name] = Metric(10.0 + sign * (slack + excess), 0.01)
        return build(metrics)

    assert report(-1e-6)["verdict"] == "reliable"
    with pytest.raises(ReportError, match=name):
        report(1e-6)


@pytest.mark.parametrize(("number", "error"), [(1, math.inf), (2, 0.01)])
def test_a_few_draws_refuse_nothing(number, error):
    """One draw may well lie above log Z; it has no standard error, and two have next to none."""
    metrics = rows(elbo=10.5, khat=math.inf, truth=Truth(10.0))
    metrics["elbo"] = Metric(10.5, error)
    assert build(metrics, num_samples=number)["verdict"] == "unreliable"
    with pytest.raises(ReportError, match="elbo"):
        build({**metrics, "elbo": Metric(10.5, 0.01)}, num_samples=25)


@pytest.mark.parametrize("quality", ["measured", "bound"])
def test_a_measured_truth_is_questioned_instead(quality):
    with pytest.warns(UserWarning, match="truth itself may be wrong"):
        report = build(rows(elbo=11.0, truth=Truth(10.0, 0.02, quality)))
    assert any("truth itself may be wrong" in reason for reason in report["reasons"])


def test_models_are_held_to_the_same_rules():
    with pytest.raises(ReportError, match=r"models\.rnvp\.elbo"):
        build(rows(), models={"rnvp": rows(elbo=12.0)})
    report = build(rows(), models={"rnvp": rows(khat=2.0)})
    assert report["verdict"] == "reliable"  # the headline model's verdict
    assert report["models"]["rnvp"]["log_z"]["std_error"] is None
    assert any(reason.startswith("models.rnvp.khat") for reason in report["reasons"])


def test_failures_make_a_run_unreliable():
    report = build(rows(), failures=["two modes were not found"], notes=["stopped by the budget"])
    assert report["verdict"] == "unreliable"
    assert report["reasons"][:2] == ["two modes were not found", "stopped by the budget"]


def test_every_null_has_a_reason():
    report = build(
        rows(delta_f=Metric(math.inf, math.inf, truth=-1.69), x_w2=Metric(math.nan)),
        models={"nsf": {"ess": Metric(0.5), "log_z": Metric(1.0), "khat": Metric(0.1), "nll": Metric(None)}},
        threads=None, target_hash=None, cpu_seconds=None, wall_seconds={"train": None, "sample": 1.0},
    )  # fmt: skip
    json.dumps(report, allow_nan=False)
    reasons = "\n".join(report["reasons"])
    for prefix, table in {"": report["metrics"], "models.nsf.": report["models"]["nsf"]}.items():
        for name, row in table.items():
            if row["value"] is None:
                assert f"{prefix}{name}: " in reasons
            for field in ("std_error", "floor", "truth"):
                named = re.search(rf"null {field} .*\b({re.escape(prefix)})?{name}\b", reasons)
                assert row[field] is not None or named or f"{prefix}{name}.{field}: " in reasons, (prefix, name, field)
    for field in ("threads", "target_hash", "cpu_seconds", "wall_seconds.train"):
        assert f"{field}: " in reasons


def test_json_round_trip(tmp_path):
    report = build(rows(khat=math.inf, delta_f=Metric(-math.inf)), models={"rnvp": rows()})
    path = write_report(report, tmp_path / "new" / "report.json")
    assert read_report(path) == report
    assert not re.search(r"NaN|Infinity", path.read_text())
    assert os.listdir(path.parent) == ["report.json"]


def test_unwritable_and_unreadable(tmp_path):
    (tmp_path / "file").write_text("{}")
    with pytest.raises(OutputError, match="cannot write"):
        write_report(build(rows()), tmp_path / "file" / "report.json")
    with pytest.raises(ReportError, match="not valid JSON"):
        write_report({"value": math.nan}, tmp_path / "report.json")
    with pytest.raises(ReportError, match="lacks experiment"):
        read_report(tmp_path / "file")
    with pytest.raises(ReportError, match="cannot read"):
        read_report(tmp_path / "missing.json")
    (tmp_path / "file").write_text('{"experiment": NaN}')
    with pytest.raises(ReportError, match="NaN is not JSON"):
        read_report(tmp_path / "file")


def test_a_failed_write_keeps_the_old_report(tmp_path, monkeypatch):
    path = write_report(build(rows()), tmp_path / "report.json")
    before = path.read_text()

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match="No space left"):
        write_report(build(rows(), seed=2), path)
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["report.json"]


def test_report_text_has_everything():
    text = format_report(build(rows(e_w2=Metric(0.0613, floor=0.051)), models={"nsf": rows()}))
    for piece in ("double_well", "N = 100000", "[0.051]", "10.293", "model nsf", "verdict: reliable", "10 values"):
        assert piece in text
    assert max(len(line) for line in text.splitlines()) <= 120


def test_rows_of_weighted_samples():
    """A normal with a known constant: every row agrees with its closed form within 4.5 standard errors."""
    generator = torch.Generator().manual_seed(0)
    x, y = 1.3 * torch.randn(40_000, generator=generator), torch.randn(40_000, generator=generator)

    def log_weight(x):
        return (-0.5 * x.square() + 0.5 * (x / 1.3).square()).double() + math.log(1.3 * math.sqrt(2 * math.pi))

    log_z = 0.5 * math.log(2 * math.pi)
    metrics = weight_metrics(WeightedSamples(x, log_weight(x)), reverse_log_weights=log_weight(y), log_z=Truth(log_z))
    ess = math.sqrt(2 * 1.3**2 - 1) / 1.3**2
    assert abs(metrics["log_z"].value - log_z) < 4.5 * metrics["log_z"].std_error
    assert metrics["ess"].value == pytest.approx(ess, abs=0.01)
    assert metrics["forward_ess"].value == pytest.approx(ess, abs=0.01)
    assert metrics["elbo"].value < log_z < metrics["eubo"].value
    report = build(metrics, num_samples=40_000)
    assert report["verdict"] == "reliable"
    assert report["metrics"]["n_nonfinite"]["value"] == 0


def test_sizes_smaller_than_the_reports_are_told():
    """N belongs to every distance: where it is not that of the report, the reasons hold it and the table shows it."""
    taken = {"e_w2": Metric(0.06, floor=0.05, num_samples=10_000), "x_w2": Metric(0.3, floor=0.27, num_samples=1000)}
    same = Metric(0.05, floor=0.05, num_samples=10_000)
    report = build(rows(**taken), models={"nsf": {"x_w2": Metric(0.4, num_samples=500), "e_w2": same}})
    (line,) = [reason for reason in report["reasons"] if "fewer" in reason]
    assert line == "draws behind a metric, where fewer: e_w2 10000, x_w2 1000, models.nsf.x_w2 500"
    assert line in format_report(report)
    assert not any("fewer" in reason for reason in build(rows())["reasons"])


def test_a_distance_that_was_not_taken_is_not_called_no_distance():
    report = build(rows(x_w2=Metric(None, reason="too few effective draws", num_samples=1000)))
    assert "x_w2: too few effective draws" in report["reasons"]
    assert not any(line.startswith("null floor") and "x_w2" in line for line in report["reasons"])
    assert "fewer" not in " ".join(report["reasons"])
    assert "x_w2.floor" not in format_report(report)
