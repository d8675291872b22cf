"""foolbox's and ART's attacks: they agree with ours, and every row keeps the adapter's contract."""

from __future__ import annotations

import importlib
import inspect
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import attacks
import zoo
from adversarial_bench.errors import UnknownNameError
from attacks.api import random_targets
from attacks.core import ParameterError, Result
from attacks.libraries import adapter, art, foolbox
from attacks.libraries.adapter import LibraryAttack
from attacks.models import Counted
from tests.conftest import Linear

ROWS = (*foolbox.ATTACKS, *art.ATTACKS)
EPS = {"linf": 0.2, "l2": 2.0, "l1": 20.0, "l0": 20}
SIDE, CLASSES, COUNT = 16, 5, 4
BLIND = {
    "noise",
    "noise_l2",
    "gaussian_l2",
    "clipping_noise_l2",
    "clipping_gaussian_l2",
    "contrast_l2",
    "inversion",
}
"""foolbox's attacks that never ask the model."""


def cases(rows: tuple[LibraryAttack, ...] = ROWS) -> list[Any]:
    """A row and a goal each; slow rows marked so."""
    return [
        pytest.param(
            row, goal, id=f"{row.name}-{goal}", marks=[pytest.mark.slow] if "slow" in row.tags else []
        )
        for row in rows
        for goal in row.goals
    ]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """Small, with dropout and batch norm, which tell a training pass from another."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 5, stride=2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(144, CLASSES),
        )
        model(torch.rand(256, 1, SIDE, SIDE))  # moves the batch norm's statistics off their start
        with torch.no_grad():
            model[-1].weight *= 4
    return model.eval()


@pytest.fixture(scope="module")
def data(net: nn.Module) -> tuple[Tensor, Tensor]:
    """Grey images with noise, and the classes that the net gives them."""
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(COUNT, 1, SIDE, SIDE, generator=generator)
    with torch.no_grad():
        return images, net(images).argmax(1)


CHEAP = {"steps": 4, "k": 10, "num_trial": 10, "query_limit": 200, "max_eval": 50, "init_eval": 10}
"""The most that a slow row gets here."""


def run(row: LibraryAttack, goal: str, net: nn.Module, data: tuple[Tensor, Tensor], **more: Any) -> Result:
    images, labels = data
    if "slow" in row.tags:
        more = {**{k: min(v, CHEAP[k]) for k, v in row.parameters().items() if k in CHEAP}, **more}
    if row.bounded:
        more = {"eps": EPS[row.norm], **more}
    targets = (labels + 1) % CLASSES if goal == "targeted" else None
    return attacks.run(row.name, net, images, labels, targets=targets, **more)


def generators() -> tuple[bytes, bytes, str]:
    numpy: Any = np.random.get_state()
    return (
        torch.get_rng_state().numpy().tobytes(),
        numpy[1].tobytes() + bytes(str(numpy[2:]), "ascii"),
        repr(random.getstate()),
    )


# Agreement -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("library", ["foolbox", "art"])
@pytest.mark.parametrize(
    ("short", "parameters"),
    [
        ("fgsm", {"eps": 0.1}),
        ("pgd", {"eps": 0.1, "steps": 7, "step_size": 0.03, "random_start": False}),
        ("pgd", {"eps": 0.1, "steps": 7, "random_start": False}),
        # One step: from then on ART projects onto the box first, others onto the ball.
        ("pgd_l2", {"eps": 1.5, "steps": 1, "step_size": 0.4, "random_start": False}),
        ("pgd_l2", {"eps": 1.5, "steps": 1, "random_start": False}),
    ],
)
def test_the_same_attack_gives_the_same_images(
    library: str,
    short: str,
    parameters: dict[str, Any],
    targeted: bool,
    relu: nn.Module,
    mnist: tuple[Tensor, Tensor],
) -> None:
    images, labels = mnist[0][:16], mnist[1][:16]
    targets = random_targets(labels, 10, 0, range(16)) if targeted else None
    ours = attacks.run(short, relu, images, labels, targets=targets, stop="never", keep="last", **parameters)
    theirs = attacks.run(f"{library}/{short}", relu, images, labels, targets=targets, **parameters)
    assert (ours.images - images).abs().amax() > 0.05
    assert (ours.images - theirs.images).abs().amax() < 1e-6


@pytest.mark.parametrize("library", ["foolbox", "art"])
def test_passes_are_counted(library: str, net: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    result = attacks.run(f"{library}/pgd", net, *data, eps=0.1, steps=7)
    assert result.backwards.tolist() == [7] * COUNT
    assert 7 <= result.forwards[0] <= 9


def test_true_labels_are_the_ones_to_leave(net: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    """ART, left alone, takes the model's own predictions for labels."""
    images, labels = data
    others = (labels + 2) % CLASSES
    ours, theirs = (
        attacks.run(name, net, images, others, eps=0.05, steps=1, random_start=False, **more).images
        for name, more in (("pgd", {"stop": "never", "keep": "last"}), ("art/pgd", {}))
    )
    assert (ours - theirs).abs().amax() < 1e-6


# The contract --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "goal"), cases())
def test_contract(
    row: LibraryAttack,
    goal: str,
    net: nn.Module,
    data: tuple[Tensor, Tensor],
    capfd: pytest.CaptureFixture[str],
) -> None:
    images = data[0]
    before, kept = generators(), images.clone()
    net.train()
    net[0].weight.requires_grad_(False)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    capfd.readouterr()
    try:
        result = run(row, goal, net, data)
        assert generators() == before
        assert net.training
        assert net[4].training
        assert [p.requires_grad for p in net.parameters()] == [False, True, True, True, True, True]
        assert all(p.grad is None for p in net.parameters())
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    finally:
        net.eval().requires_grad_(True)
    assert capfd.readouterr() == ("", "")

    assert torch.equal(images, kept)
    found = result.images
    assert found.shape == images.shape
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert found.min() >= -1e-6
    assert found.max() <= 1 + 1e-6
    if row.bounded:
        delta = (found.double() - images.double()).flatten(1)
        size = (delta.abs() > 1e-6).sum(1) if row.norm == "l0" else delta.norm(dim=1, p=float(row.norm[1:]))
        assert size.max() <= EPS[row.norm] + 1e-6
    for count in (result.forwards, result.backwards, result.steps, result.zero_gradients):
        assert count.shape == (COUNT,)
        assert count.dtype == torch.long
    assert bool((result.forwards > 0).all()) == (row.library != "foolbox" or row.short not in BLIND)
    assert bool((result.backwards > 0).all()) == ("gradient" in row.tags)

    if "unseeded" not in row.tags:
        assert torch.equal(run(row, goal, net, data).images, found)


SURE = tuple(row for row in ROWS if "gradient" in row.tags and "slow" not in row.tags)


@pytest.mark.parametrize(("row", "goal"), cases(SURE))
def test_a_gradient_fools(row: LibraryAttack, goal: str, net: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    labels = data[1]
    with torch.no_grad():
        answer = net(run(row, goal, net, data).images).argmax(1)
    reached = answer == (labels + 1) % CLASSES if goal == "targeted" else answer != labels
    assert reached.sum() >= COUNT / 2


@pytest.mark.parametrize("name", ["foolbox/pgd", "art/pgd"])
def test_the_seed_decides(name: str, net: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    first, again, other = (
        attacks.run(name, net, *data, eps=0.1, steps=1, step_size=1e-4, seed=seed).images
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert (first - other).abs().amax() > 0.01


@pytest.mark.parametrize("name", ["foolbox/sparse_l1_descent", "art/spatial"])
def test_images_attacked_alone_do_not_depend_on_their_batch(
    name: str, net: nn.Module, data: tuple[Tensor, Tensor]
) -> None:
    images, labels = data
    more = {"eps": 5.0} if "l1" in name else {}
    together = attacks.run(name, net, images, labels, **more).images
    apart = attacks.run(name, net, images[2:], labels[2:], ids=range(2, COUNT), **more).images
    assert torch.equal(together[2:], apart)


@pytest.mark.parametrize("library", ["foolbox", "art"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_switched_off_outside(
    library: str, mode: Any, net: nn.Module, data: tuple[Tensor, Tensor]
) -> None:
    plain = attacks.run(f"{library}/bim", net, *data, eps=0.1)
    with mode():
        images, labels = (part.clone() for part in data)
        inside = attacks.run(f"{library}/bim", net, images, labels, eps=0.1)
        assert not torch.is_grad_enabled()
    assert torch.equal(plain.images, inside.images)


@pytest.mark.parametrize("library", ["foolbox", "art"])
def test_a_model_may_be_a_bare_function(library: str, net: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    plain = attacks.run(f"{library}/bim", net, *data, eps=0.1).images
    assert torch.equal(attacks.run(f"{library}/bim", lambda x: net(x), *data, eps=0.1).images, plain)


@pytest.mark.parametrize("library", ["foolbox", "art"])
def test_an_exception_leaves_everything_as_it_was(
    library: str, net: nn.Module, data: tuple[Tensor, Tensor]
) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > 3:
                raise ZeroDivisionError
            return self.net(x)

    model, before = Broken().train(), generators()
    try:
        with pytest.raises(ZeroDivisionError):
            attacks.run(f"{library}/pgd", model, *data, eps=0.1)
        assert generators() == before
        assert model.training
        assert all(p.requires_grad for p in model.parameters())
    finally:
        net.eval()


# The rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_nothing_is_left_to_the_librarys_defaults(row: LibraryAttack) -> None:
    importlib.import_module(f"attacks.libraries.{row.library}").load()
    module = importlib.import_module(
        {"foolbox": "foolbox.attacks", "art": "art.attacks.evasion"}[row.library]
    )
    taken = inspect.signature(getattr(module, row.cls).__init__).parameters.values()
    wanted = {p.name for p in taken if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    # Set by the adapter, or (the relative step) by an absolute one.
    given = {"self", "estimator", "classifier", "batch_size", "targeted", "summary_writer", "rel_stepsize"}
    eps = {"eps": 0.1} if row.bounded else {}
    told = set(row.configured(**eps).arguments())
    # ART's fgsm reads eps_step, and foolbox eps, elsewhere than in the constructor.
    assert wanted - given - told <= ({"eps_step"} if row.short.startswith("fgsm") else set())
    assert told - wanted <= {"eps"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_says_what_it_is(row: LibraryAttack) -> None:
    assert row.source
    assert row.tags & {"gradient", "score", "decision"}
    assert ("eps" in row.parameters()) == (row.norm != "unrestricted" and "minimal" not in row.tags)
    assert row.threat == attacks.Threat(row.norm)
    assert row.version.split()[0] == row.library
    if row.bounded:
        assert row.configured(eps=0.5).threat == attacks.Threat(row.norm, 0.5)
        with pytest.raises(ParameterError, match="needs eps"):
            row.run(None, torch.zeros(1), attacks.Goal("untargeted", torch.zeros(1)), [0], 1)
    else:
        with pytest.raises(UnknownNameError):
            row.configured(eps=0.5)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"step": 3}, UnknownNameError, "did you mean steps"),
        ({"steps": 0}, ParameterError, "steps"),
        ({"step_size": -1.0}, ParameterError, "step_size"),
        ({"random_start": 1}, ParameterError, "random_start"),
        ({"eps": 1.5}, ParameterError, "eps"),
        ({"eps": float("nan")}, ParameterError, "eps"),
    ],
)
def test_parameters_that_cannot_be_meant(
    parameters: dict[str, Any], error: type[Exception], message: str
) -> None:
    for name in ("foolbox/pgd", "art/pgd"):
        with pytest.raises(error, match=message):
            attacks.get(name).configured(**parameters)


def test_a_missing_step_is_the_default_one() -> None:
    for name, key in (("foolbox/pgd_l2", "abs_stepsize"), ("art/pgd_l2", "eps_step")):
        row: Any = attacks.get(name)
        assert row.configured(eps=2.0, steps=10).arguments()[key] == 0.5
        assert row.configured(eps=2.0, steps=10, step_size=0.1).arguments()[key] == 0.1


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_what_leaves_the_ball_is_brought_back(norm: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, 8, 8, generator=generator)
    far = torch.rand(6, 3, 8, 8, generator=generator)
    near = images + (far - images) * 1e-3
    back = adapter.within(torch.cat([far, near]), images.repeat(2, 1, 1, 1), norm, 0.3)
    size = (back.double() - images.repeat(2, 1, 1, 1)).flatten(1).norm(dim=1, p=float(norm[1:]))
    assert size.max() <= 0.3 + 1e-7
    assert size[:6].min() > 0.3 - 1e-4
    assert torch.equal(back[6:], near)


def test_a_failed_cw_does_not_return_a_black_image(net: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    images, labels = data
    found = attacks.run(
        "foolbox/cw_l2",
        net,
        images,
        labels,
        steps=1,
        step_size=1e-6,
        initial_const=1e-6,
        binary_search_steps=1,
    ).images
    assert torch.equal(found, images)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_library_is_told_that_no_image_has_no_class(bad: float) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Hardtanh())
    images = torch.rand(4, 1, 8, 8)
    given = images.clone()
    given[2, 0, 3, 3] = bad
    told, plain = Counted(lambda x: model(x.nan_to_num(0.5, 0.5))), model(images)
    assert told(given)[2].isnan().all()
    assert torch.equal(told(given)[[0, 1, 3]], plain[[0, 1, 3]])


def test_a_division_by_zero_in_art_makes_no_image() -> None:
    """Its Square divides by the length of an empty window; a network of signs took NaN for a success."""
    images, labels = (part[:20] for part in zoo.data("mnist"))
    found = attacks.run("art/square_l2", zoo.load("mnist_bnn"), images, labels, eps=1.5).images
    assert found.isfinite().all()


def test_art_writes_nothing_into_the_home(tmp_path: Path) -> None:
    code = (
        "import torch, attacks\n"
        "net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))\n"
        "attacks.run('art/fgsm', net, torch.rand(2, 1, 8, 8), torch.tensor([0, 1]), eps=0.1)\n"
        "import art.config, os; assert os.environ['HOME'] in art.config.ART_DATA_PATH\n"
    )
    env = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    tmp_path.chmod(0o555)
    subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)
    assert not (tmp_path / ".art").exists()


@pytest.mark.parametrize("name", ["foolbox/fgsm", "art/fgsm"])
def test_a_librarys_batch_without_memory_is_halved(name: str, grey: Tensor) -> None:
    model, seen = Linear(), []

    def small(x: Tensor) -> Tensor:
        seen.append(len(x))
        if len(x) > 5:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return model(x)

    labels = model(grey).argmax(1)
    found = attacks.run(name, small, grey, labels, eps=0.1)
    assert [size for size in seen if size > 5] == [24, 12, 6]
    torch.testing.assert_close(found.images, attacks.run(name, model, grey, labels, eps=0.1).images)
