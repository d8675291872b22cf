"""The judge trusts nobody."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.core import Goal, Threat
from bench.judge import distances, judge, violation
from tests.conftest import Linear

X = torch.full((1, 1, 4, 4), 0.5)


def verdict(images: Tensor, threat: Threat, x: Tensor = X) -> dict[str, object]:
    model = Linear(classes=2)
    label = model(images.nan_to_num()).argmax(1)
    found = judge(model, images, x, Goal("untargeted", 1 - label), threat, 8)
    return {key: value[0] for key, value in found.items()}


def test_feasible_success() -> None:
    found = verdict(X + 0.1, Threat("linf", 0.1))
    assert found["feasible"]
    assert found["success"]
    assert abs(found["linf"] - 0.1) < 1e-6  # type: ignore[operator]


def test_beyond_eps_is_no_success() -> None:
    found = verdict(X + 0.1001, Threat("linf", 0.1))
    assert not found["feasible"]
    assert not found["success"]


def test_outside_the_box_is_no_success() -> None:
    found = verdict(X * 0 + 1.01, Threat("unrestricted"))
    assert not found["success"]
    assert abs(found["violation"] - 0.01) < 1e-6  # type: ignore[operator]


def test_nan_is_no_success() -> None:
    image = X.clone()
    image[0, 0, 0, 0] = float("nan")
    found = verdict(image, Threat("unrestricted"))
    assert (found["adv_label"], found["success"], found["feasible"]) == (-1, False, False)
    assert found["violation"] == float("inf")


def test_erased_ink_is_seen_to_the_last_bit() -> None:
    just_below = torch.nextafter(X, torch.zeros(1))
    assert violation(just_below, X, Threat("ink"))[0] > 1e-6
    assert violation(X + 0.2, X, Threat("ink"))[0] == 0


def test_every_norm_is_measured() -> None:
    image = X.clone()
    image[0, 0, 0, 0] += 0.3
    image[0, 0, 1, 1] -= 0.4
    found = distances(image, X)
    assert [round(float(found[n][0]), 5) for n in ("l0", "l1", "l2", "linf")] == [2, 0.7, 0.5, 0.4]
    colour = torch.zeros(1, 3, 2, 2)
    changed = colour.clone()
    changed[0, :, 0, 0] = 1.0
    assert distances(changed, colour)["l0"][0] == 1, "a pixel is one, whatever its channels"
