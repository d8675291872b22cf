"""Shared models: linear ones, whose margins are known in closed form, and the zoo's own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from bench.cli import main

_FIRST = {name.partition("@")[0]: name for name in reversed(zoo.names(trained=True))}
TRAINED = [
    name if name in _FIRST.values() else pytest.param(name, marks=pytest.mark.slow)
    for name in zoo.names(trained=True)
]
"""Every model with weights; other weights of a network are slow tests, which one Python runs."""


class Linear(nn.Module):
    """K classes, logits W·x, W (K, D); images (B, 1, side, side)."""

    def __init__(self, classes: int = 3, side: int = 4, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(classes, side * side, generator=generator)
        # Rows that sum to 0: the grey image is on every boundary, so grey ± a little has small margins.
        self.weights = nn.Parameter(weights - weights.mean(1, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weights.T

    def margin(self, x: Tensor, norm: str) -> Tensor:
        """(B,) least distance to another class, no box: (z_y - z_j) / ‖w_y - w_j‖ in the dual norm."""
        logits = self(x).detach()
        y = logits.argmax(1)
        rows = self.weights.detach()
        delta = rows[y][:, None] - rows[None]
        length = delta.abs().sum(2) if norm == "linf" else delta.norm(dim=2)
        gaps = (logits.gather(1, y[:, None]) - logits) / length.clamp(min=1e-12)
        return gaps.masked_fill(torch.nn.functional.one_hot(y, len(rows)).bool(), torch.inf).amin(1)


@pytest.fixture
def linear() -> Linear:
    return Linear(classes=2)


@pytest.fixture
def grey() -> Tensor:
    """Images near grey: the box is far from every margin."""
    generator = torch.Generator().manual_seed(1)
    return 0.5 + 0.05 * torch.randn(24, 1, 4, 4, generator=generator).clamp(-2, 2)


@pytest.fixture(scope="session")
def mnist() -> tuple[Tensor, Tensor]:
    return zoo.data("mnist")


@pytest.fixture(scope="session")
def relu() -> nn.Module:
    return zoo.load("mnist_relu")


@pytest.fixture(scope="session")
def bnn() -> nn.Module:
    return zoo.load("mnist_bnn")


def check_left_as_it_was(use: Callable[[nn.Module], object]) -> None:
    """Uses a network of 16 pixels and 3 classes in train mode, and looks at its mode and statistics."""
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    use(net)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class Answer:
    """What a command line did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def complaint(self) -> str:
        """The one line of an error."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("bench: error: ")
        assert "Traceback" not in self.err
        return lines[0]


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Answer]:
    """Runs `bench` in this process, results in a temporary folder."""
    monkeypatch.setenv("BENCH_RESULTS", str(tmp_path / "results"))

    def call(*words: str) -> Answer:
        capsys.readouterr()
        if runner := sys.modules.get("bench.runner"):
            runner._slope.cache_clear()  # a command's process has no gradient of another's
        with pytest.raises(SystemExit) as stopped:
            main(list(words))
        out, err = capsys.readouterr()
        return Answer(int(stopped.value.code or 0), out, err)

    return call
