"""The networks as the assignments give them, and the weights as their manifests say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import zoo
from adversarial_bench.errors import UnknownNameError
from zoo.models.binary import Sign, SignFunction
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


def test_sign_and_its_straight_through_gradient() -> None:
    x = torch.tensor([-2.0, -1.0, -0.3, -0.0, 0.0, 0.5, 1.0, 1.5], requires_grad=True)
    y = SignFunction.apply(x)
    assert y.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    y.backward(torch.full_like(x, 3.0))
    assert x.grad is not None
    assert x.grad.tolist() == [0, 3, 3, 3, 3, 3, 3, 0]


@pytest.mark.parametrize("name", zoo.names())
def test_the_shipped_weights_reach_the_accuracy_of_their_manifest(
    name: str, mnist: tuple[Tensor, Tensor]
) -> None:
    model = zoo.load(name)
    with torch.no_grad():
        right = sum(
            int((model(x).argmax(1) == y).sum()) for x, y in zip(mnist[0].split(500), mnist[1].split(500))
        )
    recorded = manifest(name)
    assert recorded["test_images"] == 10_000
    # Another processor may round a borderline image to the other side.
    assert abs(right / 10_000 - recorded["test_accuracy"]) <= 0.0003
    assert right >= 9_900
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
    for name in zoo.names():
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
