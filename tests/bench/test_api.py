"""`bench.evaluate` at the door: what cannot be meant is named in a line, and the model is left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bench
from adversarial_bench.errors import UserError
from bench.runner import check_model
from tests.conftest import Linear, check_left_as_it_was

IMAGES = torch.full((4, 1, 4, 4), 0.5)
LABELS = torch.tensor([0, 1, 2, 0])


def call(**other: Any) -> Any:
    given: dict[str, Any] = {
        "model": Linear(),
        "attacks": "fgsm",
        "images": IMAGES,
        "labels": LABELS,
        "eps": 0.1,
    }
    return bench.evaluate(**{**given, **other})


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"attacks": "pdg"}, "did you mean pgd"),
        ({"attacks": []}, "bench list attacks"),
        ({"model": "mnist_cnn"}, r"zoo.load\('mnist_cnn'\)"),
        ({"model": nn.Conv2d(3, 2, 3)}, r"fails on images \(1, 1, 4, 4\)"),
        ({"images": IMAGES.numpy()}, "images must be a torch.Tensor"),
        ({"images": IMAGES * 255}, r"lie in \[0, 1\].*127.5"),
        ({"labels": LABELS + 1}, "labels must be from 0 to 2"),
        ({"labels": LABELS.float()}, "labels must be integers"),
        ({"targets": LABELS}, "targets must differ from the labels; that of image 0"),
        ({"targets": LABELS + 1}, "targets must be from 0 to 2"),
        ({"eps": "0.1"}, "eps must be in .* got '0.1'"),
        ({"eps": [0.1, 2]}, "eps must be in .* got 2"),
        ({"eps": torch.tensor(0.1)}, "eps must be in"),
        ({"restarts": 0}, "restarts must be a whole number"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"eot": 0}, "eot must be a whole number"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.filterwarnings("ignore:model")
def test_what_cannot_be_meant_is_named_in_a_line(wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        call(**wrong)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.filterwarnings("ignore:model")
def test_a_module_in_train_mode_is_left_as_it_was() -> None:
    check_left_as_it_was(lambda net: call(model=net))


def test_a_model_that_raises_without_a_message_is_named() -> None:
    def fails(x: Tensor) -> Tensor:
        raise NotImplementedError

    with pytest.raises(UserError, match=r"fails on images .*: NotImplementedError"):
        check_model("mine", fails, IMAGES, 3)
