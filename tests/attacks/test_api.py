"""`attacks.run` at the door: what cannot be meant is named in a line, and the model is left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attacks
from adversarial_bench.errors import UserError
from attacks.api import InputError
from attacks.core import ParameterError
from tests.conftest import Linear, check_left_as_it_was

IMAGES = torch.full((4, 1, 4, 4), 0.5)
LABELS = torch.tensor([0, 1, 2, 0])


def call(**other: Any) -> attacks.Result:
    given: dict[str, Any] = {"name": "pgd", "model": Linear(), "images": IMAGES, "labels": LABELS, "eps": 0.1}
    return attacks.run(**{**given, **other})


def fails(x: Tensor) -> Tensor:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"name": "pdg"}, "did you mean pgd"),
        ({"model": "mnist_cnn"}, r"got str; zoo.load\('mnist_cnn'\)"),
        ({"model": nn.Conv2d(3, 2, 3)}, r"fails on images \(1, 1, 4, 4\): RuntimeError: .*channels"),
        ({"model": fails}, r"fails on images \(1, 1, 4, 4\): NotImplementedError"),
        ({"model": nn.Conv2d(1, 2, 3)}, r"logits \(B, K\); on images \(1, 1, 4, 4\) got \(1, 2, 2, 2\)"),
        ({"images": IMAGES.numpy()}, "images must be a torch.Tensor .*; got ndarray"),
        ({"images": IMAGES[0]}, r"\(N, C, H, W\).*\(1, 4, 4\)"),
        ({"images": IMAGES[:0]}, "N > 0"),
        ({"images": (IMAGES * 255).byte()}, "uint8, which images.float\\(\\) / 255"),
        ({"images": IMAGES.double()}, "float32.*float64"),
        ({"images": IMAGES + 1}, "from 1.5 to 1.5"),
        ({"images": IMAGES * torch.nan}, "nan"),
        ({"labels": [0, 1, 2, 0]}, "labels must be a torch.Tensor .*; got list"),
        ({"labels": LABELS[:3]}, r"\(4,\), one per image; got shape \(3,\)"),
        ({"labels": nn.functional.one_hot(LABELS)}, r"got shape \(4, 3\)"),
        ({"labels": LABELS.float()}, "integers.*float32"),
        ({"labels": LABELS + 1}, "labels must be from 0 to 2: the model has 3 outputs; got 3"),
        ({"labels": LABELS - 1}, "from 0 to 2.*got -1"),
        ({"targets": LABELS + 1}, "targets must be from 0 to 2"),
        ({"targets": LABELS[:2]}, r"targets must be \(4,\)"),
        ({"ids": [1, 2]}, "ids must be 4"),
        ({"restarts": 0}, "restarts must be a whole number from 1 on; got 0"),
        ({"batch_size": -1}, "batch_size must be a whole number from 1 on"),
        ({"eps": "0.1"}, r"eps must be in \(0, 1\]"),
        ({"name": "standard", "trace": True}, "keeps no trace"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_meant_is_named_in_a_line(wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        call(**wrong)
    assert isinstance(caught.value, (InputError, ParameterError, KeyError))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
def test_labels_may_be_any_integers(kind: torch.dtype) -> None:
    assert torch.equal(call(labels=LABELS.to(kind)).images, call().images)


def test_a_generating_attack_takes_the_classes_to_make_and_a_channel_any_number() -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(32, 3))
    assert call(name="logit_ascent", model=net, eps=None, steps=1).images.shape == IMAGES.shape
    assert len(call(name="feature_ascent", model=net, eps=None, steps=1, labels=LABELS + 5).images) == 4


@pytest.mark.parametrize("name", ["pgd", "standard"])
def test_a_module_in_train_mode_is_left_as_it_was(name: str) -> None:
    """The pass that counts the classes neither moves batch norm's statistics nor fails on one image."""
    check_left_as_it_was(lambda net: call(name=name, model=net))


def test_the_restarts_of_a_variant_count(linear: Linear, grey: Tensor) -> None:
    labels = linear(grey).argmax(1)
    given: dict[str, Any] = {"model": linear, "images": grey, "labels": labels, "eps": 1e-4, "steps": 3}
    assert call(name="pgd:restarts=3", **given).steps.tolist() == [9] * len(grey)
