"""Checkpoint files: what they hold, and what is refused."""

from __future__ import annotations

import ast
import importlib
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import pyro_boltzmann as pb
from pyro_boltzmann.exceptions import CheckpointError, OutputError
from pyro_boltzmann.infer import load_checkpoint, save_checkpoint
from pyro_boltzmann.infer.checkpoint import pack_optimizer, unpack_optimizer
from tests.infer.training_runs import build, settings

PACKAGE = Path(pb.__file__).parent


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.safetensors"
    save_checkpoint(path, {"a": torch.arange(1000.0), "b": torch.ones(3, dtype=torch.int64)}, {"step": 3})
    return path


def test_round_trip_of_dtypes_views_and_numbers(tmp_path):
    path = tmp_path / "new" / "folder" / "run.safetensors"
    base = torch.randn(4, 6)
    tensors = {
        "view": base[:, ::2].T,
        "same": base[:, ::2],
        "double": torch.tensor(1 / 3, dtype=torch.float64),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "empty": torch.zeros(0),
        "nan": torch.tensor([float("nan"), float("inf")]),
    }
    numbers = {"third": 1 / 3, "nested": [1, None, {"x": -0.0}], "inf": float("inf")}
    save_checkpoint(path, tensors, numbers)
    loaded, metadata = load_checkpoint(path)
    assert metadata == numbers
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_every_truncation_is_refused(file):
    whole = file.read_bytes()
    for length in [0, 1, 7, 8, 9, 50, len(whole) // 2, len(whole) - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(
            CheckpointError, match=r"truncated or not a checkpoint .*delete it to start afresh, or restore"
        ):
            load_checkpoint(file)
        assert file.read_bytes() == whole[:length]


class Malicious:
    def __reduce__(self):
        return os.abort, ()


def test_foreign_files_are_refused_and_left_alone(tmp_path):
    def write(name, make):
        make(tmp_path / name)
        return tmp_path / name

    class Folder:
        def __init__(self, path):
            path.mkdir()

    cases = [
        (write("garbage", lambda p: p.write_bytes(bytes(range(256)) * 40)), "truncated or not a checkpoint"),
        (write("text", lambda p: p.write_text("not a checkpoint at all")), "truncated or not a checkpoint"),
        (write("pickle", lambda p: p.write_bytes(pickle.dumps(Malicious()))), "truncated or not a checkpoint"),
        (write("torch", lambda p: torch.save({"a": torch.ones(2)}, p)), "truncated or not a checkpoint"),
        (
            write("weights", lambda p: save_file({"a": torch.ones(2)}, p)),
            "not a checkpoint of this package.*move it away",
        ),
        (write("folder", Folder), "no checkpoint file"),
    ]
    for path, message in cases:
        before = path.read_bytes() if path.is_file() else None
        model, guide = build("constant")
        for use in (
            lambda path=path: load_checkpoint(path),
            lambda path=path, model=model, guide=guide: pb.fit(model, guide, checkpoint=path, **settings("constant")),
        ):
            with pytest.raises(CheckpointError, match=message):
                use()
        assert before is None or path.read_bytes() == before
    with pytest.raises(CheckpointError, match=r"no checkpoint file at .*nothing"):
        load_checkpoint(tmp_path / "nothing")


def test_checkpoint_of_something_else_is_refused(file):
    """Ours in form, but not of a training run, or lacking a part of one."""
    model, guide = build("constant")
    with pytest.raises(CheckpointError, match="not of a training run"):
        pb.fit(model, guide, checkpoint=file, **settings("constant"))
    file.unlink()
    pb.fit(model, guide, checkpoint=file, **(settings("constant") | {"num_steps": 1}))
    tensors, metadata = load_checkpoint(file)
    del tensors["rng.cpu"]
    save_checkpoint(file, tensors, metadata)
    with pytest.raises(CheckpointError, match=r"not a complete checkpoint .*rng|not a complete checkpoint .*cpu"):
        pb.fit(model, guide, checkpoint=file, **settings("constant"))


def test_nothing_in_the_package_reads_pickles():
    """Neither ``torch.load`` nor a module that unpickles; only the contract of the targets does, on what it pickled."""
    for source in set(PACKAGE.rglob("*.py")) - {PACKAGE / "energies/catalogue/contract.py", PACKAGE / "testing.py"}:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                assert not {"pickle", "dill", "joblib", "shelve"} & {alias.name for alias in node.names}, source
            if isinstance(node, ast.ImportFrom):
                assert node.module not in ("pickle", "dill", "joblib", "shelve"), source
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) != ("torch", "load"), source


def test_loading_unpickles_nothing(file, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was read")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert load_checkpoint(file)[1] == {"step": 3}


def test_failed_write_keeps_the_old_file(file, monkeypatch):
    before = file.read_bytes()
    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch:

            def fail(*args):
                raise OSError(28, "No space left on device")

            patch.setattr(os, name, fail)
            with pytest.raises(OutputError, match=r"cannot write .*No space left on device; choose"):
                save_checkpoint(file, {"a": torch.zeros(2)}, {})
        assert file.read_bytes() == before
        assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
        lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1)),
        lambda p: torch.optim.SGD(p, lr=0.005, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.005),
        lambda p: torch.optim.RMSprop([{"params": p[:1], "lr": 0.1}, {"params": p[1:]}], lr=0.01, centered=True),
        lambda p: torch.optim.Rprop(p, lr=0.1),
        lambda p: torch.optim.Adagrad(p, lr=0.1),
    ],
)
def test_optimisers_continue_exactly(make, tmp_path):
    def minimise(parameters, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            sum((p - 1).pow(4).sum() for p in parameters).backward()
            optimizer.step()

    def fresh():
        return [torch.nn.Parameter(torch.linspace(-1, 2, 5)), torch.nn.Parameter(torch.ones(2, 2) * 3)]

    whole, first, second = fresh(), fresh(), fresh()
    minimise(whole, make(whole), 7)
    optimizer = make(first)
    minimise(first, optimizer, 3)
    tensors, described = pack_optimizer(optimizer)
    save_checkpoint(tmp_path / "o", tensors, described)
    other = make(second)
    unpack_optimizer(other, *load_checkpoint(tmp_path / "o"))
    with torch.no_grad():
        for p, q in zip(second, first, strict=True):
            p.copy_(q)
    minimise(second, other, 4)
    assert all(torch.equal(p, q) for p, q in zip(whole, second, strict=True))


def test_modules_of_inference_import_alone():
    for name in ("fit", "run", "checkpoint", "importance", "drawers", "objectives", "interrupt", "randomness"):
        assert importlib.import_module(f"pyro_boltzmann.infer.{name}") is sys.modules[f"pyro_boltzmann.infer.{name}"]
