"""`bench figures`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zoo
from adversarial_bench.errors import UserError
from bench.figures import FIGURES
from bench.figures.draw import said
from bench.figures.occlusion import occluded
from bench.figures.study import Study
from bench.render.figure import save
from tests.bench.test_show import linear_file  # noqa: F401
from tests.conftest import Answer, Linear

Cli = Callable[..., Answer]
PNG = b"\x89PNG"


@pytest.mark.parametrize(("patch", "stride", "colour"), [(2, 1, 0.0), (2, 2, 1.0), (3, 1, 0.3)])
def test_occlusion_in_closed_form(patch: int, stride: int, colour: float, grey: Tensor) -> None:
    model = Linear(classes=3)
    weights = model.weights.detach().view(3, 4, 4)
    images, labels = grey[:5], torch.tensor([0, 1, 2, 0, 1])
    found = occluded(model, images, labels, patch, stride, colour, batch_size=4)
    side = (4 - patch) // stride + 1
    assert found.probability.shape == found.predicted.shape == (5, side, side)
    assert list(found.offsets[0]) == [stride * i for i in range(side)]
    for i in range(5):
        for r in range(side):
            for c in range(side):
                window = (slice(r * stride, r * stride + patch), slice(c * stride, c * stride + patch))
                # The patch takes its pixels' part from each logit and gives its own.
                missing = (weights * images[i, 0])[:, window[0], window[1]].sum((1, 2))
                given = colour * weights[:, window[0], window[1]].sum((1, 2))
                logits = model(images[i : i + 1])[0].detach() - missing + given
                assert found.probability[i, r, c] == pytest.approx(
                    float(logits.softmax(0)[labels[i]]), abs=1e-5
                )
                assert found.predicted[i, r, c] == int(logits.argmax())


def test_a_patch_that_does_not_fit() -> None:
    with pytest.raises(UserError, match="4 × 4"):
        occluded(Linear(classes=2), torch.zeros(1, 1, 4, 4), torch.tensor([0]), 5, 1, 0.0, 4)


def test_every_figure(cli: Cli, tmp_path: Path) -> None:
    small = ("--steps", "2", "--stride", "9")
    answer = cli("figures", "mnist_cnn", *small, "--out", str(tmp_path / "f"), "--json")
    assert answer.code == 0
    document = answer.json
    assert [figure["figure"] for figure in document["figures"]] == list(FIGURES)
    assert document["left_out"] == {}
    for name in FIGURES:
        written = (tmp_path / "f" / f"mnist_cnn-{name}.png").read_bytes()
        assert written.startswith(PNG)
        assert f"mnist_cnn {name} (" in answer.err
    assert not list((tmp_path / "f").glob("*.partial"))


@pytest.mark.parametrize("form", ["png", "svg"])
def test_the_same_figure_has_the_same_bytes(form: str, tmp_path: Path) -> None:
    written = []
    for attempt in ("a", "b"):
        (tmp_path / attempt).mkdir()
        path = tmp_path / attempt / f"mnist_cnn-logit_ascent.{form}"
        save(FIGURES["logit_ascent"].draw(Study("mnist_cnn", steps=3)), path, form)
        written.append(path.read_bytes())
    assert written[0] == written[1]
    other = tmp_path / f"mnist_cnn-logit_ascent.{form}"
    save(FIGURES["logit_ascent"].draw(Study("mnist_cnn", steps=3, seed=1)), other, form)
    assert other.read_bytes() != written[0]
    if form == "svg":
        ElementTree.fromstring(written[0])


def test_drawing_leaves_the_network_and_the_generators_alone() -> None:
    study = Study("mnist_bnn", steps=2)
    network = study.network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    for name in ("logit_ascent", "feature_maps"):
        FIGURES[name].draw(study)
    assert (torch.rand(1), np.random.rand()) == expected
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network.training


def test_one_image_of_each_class_that_the_model_has_right() -> None:
    shown = Study("mnist_cnn").one_each
    assert shown.labels.tolist() == list(range(10))
    assert shown.predicted.tolist() == list(range(10))
    assert Study("mnist_cnn", seed=1).one_each.images.ne(shown.images).any()


def test_classes_go_by_their_names() -> None:
    figure = FIGURES["confusion"].draw(Study("cifar_cnn@crop"))
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()][:3] == [
        "airplane",
        "automobile",
        "bird",
    ]
    shown = Study("cifar_cnn@crop").one_each
    figure = FIGURES["ink_target"].draw(Study("cifar_cnn@crop", steps=1))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == said("airplane", "airplane", shown.confidence[0])
    assert titles[20].startswith("to automobile:\ncalled ")
    assert said("3", "-", 0.5) == "3, called - (0.50)", "short ones share a line"


def test_curves_have_the_batch_norm_peer() -> None:
    def legend(name: str) -> str:
        figure = FIGURES["curves"].draw(Study(name))
        return " ".join(text.get_text() for text in figure.legends[0].get_texts())

    assert "mnist_cnn_bn" in legend("mnist_cnn")
    assert "mnist_cnn," in legend("mnist_cnn_bn")
    assert "bn" not in legend("mnist_cnn@pgd_at").replace("mnist_cnn@pgd_at", "")


def test_figures_that_a_model_cannot_have_are_left_out(cli: Cli, tmp_path: Path, linear_file: str) -> None:  # noqa: F811
    wanted = "curves,filters,feature_maps,predictions"
    answer = cli("figures", linear_file, "--only", wanted, "--out", str(tmp_path / "f"), "--format", "svg")
    assert answer.code == 0
    for name in ("curves", "filters", "feature_maps"):
        assert f"{name} left out: " in answer.err
    assert [path.suffix for path in (tmp_path / "f").iterdir()] == [".svg"]
    nothing = cli("figures", linear_file, "--only", "filters", "--out", str(tmp_path / "f"))
    assert nothing.code == 2
    assert "has no convolution" in nothing.err


def test_images_in_colour() -> None:
    """Three channels, as the colour datasets have: drawn as they are, and differences around grey."""
    from bench.figures.draw import change, mosaic, panels, picture, tiled

    figure, ((first, second, third),) = panels("title", "caption", [1.0], 3)
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    picture(first, image)
    change(second, image * 0, 1.0)
    tiles = image.permute(1, 2, 0).expand(1, 2, 8, 8, 3).numpy()
    tiled(third, tiles, ["a"], ["b", "c"])
    assert np.array_equal(first.images[0].get_array(), image.permute(1, 2, 0).numpy())
    assert (np.asarray(second.images[0].get_array()) == 0.5).all()
    assert mosaic(tiles).shape == (8, 17, 4)
    assert mosaic(tiles)[:, 8, 3].max() == 0, "the gap is see-through"
    figure.canvas.draw()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "mnist_bnn"),
        (("mnist_cm",), "mnist_cnn"),
        (("mnist_cnn", "--only", "oclusion"), "did you mean occlusion"),
        (("mnist_cnn", "--layer", "conv9"), "conv1, conv2, fc1, fc2"),
        (("mnist_cnn", "--colour", "blue"), "black, grey, white"),
        (("mnist_cnn", "--colour", "1.5"), "from 0 to 1"),
        (("mnist_cnn", "--classes", "0,12"), "'12'"),
        (("cifar_cnn@crop", "--classes", "0,ships"), "did you mean ship"),
        (("mnist_cnn", "--format", "gif"), "png, svg"),
        (("planted:noise",), "--eot"),
        (("mnist_cnn", "--stride", "0"), "--stride"),
    ],
)
def test_refusals(cli: Cli, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    answer = cli("figures", *words, "--out", str(tmp_path / "f"))
    assert answer.code == 2
    assert said in answer.complaint
    assert not (tmp_path / "f").exists()


def test_the_list_needs_no_model(cli: Cli) -> None:
    listed = cli("figures", "--list", "--json").json["figures"]
    assert [figure["figure"] for figure in listed] == list(FIGURES)


def test_a_randomised_model_draws_from_the_seed(tmp_path: Path, cli: Cli) -> None:
    words = ("figures", "mnist_cnn+gaussian0.5", "--eot", "2", "--only", "predictions", "--out")
    for folder in ("a", "b"):
        assert cli(*words, str(tmp_path / folder)).code == 0
    name = "mnist_cnn+gaussian0.5-predictions.png"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_layer_of_ones_choice() -> None:
    figure = FIGURES["filters"].draw(Study("mnist_bnn", layer="conv3"))
    assert "conv3: a tile per pair of channels" in [axes.get_title() for axes in figure.axes]
    drawn = np.asarray(figure.axes[1].images[0].get_array())
    weight = zoo.load("mnist_bnn").get_submodule("conv3").weight.detach()
    assert isinstance(zoo.load("mnist_bnn").get_submodule("conv3"), nn.Conv2d)
    assert np.allclose(drawn[:3, :3], weight[0, 0])
    assert np.allclose(drawn[4:7, 8:11], weight[1, 2])
