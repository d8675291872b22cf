"""Other people's networks: what they are scaled by, where their weights come from, and what is refused."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import zoo
from adversarial_bench.errors import UnknownNameError
from zoo import Build
from zoo.cards import ModelError
from zoo.models import external
from zoo.models.layers import Scaled
from zoo.registry import fingerprint, untrained

SMALL = {"timm": "timm:resnet10t", "torchvision": "torchvision:shufflenet_v2_x0_5"}
FACTORIES = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class Shape:
    pixels: int = 784

def bare():
    return nn.Sequential(nn.Flatten(), nn.Linear(Shape().pixels, 10))
def headed(num_classes=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes))
def fetching(pretrained=False):
    net = bare()
    nn.init.constant_(net[1].bias, float(pretrained))
    return net
def talks():
    print("building")
    return bare()
def stops():
    raise SystemExit(3)
"""


@pytest.fixture(scope="module")
def libraries() -> None:
    """Skips where torchvision, which timm stands on, was made for another torch than is installed."""
    try:
        import timm  # noqa: F401
    except RuntimeError as error:
        pytest.skip(f"timm cannot be imported: {error}")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FACTORIES)
    return path


def own_scaling(library: str, name: str) -> tuple[Any, Any]:
    if library == "timm":
        import timm

        found = timm.models.get_pretrained_cfg(name)
        return found.mean, found.std
    from torchvision import models

    found = models.get_model_weights(name).DEFAULT.transforms()
    return found.mean, found.std


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("library", SMALL)
def test_a_librarys_network_stands_behind_its_own_scaling(library: str) -> None:
    name = SMALL[library]
    model = zoo.load(name, num_classes=5)
    assert isinstance(model, Scaled)
    assert not model.training
    shape, outputs = zoo.takes(name)
    assert (shape, outputs) == (zoo.card(name).shape, None)
    assert zoo.takes(name, pretrained=True) == (shape, 1000)
    assert shape is not None
    x = torch.rand(2, *shape)
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1) for values in own_scaling(library, name[len(library) + 1 :])
    )
    assert 0.2 < float(mean.mean()) < 0.6
    with torch.no_grad():
        torch.testing.assert_close(model(x), model.net((x - mean) / std))
        assert model(x).shape == (2, 5)
        assert zoo.load(name)(x).shape == (2, 1000)


@pytest.mark.usefixtures("libraries")
def test_random_weights_are_those_of_the_name() -> None:
    name = SMALL["timm"]
    before = torch.get_rng_state()
    first = zoo.load(name, num_classes=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert fingerprint(zoo.load(name, num_classes=4)) == fingerprint(first)
    assert "random weights" in zoo.card(name).summary
    assert untrained(name, Build())
    assert untrained(f"{name}+gaussian0.1", Build(num_classes=4))
    assert not untrained(name, Build(weights="w.pt"))
    assert not untrained(name, Build(pretrained=True))
    assert not untrained("mnist_relu", Build())


@pytest.mark.usefixtures("libraries")
def test_a_librarys_network_takes_a_state_dict_of_the_bare_one(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(3)
    trained = timm.create_model("resnet10t", num_classes=4).eval()
    path = tmp_path / "trained.pth"
    torch.save({"model": {f"module.{k}": v for k, v in trained.state_dict().items()}, "epoch": 9}, path)
    model = zoo.load(SMALL["timm"], weights=path, num_classes=4)
    assert isinstance(model, Scaled)
    x = torch.rand(2, 3, 176, 176)
    with torch.no_grad():
        torch.testing.assert_close(model(x), trained(model.scale(x)))
    with pytest.raises(ModelError, match=r"does not fit timm:resnet10t.*\[4, 512\]"):
        zoo.load(SMALL["timm"], weights=path)


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("timm:resnet10tt", "timm:resnet10t"),
        ("timm:resnet10t.c3_in1", "timm:resnet10t.c3_in1k"),
        ("torchvision:resnet81", "torchvision:resnet18"),
    ],
)
def test_an_unknown_name_of_a_library_gets_the_nearest(name: str, near: str) -> None:
    library = name.partition(":")[0]
    with pytest.raises(UnknownNameError, match=near) as told:
        zoo.load(name)
    assert f"bench list models '{library}:*'" in str(told.value)


@pytest.mark.usefixtures("libraries")
def test_pretrained_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Nobody listens there, and nothing is in the cache.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = SMALL["torchvision"]
    with pytest.raises(ModelError, match=f"{name}: its weights cannot be downloaded: URLError"):
        zoo.load(name, pretrained=True)
    with pytest.raises(ModelError, match="has 1000 outputs, not 10"):
        zoo.load(name, pretrained=True, num_classes=10)
    with pytest.raises(ModelError, match="choose one"):
        zoo.load(name, pretrained=True, weights="w.pt")
    import timm

    bare = next(name for name in timm.list_models() if not timm.is_model_pretrained(name))
    with pytest.raises(ModelError, match=f"timm has no weights for timm:{bare}"):
        zoo.load(f"timm:{bare}", pretrained=True)


@pytest.fixture
def forgotten() -> Iterator[None]:
    external.names.cache_clear()
    yield
    external.names.cache_clear()


@pytest.mark.usefixtures("forgotten")
def test_a_library_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match="timm cannot be imported here: ModuleNotFoundError"):
        zoo.card("timm:resnet10t")


def test_a_factory_gets_what_it_takes(file: Path) -> None:
    x = torch.zeros(2, 1, 28, 28)
    assert zoo.load(f"{file}:headed")(x).shape == (2, 3)
    assert zoo.load(f"{file}:headed", num_classes=7)(x).shape == (2, 7)
    assert zoo.load(f"{file}:bare", num_classes=7)(x).shape == (2, 10)
    assert zoo.load(f"{file}:fetching", pretrained=True)[1].bias.eq(1).all()  # type: ignore[index]
    with pytest.raises(ModelError, match="takes no `pretrained`"):
        zoo.load(f"{file}:bare", pretrained=True)
    assert zoo.takes(f"{file}:bare") == (None, None)
    assert zoo.card(f"{file}:bare").dataset == ""


def test_a_factory_that_draws_draws_the_same_in_every_process(file: Path) -> None:
    torch.manual_seed(1)
    first = zoo.load(f"{file}:bare")
    torch.manual_seed(2)
    assert fingerprint(zoo.load(f"{file}:bare")) == fingerprint(first)
    assert fingerprint(zoo.load(f"{file}:headed", num_classes=10)) != fingerprint(first)


def test_what_a_factory_prints_is_kept_off_stdout(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zoo.load(f"{file}:talks")
    assert capsys.readouterr() == ("", "building\n")


def test_a_function_that_is_not_there_gets_the_nearest(file: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean headed"):
        zoo.load(f"{file}:head")
    with pytest.raises(ModelError, match="cannot be built: SystemExit: 3"):
        zoo.load(f"{file}:stops")


def linear() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dicts_are_unpacked(file: Path, key: str | None, prefix: str) -> None:
    trained, x = linear(), torch.rand(3, 1, 28, 28)
    state: dict[str, Any] = {prefix + name: value for name, value in trained.state_dict().items()}
    path = file.with_name("w.pt")
    torch.save(state if key is None else {key: state, "epoch": 3}, path)
    torch.testing.assert_close(zoo.load(f"{file}:bare", weights=path)(x), trained(x))
    if key is None:
        save_file(state, file.with_name("w.safetensors"))
        torch.testing.assert_close(
            zoo.load(f"{file}:bare", weights=file.with_name("w.safetensors"))(x), trained(x)
        )


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("w.pt", linear(), r"a pickle of more than tensors \(torch.nn.modules.container.Sequential\)"),
        ("w.pt", [1, 2], "holds a list, not a state dict"),
        ("w.pt", {}, "not a state dict"),
        ("w.pt", {"epoch": 3, "lr": 0.1}, "no tensor under 'epoch', 'lr'"),
        ("w.pt", {3: torch.zeros(1)}, "no tensor under 3"),
        ("w.pt", {"1.weight": torch.zeros(7, 784), "1.bias": torch.zeros(7)}, r"does not fit .*\[7, 784\]"),
        ("w.pt", {"fc.bias": torch.zeros(10)}, "does not fit .*Missing key"),
        ("w.pt", b"hello", "neither named .safetensors nor a state dict of torch.save"),
        ("w.pt", b"", "neither named .safetensors nor a state dict of torch.save"),
        # What torch says of it is advice to unpickle it all the same, over several lines.
        ("w.pt", pickle.dumps({"a": print}), "nor a state dict of torch.save$|pickle of more than tensors"),
        ("w.safetensors", {"1.bias": torch.zeros(10)}, "torch.save made it: name it .pt"),
        ("w.safetensors", b"hello", "not a readable safetensors file"),
    ],
    ids=lambda value: "" if isinstance(value, (dict, list, bytes, nn.Module)) else str(value)[:20],
)
@pytest.mark.filterwarnings("error")
def test_weights_that_are_none_are_refused(file: Path, name: str, content: Any, complaint: str) -> None:
    path = file.with_name(name)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ModelError, match=complaint) as told:
        zoo.load(f"{file}:bare", weights=path)
    assert len(str(told.value).splitlines()) == 1
    assert str(path) in str(told.value)


def test_half_a_file_of_weights_and_none(file: Path) -> None:
    path = file.with_name("w.pt")
    torch.save(linear().state_dict(), path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ModelError, match="not readable"):
        zoo.load(f"{file}:bare", weights=path)
    with pytest.raises(ModelError, match=r"no weights file .*absent\.pt"):
        zoo.load(f"{file}:bare", weights=file.with_name("absent.pt"))


def test_the_zoos_own_keep_their_head(mnist: tuple[Tensor, Tensor]) -> None:
    assert zoo.takes("mnist_relu") == ((1, 28, 28), 10)
    assert zoo.load("mnist_relu", num_classes=10)(mnist[0][:2]).shape == (2, 10)
    with pytest.raises(ModelError, match="mnist_relu has 10 outputs, not 7"):
        zoo.load("mnist_relu", num_classes=7)
