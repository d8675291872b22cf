"""What `bench show` tells of a model: layers, training, and what it makes of the test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.metrics import Estimate, rate
from bench.render.table import Table, number, setting, spread, times

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from zoo import Build

CURVE = 12
"""Lines of a training curve that are shown to people."""
CLASSES = 20
"""More classes than these, and people are shown the hardest ones instead of all."""
HARDEST = 10


@dataclass(frozen=True)
class Layer:
    """One module that computes something itself, or owns parameters."""

    name: str
    type: str
    kind: str
    """`conv`, `fc` or `other`."""
    shape: tuple[int, ...] | None
    """Of one sample's output, at the first call; None for a module that is never called."""
    parameters: int
    neurons: int
    """Activations of one sample, which convolutions and fully connected layers have."""


def layers(network: nn.Module, shape: Sequence[int]) -> list[Layer]:
    """The layers of a network for images of this shape (C, H, W), in their order.

    A parameter that several modules share counts for the first one.
    """
    import torch
    from torch import Tensor, nn
    from torch.nn.modules.conv import _ConvNd

    from attacks.models import frozen

    counted: set[int] = set()
    own: dict[str, int] = {}
    for name, module in network.named_modules():
        fresh = {id(p): p.numel() for p in module.parameters(recurse=False) if id(p) not in counted}
        counted |= set(fresh)
        if fresh or not any(True for _ in module.children()):
            own[name] = sum(fresh.values())
    modules = dict(network.named_modules())
    shapes: dict[str, tuple[int, ...]] = {}
    handles = []
    for name in own:

        def keep(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
            if isinstance(output, Tensor):
                shapes.setdefault(name, tuple(output.shape[1:]))

        handles.append(modules[name].register_forward_hook(keep))
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    try:
        with frozen(network), torch.no_grad():
            network(torch.zeros(1, *shape, device=device))
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for name, parameters in own.items():
        module = modules[name]
        kind = "conv" if isinstance(module, _ConvNd) else "fc" if isinstance(module, nn.Linear) else "other"
        size = shapes.get(name)
        neurons = 0 if kind == "other" or size is None else torch.Size(size).numel()
        found.append(Layer(name or "(the network)", type(module).__name__, kind, size, parameters, neurons))
    return found


def report(labels: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, Any]:
    """Accuracy, precision, recall, f1 and support per class, and the confusion matrix (true × predicted).

    Labels are (N,) int from 0; a prediction of -1, which no finite logits gave, counts as wrong and has no
    column. A ratio over nothing is None.
    """
    import numpy as np
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    every = np.arange(classes)
    scores = precision_recall_fscore_support(labels, predicted, labels=every, zero_division=np.nan)
    plain = [[None if np.isnan(value) else float(value) for value in column] for column in scores[:3]]
    return {
        "accuracy": rate(int((labels == predicted).sum()), len(labels)).as_dict(),
        "not_finite": int((predicted == -1).sum()),
        "classes": [
            {"class": c, "precision": p, "recall": r, "f1": f, "support": int(n)}
            for c, p, r, f, n in zip(range(classes), *plain, scores[3])
        ],
        "confusion": confusion_matrix(labels, predicted, labels=every).tolist(),
    }


def counts(found: Sequence[Layer]) -> dict[str, dict[str, int]]:
    """Parameters and neurons of the convolutions, the fully connected layers, the others, and all."""
    kinds = {kind: [layer for layer in found if layer.kind == kind] for kind in ("conv", "fc", "other")}
    return {
        kind: {what: sum(getattr(layer, what) for layer in chosen) for what in ("parameters", "neurons")}
        for kind, chosen in {**kinds, "total": found}.items()
    }


def describe(name: str, build: Build, data: str | None, eot: int | None, device: str) -> dict[str, Any]:
    """What `bench show --json` prints of a model: schema 1.

    `test` is None where the dataset's test images are not there; `manifest` where no weights are shipped, or
    others are used. `data` is the dataset's name, None for the model's own. Raises UserError for a model that
    cannot be built or judged.
    """
    import torch

    import zoo
    from adversarial_bench.hashing import file_digest, seed_of
    from attacks.api import default_batch
    from attacks.models import logits_of
    from bench.judge import read
    from bench.plan import settle
    from bench.runner import averaged, examine, load_data, load_model
    from zoo.cards import ModelError
    from zoo.datasets import DataError
    from zoo.registry import fingerprint, manifest

    card = zoo.card(name)
    dataset, build = settle([name], data, build)
    network = load_model(name, build, device)
    shipped = None
    if build.weights is None:
        with suppress(ModelError):
            shipped = manifest(name)
    model = averaged(name, build, device, eot)
    tested = None
    try:
        images, labels = load_data(dataset.name)
    except DataError as error:
        black = torch.zeros(1, *dataset.shape, device=device)
        flags = [*examine(name, build, black, dataset.classes, device, eot), f"not tested: {error}"]
    else:
        images = images.to(device)
        flags = examine(name, build, images[:50], dataset.classes, device, eot)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("show", name))  # for a model that draws
            predicted, _ = read(logits_of(model, images, default_batch(device)))
        tested = report(labels.numpy(), predicted, dataset.classes)
    found = layers(network, dataset.shape)
    return {
        "schema": 1,
        "model": name,
        "summary": card.summary,
        "source": card.source,
        "dataset": dataset.name,
        "shape": list(dataset.shape),
        "classes": [dataset.called(c) for c in range(dataset.classes)],
        "sha256": file_digest(Path(build.weights)) if build.weights else (shipped or {}).get("sha256"),
        "fingerprint": fingerprint(network),
        "layers": [asdict(layer) for layer in found],
        "counts": counts(found),
        "manifest": shipped,
        "test": tested,
        "flags": flags,
    }


def tables(described: Mapping[str, Any]) -> list[Table]:
    """A document of `bench show` for people."""
    manifest, tested = described["manifest"], described["test"]
    made = [*_layer_tables(described)]
    if manifest is not None:
        made += [recipe_table(described["model"], manifest), curve_table(described["model"], manifest)]
    if tested is not None:
        made += [_class_table(described), _confusion_table(described)]
    return [*made, _summary_table(described)]


def _layer_tables(described: Mapping[str, Any]) -> list[Table]:
    name, counts = described["model"], described["counts"]
    lines = tuple(
        (
            layer["name"],
            layer["type"],
            "–" if layer["shape"] is None else times(layer["shape"]) or "1",
            _grouped(layer["parameters"]),
            _grouped(layer["neurons"]),
        )
        for layer in described["layers"]
    )
    columns = ("layer", "type", "output", "parameters", "neurons")
    left = frozenset({"layer", "type", "output"})
    total = counts["total"]
    shares = tuple(
        (
            label,
            _grouped(counts[kind]["parameters"]),
            _share(counts[kind]["parameters"], total["parameters"]),
            _grouped(counts[kind]["neurons"]),
            _share(counts[kind]["neurons"], total["neurons"]),
        )
        for kind, label in (
            ("conv", "convolutions"),
            ("fc", "fully connected"),
            ("other", "others"),
            ("total", "all"),
        )
        if kind != "other" or counts[kind]["parameters"]
    )
    heads = ("layers", "parameters", "of all %", "neurons", "of neurons %")
    note = "neurons: activations of one image in convolutions and fully connected layers"
    return [
        Table(f"{name} · layers", columns, lines, "output: channels × height × width of one image", left),
        Table(f"{name} · parameters and neurons", heads, shares, note, frozenset({"layers"})),
    ]


def _grouped(count: int) -> str:
    return f"{count:,}".replace(",", " ") if count else "–"


def _share(part: int, whole: int) -> str:
    return number(100 * part / whole) if whole else "–"


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's fields, or a network's arguments; those of an adversary by two words."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        inner = value if isinstance(value, Mapping) else None
        found |= {key: value} if inner is None else {f"{key} {part}": each for part, each in inner.items()}
    return found


def recipe_table(name: str, manifest: Mapping[str, Any]) -> Table:
    """How a network was trained, as its manifest records it."""
    lines = tuple(
        (key, setting(value)) for key, value in flat(manifest["recipe"]).items() if value is not None
    )
    note = f"the recipe again, the same bits each time on one machine, in one version: {manifest['command']}"
    return Table(f"{name} · training recipe", ("what", "value"), lines, note, frozenset({"what", "value"}))


def thinned(curve: Sequence[Mapping[str, Any]], lines: int = CURVE) -> list[Mapping[str, Any]]:
    """At most so many points of a curve, evenly spaced, the first and the last among them."""
    if len(curve) <= lines:
        return list(curve)
    return [curve[round(i * (len(curve) - 1) / (lines - 1))] for i in range(lines)]


def curve_table(name: str, manifest: Mapping[str, Any]) -> Table:
    """How a network learnt, as its manifest records it."""
    curve = manifest["curve"]
    kept = thinned(curve)
    lines = tuple(
        (
            str(e["epoch"]),
            f"{e['train_loss']:.4f}",
            number(100 * e["train_accuracy"]),
            f"{e['test_loss']:.4f}",
            number(100 * e["test_accuracy"]),
        )
        for e in kept
    )
    columns = ("epoch", "train loss", "train accuracy %", "test loss", "test accuracy %")
    hidden = "" if len(kept) == len(curve) else f"{len(kept)} of {len(curve)} epochs; --json has all"
    return Table(f"{name} · training curve", columns, lines, hidden)


def _labelled(described: Mapping[str, Any], label: int) -> str:
    """A class's number, and its name where it has one."""
    name = described["classes"][label]
    return str(label) if name == str(label) else f"{label} {name}"


def _class_table(described: Mapping[str, Any]) -> Table:
    name, found = described["model"], described["test"]["classes"]
    note = ""
    if len(found) > CLASSES:
        shown = [c for c in found if c["support"]]
        found = sorted(shown, key=lambda c: c["f1"] or 0.0)[:HARDEST]
        note = f"the {len(found)} of {len(described['classes'])} classes with the least f1; --json has all"
    lines = tuple(
        (
            _labelled(described, c["class"]),
            *("–" if c[what] is None else number(c[what], 4) for what in ("precision", "recall", "f1")),
            str(c["support"]),
        )
        for c in found
    )
    return Table(
        f"{name} · per class",
        ("class", "precision", "recall", "f1", "support"),
        lines,
        note,
        frozenset({"class"}),
    )


def _confusion_table(described: Mapping[str, Any]) -> Table:
    matrix = described["test"]["confusion"]
    title = f"{described['model']} · confusion"
    if len(matrix) > CLASSES:
        pairs = [(n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if n and i != j]
        worst = sorted(pairs, reverse=True)[:HARDEST]
        frequent = tuple((_labelled(described, i), _labelled(described, j), str(n)) for n, i, j in worst)
        note = f"the {len(worst)} most frequent of {len(pairs)} confusions; --json has the matrix"
        return Table(title, ("true", "called", "images"), frequent, note, frozenset({"true", "called"}))
    heads = tuple(map(str, range(len(matrix))))
    lines = tuple(
        (_labelled(described, i), *(str(n) if n else "·" for n in row)) for i, row in enumerate(matrix)
    )
    note = "rows: true class; columns: what it was called; images"
    return Table(title, ("true", *heads), lines, note, frozenset({"true"}))


def _summary_table(described: Mapping[str, Any]) -> Table:
    manifest, tested = described["manifest"], described["test"]
    lines = [
        ("what it is", described["summary"]),
        ("source", described["source"]),
        ("dataset", f"{described['dataset']}, images {times(described['shape'])}"),
        ("parameters", _grouped(described["counts"]["total"]["parameters"])),
        ("weights, SHA-256", described["sha256"] or "–"),
        ("structure and weights", described["fingerprint"]),
    ]
    if tested is not None:
        accuracy = Estimate(**tested["accuracy"])
        shown = Estimate(100 * accuracy.value, 100 * accuracy.low, 100 * accuracy.high, accuracy.n)
        lines.append(("test accuracy %, now", f"{spread(shown)} on {accuracy.n} images"))
        if tested["not_finite"]:
            lines.append(("no finite answer", f"{tested['not_finite']} images, counted as wrong"))
    if manifest is not None:
        stated = f"{100 * manifest['test_accuracy']:.2f} on {manifest['test_images']} images"
        lines.append(("test accuracy %, manifest", stated))
    note = "; ".join(described["flags"])
    return Table(described["model"], ("what", "value"), tuple(lines), note, frozenset({"what", "value"}))
