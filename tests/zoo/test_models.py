"""The networks as the assignments give them, and the weights as their manifests say."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import zoo
from adversarial_bench.errors import UnknownNameError
from tests.conftest import TRAINED
from zoo.cards import Recipe
from zoo.models.binary import Sign, SignFunction
from zoo.models.layers import Standardize
from zoo.registry import WEIGHTS, ModelError, fingerprint, manifest


def count(module: nn.Module, kind: type[nn.Module]) -> int:
    return sum(p.numel() for m in module.modules() if isinstance(m, kind) for p in m.parameters())


def test_mnist_cnn_has_the_parameters_of_pa2() -> None:
    model = zoo.card("mnist_cnn").build()
    assert sum(p.numel() for p in model.parameters()) == 799_078
    assert count(model, nn.Conv2d) == 9_568
    assert count(model, nn.Linear) == 789_510


def test_batch_norm_follows_each_pool() -> None:
    kinds = [type(m) for m in zoo.card("mnist_cnn_bn").build()]
    after = [kinds[i + 1] for i, kind in enumerate(kinds) if kind is nn.MaxPool2d]
    assert after == [nn.BatchNorm2d, nn.BatchNorm2d]


def test_the_binary_network_is_the_relu_network_with_sign() -> None:
    relu, bnn = zoo.card("mnist_relu").build(), zoo.card("mnist_bnn").build()
    assert [p.shape for p in relu.parameters()] == [p.shape for p in bnn.parameters()]
    swapped = [(type(a), type(b)) for a, b in zip(relu, bnn) if type(a) is not type(b)]
    assert swapped == [(nn.ReLU, Sign)] * 6
    assert isinstance(bnn[-1], nn.Linear)
    strides = [m.stride[0] for m in relu if isinstance(m, nn.Conv2d)]
    widths = [m.out_channels for m in relu if isinstance(m, nn.Conv2d)]
    assert (strides, widths) == ([1, 2, 2, 2, 2], [32, 64, 128, 128, 128])


# Weights and biases of each layer, and gain and shift of each batch norm.
CIFAR_CNN = [
    75 * 32 + 32,
    64,
    25 * 32 * 32 + 32,
    64,
    25 * 32 * 64 + 64,
    128,
    1024 * 64 + 64,
    128,
    64 * 10 + 10,
]
CIFAR_VGG = [
    27 * 32 + 32,
    9 * 32 * 32 + 32,
    9 * 32 * 64 + 64,
    9 * 64 * 64 + 64,
    9 * 64 * 128 + 128,
    9 * 128 * 128 + 128,
    2048 * 128 + 128,
    128 * 10 + 10,
]


@pytest.mark.parametrize(
    ("name", "counts", "total", "sides"),
    [
        ("cifar_cnn@norm", CIFAR_CNN, 145_962, [32, 16, 8]),
        ("cifar_vgg", CIFAR_VGG, 550_570, [32, 32, 16, 16, 8, 8]),
    ],
)
def test_the_cifar_networks_have_the_layers_of_the_assignments(
    name: str, counts: list[int], total: int, sides: list[int]
) -> None:
    model = zoo.card(name).build()
    assert isinstance(model, nn.Sequential)
    found = [sum(p.numel() for p in layer.parameters()) for layer in model]
    assert [n for n in found if n] == counts
    assert sum(found) == total
    seen: list[int] = []
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda layer, x, y: seen.append(y.shape[-1]))
    assert model.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert seen == sides, "padding keeps the size; pooling halves it"


def test_what_the_assignments_say_of_the_cifar_networks() -> None:
    kinds = [type(layer) for layer in zoo.card("cifar_cnn@raw").build()]
    block = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.AvgPool2d]
    assert kinds == [*block * 3, nn.Flatten, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    vgg = zoo.card("cifar_vgg").build()
    half = [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Dropout]
    head = [nn.Flatten, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert [type(layer) for layer in vgg] == [Standardize, *half * 3, *head]
    assert {layer.p for layer in vgg if isinstance(layer, nn.Dropout)} == {0.2}
    for layer in vgg:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            fan_in, largest = layer.weight[0].numel(), float(layer.weight.detach().abs().max())
            assert 0.97 * (6 / fan_in) ** 0.5 < largest <= (6 / fan_in) ** 0.5, "He-uniform"
            assert not layer.bias.any()


def test_normalised_and_raw_pixels_differ() -> None:
    images, _ = zoo.data("cifar10")
    raw, norm = zoo.card("cifar_cnn@raw").build(), zoo.card("cifar_cnn@norm").build()
    assert not any(isinstance(layer, Standardize) for layer in raw)
    scaled = norm.get_submodule("scale")(images)
    # The first 1000 test images are not the training images, but near them.
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=0.05)
    torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(3), rtol=0, atol=0.05)


def test_a_model_that_is_not_trained_says_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("zoo.registry.WEIGHTS", tmp_path)
    assert zoo.names(trained=True) == []
    assert "cifar_vgg" in zoo.names()
    with pytest.raises(ModelError, match="`bench train cifar_vgg` makes them"):
        zoo.load("cifar_vgg")


def test_a_manifest_has_every_setting_of_a_recipe() -> None:
    recorded = manifest("mnist_bnn")["recipe"]
    assert set(recorded) == {each.name for each in fields(Recipe)}
    assert (recorded["optimizer"], recorded["flip"], recorded["steps"], recorded["shift"]) == (
        "adam",
        False,
        None,
        1,
    )
    assert Recipe(**{**recorded, "fill": tuple(recorded["fill"])}) == zoo.card("mnist_bnn").recipe


def test_a_setting_that_an_older_manifest_lacks_is_the_one_that_a_newer_one_has() -> None:
    older, newer = manifest("mnist_cnn")["recipe"], manifest("mnist_cnn@smooth_labels")["recipe"]
    assert {key for key in newer if older[key] != newer[key]} == {"smoothing", "half"}


def test_sign_and_its_straight_through_gradient() -> None:
    x = torch.tensor([-2.0, -1.0, -0.3, -0.0, 0.0, 0.5, 1.0, 1.5], requires_grad=True)
    y = SignFunction.apply(x)
    assert y.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    y.backward(torch.full_like(x, 3.0))
    assert x.grad is not None
    assert x.grad.tolist() == [0, 3, 3, 3, 3, 3, 3, 0]


# The assignments ask for 99 % on MNIST. Defences cost accuracy.
LEAST = {"mnist": 0.99, "cifar10": 0.78}
LEAST_DEFENDED = {"mnist": 0.9, "cifar10": 0.4}


@pytest.mark.parametrize("name", TRAINED)
def test_the_shipped_weights_reach_the_accuracy_of_their_manifest(name: str) -> None:
    model, dataset = zoo.load(name), zoo.card(name).dataset
    images, labels = zoo.data(dataset)
    with torch.no_grad():
        right = sum(
            int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500))
        )
    recorded = manifest(name)
    assert recorded["test_images"] == 10_000
    # Another processor may round a borderline image to the other side; of CIFAR-10, the first 1000 may be
    # all that is here, and 4.5 standard errors of theirs are 6 points.
    tolerance = 0.0003 if len(images) == 10_000 else 0.06
    assert abs(right / len(images) - recorded["test_accuracy"]) <= tolerance
    defended = (dataset == "mnist" and "@" in name) or zoo.card(name).recipe.adversary is not None
    assert recorded["test_accuracy"] >= (LEAST_DEFENDED if defended else LEAST)[dataset]
    assert recorded["recipe"]["seed"] == 0
    assert len(recorded["curve"]) == recorded["recipe"]["epochs"] == zoo.card(name).recipe.epochs


def test_loading_gives_eval_mode() -> None:
    assert not any(m.training for m in zoo.load("mnist_cnn_bn").modules())


def test_damaged_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in ("safetensors", "json"):
        shutil.copy(WEIGHTS / f"mnist_relu.{suffix}", tmp_path)
    monkeypatch.setattr("zoo.registry.WEIGHTS", tmp_path)
    zoo.load("mnist_relu")
    data = bytearray((tmp_path / "mnist_relu.safetensors").read_bytes())
    data[-5] ^= 1
    (tmp_path / "mnist_relu.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match="damaged"):
        zoo.load("mnist_relu")
    (tmp_path / "mnist_relu.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights file"):
        zoo.load("mnist_relu")


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not fit mnist_cnn"):
        zoo.load("mnist_cnn", weights=WEIGHTS / "mnist_relu.safetensors")
    broken = tmp_path / "w.safetensors"
    broken.write_bytes(b"\x80\x04pickle")
    with pytest.raises(ModelError, match="not a readable safetensors"):
        zoo.load("mnist_cnn", weights=broken)


def test_an_unknown_model_gets_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="mnist_bnn"):
        zoo.load("mnist_bnnn")


def test_a_model_of_the_users_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\ndef build(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))"
    )
    assert zoo.load(f"{file}:build")(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    for content, complaint in (
        ("def build(): return 3", "returned a int"),
        ("def build(): raise OSError('no')", "OSError: no"),
        ("x = (", "cannot be built"),
    ):
        file.write_text(content)
        with pytest.raises(ModelError, match=complaint):
            zoo.load(f"{file}:build")
    with pytest.raises(ModelError, match="no file"):
        zoo.load("absent.py:build")


def test_the_fingerprint_changes_with_one_bit(relu: nn.Module) -> None:
    twin = zoo.load("mnist_relu")
    assert fingerprint(twin) == fingerprint(relu)
    with torch.no_grad():
        twin[-1].bias[0] += 1e-6  # type: ignore[index,union-attr]
    assert fingerprint(twin) != fingerprint(relu)


def test_the_manifest_is_json_with_a_command() -> None:
    for name in zoo.names(trained=True):
        found = json.loads((WEIGHTS / f"{name}.json").read_text())
        assert found["command"] == f"bench train {name}"


def test_noise_before_a_network(relu: nn.Module, mnist: tuple[Tensor, Tensor]) -> None:
    noisy, x = zoo.load("mnist_relu+gaussian0.25"), mnist[0][:8]
    torch.manual_seed(0)
    drawn = noisy(x)
    torch.manual_seed(0)
    torch.testing.assert_close(drawn, relu(x + 0.25 * torch.randn_like(x)))
    assert not torch.equal(noisy(x), drawn), "drawn anew"
    assert len({fingerprint(zoo.load(f"mnist_relu{s}")) for s in ("", "+gaussian0.25", "+gaussian0.5")}) == 3
    card = zoo.card("mnist_relu+gaussian0.25")
    assert (card.name, card.dataset, card.peer) == ("mnist_relu+gaussian0.25", "mnist", None)
    assert card.build()(x).shape == (8, 10)
    with pytest.raises(UnknownNameError, match="mnist_relu"):
        zoo.load("mnist_rely+gaussian0.25")


@pytest.mark.parametrize("sigma", ["", "0", "-1", "nan", "inf", "big"])
def test_noise_takes_a_deviation_above_0(sigma: str) -> None:
    with pytest.raises(ModelError, match=r"as in mnist_relu\+gaussian0\.25"):
        zoo.card(f"mnist_relu+gaussian{sigma}")
